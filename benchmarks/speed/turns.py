"""Clocks, and the turns that a yardstick takes with what is measured."""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from support import hardware

# Settings of the allocator that a process inherits.
ALLOCATORS = hardware.HUGE_PAGES, 'LD_PRELOAD', 'MALLOC_CONF', 'GLIBC_TUNABLES'


class Clock:
    """Seconds of work on the device, and of the wall."""

    def __init__(self, device):
        self.device = device

    def now(self):
        if self.device.type == 'cuda':
            torch.cuda.synchronize()
            return time.perf_counter(), time.perf_counter()
        return time.process_time(), time.perf_counter()

    def __call__(self, function):
        """(work, wall) of one call."""
        begin = self.now()
        function()
        return tuple(after - before for before, after in zip(begin, self.now()))


class Yardstick:
    """benchmarks/speed/yardstick.py in a process of its own, which rests while nobody asks for a turn.

    what:    frame | step
    threads: of a CPU; 0 for as many as PyTorch takes
    """

    def __init__(self, what, device, threads):
        path = Path(__file__).with_name('yardstick.py')
        # -P: or its folder would come first where it looks for modules.
        command = [sys.executable, '-P', str(path), what, '--device', str(device), '--threads', str(threads)]
        environment = {name: value for name, value in os.environ.items() if name not in ALLOCATORS}
        self._process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         text=True)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, question):
        self._process.stdin.write(f'{question}\n')
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, 'the yardstick ended; what it said is above'
        return json.loads(answer)

    def __call__(self):
        """(work, wall) of one pass, in seconds; work as Clock means it."""
        found = self._ask('turn')
        return found['work'], found['wall']

    def about(self):
        """What its process is like: see there."""
        return self._ask('about')


def in_turns(clock, yardstick, measured, turns, unit=1):
    """Yardstick and `measured` one after the other, `turns` times: medians, and the ratio of each turn.

    unit: of work in one call of `measured`, such as frames
    returns: seconds and yardsticks per unit; `ratios` and `wall_ratios` of every turn, `ratio` their median
    """
    yardstick(), measured()                                                  # warm up
    taken = [(yardstick(), clock(measured)) for _ in range(turns)]
    middle = statistics.median
    found = {'turns': turns, 'seconds': middle(ours[0] for _, ours in taken) / unit,
             'wall_seconds': middle(ours[1] for _, ours in taken) / unit,
             'yardstick_seconds': middle(theirs[0] for theirs, _ in taken),
             'ratios': [ours[0] / theirs[0] / unit for theirs, ours in taken],
             'wall_ratios': [ours[1] / theirs[1] / unit for theirs, ours in taken]}
    return found | {'ratio': middle(found['ratios']), 'wall_ratio': middle(found['wall_ratios'])}


def peak_memory(device, function):
    """GiB at the height of `function`, with what was there before: of the process (Linux) or the GPU's allocator."""
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        function()
        return torch.cuda.max_memory_allocated(device) / 2 ** 30
    hardware.trim_freed_memory()
    process = Path('/proc/self')
    (process / 'clear_refs').write_text('5')           # the peak starts again from what is resident
    function()
    return int(process.joinpath('status').read_text().split('VmHWM:')[1].split()[0]) / 2 ** 20
