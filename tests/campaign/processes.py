"""run.py in forked processes, which start at once and can be stopped at any instant, file operation or byte."""

import logging
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

import run
from tests.support.agents import free_port

PAGE, TICKS = (os.sysconf(name) for name in ('SC_PAGE_SIZE', 'SC_CLK_TCK'))
SECONDS = 1800                  # after which a run counts as hung
COUNT = -1
CHANGES = ('open', 'os.rename', 'os.remove', 'os.rmdir', 'os.mkdir')


def used(pid='self'):
    """(CPU seconds, bytes in memory) of a process; zeros if there is none."""
    try:
        fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()       # proc(5), from the third on
    except OSError:
        return 0.0, 0
    return (int(fields[11]) + int(fields[12])) / TICKS, int(fields[21]) * PAGE


@dataclass
class Stop:
    """When to kill a run with its whole process group; nothing set: never. Changes are those of files in its folder."""
    cpu: float | None = None         # CPU seconds of its first process
    operation: int | None = None     # number, from 0, of the change before which to kill it; COUNT: see operations.txt
    byte: int | None = None          # from that change on, a file that grows beyond this size kills the process


@dataclass
class Run:
    """run.py as forked processes of one group, in `folder`."""
    arguments: list
    folder: Path
    ranks: int = 1
    threads: int = 1
    stop: Stop = field(default_factory=Stop)
    seconds: float = SECONDS
    output: Path | None = None           # where they print, by default folder/'output.txt'
    prepare: Callable | None = None      # called in every process with its rank, before run.py
    meanwhile: Callable | None = None    # called with this Run every few milliseconds until it ends
    pids: list = field(default_factory=list)
    code: int | None = None
    cpu: float = 0.0

    def end(self):
        """Run to the end, or kill at `stop`; self, with the first process's code (negative: a signal)."""
        self.output = self.output or self.folder / 'output.txt'
        port, end = free_port() if self.ranks > 1 else None, time.monotonic() + self.seconds
        for rank in range(self.ranks):
            pid = os.fork()
            if not pid:
                self._child(rank, port)
            os.setpgid(pid, self.pids[0] if self.pids else pid)
            self.pids.append(pid)
        while not (found := os.wait4(self.pids[0], os.WNOHANG))[0]:
            if self.meanwhile:
                self.meanwhile(self)
            if self.stop.cpu is not None and self.cpu_time() >= self.stop.cpu:
                self.kill()
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f'no end in {self.seconds} s: {self.text()[-300:]}')
            time.sleep(0.002 if self.meanwhile or self.stop.cpu is not None else 0.02)
        self.code, self.cpu = os.waitstatus_to_exitcode(found[1]), found[2].ru_utime + found[2].ru_stime
        if self.code < 0:
            self.kill()
        for pid in self.pids[1:]:
            os.waitpid(pid, 0)
        self.kill()             # data loading processes outlive the first for a moment
        return self

    def kill(self, number=signal.SIGKILL):
        try:
            os.killpg(self.pids[0], number)
        except ProcessLookupError:
            pass

    def cpu_time(self):
        return used(self.pids[0])[0]

    def text(self):
        return self.output.read_text(errors='replace')

    def _child(self, rank, port):
        code = 70
        try:
            os.setpgid(0, self.pids[0] if self.pids else 0)
            os.chdir(self.folder)
            output = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            for descriptor, target in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
                os.dup2(descriptor, target)
            sys.stdout, sys.stderr = (open(target, 'w', buffering=1, closefd=False) for target in (1, 2))
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
            traceback.print_exc()
            code = 1
        finally:
            os._exit(code or 0)


class Operations:
    """An audit hook that counts changes to files below a folder, and stops before the one of Stop."""

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
