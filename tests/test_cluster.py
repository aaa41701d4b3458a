"""Many machines: one that is lost comes back, none waits for ever; data loading processes end with training."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.agents import Agents, children, in_two_processes, run_in_two_processes
from tests.support.command_line import refused
from tests.support.tiny import ROOT
from tests.support.training import (
    LIGHT, TORCHRUN, assert_bit_equal, command, environment, final, wait_for, without_gloo)
from tests.support.video_files import encode

STEPS = 6
OPTIONS = [f'train_params.num_iterations={STEPS}', 'train_params.save_every=1', 'train_params.val_every=100',
           'train_params.num_workers=1', 'train_params.keep_checkpoints=20', 'train_params.motion_iterations=2',
           'model_params.appearance_codebook_params.revive_after=2', *LIGHT]


def test_a_machine_that_is_lost_and_comes_back_and_a_signal_to_one_process_change_nothing(tmp_path):
    """The signal saves and ends all processes."""
    undisturbed, disturbed = tmp_path / 'undisturbed', tmp_path / 'disturbed'
    run_in_two_processes(*command(undisturbed, *OPTIONS)[2:])
    checkpoint = f'{disturbed}/run/checkpoints/{{:08d}}.pt'.format
    with Agents(disturbed, *command(disturbed, *OPTIONS)[2:]) as agents:
        wait_for(Path(checkpoint(2)), agents.processes[0])
        agents.lose(1)
        agents.start(1)
        while not (resumed := re.search(r'resuming from .*/0*(\d+)\.pt', agents.said(0))):
            assert agents.processes[0].poll() is None, agents.said(0)
            time.sleep(0.02)
        wait_for(Path(checkpoint(int(resumed[1]) + 1)), agents.processes[0])
        worker, = children(agents.processes[1].pid)
        os.kill(worker, signal.SIGUSR1)
        assert agents.end() == [0, 0], agents.said(0)
    last = max(step for step in range(STEPS + 1) if Path(checkpoint(step)).exists())
    assert int(resumed[1]) < last < STEPS, 'it had finished already'
    assert_bit_equal(final(disturbed, last), final(undisturbed, last))
    assert 'rank 1 on ' in agents.said(0) and 'has ended or hangs' in agents.said(0)
    assert 'rerun the same command to resume' in agents.said(0).rpartition('resuming from')[2]


SCENES = """
import os, signal, sys, tempfile, time
import torch
from support import distributed
from support.errors import UserError

def refused(function, *arguments):
    try:
        function(*arguments)
    except UserError as error:
        print(error, flush=True)

distributed.start(torch.device('cpu'))
rank = distributed.rank()
distributed.agree({'training clips': 'the same'})
refused(distributed.agree, {'config': 'alike', 'training clips': f'those of {rank}'})
distributed.check_shared(sys.argv[1])
distributed.SEEN_WITHIN = 0
os.chdir(tempfile.mkdtemp())
if rank == 0:
    os.mkdir('log')
refused(distributed.check_shared, 'log')
os.makedirs('log', exist_ok=True)
refused(distributed.check_shared, 'log')

distributed.SILENCE, distributed.ROLL_CALL = 2, 1
for _ in range(10 * rank):
    time.sleep(0.3)
    distributed.beat()
refused(distributed.wait_long)
if rank == 1:
    os.kill(os.getpid(), signal.SIGSTOP)
refused(distributed.wait_long)
try:
    with distributed.explained():
        distributed.any_rank(False, device=torch.device('cpu'))
except UserError as error:
    print(error, flush=True)
