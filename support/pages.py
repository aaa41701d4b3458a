"""Pages: the project's name, which they all show, and Jinja2 templates."""

PROJECT = 'Talking Codebooks'


def fill(template, **values):
    """The text of a template (Path); its values must all be given, and are escaped in HTML. It may use `PROJECT`."""
    import jinja2  # slow to import
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(template.parent), trim_blocks=True,
                                     lstrip_blocks=True, autoescape='.html' in template.name,
                                     undefined=jinja2.StrictUndefined)
    return environment.get_template(template.name).render(PROJECT=PROJECT, **values)
