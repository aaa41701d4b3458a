"""HTML pages: the project's name, which they all show, and Jinja2 templates."""

PROJECT = 'Talking Codebooks'


def fill(template, **values):
    """The text of a template (Path), whose values are escaped and must all be given; it may use `PROJECT`."""
    import jinja2  # slow to import
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(template.parent), autoescape=True,
                                     trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.get_template(template.name).render(PROJECT=PROJECT, **values)