"""


def test_what_differs_between_machines_is_named_and_nobody_waits_for_ever(tmp_path):
    first, second = in_two_processes(SCENES, tmp_path, stdout=subprocess.PIPE, env={'COLLECTIVE_TIMEOUT': '15'})
    said = without_gloo(first.communicate(timeout=120)[0])
    second.kill()
    assert without_gloo(second.communicate()[0]) == said[:3]
    host = os.uname().nodename
    assert said[0] == (f'training clips: rank 1 on {host} has those of 1, but rank 0 on {host} has those of 0; '
                       'make them equal on all machines')
    assert said[1] == said[2] == (f'log: rank 1 on {host} does not see files that rank 0 on {host} writes '
                                  'there; choose a folder that all machines share')
    assert said[3:] == [f'rank 1 on {host} gave no sign of life for 2 s; rerun the same command to resume',
                        f'rank 1 on {host} has ended or hangs; its own message or the system log says why; '
                        'rerun the same command to resume']
    assert not list(tmp_path.iterdir())


STAND_INS = {
    'srun': r'trap "kill \$!; echo saved >> said; exit 0" USR1; echo "$@" >> said; sleep 60 & wait',
    'scontrol': 'echo scontrol "$@" >> said\n[ "$1" = show ] && echo node1 && echo node2',
}


@pytest.mark.parametrize('number', [signal.SIGUSR1, signal.SIGTERM])
def test_the_batch_file_saves_and_requeues(tmp_path, number):
    blocks = re.findall('```bash\n(.*?)```', (ROOT / 'docs' / 'cluster.md').read_text(), re.S)
    script, = (block for block in blocks if block.startswith('#!/bin/bash'))
    array, = (block for block in blocks if 'SLURM_ARRAY_TASK_ID' in block)
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text(f'#!/bin/bash\n{text}\n')
        (tmp_path / name).chmod(0o755)
    variables = {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'SLURM_JOB_NODELIST': 'node[1-2]', 'SLURM_JOB_ID': '17',
                 'SLURM_JOB_NUM_NODES': '2', 'SLURM_GPUS_ON_NODE': '4'}
    process = subprocess.Popen(['bash', '-c', script], cwd=tmp_path, env=os.environ | variables)
    end = time.monotonic() + 30
    while time.monotonic() < end and not (
            (tmp_path / 'said').exists() and 'torchrun' in (tmp_path / 'said').read_text()):
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(number)
    assert process.wait(30) == 0
    shown, command, saved, requeued = (tmp_path / 'said').read_text().splitlines()
    assert '--nnodes=2 --nproc-per-node=4 --rdzv-backend=c10d --rdzv-endpoint=node1:29500 --rdzv-id=17' in command
    assert (saved, requeued) == ('saved', 'scontrol requeue 17')
    subprocess.run(['bash', '-n'], input=array, text=True, check=True)


# ---------------------------------------------------------------------------- data loading processes

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


def test_loading_processes_end_with_the_process_that_started_them_and_not_by_signals_to_the_group(tmp_path):
    """Not even by signals that come while they start."""
    (tmp_path / 'program.py').write_text(PROGRAM)
    with subprocess.Popen([sys.executable, tmp_path / 'program.py'], stdout=subprocess.PIPE, text=True,
                          env=environment(), start_new_session=True) as process:
        try:
            process.stdout.readline()
            for _ in range(20):
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                    os.killpg(process.pid, number)
                time.sleep(0.02)
            workers = {int(process.stdout.readline()) for _ in range(4)}
            os.killpg(process.pid, signal.SIGTERM)
            assert len(workers) == 2 and {int(process.stdout.readline()) for _ in range(8)} == workers
        finally:
            process.kill()
    limit = time.monotonic() + 60
    while any(map(running, workers)):
        assert time.monotonic() < limit, 'they are still there'
        time.sleep(0.05)


def running(process):
    try:
        os.kill(process, 0)
        return True
    except ProcessLookupError:
        return False


@pytest.fixture
def unreadable(tmp_path):
    """Override of a config: a data set without a clip that can be read."""
    for partition in ('train', 'test'):
        (tmp_path / 'data' / partition).mkdir(parents=True)
    (tmp_path / 'data' / 'train' / 'id1#a#0#1.mp4').write_text('no video')
    encode(tmp_path / 'data' / 'test' / 'id2#b#0#1.mp4', count=4)
    return f'dataset_params.root_dir={tmp_path}/data'


@pytest.mark.parametrize('workers', [0, 2])
def test_training_that_cannot_read_its_clips_ends_with_its_loading_processes(unreadable, tmp_path, capsys, monkeypatch,
                                                                             workers):
    monkeypatch.chdir(ROOT)
    line = refused(capsys, *command(tmp_path, unreadable, f'train_params.num_workers={workers}')[2:], logged=True)
    assert 'no clip of the data set can be read' in line and 'id1#a#0#1' in line
    assert not multiprocessing.active_children()


def test_torchrun_ends_with_training_that_fails(unreadable, tmp_path):
    """With exit code 1, whatever that of the processes."""
    ended = subprocess.run(command(tmp_path, unreadable, 'train_params.num_workers=1', launcher=TORCHRUN), cwd=ROOT,
                           env=environment(), capture_output=True, text=True, timeout=120)
    line = next(line for line in ended.stderr.splitlines() if 'error: no clip of the data set can be read' in line)
    assert 'id1#a#0#1' in line and ended.returncode == 1
