"""Faults around a run: full and read-only disks, lost folders and processes, damaged data, NaN, signals, no locale.

The run ends with exit code 2 and one line, or recovers; what was saved is kept, so that the same command, once the
fault is gone, ends as an undisturbed run does.
"""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from modules.build import METHODS
from tests.campaign import share_of
from tests.campaign.scenarios import SCENARIOS, check_same, check_whole, files_in
from tests.support.agents import children
from tests.support.inputs import videos
from tests.support.tiny import ROOT

pytestmark = pytest.mark.campaign
MODES = ['animate', 'evaluate', 'reconstruction', 'prepare']
ALL = [name for name in SCENARIOS if name != 'export']


def trials(count, names=ALL):
    """Parametrisation by scenario and number of the trial."""
    return pytest.mark.parametrize('name, number', [(name, n) for name in names for n in range(share_of(count))])


def check_ended(run, *codes):
    """The run ended with one of the exit codes, with one line for the user from each process at most; its output."""
    text = run.text()
    assert run.code in codes and 'Traceback' not in text, f'code {run.code}: {text[-400:]}'
    assert run.code != 2 or 1 <= text.count('error: ') <= run.ranks, text[-400:]
    return text


def at(seconds, action):
    """`meanwhile` of a run: calls action(run) until it returns true, from so many CPU seconds on."""
    def look(run):
        if run.cpu_time() > seconds and action(run):
            run.meanwhile = None
    return look


@pytest.fixture
def output(tmp_path):
    """Where a run prints whose folder is full, or vanishes."""
    return tmp_path / 'output.txt'


def mount(*arguments):
    return subprocess.run(['mount', *map(str, arguments)], capture_output=True).returncode == 0


@pytest.fixture
def small_disk(scenarios):
    """Call it with a size in bytes: an empty folder on a disk of that size. Mounting takes the superuser."""
    def make(size):
        folder = scenarios.fresh()
        if not mount('-t', 'tmpfs', '-o', f'size={int(size)}', 'tmpfs', folder):
            pytest.skip('mounting a disk is not allowed')
        return folder
    yield make
    subprocess.run(['umount', '-l', scenarios.folder / 'trial'], capture_output=True)


