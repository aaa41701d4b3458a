"""run.py in forked processes, which start at once, and can be stopped at any instant, file operation or byte."""

import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

import run
from benchmarks.campaign.runner import cpu_time

SECONDS = 1800                  # after which a run counts as hung
COUNT = -1
CHANGES = ('open', 'os.rename', 'os.remove', 'os.rmdir', 'os.mkdir')


@dataclass
class Stop:
    """When a run is to be killed, with its whole process group; nothing set: never.

    cpu:       seconds of its first process's CPU time
    operation: number of the change to files below its folder before which it is killed, from 0; COUNT writes how
               many there are to 'operations.txt'
    byte:      with `operation`: from that change on, a file that grows beyond this size kills the process
    """
    cpu: float | None = None
    operation: int | None = None
    byte: int | None = None


@dataclass
class Run:
    """run.py as forked processes of one group, in `folder`.

    said:     where they print, by default folder/'output.txt'
    prepare:  called in every process with its rank, before run.py
    meanwhile: called with this Run again and again while it goes on
    """
    arguments: list
    folder: Path
    ranks: int = 1
    threads: int = 1
    stop: Stop = field(default_factory=Stop)
    seconds: float = SECONDS        # after which it counts as hung
    said: Path | None = None
    prepare: Callable | None = None
    meanwhile: Callable | None = None
    pids: list = field(default_factory=list)
    code: int | None = None
    cpu: float = 0.0

    def start(self):
        port = free_port() if self.ranks > 1 else None
        sys.stdout.flush()
        for rank in range(self.ranks):
            pid = os.fork()
            if not pid:
                self._child(rank, port)
            os.setpgid(pid, self.pids[0] if self.pids else pid)
            self.pids.append(pid)
        return self

    def wait(self):
        """Kill it when Stop says so; the exit code of its first process, negative for a signal."""
        end = time.monotonic() + self.seconds
        while True:
            pid, status, usage = os.wait4(self.pids[0], os.WNOHANG)
            if pid:
                break
            if self.meanwhile:
                self.meanwhile(self)
            if self.stop.cpu is not None and self.cpu_time() >= self.stop.cpu:
                self.kill()
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f'no end in {self.seconds} s: {self.output()[-300:]}')
            time.sleep(0.002 if self.meanwhile or self.stop.cpu is not None else 0.02)
        self.code, self.cpu = os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
        if self.code < 0:
            self.kill()
        for pid in self.pids[1:]:
            os.waitpid(pid, 0)
        self.kill()             # data loading processes, which outlive the first for a moment
        return self.code

    def kill(self, number=signal.SIGKILL):
        try:
            os.killpg(self.pids[0], number)
        except ProcessLookupError:
            pass

    def cpu_time(self):
        """Seconds that the first process has computed so far."""
        return cpu_time(self.pids[0])

    def output(self):
        return (self.said or self.folder / 'output.txt').read_text(errors='replace')

    def _child(self, rank, port):
        code = 70
        try:
            os.setpgid(0, self.pids[0] if self.pids else 0)
            os.chdir(self.folder)
            output = os.open(self.said or 'output.txt', os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            for descriptor, target in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
                os.dup2(descriptor, target)
            if self.ranks > 1:
                os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(self.ranks),
                                  MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
            logging.getLogger().handlers.clear()
            torch.set_num_threads(self.threads)
            operations = Operations(self.folder, self.stop)
            if rank == 0 and self.stop.operation is not None:
                if self.stop.byte is not None:
                    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)       # here: a hook may run in any thread
                sys.addaudithook(operations)
            if self.prepare:
                self.prepare(rank)
            code = run.main([str(argument) for argument in self.arguments])
            sys.stdout.flush()
            if rank == 0 and self.stop.operation == COUNT:
                Path('operations.txt').write_text(str(operations.count))
        except SystemExit as end:
            code = end.code
        except BaseException:
            import traceback
            traceback.print_exc()
            code = 1
        finally:
            sys.stderr.flush()
            os._exit(code or 0)


class Operations:
    """An audit hook that counts changes to files below a folder, and stops before the one it is told."""

    def __init__(self, folder, stop):
        self.folder, self.stop, self.count = str(folder.resolve()), stop, 0

    def __call__(self, event, arguments):
        if event not in CHANGES or not self._changes(event, arguments):
            return
        if self.count == self.stop.operation:
            if self.stop.byte is None:
                os.killpg(0, signal.SIGKILL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.stop.byte, resource.RLIM_INFINITY))
        self.count += 1

    def _changes(self, event, arguments):
        if event == 'open':
            path, mode, flags = arguments
            if isinstance(path, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return False
        return os.path.abspath(os.fsdecode(arguments[0])).startswith(self.folder)


def free_port():
    with socket.socket() as listening:
        listening.bind(('127.0.0.1', 0))
        return listening.getsockname()[1]
