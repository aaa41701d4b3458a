"""Speed and memory of training steps and of animated frames on this machine.

    python -m benchmarks.speed [--device cpu|cuda] [--config config/vox-256.yaml] [--batch 2] [--json FILE]

Each part runs in a process of its own: the median and range of its seconds, its peak memory, and MFU, the share of the
rate that a large matrix product or convolution reaches on the same device in the same precision. On a CPU, seconds are
CPU time of the process; with --threads 1 that is the time on an otherwise idle machine. On a GPU there are more parts:
batches doubled until the memory is full, precision and compilation, whole videos, a frame as a captured CUDA graph.

Seconds and ratios of one machine do not hold on another; benchmarks/cost.py counts what does.
"""

import argparse
import itertools
import json
import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from animate import write_animation
from benchmarks import cost
from config import schema
from datasets.video import open_clip
from datasets.video_writer import VideoWriter
from inference import Renderer
from modules.build import build_model
from modules.losses import RandomTransform
from modules.objective import needs_vgg
from modules.perceptual import VGG19
from modules.pairs import Pairs
from modules.training_step import build_training_step
from support import hardware

REPEATS = 5
SWEEP_SECONDS = 60                     # after which a sweep starts no further measurement
FRAMES = {'cuda': 256, 'cpu': 8}       # of the video
# Of train_params. PyTorch's default of fp32 is TF32 in convolutions; 'fp32' switches it off. Compiling starts slowest.
CHOICES = {'fp32': ['precision=fp32'], 'fp32, TF32 convolutions': ['precision=fp32'], 'bf16': ['precision=bf16'],
           'bf16, checkpointing': ['precision=bf16', 'checkpointing=true'],
           'bf16, compiled': ['precision=bf16', 'compile=true']}


@dataclass(frozen=True)
class Job:
    """A measurement: config, torch.device, pairs of a step or frames at once, CPU threads (0: PyTorch's default)."""
    config: Any
    device: torch.device
    batch: int
    threads: int = 0
    repeats: int = REPEATS


# ---------------------------------------------------------------------------- what is measured

class Training:
    """A training step on random images, in the phase in which all networks and losses take part."""

    def __init__(self, config, batch, device):
        vgg = VGG19().state_dict() if needs_vgg(config.train_params.objective_params) else None
        self.step = build_training_step(config, device, vgg)
        self.size, self.device = config.model_params.image_size, device
        self.resize(batch)

    def resize(self, batch):
        """Change the number of pairs."""
        images = [torch.rand(batch, 3, self.size, self.size, device=self.device) * 2 - 1 for _ in range(2)]
        self.pairs = Pairs(*images, RandomTransform.draw(batch, torch.Generator().manual_seed(0)))

    def __call__(self):
        assert self.step([self.pairs], self.step.first_full_step).finite, 'a skipped step costs less'


class Animation:
    """A batch of frames of one source image."""

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
    """Seconds of `repeats` calls after one that does not count."""
    function()
    return [seconds(function, device) for _ in range(repeats)]


def peak_memory(device, function):
    """GiB at the peak of `function`, including what was allocated before: of the process (Linux), or the GPU's."""
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


def measured(job, work, operations):
    """Seconds, peak memory and MFU of a work of so many operations; `operations` and rates are of the whole batch."""
    taken = []
    memory = peak_memory(job.device, lambda: taken.extend(repeated(work, job.device, job.repeats)))
    middle = statistics.median(taken)
    return {'batch': job.batch, 'seconds': middle, 'range': [min(taken), max(taken)], 'per_second': job.batch / middle,
            'peak_gib': memory, 'tflop': operations / 1e12,
            'mfu': operations / middle / peak_flops(job.device, job.config.train_params.precision)}


def training(job):
    """Of a training step."""
    return measured(job, Training(job.config, job.batch, job.device),
                    cost.training_step(job.config, job.batch).totals[0])


def animation(job):
    """Of frames; encoding the source is not included."""
    return measured(job, Animation(job.config, job.batch, job.device), cost.frame(job.config, job.batch).totals[0])


# ---------------------------------------------------------------------------- on a GPU

def with_params(job, params):
    """The Job's config with other train_params, adapted to the device."""
    config = schema.override(job.config, [f'train_params.{param}' for param in params])
    return hardware.adapted(config, job.device)


def scaling(job, precision):
    """Training with the batch doubled until the memory is full (on a CPU up to job.batch): list of `measured`."""
    config, begin, rows = with_params(job, [f'precision={precision}']), time.monotonic(), []
    work, operations = Training(config, 1, job.device), cost.training_step(config, 1).totals[0]
    for batch in (2 ** n for n in itertools.count()):
        if time.monotonic() - begin > SWEEP_SECONDS or job.device.type == 'cpu' and batch > job.batch:
            return rows
        try:
            work.resize(batch)
            rows.append(measured(Job(config, job.device, batch, repeats=3), work, batch * operations))
        except torch.OutOfMemoryError:
            return rows


