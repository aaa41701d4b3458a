"""Speed and memory of training steps and of animated frames on this machine.

    python -m benchmarks.speed [--device cpu|cuda] [--config config/vox-256.yaml] [--batch 2] [--json FILE]

Each part runs in a process of its own: the median and range of its seconds, its peak memory, and MFU, the share of the
rate that a large matrix product or convolution reaches on the same device in the same precision. On a CPU, seconds are
CPU time of the process; with --threads 1 that is the time on an otherwise idle machine. Precision, checkpointing and
compilation are config values: --set train_params.precision=bf16.

Seconds and ratios of one machine do not hold on another; benchmarks/cost.py counts what does.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks import cost
from config import schema
from modules.build import build_model
from modules.losses import RandomTransform
from modules.objective import needs_vgg
from modules.perceptual import VGG19
from modules.pairs import Pairs
from modules.training_step import build_training_step
from support import hardware
from support.errors import program

REPEATS = 5


# ---------------------------------------------------------------------------- what is measured

class Training:
    """A training step on random images, in the phase in which all networks and losses take part."""

    cost = staticmethod(cost.training_step)

    def __init__(self, config, batch, device):
        vgg = VGG19().state_dict() if needs_vgg(config.train_params.objective_params) else None
        self.step = build_training_step(config, device, vgg)
        size = config.model_params.image_size
        images = [torch.rand(batch, 3, size, size, device=device) * 2 - 1 for _ in range(2)]
        self.pairs = Pairs(*images, RandomTransform.draw(batch, torch.Generator().manual_seed(0)))

    def __call__(self):
        assert self.step([self.pairs], self.step.first_full_step).finite, 'a skipped step costs less'


class Animation:
    """A batch of frames of one source image, whose encoding is not included."""

    cost = staticmethod(cost.frame)

    def __init__(self, config, batch, device):
        torch.manual_seed(0)
        size = config.model_params.image_size
        layout = hardware.memory_format(device)
        self.model = build_model(config).to(device, memory_format=layout).eval().requires_grad_(False)
        self.source, self.driving = (torch.rand(count, 3, size, size, device=device) * 2 - 1 for count in (1, batch))
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.train_params.precision == 'bf16')
        with torch.inference_mode(), self.autocast:
            self.state = self.model.encode_source(self.source)

    @torch.inference_mode()
    def __call__(self):
        with self.autocast:
            return self.model.render(self.state, self.model.keypoints(self.driving)).prediction


# ---------------------------------------------------------------------------- how it is measured

def seconds(function, device):
    """Seconds of one call: wall time on a GPU, CPU time of the process otherwise."""
    def now():
        if device.type == 'cuda':
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()
    begin = now()
    function()
    return now() - begin


def repeated(function, device, repeats=REPEATS):
    """Seconds of each of `repeats` calls, after one warm-up call."""
    function()
    return [seconds(function, device) for _ in range(repeats)]


def peak_memory(device, function):
    """Peak memory during `function()` in GiB: PyTorch's on a GPU, otherwise the process's resident memory (Linux)."""
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        function()
        return torch.cuda.max_memory_allocated(device) / 2 ** 30
    hardware.trim_freed_memory()
    process = Path('/proc/self')
    (process / 'clear_refs').write_text('5')           # resets the peak to what is resident
    function()
    return int(process.joinpath('status').read_text().split('VmHWM:')[1].split()[0]) / 2 ** 20


def peak_flops(device, precision):
    """Operations per second of a large matrix product or a large convolution, whichever is faster."""
    dtype = torch.bfloat16 if precision == 'bf16' else torch.float32
    side, images = (8192, 64) if device.type == 'cuda' else (2048, 4)      # smaller ones do not fill a GPU
    a = torch.randn(side, side, device=device, dtype=dtype)
    x = torch.randn(images, 128, 64, 64, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    w = torch.randn(128, 128, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    works = {2 * side ** 3: lambda: a @ a, 2 * x.numel() * w[0].numel(): lambda: F.conv2d(x, w, padding=1)}
    return max(operations / min(repeated(work, device)) for operations, work in works.items())


def measured(work, config, batch, device, repeats=REPEATS):
    """Speed, peak memory and model FLOPs utilisation.

    work:  Training or Animation
    batch: pairs of a training step, or frames rendered at once
    """
    operations, taken, work = work.cost(config, batch).totals[0], [], work(config, batch, device)
    memory = peak_memory(device, lambda: taken.extend(repeated(work, device, repeats)))
    middle = statistics.median(taken)
    return {'batch': batch, 'seconds': middle, 'range': [min(taken), max(taken)], 'per_second': batch / middle,
            'peak_gib': memory, 'tflop': operations / 1e12,
            'mfu': operations / middle / peak_flops(device, config.train_params.precision)}


# ---------------------------------------------------------------------------- the command

def in_process(threads, *job):
    """measured(*job) in a fresh process with the settings of the work's mode; threads: 0 for PyTorch's default."""
    spawn = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(1, spawn, _prepare, (threads, *job[:2])) as pool:
        return pool.submit(measured, *job).result()


def _prepare(threads, work, config):
    if threads:
        torch.set_num_threads(threads)
    hardware.prepare_cpu(None if work is Animation else config.train_params)


@program
def main(arguments=None):
    parser = argparse.ArgumentParser(prog='python -m benchmarks.speed', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--config', default='config/vox-256.yaml')
    parser.add_argument('--set', nargs='+', default=[], metavar='key=value', help='override config values')
    parser.add_argument('--batch', type=int, default=2, help='pairs of a training step')
    parser.add_argument('--frames', type=int, nargs='+', default=[1, 8], help='numbers of frames rendered at once')
    parser.add_argument('--repeats', type=int, default=REPEATS, help=f'timed calls; default {REPEATS}')
    parser.add_argument('--threads', type=int, default=0, help="CPU threads; default: PyTorch's")
    parser.add_argument('--json', type=Path, help='write the measurements to this file')
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    config = hardware.adapted(schema.load(options.config, options.set), device)
    parts = {f'frame, batch of {count}': (Animation, count) for count in options.frames}
    parts['training step'] = Training, options.batch
    found = {'config': options.config, 'set': options.set, 'device': options.device, 'threads': options.threads,
             'precision': config.train_params.precision}
    try:
        for name, (work, batch) in parts.items():
            found[name] = in_process(options.threads, work, config, batch, device, options.repeats)
            print('{}: {seconds:.3f} s ({range[0]:.3f} to {range[1]:.3f}), {per_second:.2f}/s, {tflop:.2f} TFLOP, '
                  'MFU {mfu:.0%}, peak memory {peak_gib:.2f} GiB'.format(name, **found[name]), flush=True)
    finally:                             # keep what was measured before an error
        if options.json:
            options.json.write_text(json.dumps(found, indent=1))


if __name__ == '__main__':
    sys.exit(main())
