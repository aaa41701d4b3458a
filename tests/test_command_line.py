"""The front door: which mode reads which flag, refusals in one line, and nothing slow before the words are right."""

import re
import subprocess
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest

import run
from motion.settings import AnimationSettings, Motion
from tests.support.command_line import refused
from tests.support.tiny import ROOT

MODEL = {'reconstruction', 'animate', 'evaluate', 'inspect', 'export', 'doctor'}      # those that load one
TRAINING = {'train', 'demo'}
ANIMATE, EVALUATE, INSPECT, PREPARE, STUDY = {'animate'}, {'evaluate'}, {'inspect'}, {'prepare'}, {'study'}
COMPARE, WEB = {'compare'}, {'web'}

READERS = {flag: modes for flags, modes in (
    ('--mode', set(run.MODES)),
    ('--config', MODEL | TRAINING | {'import'}),
    ('--set', MODEL | TRAINING | STUDY | COMPARE | WEB | {'import'}),
    ('--log_dir --run_name', MODEL | TRAINING),
    ('--checkpoint', MODEL | WEB | {'train'}),
    ('--device', MODEL - {'export'} | TRAINING | STUDY | COMPARE | WEB),
    ('--resume', {'train'}),
    ('--source_image --driving_video', ANIMATE | INSPECT | COMPARE),
    ('--result_video --source_video --source_end --driving_motion --save_motion --face_index --paste_back '
     '--side_by_side --detail --background', ANIMATE),
    ('--relative --adapt_scale --find_best_frame --smooth', ANIMATE | STUDY | COMPARE),
    ('--absolute', ANIMATE | INSPECT | STUDY | COMPARE),
    ('--precision', ANIMATE | WEB),
    ('--crop --size', ANIMATE | PREPARE),
    ('--protocol --metrics --path_map --driving --source --resize', EVALUATE),
    ('--list --generated', EVALUATE | STUDY | COMPARE),
    ('--dataset --videos --metadata --download --format --workers --keep_shared_people --min_face --part --status',
     PREPARE),
    ('--checkpoints --pairs', STUDY | COMPARE),
    ('--checks --seed --collect', STUDY),
    ('--zoom --error --width_cm --pictures_only', COMPARE),
    ('--frames', INSPECT | COMPARE),
    ('--at --code_frames', INSPECT),
    ('--out', {'prepare', 'import', 'export', 'inspect', 'study', 'compare', 'pack'}),
    ('--from', {'import'}),
    ('--clips --shard_mb', {'pack'}),
    ('--json --gpus --gpu_memory --gpu-memory', {'doctor'}),
    ('--port --host --auth', WEB)) for flag in flags.split()}


def test_every_flag_and_the_modes_that_read_it():
    found = {}
    for mode in run.MODES:
        for flag in run.flags_of(mode):
            found.setdefault(flag, set()).add(mode)
    assert found == READERS


@pytest.mark.parametrize('mode', sorted(set(run.MODES) - {'demo'}))       # which hands its options to other modes
def test_every_flag_is_looked_at_by_the_code_of_its_mode(mode):
    parser, module = run.build_parser(mode)
    code = Path(module.__file__).read_text() + Path(import_module('modes.options').__file__).read_text()
    read = set(re.findall(r'options\.(\w+)', code))
    for settings in (AnimationSettings, Motion):
        read |= {field.name for field in fields(settings) if f'{settings.__name__}.of(options)' in code}
    assert {action.dest for action in parser._actions} - {'help', 'mode'} <= read


@pytest.mark.parametrize('flag', sorted(set(READERS) - {'--mode'}))
def test_an_unsupported_flag_is_refused_with_the_modes_that_accept_it(capsys, flag):
    for mode in set(run.MODES) - READERS[flag]:
        line = refused(capsys, '--mode', mode, flag, 'x')
        assert f'{flag}: not supported by --mode {mode}, only by ' in line
        assert set(line.partition('only by ')[2].split(', ')) == READERS[flag]
        assert refused(capsys, '--mode', mode, f'{flag}=x') == line


