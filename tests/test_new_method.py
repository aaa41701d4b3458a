"""docs/add-a-method.md: the method of that page runs in every mode."""

import sys
import types

import pytest

from modules import build
from tests.support import docs
from tests.support.command_line import refused, succeeds

PAGE = docs.ROOT / 'docs' / 'add-a-method.md'


@pytest.fixture
def config(tmp_path, monkeypatch):
    networks, line = docs.blocks(PAGE, 'python')
    module = types.ModuleType('modules.toy')
    monkeypatch.setitem(sys.modules, module.__name__, module)        # where dataclasses look up annotations
    exec(networks, vars(module))
    monkeypatch.setitem(build.METHODS, 'toy', None)                  # is removed after the test
    exec(line, dict(vars(build)))
    path = tmp_path / 'toy.yaml'
    path.write_text(docs.blocks(PAGE, 'yaml')[0])
    return path


def test_a_new_method_runs_in_every_mode(config, tmp_path, capsys):
    for mode in ('train', 'reconstruction', 'animate', 'inspect'):
        succeeds(capsys, '--mode', mode, '--config', config, '--log_dir', tmp_path / 'log', '--device', 'cpu')
    folder = tmp_path / 'log' / 'toy'
    assert (folder / 'checkpoints' / '00000003.pt').is_file() and list((folder / 'pictures').glob('*.png'))
    assert (folder / 'reconstruction' / 'metrics.json').is_file()
    assert list((folder / 'animation').glob('*.mp4'))
    assert {path.name for path in (folder / 'inspect').glob('*.png')} == {
        '01-motion.png', '01-coarse.png', '02-motion.png', '02-coarse.png'}


def test_a_method_without_coarse_flow_has_no_motion_iterations(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.modules['modules.toy'].Toy, 'has_coarse_flow', False)
    assert 'method toy has no coarse flow' in refused(
        capsys, '--mode', 'train', '--config', config, '--log_dir', tmp_path / 'log', '--device', 'cpu', '--set',
        'train_params.motion_iterations=1', logged=True)
