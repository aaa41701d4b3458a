"""Structure: imports point downwards, docs list all modules, code is short, ruff is silent."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.support.tiny import ROOT
from tools import module_map

# From the ground up; folders and files of one line do not import each other.
FLOORS = (('support',), ('modules', 'datasets'), ('config', 'metrics', 'visualizer'), ('motion',), ('inference',),
          ('logger', 'evaluation', 'validation'), ('load', 'resume'),
          ('train', 'reconstruction', 'animate', 'tools', 'figures'), ('animate_pairs', 'web'), ('modes',),
          ('run',))
PLACES = [place for floor in FLOORS for place in floor]
FILES = sorted(path.relative_to(ROOT) for place in PLACES
               for path in ([ROOT / f'{place}.py'] if (ROOT / f'{place}.py').is_file()
                            else (ROOT / place).rglob('*.py')))
MODULES = [path for path in FILES if path.name != '__init__.py']
LINES_OF_A_FILE, LINES_OF_A_FUNCTION, PARAMETERS = 400, 60, 8
OTHERS = sorted(path.relative_to(ROOT) for place in ('tests', 'benchmarks') for path in (ROOT / place).rglob('*.py'))


@cache
def nodes(path):
    """All nodes of the syntax tree of a file below ROOT."""
    return list(ast.walk(ast.parse((ROOT / path).read_text(encoding='utf-8'))))


def imported(path):
    """The top-level places of this project, and of tests and benchmarks, that a module imports anywhere in it."""
    for node in nodes(path):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name.partition('.')[0] for name in names)


@pytest.mark.parametrize('path', MODULES, ids=str)
def test_imports_point_downwards(path):
    own = path.parts[0].removesuffix('.py')
    floor = next(i for i, places in enumerate(FLOORS) if own in places)
    below = {own, *(place for places in FLOORS[:floor] for place in places)}
    assert {name for name in imported(path) if name in (*PLACES, 'tests', 'benchmarks')} <= below


def source_of(module):
    """Path of a module of this project, tests and benchmarks included; None for others, and for folders."""
    path = Path(f'{module.replace(".", "/")}.py')
    return path if (ROOT / path).is_file() else None


@cache
def names_of(path):
    """All names that a module defines, imports or uses: enough to notice what is gone, as ruff sees to the uses."""
    return {getattr(node, part, None) for node in nodes(path) for part in ('name', 'asname', 'id')}


def test_what_is_imported_is_there():
    """Also where no test goes: in benchmarks, and behind packages that are not installed."""
    absent = []
    for path in [*FILES, *OTHERS]:
        for node in nodes(path):
            source = source_of(node.module) if isinstance(node, ast.ImportFrom) and node.module else None
            absent += [f'{path}: {node.module}.{alias.name}' for alias in (node.names if source else ())
                       if alias.name not in names_of(source)]
    assert not absent


def test_all_python_files_have_a_floor():
    top = {path.stem for path in ROOT.glob('*.py')} | {path.parts[-2] for path in ROOT.glob('*/*.py')}
    assert top - {'tests', 'benchmarks'} == set(PLACES)


def test_the_list_of_modules_is_current_and_every_module_says_what_it_is():
    assert set(module_map.modules()) == set(MODULES)
    text = module_map.PAGE.read_text(encoding='utf-8')
    assert text == module_map.page(), 'make it anew: python -m tools.module_map'
    assert not [line for line in text.splitlines() if line.startswith('- ') and not line.endswith('.')]


def too_large(path):
    """What of a file is too long to be read at once: its lines, its functions, their parameters."""
    if (lines := (ROOT / path).read_text(encoding='utf-8').count('\n')) > LINES_OF_A_FILE:
        yield f'{path}: {lines} lines'
    for node in nodes(path):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            name = f'{path}:{node.lineno}: {getattr(node, "name", "lambda")}'
            parameters = sum(isinstance(part, ast.arg) for part in ast.walk(node.args))
            if (lines := node.end_lineno - node.lineno + 1) > LINES_OF_A_FUNCTION:
                yield f'{name} has {lines} lines'
            if parameters > PARAMETERS:
                yield f'{name} has {parameters} parameters'


def test_files_functions_and_signatures_are_short():
    sized = {*MODULES, *(path for path in OTHERS if path.parts[0] == 'benchmarks')}
    assert not [line for path in sorted(sized) for line in too_large(path)]


def test_benchmarks_use_no_tests_and_tests_share_helpers_through_support_alone():
    texts = {path.as_posix(): (ROOT / path).read_text(encoding='utf-8') for path in OTHERS}
    assert not [name for name, text in texts.items() if re.search(r'^\s*(?:from|import) tests\.test_', text, re.M)
                or name.startswith('benchmarks') and re.search(r'^\s*(?:from|import) tests', text, re.M)]


def test_the_linter_is_content():
    found = subprocess.run([sys.executable, '-m', 'ruff', 'check', '--no-cache', '.'], cwd=ROOT, capture_output=True,
                           text=True)
    assert found.returncode == 0, found.stdout
