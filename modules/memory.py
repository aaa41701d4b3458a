"""Memory estimates of a training step and of a frame, from a pass without data (support/gpu_path.py).

Counted is every tensor while it exists, in the recipe's precision. Left out are scratch memory of kernels and what an
allocator loses to fragmentation: measured peaks on CPUs exceed the count by up to a tenth, and by some 50 MiB that
hardly grow with the batch (tests/test_memory.py).
"""

import dataclasses
import logging
import weakref
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modules.build import WIDTHS, build_model
from modules.losses import RandomTransform
from modules.objective import needs_vgg
from modules.perceptual import VGG19
from modules.pairs import Pairs
from modules.training_step import build_training_step
from support.errors import UserError
from support.gpu_path import META, gpu_path
from support.hardware import available_memory

log = logging.getLogger(__name__)

GIB = 2 ** 30
BASE = 0.5 * GIB             # Python and PyTorch; on a GPU, CUDA's context
KEPT = 0.3                   # of the count, measured: what a CPU's allocator loses if it keeps freed memory
NOTHING_FITS = f'not even one pair fits: lower model_params.image_size, {WIDTHS}'
SMALL = 2 ** 15              # bytes per pixel of a batch, twice those of the paper's model: no count where all fit


class Peak(TorchDispatchMode):
    """Context manager: `most` is the peak of bytes in tensors that were made within it."""

    def __init__(self):
        super().__init__()
        self.most, self._now, self._known = 0, 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        # A storage that went in is not new, nor is a view of it.
        given = {storage._cdata for storage in _storages((args, kwargs))}
        result = function(*args, **(kwargs or {}))
        for storage in _storages(result):
            key, size = storage._cdata, storage.nbytes()
            if key not in given | self._known:
                self._known.add(key)
                self._now += size
                self.most = max(self.most, self._now)
                weakref.finalize(storage, self._forget, key, size).atexit = False
        return result

    def _forget(self, key, size):
        self._known.remove(key)
        self._now -= size


def _storages(tree):
    return [part.untyped_storage() for part in tree_leaves(tree) if isinstance(part, torch.Tensor)]


class StepMemory(NamedTuple):
    """Bytes of a training step on one device; `activations` with gradients, at their common peak."""
    weights: int
    ema: int
    optimizer: int
    buckets: int
    activations: int

    def __str__(self):
        return f'{self.total / GIB:.1f} GiB (' + ', '.join(
            f'{name} {size / GIB:.2f}' for name, size in self._asdict().items() if size) + ')'

    @property
    def total(self):
        return BASE + sum(self)


def empty_training(config, batch):
    """A TrainingStep and its Pairs on the meta device, to count memory and cost within gpu_path()."""
    params, size = config.train_params, config.model_params.image_size
    step = build_training_step(config, META, VGG19().state_dict() if needs_vgg(params.objective_params) else None)
    images = [torch.empty(batch, 3, size, size) for _ in range(2)]
    return step, Pairs(*images, RandomTransform(torch.empty(batch, 2, 3), torch.empty(batch, 1, 25)))


def step_memory(config, batch, gpus=1):
    """StepMemory of a training step, or of validation if that takes more, with `batch` pairs at once per device.

    gpus: processes in all; with more than one, gradients are copied into buckets that are exchanged
    """
    with gpu_path():
        training, pairs = empty_training(config, batch)
        state = training.state
        with Peak() as peak:
            training.gradients([pairs], training.first_full_step)
        trained = _bytes(state.model) + _bytes(training.discriminator)
        weights = _bytes(training.objective) + _bytes(training.discriminator)
    activations = max(peak.most + pairs.source.nbytes + pairs.driving.nbytes,
                      frame_memory(config, config.reconstruction_params.batch_size))
    return StepMemory(weights, _bytes(state.ema), 2 * trained, trained if gpus > 1 else 0, activations)


def frame_memory(config, batch=1):
    """Bytes of encoding a source image and rendering `batch` frames of it, weights not included."""
    size = config.model_params.image_size
    with gpu_path(), torch.no_grad():
        model = build_model(config).eval()
        with Peak() as peak, torch.autocast('cuda', torch.bfloat16, enabled=config.train_params.precision == 'bf16'):
            images = torch.empty(batch, 3, size, size)
            model.render(model.encode_source(images[:1].clone()), model.keypoints(images))
    return peak.most


def _bytes(module):
    """Bytes of a network's weights and buffers; 0 for None."""
    return sum(tensor.nbytes for tensor in module.state_dict().values()) if module is not None else 0


def as_flags(settings):
    """{key of train_params: value} as flags of the command line."""
    return '--set ' + ' '.join(f'train_params.{key}={value}' for key, value in settings.items())


def fitting_settings(config, limit, gpus=1):
    """What fits `limit` bytes on each of `gpus` devices: [({key of train_params: value}, StepMemory), ...].

    The batch stays; of each choice of checkpointing, the fewest micro-batches that fit. [] if a single pair does not.
    """
    found, part = [], config.train_params.batch_size // gpus
    for checkpointing in (False, True):
        params = dataclasses.replace(config.train_params, checkpointing=checkpointing)
        for accumulate in (count for count in range(1, part + 1) if part % count == 0):
            memory = step_memory(dataclasses.replace(config, train_params=params), part // accumulate, gpus)
            if memory.total <= limit:
                found.append(({'accumulate': accumulate, 'checkpointing': str(checkpointing).lower()}, memory))
                break
    return found


# ---------------------------------------------------------------------------- refusals

def room(params):
    """Bytes of tensors that fit in the free main memory, less the allocator's overhead; None if unknown."""
    free = available_memory()
    return None if free is None else free / (1 + KEPT * params.keep_freed)


def check_batch(config, batch, device):
    """UserError if a training step on `batch` pairs cannot fit the memory that this machine has left.

    On a GPU the allocation itself raises (see `explained`); on a CPU the kernel would end the process.
    """
    limit = room(config.train_params) if device.type == 'cpu' else None
    if limit and batch * config.model_params.image_size ** 2 * SMALL > limit / 2:
        log.info('counting the memory of a training step ...')
        needed = step_memory(config, batch).total
        if needed > limit:
            params = dataclasses.replace(config.train_params, batch_size=batch, accumulate=1)
            fitting = fitting_settings(dataclasses.replace(config, train_params=params), limit)
            advice = ' or '.join(as_flags(settings | {
                'accumulate': settings['accumulate'] * config.train_params.accumulate}) for settings, _ in fitting)
            raise UserError(f'a training step on {batch} pairs takes about {needed / GIB:.1f} GiB, {limit / GIB:.1f} '
                            f'GiB are free, and training is on the CPU; {advice or NOTHING_FITS}')


def check_frame(config, device):
    """UserError if not even one frame, with its weights, can fit the memory that this machine has left."""
    limit, size = available_memory() if device.type == 'cpu' else None, config.model_params.image_size
    if limit and size ** 2 * SMALL > limit / 2:
        needed = BASE + frame_memory(config)
        if needed > limit:
            raise UserError(f'model_params: a frame of {size} px takes at least {needed / GIB:.1f} GiB, and '
                            f'{limit / GIB:.1f} GiB of memory are free; lower image_size, {WIDTHS}')


@contextmanager
def explained(batch):
    """Context manager: turns a GPU's out-of-memory error into a UserError with the settings that help."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        said = '. '.join(str(error).split('. ')[:3])
        raise UserError(f'{said}; micro-batches are of {batch} pair(s): raise train_params.accumulate, or set '
                        'train_params.checkpointing=true (--mode doctor --gpu_memory GIB prints what fits)') from None
