"""torchrun's agents as two machines would run them: here on one, over the loopback, with one process each."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests.support.tiny import ROOT


# Of PyTorch 2.14: otherwise an agent that comes back looks for an address that only the first rendezvous announces.
RETURNING = 'TORCH_DISABLE_SHARE_RDZV_TCP_STORE'
VARIABLES = {'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT), RETURNING: '1'}


def free_port():
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


def in_two_processes(code, *arguments, **options):
    """Python code as two ranks of one process group: the processes, started; `options` are of Popen, `env` added."""
    variables = os.environ | VARIABLES | {'WORLD_SIZE': '2', 'LOCAL_WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1',
                                          'MASTER_PORT': str(free_port())} | options.pop('env', {})
    return [subprocess.Popen([sys.executable, '-c', code, *map(str, arguments)], cwd=ROOT, text=True,
                             env=variables | {'RANK': str(rank), 'LOCAL_RANK': str(rank)}, **options)
            for rank in (0, 1)]


def children(process):
    return [int(child) for child in Path(f'/proc/{process}/task/{process}/children').read_text().split()]


def descendants(process):
    return [one for child in children(process) for one in (child, *descendants(child))]


def ended(processes):
    """What processes have printed, each to its pipe, when all have ended with exit code 0."""
    try:
        said = [process.communicate(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), said
    return [out for out, _ in said]


def run_in_two_processes(*arguments):
    """What each of two ranks prints that run a command of run.py, to its end."""
    return ended(in_two_processes('import run, sys; sys.exit(run.main(sys.argv[1:]))', *arguments,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT))


class Agents:
    """Two agents of one run; what is left of them ends with the `with` block.

    folder:    for what they say
    arguments: of run.py
    """

    def __init__(self, folder, *arguments):
        self._folder, self._arguments = folder, arguments
        self._torchrun = [
            sys.executable, '-m', 'torch.distributed.run', '--nnodes=2', '--nproc-per-node=1', '--rdzv-backend=c10d',
            f'--rdzv-endpoint=127.0.0.1:{free_port()}', '--rdzv-id=test', '--local-addr=127.0.0.1',
            '--monitor-interval=0.1', '--max-restarts=3']
        self.processes = {}

    def start(self, number):
        """Starts agent 0, which holds the rendezvous, or agent 1."""
        with open(self._folder / f'agent{number}.txt', 'a') as said:
            self.processes[number] = subprocess.Popen(
                [*self._torchrun, f'--rdzv-conf=is_host={int(number == 0)}', 'run.py', *self._arguments], cwd=ROOT,
                env=os.environ | VARIABLES, stdout=said, stderr=subprocess.STDOUT)

    def lose(self, number):
        """The machine of an agent is gone: the agent, what it has started, and what that has started."""
        for process in [self.processes[number].pid, *descendants(self.processes[number].pid)]:
            os.kill(process, signal.SIGKILL)
        self.processes[number].wait()

    def said(self, number):
        return (self._folder / f'agent{number}.txt').read_text()

    def end(self):
        """Waits for both; returns their exit codes."""
        return [self.processes[number].wait(300) for number in (0, 1)]

    def __enter__(self):
        self._folder.mkdir(parents=True, exist_ok=True)
        for number in (0, 1):
            self.start(number)
        return self

    def __exit__(self, *error):
        for number, process in self.processes.items():
            if process.poll() is None:
                self.lose(number)