def choices(job):
    """A training step with each of CHOICES: `measured` by name, for as many as there is time."""
    begin, found = time.monotonic(), {}
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    for name, params in CHOICES.items():
        if time.monotonic() - begin > SWEEP_SECONDS or job.device.type == 'cpu' and 'compile=true' in params:
            continue         # compiling takes minutes on a CPU
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
        if name == 'fp32':
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        config = with_params(job, params)
        found[name] = training(Job(config, job.device, job.batch, repeats=3))
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    return found


def video(job):
    """Frames per second of an animation, job.batch at once: frames in memory, decoded, and decoded and encoded."""
    work, count = Animation(job.config, job.batch, job.device), FRAMES[job.device.type]
    renderer = Renderer(work.model, job.device, job.batch, job.config.train_params.precision)
    blocks = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    size = job.config.model_params.image_size // 16
    frames = [np.ascontiguousarray(np.roll(blocks, n, 1).repeat(size, 0).repeat(size, 1)) for n in range(count)]

    def render(driving):
        for batch in renderer.follow(frames[0]).render(driving):
            assert len(batch.frames)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'driving.mp4')
        with VideoWriter(path, 25) as writer:
            for frame in frames:
                writer.write(frame)
        works = {'frames in memory': lambda: render(frames), 'decoded': lambda: render(open_clip(path).frames()),
                 'decoded and encoded': lambda: write_animation(renderer, frames[0], open_clip(path),
                                                                Path(folder, 'out.mp4'))}
        rates = {}
        for name, work in works.items():
            work()
            begin = time.perf_counter()
            work()
            rates[name] = count / (time.perf_counter() - begin)
    return rates


def captured(job):
    """Seconds of one frame, kernel by kernel and as one captured CUDA graph; {} without CUDA.

    https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """
    if job.device.type != 'cuda':
        return {}
    work, side = Animation(job.config, 1, job.device), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            wanted = work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = work()
    graph.replay()
    torch.cuda.synchronize()
    return {'kernel by kernel': statistics.median(repeated(work, job.device)),
            'captured': statistics.median(repeated(graph.replay, job.device)),
            'largest difference': float((found - wanted).abs().max())}


# ---------------------------------------------------------------------------- the command

def in_process(part, job):
    """What part(job) returns, in a fresh process with the settings of its mode."""
    spawn = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(1, spawn, _prepare, (part, job)) as pool:
        return pool.submit(part, job).result()


def _prepare(part, job):
    if job.threads:
        torch.set_num_threads(job.threads)
    hardware.keep_freed_memory() if part is animation else hardware.arrange_allocator(job.config.train_params)
    hardware.flush_denormals()


def main(arguments=None):
    parser = argparse.ArgumentParser(prog='python -m benchmarks.speed', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--config', default='config/vox-256.yaml')
    parser.add_argument('--set', nargs='+', default=[], metavar='key=value', help='override config values')
    parser.add_argument('--batch', type=int, default=2, help='pairs of a training step')
    parser.add_argument('--frames', type=int, nargs='+', default=[1, 8], help='numbers of frames rendered at once')
    parser.add_argument('--repeats', type=int, default=REPEATS, help=f'of each measurement; default {REPEATS}')
    parser.add_argument('--threads', type=int, default=0, help="CPU threads; default: PyTorch's")
    parser.add_argument('--gpu_parts', action='store_true', help='run the parts for GPUs on a CPU, too')
    parser.add_argument('--json', type=Path, help='write the measurements to this file')
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    config = hardware.adapted(schema.load(options.config, options.set), device)
    job = partial(Job, config, device, threads=options.threads, repeats=options.repeats)
    parts = {f'frame, batch of {count}': (animation, job(count)) for count in options.frames}
    parts['training step'] = training, job(options.batch)
    if device.type == 'cuda' or options.gpu_parts:
        parts |= {f'training in {precision}': (partial(scaling, precision=precision), job(options.batch))
                  for precision in ('fp32', 'bf16')}
        parts |= {'choices': (choices, job(options.batch)), 'video': (video, job(options.frames[-1])),
                  'captured frame': (captured, job(1))}
    found = {'config': options.config, 'set': options.set, 'device': options.device, 'threads': options.threads,
             'precision': config.train_params.precision}
    try:
        for name, (part, of) in parts.items():
            found[name] = in_process(part, of)
            report(name, found[name])
    finally:                             # keep what was measured before an error
        if options.json:
            options.json.write_text(json.dumps(found, indent=1))


def report(name, found):
    """Print one part's measurements."""
    rows = [(name, found)] if 'mfu' in found else [(f'{name}, batch of {row["batch"]}', row) for row in found] \
        if isinstance(found, list) else [(f'{name}, {key}', value) for key, value in found.items()]
    for title, row in rows:
        if isinstance(row, dict):
            print('{}: {seconds:.3f} s ({range[0]:.3f} to {range[1]:.3f}), {per_second:.2f}/s, {tflop:.2f} TFLOP, '
                  'MFU {mfu:.0%}, peak memory {peak_gib:.2f} GiB'.format(title, **row), flush=True)
        else:
            print(f'{title}: {row:.4g}', flush=True)


if __name__ == '__main__':
    main()
