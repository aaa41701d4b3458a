"""Cases in a process of their own, with limits of memory and time: for inputs that may take the process with them.

    python -m benchmarks.campaign.isolated MODULE FOLDER       reads 'KIND NUMBER SEED', and answers, a line each
"""

import atexit
import json
import logging
import os
import random
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path

from benchmarks.campaign.runner import Failure, cpu_time, resident

ROOT = Path(__file__).parents[2]
MEMORY = 4 * 2 ** 30           # bytes that a case may have in memory
SECONDS = 60                   # that a case may compute; other programs do not count
WAITING = 600                  # seconds after which it counts as hung though it computes nothing
POLL = 0.02                    # seconds between looks at its memory
# Not to take the machine along. Well above MEMORY: what asks for more and is refused by the system may ask again for
# less, and answer well, where a machine with more memory would have given it.
RESERVED = 12 * 2 ** 30


class Isolated:
    """A child process that runs MODULE.CASES[kind](number, random.Random(seed), folder), case after case.

    What the case returns comes back; what it raises, and its process's end or silence, becomes a Failure.
    """

    def __init__(self, module, memory=MEMORY):
        self.module, self.memory, self.process = module, memory, None
        atexit.register(self.close)

    def __call__(self, kind, number, rng, folder):
        if self.process is None or self.process.poll() is not None:
            self._start(folder)
        self.process.stdin.write(f'{kind} {number} {rng.getrandbits(64)}\n')
        self.process.stdin.flush()
        self._await_answer()
        line = self.process.stdout.readline()
        if not line:
            said = ' '.join(Path(folder, 'stderr.txt').read_text(errors='replace').split())
            raise Failure(f'the process ended with code {self.process.wait()}: {said[-300:]}')
        answer = json.loads(line)
        if 'failed' in answer:
            raise Failure(answer['failed'])
        return answer['outcome']

    def _await_answer(self):
        pid, begun, end = self.process.pid, cpu_time(self.process.pid), time.monotonic() + WAITING
        while not select.select([self.process.stdout], [], [], POLL)[0]:
            if resident(pid) > self.memory:
                self.close()
                raise Failure(f'more than {self.memory / 2 ** 30:g} GiB of memory')
            if cpu_time(pid) > begun + SECONDS or time.monotonic() > end:
                self.close()
                raise Failure(f'no answer in {SECONDS} s of computing or {WAITING} s')

    def _start(self, folder):
        with open(Path(folder, 'stderr.txt'), 'w') as stderr:
            self.process = subprocess.Popen(
                [sys.executable, '-m', 'benchmarks.campaign.isolated', self.module, str(folder)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True,
                env=os.environ | {'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}, cwd=ROOT)
        self.process.stdout.readline()       # imports are no part of a case

    def close(self):
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def serve(module, folder):
    """The child's side."""
    answers = os.fdopen(os.dup(1), 'w')      # whatever a case prints goes elsewhere
    os.dup2(2, 1)
    logging.disable(logging.CRITICAL)
    cases = import_module(module).CASES
    resource.setrlimit(resource.RLIMIT_DATA, (RESERVED, RESERVED))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print('ready', file=answers, flush=True)
    for line in sys.stdin:
        kind, number, seed = line.split()
        found = answer(cases[kind], int(number), random.Random(int(seed)), Path(folder))
        print(json.dumps(found), file=answers, flush=True)


def answer(case, number, rng, folder):
    """{'outcome': word}, or {'failed': what was raised, and where, in one line}."""
    try:
        return {'outcome': case(number, rng, folder)}
    except Failure as failure:
        return {'failed': str(failure)}
    except BaseException as error:      # SystemExit and KeyboardInterrupt are no answers either
        trace = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in trace if frame.filename.startswith(str(ROOT))
                and not {'benchmarks', '.venv'} & set(Path(frame.filename).parts)]
        where = (ours or trace)[-1]
        return {'failed': f'{type(error).__name__} at {where.filename.removeprefix(f"{ROOT}/")}:{where.lineno}: '
                          + ' '.join(str(error).split())[:300]}


if __name__ == '__main__':
    serve(*sys.argv[1:])