@trials(4)
def test_a_full_disk_is_one_line_and_the_same_command_ends_the_run(name, number, rng, scenarios, small_disk, output):
    wanted, _, _ = scenarios.reference(name)
    size = sum(-(-path.stat().st_size // 4096) * 4096 for path in wanted.rglob('*') if path.is_file())
    folder = small_disk(max(size * rng.uniform(0.05, 0.9), 4096))
    run = scenarios.run(name, folder, output=output).end()
    if run.code == 0:
        return                                                  # it had room
    check_ended(run, 2)
    check_whole(folder, wanted)
    mount('-o', 'remount,size=1g', folder)
    scenarios.finish(name, folder, 'with room again')


@trials(2)
def test_a_write_that_fails_half_way_leaves_no_incomplete_file(name, number, rng, scenarios, output):
    wanted, _, _ = scenarios.reference(name)
    size = int(max(path.stat().st_size for path in files_in(wanted).values()) * rng.uniform(0.1, 0.9))
    folder = scenarios.fresh()
    check_ended(scenarios.run(name, folder, output=output, prepare=lambda rank: resource.setrlimit(
        resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))).end(), 2)
    check_whole(folder, wanted)
    scenarios.finish(name, folder, 'without the limit')


@trials(1)
def test_a_read_only_disk_is_one_line(name, number, scenarios, small_disk, output):
    mount('-o', 'remount,ro', folder := small_disk(2 ** 20))
    check_ended(scenarios.run(name, folder, output=output).end(), 2)


@trials(4, ['train-adversarial', *MODES])
def test_an_output_folder_that_vanishes_is_made_again_or_reported(name, number, rng, scenarios, output):
    (_, cpu, _), folder = scenarios.reference(name), scenarios.fresh()

    def remove(run):
        for path in folder.iterdir():
            shutil.rmtree(path, ignore_errors=True)
    check_ended(scenarios.run(name, folder, output=output, meanwhile=at(rng.random() * cpu, remove)).end(), 0, 2)


@trials(10, ['train-adversarial'])
def test_clips_that_are_damaged_while_training_reads_them(name, number, rng, scenarios):
    folder = scenarios.fresh()
    for part, people in (('train', 'abcdef'), ('test', 'xy')):
        (folder / 'data' / part).mkdir(parents=True)
        for person in people:
            (folder / 'data' / part / f'{person}#clip.mp4').write_bytes(videos()[0][1])

    def damage(run):
        if not (folder / 'run' / 'log.jsonl').is_file():
            return False
        for path in rng.sample(sorted((folder / 'data' / 'train').glob('*')), 2):
            rng.choice((lambda: os.truncate(path, path.stat().st_size // 2), lambda: path.write_bytes(b''),
                        lambda: path.write_text('no video'), path.unlink))()
        return True
    check_ended(scenarios.run(name, folder, f'dataset_params.root_dir={folder / "data"}',
                              'train_params.num_iterations=30', meanwhile=at(0, damage)).end(), 0, 2)


@trials(20, ['train-motion'])
def test_of_a_damaged_checkpoint_the_one_before_is_used(name, number, rng, scenarios):
    (wanted, _, _), folder = scenarios.reference(name), scenarios.fresh()
    shutil.copytree(wanted / 'run', folder / 'run')
    checkpoints = sorted((folder / 'run' / 'checkpoints').glob('*.pt'))
    checkpoints.pop().unlink()
    data = bytearray(checkpoints[-1].read_bytes())
    place = rng.randrange(len(data))
    data[place] ^= 1 << rng.randrange(8)                        # which may be a byte that nobody reads
    checkpoints[-1].write_bytes(rng.choice((data, data, data, data[:place], b'')))
    check_ended(scenarios.run(name, folder).end(), 0)
    check_same(folder, wanted)


@pytest.mark.parametrize('number', range(share_of(5)))
@pytest.mark.parametrize('where', ['loss', 'gradient'])
def test_both_processes_skip_a_step_that_is_not_finite_in_one(where, number, rng, scenarios):
    folder, steps, value = scenarios.fresh(), rng.sample(range(2, 9), 2), rng.choice((float('nan'), float('inf')))
    poisoned_rank = rng.randrange(2)

    def poison(rank):
        class Poisoned(METHODS['synergy'].model):
            calls = 0

            def forward(self, source, driving):
                generated = super().forward(source, driving)
                Poisoned.calls += self.training
                if self.training and rank == poisoned_rank and Poisoned.calls in steps:
                    if where == 'loss':
                        generated.losses['motion_code'] = generated.losses['motion_code'] * value
                    else:
                        generated.losses['motion_code'].register_hook(lambda gradient: gradient * value)
                return generated
        METHODS['synergy'] = METHODS['synergy']._replace(model=Poisoned)
    text = check_ended(scenarios.run('train-two-processes', folder, 'train_params.motion_iterations=0',
                                     prepare=poison).end(), 0)
    assert text.count('is not finite, skipped') == 2, text[-300:]
    state = torch.load(folder / 'run' / 'checkpoints' / '00000010.pt', weights_only=True)
    assert all(value.isfinite().all() for part in ('model', 'ema') for value in state[part].values())


@trials(10, ['train-two-processes', 'train-adversarial'])
def test_a_killed_process_ends_the_others(name, number, rng, scenarios):
    """One of two ranks, or a data loading process, which the kernel kills where memory is short."""
    (_, cpu, _), folder, victim = scenarios.reference(name), scenarios.fresh(), rng.randrange(2)

    def stab(run):
        found = run.pids[victim:victim + 1] if run.ranks > 1 else children(run.pids[0])
        if found:
            os.kill(rng.choice(found), signal.SIGKILL)
        return found
    run = scenarios.run(name, folder, meanwhile=at(rng.random() * cpu, stab)).end()
    if run.ranks == 1 or victim == 1:
        check_ended(run, 0, 2)
    scenarios.finish(name, folder, 'after a process was killed')


@trials(4)
def test_ctrl_c_once_or_twice_is_no_traceback(name, number, rng, scenarios):
    (wanted, cpu, _), folder, again = scenarios.reference(name), scenarios.fresh(), rng.random() < 0.3

    def interrupt(run):
        run.kill(signal.SIGINT)
        if again:
            time.sleep(0.05)
            run.kill(signal.SIGINT)
        return True
    check_ended(scenarios.run(name, folder, meanwhile=at(rng.random() * cpu, interrupt)).end(), 0, 130)
    check_whole(folder, wanted)
    assert scenarios.run(name, folder).end().code == 0
    for path in folder.glob('run/checkpoints/*.pt'):
        if not (wanted / path.relative_to(folder)).is_file():
            path.unlink()               # the one that Ctrl-C made it save
    check_same(folder, wanted)


@trials(1, [*MODES, 'animate-one', 'import'])
def test_a_closed_pipe_is_no_traceback(name, number, scenarios):
    def close(rank):
        reading, writing = os.pipe()
        os.dup2(writing, 1)
        os.close(reading)
        os.close(writing)
        sys.stdout = open(1, 'w', buffering=1, closefd=False)    # not as a file, which can seek
    check_ended(scenarios.run(name, scenarios.fresh(), prepare=close).end(), 0, 141)


@trials(1, ['train-adversarial', *MODES])
def test_a_clock_that_runs_backwards_changes_nothing(name, number, scenarios):
    def turn_back(rank):
        start, real = time.time(), time.time
        time.time = lambda: 2 * start - real() - 86400
    folder = scenarios.fresh()
    check_ended(scenarios.run(name, folder, prepare=turn_back).end(), 0)
    check_same(folder, scenarios.reference(name)[0])


SURROUNDINGS = {'locale': ({'LC_ALL': 'C', 'LANG': 'C'}, ()),
                'home': ({'HOME': '/proc/nowhere', 'XDG_CACHE_HOME': '/proc/nowhere'}, ()),
                'shared memory': ({}, ('unshare', '-m', 'sh', '-c',
                                       'mount -t tmpfs -o size=16k tmpfs /dev/shm && exec "$@"', 'sh'))}


@pytest.mark.parametrize('missing', SURROUNDINGS)
def test_training_without(missing, scenarios):
    """In an interpreter of its own; without shared memory it may be refused."""
    variables, before = SURROUNDINGS[missing]
    folder, run = scenarios.fresh(), scenarios.run('train-adversarial', scenarios.fresh())
    done = subprocess.run([*before, sys.executable, ROOT / 'run.py', *map(str, run.arguments)], cwd=folder, text=True,
                          env=os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)} | variables,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode in ((0, 2) if before else (0,)) and 'Traceback' not in done.stdout, done.stdout[-400:]
    if done.returncode == 0:
        check_same(folder, scenarios.reference('train-adversarial')[0])


@pytest.mark.parametrize('name, key', [(name, key) for name, command in SCENARIOS.items()
                                       for key in re.findall(r'{(\w+)}', command)])
def test_inputs_that_are_missing_folders_or_empty_are_one_line(name, key, scenarios, tmp_path):
    suffix = Path(scenarios.inputs[key]).suffix
    (tmp_path / 'folder').mkdir()
    (tmp_path / f'empty{suffix}').touch()
    for instead in (tmp_path / f'missing{suffix}', tmp_path / 'folder', tmp_path / f'empty{suffix}',
                    f'{tmp_path}/a\x01b{suffix}', tmp_path / ('x' * 300 + suffix)):
        check_ended(scenarios.run(name, scenarios.fresh(), instead={key: instead}).end(), 2)
