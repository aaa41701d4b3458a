"""The campaigns of benchmarks/campaign, seconds of each; and every input that ever failed, small ones, in corpus/."""

import errno
import json
import os
import random
import resource
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import run
from benchmarks.campaign import fuzz, material, runner, weightfiles
from benchmarks.campaign.__main__ import CAMPAIGNS
from benchmarks.campaign.kill import steps_of
from benchmarks.campaign.runner import Failure, Kind, run_campaign
from datasets import loader
from datasets.still import read_image
from evaluation.store import Store
from logger import RunFolder, read_checkpoint
from motion import template as motion_template
from modules.build import build_model
from support.errors import LONGEST, UserError, one_line
from support.files import UNFINISHED, make_folder, written_whole
from support.weights import load_optimizer, load_weights
from tests.support.tiny import ROOT
from visualizer import save_png

CORPUS = sorted(path for path in (Path(__file__).parent / 'corpus').rglob('*') if path.is_file())


# ---------------------------------------------------------------------------- the runner

def test_a_campaign_goes_on_and_names_the_command_that_repeats_a_failure(tmp_path, capsys):
    made = []

    def trial(number, rng, work):
        made.append((number, rng.random()))
        if number == 1:
            raise Failure('it broke')
        return 'right'
    kinds = {'a': Kind(3, trial)}
    report = run_campaign('x', kinds, tmp_path, trials=2)
    assert [number for number, _ in made] == [0, 1]
    assert report['kinds']['a'] == report['kinds']['a'] | {'planned': 3, 'tried': 2, 'survived': 1}
    run_campaign('x', kinds, tmp_path)
    assert [number for number, _ in made] == [0, 1, 2]
    run_campaign('x', kinds, tmp_path, only=['a/1'])
    assert made[-1] == made[1]                        # the same random numbers
    text = (tmp_path / 'x-0' / 'report.md').read_text()
    assert 'a/1: it broke' in text and 'python -m benchmarks.campaign x --seed 0 --only a/1' in text


def test_a_budget_that_is_spent_begins_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(runner.time, 'monotonic', iter(range(0, 1000, 61)).__next__)
    assert run_campaign('x', {'a': Kind(3, lambda *_: None)}, tmp_path, minutes=1)['kinds']['a']['tried'] == 0


