"""Training batches: the dataset of a config, and the processes that load it."""

import multiprocessing
import time
from contextlib import contextmanager

import torch
from torch.utils.data import DataLoader

from datasets.build import pair_reader, training_people
from datasets.frames import Augmentation, PairDataset, Stream
from support import distributed
from support.errors import UserError
from support.processes import loading_context, worker_start
from support.signals import StopSignal


def training_set(config):
    """The PairDataset of a config; UserError for missing data, or if processes differ in config or clips."""
    data = config.dataset_params
    augmentation = Augmentation(**vars(data.augmentation_params))
    people = training_people(data, config.model_params.image_size)
    dataset = PairDataset(people, config.train_params.seed, augmentation, data.max_broken, pair_reader(data, people))
    distributed.agree({'config': distributed.digest([str(config)]),
                       'training clips': distributed.digest(dataset.names())})
    return dataset


def training_loader(config, dataset, step):
    """Batches after step `step`: dict(source, driving (B, 3, H, W) in [-1, 1], index (B,), skipped (B,)).

    A sample's index is its position in the training stream, so that resumed runs continue with the next samples.
    """
    params = config.train_params
    stream = Stream(params.batch_size // distributed.world(), params.num_iterations, distributed.rank(),
                    distributed.world(), step)
    check_queues(params.num_workers)
    return DataLoader(dataset, batch_sampler=stream, num_workers=params.num_workers,
                      pin_memory=torch.cuda.is_available(), persistent_workers=False,
                      prefetch_factor=4 if params.num_workers else None,
                      multiprocessing_context=loading_context(StopSignal.NUMBERS) if params.num_workers else None,
                      worker_init_fn=worker_start(StopSignal.NUMBERS))     # this process alone decides on a stop


def check_queues(workers):
    """UserError if shared memory has no room for the queues of the loading processes: DataLoader would crash."""
    try:
        _ = [multiprocessing.Queue() for _ in range(workers and workers + 2)]
    except OSError as error:
        raise UserError(f'shared memory (/dev/shm) has no room for data loading processes ({error.strerror}): make '
                        'some, or load in the training process: --set train_params.num_workers=0') from None


@contextmanager
def timed_batches(loader):
    """Yields an iterator of `timed` batches, and ends the data loading processes on leaving the block.

    Otherwise Python would wait for them at exit forever, as they ignore SIGTERM. The death of one, which PyTorch may
    report at any line of the block, is raised as a UserError.
    """
    before, batches = multiprocessing.active_children(), None
    try:
        batches = iter(loader)
        yield timed(batches)
    except RuntimeError as error:
        if 'DataLoader worker' not in str(error):
            raise
        raise UserError('a data loading process was killed, most often because memory or shared memory (/dev/shm) is '
                        'full; rerun the same command to resume, with fewer train_params.num_workers if it happens '
                        'again') from None
    finally:
        if hasattr(batches, '_shutdown_workers'):
            batches._shutdown_workers()
        for process in multiprocessing.active_children():
            if process not in before:
                process.kill()


def timed(batches):
    """Yields (seconds by name as tensors, batch): time spent waiting for it, and since the previous batch arrived."""
    last = begin = time.perf_counter()
    for batch in batches:
        now = time.perf_counter()
        yield {'data/wait_s': torch.tensor(now - begin), 'data/step_s': torch.tensor(now - last)}, batch
        last, begin = now, time.perf_counter()