@pytest.mark.parametrize('arguments, message', [
    (['--mode', 'train', '--resume', 'log/x', '--config', ROOT / 'config/vox-256.yaml'], '--config is not read'),
    (['--mode', 'train', '--resume', 'log/x', '--checkpoint', 'model.pt'], '--checkpoint is not read with --resume'),
    (['--mode', 'animate', '--source_image', 'a', '--driving_video', 'b', '--absolute', '--adapt_scale'],
     '--adapt_scale is not read with --absolute'),
    (['--mode', 'animate', '--absolute', '--find_best_frame'], '--find_best_frame is not read with --absolute'),
    (['--mode', 'animate', '--checkpoint', 'x.pt', '--source_image', 'x', '--driving_video', 'y', '--result_video', 'z',
      '--run_name', 'ann'], '--run_name is not read with --checkpoint and --result_video'),
    (['--mode', 'animate', '--checkpoint', 'x.pt', '--driving_video', 'y', '--save_motion', 'z', '--log_dir', 'log'],
     '--log_dir is not read with --checkpoint and --save_motion'),
    (['--mode', 'inspect', '--checkpoint', 'x.pt', '--out', 'x', '--log_dir', 'log'],
     '--log_dir is not read with --checkpoint and --out'),
    (['--mode', 'export', '--checkpoint', 'x.pt', '--out', 'x', '--run_name', 'ann'],
     '--run_name is not read with --checkpoint and --out'),
    (['--mode', 'evaluate', '--checkpoint', 'x' * 300 + '.pt'], 'File name too long'),
    (['--mode', 'prepare', '--dataset', 'folder', '--videos', 'x' * 300], 'x' * 255),
    (['--mode', 'animate', '--size', '12x'], '--size 12x: expected pixels, or source'),
    (['--mode', 'animate', '--side_by_side'], '--side_by_side is not read without --source_image'),
    (['--mode', 'animate', '--result_video', 'x.mp4'], '--result_video is not read without --source_image'),
    (['--mode', 'animate', '--driving_video', 'a', '--save_motion', 'b', '--result_video', 'c'],
     '--result_video is not read without a source'),
    (['--mode', 'animate', '--source_image', 'a', '--driving_video', 'b', '--source_end', 'hold'],
     '--source_end is not read without --source_video'),
    (['--mode', 'evaluate', '--generated', 'a', '--driving', 'b', '--checkpoint', 'x'],
     '--checkpoint is not read with --generated'),
    (['--mode', 'evaluate', '--generated', 'a', '--driving', 'b', '--path_map', 'x'],
     '--path_map is not read with --generated'),
    (['--mode', 'evaluate', '--resize', '64'], '--resize is not read without --generated'),
    (['--mode', 'study', '--collect', 'x.json', '--generated', 'A=a'], '--generated is not read with --collect'),
    (['--mode', 'study', '--generated', 'A=a', 'B=b', '--absolute'], '--absolute is not read without --checkpoints'),
    (['--mode', 'prepare', '--dataset', 'folder', '--videos', 'x', '--keep_shared_people'],
     '--keep_shared_people is not read with --dataset folder'),
    (['--mode', 'prepare', '--status', '--out', 'x', '--part', '1/2'], '--part is not read with --status'),
])
def test_flags_that_another_one_makes_useless_are_refused(capsys, arguments, message):
    assert message in refused(capsys, *arguments)


def test_names_that_are_wrong(capsys):
    assert 'there is no --mode anmate; did you mean animate?' in refused(capsys, '--mode', 'anmate')
    assert 'known: train, ' in refused(capsys, '--mode', 'xyz')
    assert 'no flag --protcol; did you mean --protocol?' in refused(capsys, '--mode', 'evaluate', '--protcol', 'x')
    assert 'did you mean' in refused(capsys, '--config', ROOT / 'config/vox-265.yaml')
    assert 'unrecognized arguments: stray' in refused(capsys, '--mode', 'train', 'stray')
    assert '--smooth: invalid float' in refused(capsys, '--mode', 'animate', '--smooth', 'much')


def test_no_torch_before_the_words_are_right():
    """Fresh interpreters: what help and mistakes import."""
    code = """
import sys
import run
calls = [['--help'], ['--mode', 'trian'], ['--config', 'nowhere.yaml'], ['--protocol', 'x'], ['--nonsense'],
         ['--mode', 'animate', '--source_image', 'x']]
assert [run.main(call) for call in calls] == [0, 2, 2, 2, 2, 2]
for mode in run.MODES:
    try:
        run.main(['--mode', mode, '--help'])
    except SystemExit as end:
        assert end.code == 0
print(sorted({'torch', 'numpy', 'av', 'yaml'} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == '[]'
    assert all(f'--mode {mode}' in done.stdout for mode in run.MODES)