def test_killed_disturbed_and_long_runs_from_the_command_line(tmp_path):
    """One trial of a few kinds of kill, faults and soak; they fork, so in a process of their own."""
    done = subprocess.run([sys.executable, '-m', 'benchmarks.campaign', 'all', '--out', str(tmp_path), '--trials', '1',
                           '--scale', '0.04', '--only', 'import', 'broken-pipe', 'prepare'], cwd=ROOT, text=True,
                          capture_output=True, env=os.environ | {'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    reports = {name: json.loads((tmp_path / f'{name}-0' / 'report.json').read_text()) for name in CAMPAIGNS}
    tried = {name: {kind for kind, row in report['kinds'].items() if row['tried']} for name, report in reports.items()}
    assert tried == {'kill': {'import', 'prepare'}, 'faults': {'broken-pipe'}, 'soak': {'prepare'}, 'fuzz': set()}


# ---------------------------------------------------------------------------- fuzz

@pytest.mark.parametrize('kind, count', [(kind, 12) for kind in fuzz.INPUTS if kind != 'config']
                         + [('config', 3), ('set', 3), ('checkpoint', 6), ('resume', 3), ('published', 6)])
def test_damaged_inputs_are_read_right_or_refused(tmp_path, kind, count):
    for number in range(count):
        assert fuzz.CASES[kind](number, random.Random(f'short {kind} {number}'), tmp_path)


@pytest.mark.parametrize('path', CORPUS, ids=lambda path: f'{path.parent.name}-{path.name}')
def test_inputs_that_once_failed(tmp_path, path):
    """corpus/KIND/NAME"""
    copy = tmp_path / f'case{path.suffix}'
    copy.write_bytes(path.read_bytes())
    assert fuzz.INPUTS[path.parent.name].read(copy, tmp_path)


def test_a_failure_of_a_child_process_is_a_failure(tmp_path):
    isolated = fuzz.Isolated('tests.test_campaign', memory=2 ** 30)
    assert isolated('number', 7, random.Random(0), tmp_path) == 7
    for kind, why in (('memory', 'more than 1 GiB of memory'), ('end', 'ended with code 3'), ('bug', 'KeyError at ')):
        with pytest.raises(Failure, match=why):
            isolated(kind, 0, random.Random(0), tmp_path)
    isolated.close()


def _end(*_):
    import os
    os._exit(3)


CASES = {'number': lambda number, rng, folder: number, 'memory': lambda *_: b'x' * 2 ** 31,
         'end': _end, 'bug': lambda *_: {}['x']}          # of the test above, in its child process


# ---------------------------------------------------------------------------- what the campaigns found

def test_a_template_with_a_large_member_that_is_no_array_is_refused_in_few_words(tmp_path):
    """Its bytes were quoted, gigabytes of them."""
    path = tmp_path / 'x.npz'
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr('format.npy', bytes(10 ** 6))
    with pytest.raises(UserError, match='not all of it are arrays') as refused:
        motion_template.load(path, build_model(material.smallest()))
    assert len(str(refused.value)) < 500


def test_a_jpeg_of_absurd_size_is_refused_before_it_is_decoded(tmp_path):
    """torchvision would allot, and fill with grey, 10.8 GB."""
    path = tmp_path / 'x.jpg'
    path.write_bytes(fuzz.with_size(material.pictures()['.jpg'][0], 60_000, 60_000))
    with pytest.raises(UserError, match='x.jpg.*exceeds limit'):
        read_image(path)


def test_one_flipped_byte_of_a_checkpoint_is_noticed(tmp_path):
    """PyTorch itself reads it without a word."""
    whole, path = material.checkpoint(), tmp_path / 'x.pt'
    for place in range(1000, len(whole), len(whole) // 8):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1:])
        try:
            assert weightfiles.equal(read_checkpoint(path)['ema'], weightfiles.valid()[1])    # in what is not read
        except UserError as error:
            assert 'damaged' in str(error)


def test_the_newest_whole_checkpoint_is_found_and_a_run_without_any_is_not_begun_anew(tmp_path, caplog):
    run, whole = RunFolder(tmp_path), material.checkpoint()
    assert run.newest() is None
    (tmp_path / 'checkpoints' / '00000001.pt').write_bytes(whole)
    middle = len(whole) // 2
    broken = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1:]
    (tmp_path / 'checkpoints' / '00000002.pt').write_bytes(broken)
    assert run.newest()[0].name == '00000001.pt' and '00000002.pt: is cut short or damaged' in caplog.text
    (tmp_path / 'checkpoints' / '00000001.pt').write_bytes(broken)
    with pytest.raises(UserError, match='all 2 checkpoints are damaged'):
        run.newest()


def test_messages_are_one_line_whatever_they_quote():
    assert one_line(UserError('a\x0bb\u2028c\x1b[2J')) == 'a\\x0bb\\u2028c\\x1b[2J'
    assert len(one_line(UserError('x' * 10_000))) <= LONGEST
    assert one_line(UserError('Traceback ...\nsupport.errors.UserError: no clip\n')) == 'no clip'
    said = 'Caught MemoryError in a worker.\nTraceback (most recent call last):\n  File "x"\nMemoryError'
    assert one_line(MemoryError(said)) == 'MemoryError'


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    left, left_folder = (tmp_path / f'.{name}.1{UNFINISHED}' for name in ('a.pt', 'export'))
    left.write_text('half')
    left_folder.mkdir()
    (left_folder / 'x').touch()
    with written_whole(tmp_path / 'b.pt') as mine, written_whole(tmp_path / 'folder', folder=True) as folder:
        mine.write_text('whole')
        (folder / 'y').touch()
        make_folder(tmp_path)
        assert not left.exists() and not left_folder.exists() and mine.exists() and folder.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['b.pt', 'folder']


def test_a_folder_is_replaced_whole(tmp_path):
    for name in 'xy':
        with written_whole(tmp_path / 'export', folder=True) as folder:
            (folder / name).touch()
    assert [path.name for path in (tmp_path / 'export').iterdir()] == ['y']
    with pytest.raises(ValueError), written_whole(tmp_path / 'export', folder=True) as folder:
        raise ValueError
    assert [path.name for path in tmp_path.rglob('*')] == ['export', 'y']


def test_a_run_that_goes_on_drops_what_it_is_about_to_log_again(tmp_path):
    for last in (3, 5):
        run = RunFolder(tmp_path)
        run.rewind(last - 3)
        for step in range(last - 2, last + 1):
            run.scalars(step, {'total': float(step)})
        run.close()
    with open(tmp_path / 'log.jsonl', 'a') as file:
        file.write('{"step": 6, "tot')             # killed in the middle
    run.rewind(5)
    assert [json.loads(line)['step'] for line in (tmp_path / 'log.jsonl').read_text().splitlines()] == [1, 2, 3, 4, 5]
    assert [int(line.split()[0]) for line in (tmp_path / 'log.txt').read_text().splitlines()] == [1, 2, 3, 4, 5]
    assert steps_of(tmp_path / 'tensorboard') == {'loss/total': [1, 2, 3, 4, 5]}


def test_a_picture_of_which_the_disk_takes_only_a_part_is_none(tmp_path):
    """PIL writes to a path without a look at how many bytes were taken."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(UserError, match='x.png: cannot be written'):
            save_png(tmp_path / 'x.png', np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('call', [lambda run: run.scalars(1, {'total': 1.0}), lambda run: run.alarm(1, 'rule', 'text'),
                                  lambda run: run.save({'step': 1}, 1, keep=1)], ids=['scalars', 'alarm', 'save'])
def test_a_disk_that_is_full_is_said_in_one_line(tmp_path, monkeypatch, call):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    run = RunFolder(tmp_path)
    for target in ('builtins.open', 'os.open', 'torch.save'):
        monkeypatch.setattr(target, full)
    with pytest.raises(UserError, match='cannot be written .No space left on device'):
        call(run)


@pytest.mark.parametrize('weights', [3, True, None])
def test_weights_that_are_no_dict_are_refused(weights):
    with pytest.raises(UserError, match='x.pt: does not fit the model: its weights are a '):
        load_weights(torch.nn.Linear(2, 2), weights, 'x.pt')


@pytest.mark.parametrize('step', [torch.zeros(()).to_sparse(), torch.zeros((), dtype=torch.complex64), 3])
def test_an_optimiser_whose_step_is_no_plain_number_is_refused(step):
    """It was taken, and the first update ended in a traceback."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([parameter])
    moments = {'step': step, 'exp_avg': torch.zeros(2), 'exp_avg_sq': torch.zeros(2)}
    with pytest.raises(UserError, match='its optimiser is damaged'):
        load_optimizer(optimizer, {'state': {0: moments}}, 'x.pt')


def test_queues_that_do_not_fit_shared_memory_are_one_line(monkeypatch):
    def full():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr('multiprocessing.Queue', full)
    with pytest.raises(UserError, match=r'shared memory \(/dev/shm\) has no room .* train_params.num_workers=0'):
        loader.check_queues(2)
    loader.check_queues(0)


def test_scores_of_a_folder_that_vanishes_are_made_again_or_refused(tmp_path):
    store = Store.__new__(Store)
    store.folder = tmp_path / 'vanished'
    store.tidy([])


@pytest.mark.parametrize('number', run.ADVICE)
def test_what_the_system_refuses_anywhere_is_one_line(monkeypatch, capsys, number):
    def refused(arguments):
        raise OSError(number, os.strerror(number))
    monkeypatch.setattr(run, 'parse', refused)
    assert run.main(['--mode', 'train']) == 2
    assert capsys.readouterr().err == f'error: [Errno {number}] {os.strerror(number)}; {run.ADVICE[number]}\n'


def test_tensorboards_thread_ends_quietly_and_others_do_not(monkeypatch, capsys):
    """Its error is raised again by the next call; it printed a traceback besides."""
    monkeypatch.setattr('threading.excepthook', run.thread_ended)

    def end():
        raise OSError('disk full')
    theirs = type('Writer', (threading.Thread,), {'__module__': 'tensorboard.summary'})
    for kind, quiet in ((theirs, True), (threading.Thread, False)):
        thread = kind(target=end)
        thread.start()
        thread.join()
        assert ('Traceback' in capsys.readouterr().err) != quiet

