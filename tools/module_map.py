"""Generator of docs/modules.md, the list of all modules, from the first lines of their docstrings.

    python -m tools.module_map
"""

import ast
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / 'docs' / 'modules.md'
LEFT_OUT = ('tests', 'benchmarks')


def modules():
    """Paths of all modules relative to the repository, those of the root first, then folder by folder."""
    folders = {path.parent for path in ROOT.glob('*/*.py') if path.parent.name not in LEFT_OUT}
    paths = [*ROOT.glob('*.py'), *(path for folder in folders for path in folder.rglob('*.py'))]
    return sorted((path.relative_to(ROOT) for path in paths if path.name != '__init__.py'),
                  key=lambda path: (path.parent, path))


def page():
    """The text of docs/modules.md."""
    lines = ['# Modules', '', 'Made of the first lines of their docstrings by `python -m tools.module_map`.']
    for folder, paths in groupby(modules(), key=lambda path: path.parent):
        lines += ['', f'## {folder.as_posix()}/' if folder.parts else '## The root', '']
        for path in paths:
            docstring = ast.get_docstring(ast.parse((ROOT / path).read_text(encoding='utf-8'))) or ''
            lines.append(f'- `{path.as_posix()}`: {docstring.partition(chr(10))[0]}')
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    PAGE.write_text(page(), encoding='utf-8')
