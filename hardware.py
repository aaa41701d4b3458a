"""What this machine can do: keep memory, compute in bf16, compile, hold a batch."""

import ctypes
import dataclasses
import logging
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from config.errors import UserError
from modules import warp
from modules.build import build_discriminator, build_model
from modules.objective import needs_discriminator, needs_vgg
from modules.perceptual import VGG19

log = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3      # malloc.h
COPIES = 5                                       # of the model: weights, gradients, two of Adam, EMA
BASE = 0.4 * 2 ** 30                             # bytes of Python and PyTorch themselves
SCRATCH = 1.2                                    # gradients and kernels' scratch on top of what autograd keeps, measured
ROUGH = 2 ** 15                                  # bytes per pixel that training the paper's model takes


def flush_denormals():
    """Have CPUs take numbers below 1e-38 for 0, which they compute with a hundred times faster.

    Once keypoints are sharp, the tails of heat maps and their gradients are full of them. Threads inherit the mode from
    the one that starts them: call it before the first large operation.
    """
    torch.set_flush_denormal(True)


def keep_freed_memory():
    """Have glibc keep the memory of freed tensors for the next ones: for inference, which needs little and always the same.

    By default it returns every large one to the kernel, which hands the next one out page by page, zeroed.
    Elsewhere than on glibc this does nothing.
    """
    _allocate(mapped=2 ** 30, kept=2 ** 31 - 1)


def return_freed_memory():
    """Give every large tensor huge pages of its own, returned when it is freed: for training.

    A step's tensors are of many sizes and lives; memory that is kept for them falls to pieces and grows by a gigabyte.
    Huge pages (where Linux has them) make what is handed out anew cheap. Call it before the first large tensor.
    """
    os.environ.setdefault('THP_MEM_ALLOC_ENABLE', '1')      # PyTorch reads it at its first allocation
    _allocate(mapped=2 ** 21, kept=2 ** 27)


def trim_freed_memory():
    """Return what is free to the kernel now, whatever is kept later: for measurements."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc():
    """The C library if it is glibc, else None."""
    libc = ctypes.CDLL(None) if sys.platform == 'linux' else None
    return libc if hasattr(libc, 'gnu_get_libc_version') else None


def _allocate(mapped, kept):
    """mapped: bytes from which on a tensor gets pages of its own; kept: bytes of other freed memory kept at most."""
    if libc := _glibc():
        libc.mallopt(M_MMAP_THRESHOLD, mapped)
        libc.mallopt(M_TRIM_THRESHOLD, kept)


# ---------------------------------------------------------------------------- fall-backs

def adapted(config, device):
    """The config with what `device` cannot do replaced, each with a warning that names reason and replacement."""
    changes = {}
    params = config.train_params
    if params.precision == 'bf16' and not has_bf16(device):
        log.warning('train_params.precision=bf16: %s has no bf16 arithmetic and would only emulate it; using fp32', device)
        changes['precision'] = 'fp32'
    if params.compile and (reason := cannot_compile(device)):
        log.warning('train_params.compile: %s; running uncompiled', reason)
        changes['compile'] = False
    return dataclasses.replace(config, train_params=dataclasses.replace(params, **changes))


def has_bf16(device):
    """Whether bf16 is faster than fp32 there."""
    if device.type == 'cuda':
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == 'cpu' and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def cannot_compile(device):
    """Why torch.compile cannot run on `device`; None if it can."""
    if device.type == 'cpu':
        compiler = os.environ.get('CXX', 'g++')
        return None if shutil.which(compiler) or shutil.which('clang++') else f'no C++ compiler ({compiler}) is installed'
    if device.type == 'cuda':
        capability = torch.cuda.get_device_capability(device)
        return None if capability >= (7, 0) else f'Triton needs compute capability 7.0, {device} has {capability}'
    return f'{device.type} is not supported'


# ---------------------------------------------------------------------------- memory

def check_batch(config, batch, device):
    """UserError if a training step of `batch` samples cannot fit the memory that this machine has left.

    On GPUs allocation itself says so (`too_large`); a CPU process would be killed without a word.
    """
    limit = available_memory() if device.type == 'cpu' else None
    if limit and batch * config.model_params.image_size ** 2 * ROUGH > limit / 2:
        if training_memory(config, batch) > limit:
            raise too_large(config, batch, limit)


@contextmanager
def explained(config, batch, device):
    """Within it, a GPU that runs out of memory raises the UserError of `too_large`."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise too_large(config, batch, torch.cuda.get_device_properties(device).total_memory) from None


def too_large(config, batch, limit):
    """The UserError for a batch that does not fit `limit` bytes: the estimate, and the largest that fits."""
    one, two = (training_memory(config, count) for count in (1, 2))
    estimate, largest = one + (batch - 1) * (two - one), int((limit - one) // (two - one)) + 1
    fits = f'the largest that fits is {largest} per process' if largest > 0 else 'not even one sample fits'
    return UserError(f'a training step of {batch} samples takes about {estimate / 2 ** 30:.1f} GiB of '
                     f'{limit / 2 ** 30:.1f} GiB; {fits}: raise train_params.accumulate or lower '
                     'train_params.batch_size, or set train_params.checkpointing=true')


def available_memory():
    """Bytes that this process may still take; None where the system does not say."""
    found = []
    meminfo, cgroup = Path('/proc/meminfo'), Path('/sys/fs/cgroup')
    if meminfo.is_file():
        lines = dict(line.split(':') for line in meminfo.read_text().splitlines())
        found.append(int(lines['MemAvailable'].split()[0]) * 1024)
    if (cgroup / 'memory.max').is_file() and (limit := (cgroup / 'memory.max').read_text().strip()).isdigit():
        found.append(int(limit) - int((cgroup / 'memory.current').read_text()))
    return min(found, default=None)


def training_memory(config, batch):
    """Bytes of one training step, estimated without computing anything: what autograd keeps, and the weights' copies."""
    size, objective = config.model_params.image_size, config.train_params.objective_params
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = build_model(config)
        if config.train_params.checkpointing:
            model.recompute_blocks()
        images = [torch.zeros(batch, 3, size, size) for _ in range(2)]
        kept = _kept_bytes(lambda: model(*images))
        weights = COPIES * _bytes(model)
        if needs_discriminator(objective):
            weights += (COPIES - 1) * _bytes(build_discriminator(config))
        if needs_vgg(objective):
            network, predictions = VGG19(), torch.zeros(2 * batch, 3, size, size, requires_grad=True)
            kept += _kept_bytes(lambda: network(predictions))
            weights += _bytes(network)
    warp.forget()      # grids that were made here hold no numbers
    return BASE + weights + SCRATCH * kept


def _bytes(module):
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def _kept_bytes(function):
    """Bytes that autograd keeps for the backward pass of `function`."""
    storages = {}

    def keep(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            storages[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function()
    return sum(storage.nbytes() for storage in storages.values())
