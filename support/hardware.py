"""Capabilities of the machine: freed memory, bf16, compilation, available memory."""

import ctypes
import dataclasses
import logging
import os
import shutil
import sys
from pathlib import Path

import torch

log = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3      # malloc.h
# Of c10/core/impl/alloc_cpu.cpp, on Linux and on Windows; and of sizes that no allocator is asked for.
OUT_OF_MEMORY = "can't allocate memory", 'not enough memory', 'Storage size calculation overflowed'
HUGE_PAGES = 'THP_MEM_ALLOC_ENABLE'              # PyTorch reads it at its first allocation


def flush_denormals():
    """Have CPUs take numbers below 1e-38 for 0, which they compute with a hundred times faster.

    Once keypoints are sharp, the tails of heat maps and their gradients are full of them. Threads inherit the mode from
    the one that starts them: call it before the first large operation.
    """
    torch.set_flush_denormal(True)


def keep_freed_memory():
    """Have glibc keep the memory of freed tensors for the next ones.

    By default it returns every large one to the kernel, which hands the next one out page by page, zeroed: a quarter
    of the time of a training step. Elsewhere than on glibc this does nothing; an allocator that is preloaded (jemalloc)
    goes by its own settings.
    """
    _allocate(mapped=2 ** 30, kept=2 ** 31 - 1)


def keep_small_freed_memory():
    """Keep the memory of tensors below 32 MiB, and return that of larger ones: between the other two.

    Few tensors of the paper's model at 256 px are so large (64 channels of two images), but it is those that do not fit
    into the pieces of freed memory.
    """
    os.environ.setdefault(HUGE_PAGES, '1')
    _allocate(mapped=2 ** 25, kept=2 ** 31 - 1)


def return_freed_memory():
    """Give every large tensor huge pages of its own, returned when it is freed: where memory is scarcer than time.

    A training step's tensors are of many sizes and lives; memory that is kept for them falls to pieces and grows, by up
    to a gigabyte for the paper's model. Huge pages (where Linux has them) make what is handed out anew cheaper. Call it
    before the first large tensor. benchmarks/README.md has time and memory of both.
    """
    os.environ.setdefault(HUGE_PAGES, '1')
    _allocate(mapped=2 ** 21, kept=2 ** 27)


def arrange_allocator(params):
    """Have a CPU's allocator keep as much freed memory as TrainParams allow; call it before the first tensor.

    With checkpointing, which trades time for memory, large tensors are returned: a seventh more time for a seventh less
    memory.
    """
    if not params.keep_freed:
        return_freed_memory()
    elif params.checkpointing:
        keep_small_freed_memory()
    else:
        keep_freed_memory()


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
        log.warning('train_params.precision=bf16: %s has no bf16 arithmetic and would only emulate it; using fp32',
                    device)
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
        found = shutil.which(compiler) or shutil.which('clang++')
        return None if found else f'no C++ compiler ({compiler}) is installed'
    if device.type == 'cuda':
        capability = torch.cuda.get_device_capability(device)
        return None if capability >= (7, 0) else f'Triton needs compute capability 7.0, {device} has {capability}'
    return f'{device.type} is not supported'


# ---------------------------------------------------------------------------- memory

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


def is_out_of_memory(error):
    """Whether an exception says that memory could not be had: on GPUs, CPUs or by Python itself."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in OUT_OF_MEMORY))
