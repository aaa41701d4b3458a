"""The parts of the benchmark, each in a process of its own, which tells its peak memory."""

import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.speed.operations import flops, peak_flops
from benchmarks.speed.optimisations import ablation
from benchmarks.speed.turns import Clock, Yardstick, in_turns, peak_memory
from benchmarks.speed.work import Animation, Training
from config import schema
from modules import training_memory
from support import hardware
from datasets.loader import training_loader, training_set


@dataclass(frozen=True)
class Job:
    """What is measured, and how.

    batch:   samples of a training step, or frames
    threads: of a CPU; 0 for as many as PyTorch takes
    ablate:  names of the optimisations that are switched off in turn, [] for all; None for none
    """
    config: Any
    device: torch.device
    batch: int
    threads: int
    turns: int
    ablate: list[str] | None = None


def animation(job):
    """Of one frame: time, yardsticks, operations, memory; and of the source, once per video."""
    work = Animation(job.config, job.batch, job.device)
    found = measured(job, work, 'frame', job.batch)
    clock = Clock(job.device)
    found['encode_once_seconds'] = statistics.median(clock(work.encode)[0] for _ in range(job.turns))
    return found | worth(job, work)


def training(job):
    """Of one training step: time, yardsticks, operations, memory, stages."""
    work, stages = Training(job.config, job.batch, job.device), []
    found = measured(job, work, 'step', turn=lambda: stages.append(work.stages(Clock(job.device))))
    stages = stages[1:]                                                      # the first is to warm up
    found['stages'] = {name: statistics.median(stage[name] for stage in stages) for name in stages[0]}
    return found | worth(job, work)


def measured(job, work, yardstick, unit=1, turn=None):
    """What all work is asked; unit: of it in one call; turn: the work in a turn, where more is asked of it there.

    Peak memory is that of all turns: memory that is kept from step to step can fall to pieces and grow.
    """
    clock, found = Clock(job.device), {}
    operations = flops(work) / unit
    with Yardstick(yardstick, job.device, job.threads) as other:
        memory = peak_memory(job.device,
                             lambda: found.update(in_turns(clock, other, turn or work, job.turns, unit)))
    dtype = torch.bfloat16 if job.config.train_params.precision == 'bf16' else torch.float32
    return found | {'gflop': operations / 1e9, 'gflops_per_second': operations / found['seconds'] / 1e9,
                    'share_of_peak': operations / found['seconds'] / peak_flops(clock, dtype),
                    'peak_memory_gib': memory}


def worth(job, work):
    """What each optimisation is worth to the work, if that is asked for."""
    if job.ablate is None:
        return {}
    return {'worth': ablation(Clock(job.device), work, job.turns, job.ablate)}


def loader(job):
    """Batches per second that the loader gives when nothing else runs."""
    count = 10
    sets = [f'train_params.batch_size={job.batch}', 'dataset_params.root_dir=null', 'train_params.num_workers=1',
            f'train_params.num_iterations={1 + count}', 'train_params.motion_iterations=0']
    config = schema.override(job.config, sets)
    batches = iter(training_loader(config, training_set(config), 0))
    next(batches)
    begin = time.perf_counter()
    for _ in range(count):
        next(batches)
    seconds = (time.perf_counter() - begin) / count
    return {'seconds_per_batch': seconds, 'samples_per_second': job.batch / seconds,
            'data': 'embedded heads, one worker'}


def in_process(part, job):
    """What `part` returns for a Job, run in a fresh process with the settings that its mode makes."""
    spawn = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(1, spawn, _prepare, (job, part)) as pool:      # it may have children
        return pool.submit(part, job).result()


def _prepare(job, part):
    if job.threads:
        torch.set_num_threads(job.threads)
    training_memory.arrange(job.config.train_params) if part is training else hardware.keep_freed_memory()
    hardware.flush_denormals()
