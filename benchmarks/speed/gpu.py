"""What only a GPU is asked: batches to the memory's end, choices of arithmetic, whole videos, a captured frame.

Written without one: on a CPU every part runs (tests/test_speed.py), and says nothing of a GPU.
"""

import itertools
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from animate import write_animation
from benchmarks.speed.operations import flops, peak_flops
from benchmarks.speed.turns import Clock, peak_memory
from benchmarks.speed.work import Animation, Training
from config import schema
from datasets.video import open_clip
from datasets.video_writer import VideoWriter
from inference import Renderer
from support import hardware

SECONDS = 60           # that a part goes on beginning with something else: six parts and their starts are 8 minutes
REPEATS = 3
FRAMES = {'cuda': 256, 'cpu': 8}       # of the video
CHOICES = {'fp32': ['precision=fp32'], 'fp32, convolutions in TF32': ['precision=fp32'],
           'bf16': ['precision=bf16'], 'bf16, checkpointing': ['precision=bf16', 'checkpointing=true'],
           'bf16, compiled': ['precision=bf16', 'compile=true']}      # the slowest to begin comes last


def with_params(job, params):
    """The Job's config with other train_params, as the device can have them."""
    config = schema.override(job.config, [f'train_params.{param}' for param in params])
    return hardware.adapted(config, job.device)


def timed(clock, work):
    """Median seconds of a call, which has been called before."""
    work()
    return statistics.median(clock(work)[0] for _ in range(REPEATS))


def scaling(job, precision):
    """Training against the batch, doubled until the memory ends (on a CPU: until job.batch), in one precision.

    batches: of each {batch, seconds, samples_per_second, peak_gib, share_of_peak}, the last being the share of what a
             large matrix product or convolution reaches here in the same precision (MFU)
    ended:   'memory', 'time', or 'asked for no more'
    """
    config, clock, begin = with_params(job, [f'precision={precision}']), Clock(job.device), time.monotonic()
    work, rows, ended = Training(config, 1, job.device), [], 'asked for no more'
    operations = flops(work)                 # of a sample; the optimisers count nothing
    peak = peak_flops(clock, torch.bfloat16 if config.train_params.precision == 'bf16' else torch.float32)
    for batch in (2 ** n for n in itertools.count()):
        if job.device.type == 'cpu' and batch > job.batch:
            break
        if time.monotonic() - begin > SECONDS:
            ended = 'time'
            break
        try:
            work.resize(batch)
            seconds = timed(clock, work)
            rows.append({'batch': batch, 'seconds': seconds, 'samples_per_second': batch / seconds,
                         'peak_gib': peak_memory(job.device, work),
                         'share_of_peak': batch * operations / seconds / peak})
        except torch.OutOfMemoryError:
            ended = 'memory'
            break
    found = {'batches': rows, 'ended': ended, 'gflop_per_sample': operations / 1e9, 'peak_tflops': peak / 1e12}
    if len(rows) > 1:
        two, last = rows[-2:]
        found['mib_per_sample'] = 1024 * (last['peak_gib'] - two['peak_gib']) / (last['batch'] - two['batch'])
    return found


def choices(job):
    """A training step of job.batch in each of CHOICES: seconds, GiB; {} of those for which there was no time.

    TF32 in convolutions is PyTorch's default, so it is what train_params.precision=fp32 gives; 'fp32' goes without.
    """
    clock, begin, found = Clock(job.device), time.monotonic(), {}
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    for name, params in CHOICES.items():
        found[name] = {}
        if time.monotonic() - begin > SECONDS or job.device.type == 'cpu' and 'compile=true' in params:
            continue         # compiling takes a CPU minutes
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
        if name == 'fp32':
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        work = Training(with_params(job, params), job.batch, job.device)
        found[name] = {'seconds': timed(clock, work), 'peak_gib': peak_memory(job.device, work)}
        del work             # before the next one takes its memory
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    return found


def video(job):
    """Frames per second of an animation, job.batch at once: of frames in memory, decoded, and decoded and encoded.

    The networks have random weights, and the video is of moving blocks: what H.264 makes of it is not what it makes of
    faces.
    """
    work, count = Animation(job.config, job.batch, job.device), FRAMES[job.device.type]
    renderer = Renderer(work.model, job.device, job.batch, job.config.train_params.precision)
    size = job.config.model_params.image_size
    blocks = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    frames = [np.ascontiguousarray(np.roll(blocks, n, 1).repeat(size // 16, 0).repeat(size // 16, 1))
              for n in range(count)]
    source = frames[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'driving.mp4')
        with VideoWriter(path, 25) as writer:
            for frame in frames:
                writer.write(frame)
        ways = {'frames in memory': lambda: drain(renderer, source, frames),
                'decoded': lambda: drain(renderer, source, open_clip(path).frames()),
                'decoded and encoded': lambda: write_animation(renderer, source, open_clip(path),
                                                               Path(folder, 'result.mp4'))}
        found = {}
        for name, way in ways.items():
            way()
            begin = time.perf_counter()
            way()
            found[name] = count / (time.perf_counter() - begin)
    return found | {'networks alone': job.batch / timed(Clock(job.device), work)}


def drain(renderer, source, frames):
    for batch in renderer.follow(source).render(frames):
        assert len(batch.frames)


def graph(job):
    """One frame at a time, launched operation by operation and as one captured CUDA graph: seconds; {} without CUDA.

    https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """
    if job.device.type != 'cuda':
        return {}
    work, clock, side = Animation(job.config, 1, job.device), Clock(job.device), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            wanted = work()
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        found = work()
    captured.replay()
    torch.cuda.synchronize()
    return {'operation by operation': timed(clock, work), 'captured': timed(clock, captured.replay),
            'largest difference': float((found - wanted).abs().max())}
