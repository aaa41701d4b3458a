"""Data loading processes outlast the signals that only the main process obeys, and end when it is gone."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support.tiny import ROOT
from tests.support.training import command, environment
from tests.support.video_files import encode

PROGRAM = '''
import os, signal, sys, time
from torch.utils.data import DataLoader, Dataset
from support.processes import loading_context, worker_start

class Processes(Dataset):
    def __len__(self):
        return 1000
    def __getitem__(self, i):
        time.sleep(0.05)
        return os.getpid()

if __name__ == '__main__':
    ignored = signal.SIGTERM, signal.SIGINT, signal.SIGUSR1
    for number in ignored:
        signal.signal(number, lambda *_: None)
    loader = iter(DataLoader(Processes(), num_workers=2, multiprocessing_context=loading_context(ignored),
                             worker_init_fn=worker_start(ignored)))
    print('starting', flush=True)
    for batch in loader:
        print(int(batch), flush=True)
'''


@pytest.fixture
def started(tmp_path):
    """A process that prints the ids of its two data loading processes, over and over."""
    (tmp_path / 'program.py').write_text(PROGRAM)
    process = subprocess.Popen([sys.executable, tmp_path / 'program.py'], stdout=subprocess.PIPE, text=True,
                               env={**os.environ, 'PYTHONPATH': str(ROOT)}, start_new_session=True)
    yield process
    process.kill()
    process.wait()


def test_signals_to_the_group_do_not_end_them(started):
    """Not even while they start."""
    started.stdout.readline()
    for _ in range(20):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.killpg(started.pid, number)
        time.sleep(0.02)
    first = {int(started.stdout.readline()) for _ in range(4)}
    os.killpg(started.pid, signal.SIGTERM)
    assert len(first) == 2 and {int(started.stdout.readline()) for _ in range(8)} == first


def test_they_end_with_the_process_that_started_them(started):
    started.stdout.readline()
    workers = {int(started.stdout.readline()) for _ in range(4)}
    started.kill()
    limit = time.monotonic() + 60
    while any(running(worker) for worker in workers):
        assert time.monotonic() < limit, 'they are still there'
        time.sleep(0.05)


def running(process):
    try:
        os.kill(process, 0)
        return True
    except ProcessLookupError:
        return False


TWO = sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2'


@pytest.mark.parametrize('workers, launcher, code', [(0, TWO[:1], 2), (1, TWO[:1], 2), (4, TWO[:1], 2), (4, TWO, 1)])
def test_they_end_with_training_that_fails(tmp_path, workers, launcher, code):
    """Of torchrun the code is 1, whatever that of the processes."""
    for partition in ('train', 'test'):
        (tmp_path / 'data' / partition).mkdir(parents=True)
    (tmp_path / 'data' / 'train' / 'id1#a#0#1.mp4').write_text('no video')
    encode(tmp_path / 'data' / 'test' / 'id2#b#0#1.mp4', count=4)
    ended = subprocess.run(
        command(tmp_path, f'dataset_params.root_dir={tmp_path}/data', f'train_params.num_workers={workers}',
                launcher=launcher), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120)
    assert 'error: no clip of the data set can be read' in ended.stderr, ended.stderr
    assert ended.returncode == code
