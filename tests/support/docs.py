"""Code blocks of Markdown pages."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md')),
         ROOT / 'benchmarks' / 'README.md', ROOT / 'weights' / 'README.md']


def blocks(page, language):
    """Texts of the fenced code blocks of `language`; '' for blocks without one."""
    fenced = re.findall(r'^( *)```(\w*)\n(.*?)^ *```$', page.read_text(encoding='utf-8'), re.M | re.S)
    return [re.sub(f'^{indent}', '', text, flags=re.M) for indent, name, text in fenced if name == language]


def commands(page):
    """Shell commands of a page without comments, one string each."""
    lines = '\n'.join(blocks(page, 'bash')).replace('\\\n', ' ').splitlines()
    lines = [re.sub(r'(^|\s)#.*', '', line).strip() for line in lines]
    return [line for line in lines if line]
