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
# Messages of c10/core/impl/alloc_cpu.cpp on Linux and Windows, and for sizes that overflow.
OUT_OF_MEMORY = "can't allocate memory", 'not enough memory', 'Storage size calculation overflowed'
HUGE_PAGES = 'THP_MEM_ALLOC_ENABLE'              # PyTorch reads it at its first allocation


def prepare_cpu(params=None):
    """Flush denormals, and set how much freed memory glibc keeps. Call this before the first large tensor.

    CPUs compute a hundred times slower with numbers below 1e-38, of which heat maps of sharp keypoints and their
    gradients are full. Threads inherit the mode from the thread that starts them.

    By default glibc returns large blocks to the kernel, which zeroes each new page: a quarter of the time of a training
    step. Kept memory fragments and grows, though: a step of config/vox-256.yaml (batch 2, one CPU thread) takes 22.5 s
    and 6.84 GiB, or 31.6 s and 5.58 GiB if memory is returned. Huge pages of Linux reduce the cost of new memory.
    Without glibc, or with a preloaded allocator (jemalloc), this has no effect.

    params: TrainParams, of which keep_freed and checkpointing count; None keeps the most
    """
    torch.set_flush_denormal(True)
    if params is None or params.keep_freed and not params.checkpointing:
        _allocate(mapped=2 ** 30, kept=2 ** 31 - 1)
        return
    os.environ.setdefault(HUGE_PAGES, '1')
    if params.keep_freed:
        # A seventh more time, a seventh less memory. Few tensors of the paper's model at 256 px are larger than 32 MiB
        # (64 channels of two images), but those fragment kept memory.
        _allocate(mapped=2 ** 25, kept=2 ** 31 - 1)
    else:
        _allocate(mapped=2 ** 21, kept=2 ** 27)


def trim_freed_memory():
    """Return freed memory to the kernel once, for measurements."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc():
    """The C library if it is glibc, otherwise None."""
    libc = ctypes.CDLL(None) if sys.platform == 'linux' else None
    return libc if hasattr(libc, 'gnu_get_libc_version') else None


def _allocate(mapped, kept):
    """mapped: bytes above which a tensor gets its own pages; kept: limit of other freed memory, bytes."""
    if libc := _glibc():
        libc.mallopt(M_MMAP_THRESHOLD, mapped)
        libc.mallopt(M_TRIM_THRESHOLD, kept)


# ---------------------------------------------------------------------------- layout, compilation

def memory_format(device):
    """Layout of the networks' weights on a device, which that of features follows.

    CPUs: channels last, in which oneDNN's convolutions are about a sixth faster. Elsewhere channels first: CUDA's group
    norm knows no other layout, so channels last would copy the feature around every one of them, forward and backward.
    """
    return torch.channels_last if device.type == 'cpu' else torch.contiguous_format


def allow_compiled_blocks(count):
    """Prepare torch.compile for `count` blocks that are compiled one by one."""
    import torch._dynamo
    settings = torch._dynamo.config
    settings.optimize_ddp = False      # splits graphs at DDP's buckets; older versions refuse autograd functions
    # Blocks of a class share code but not shapes; PyTorch would compile only 8 of them. Shapes of a
    # block do not change: a graph of dynamic ones would be slower, and checkpointing could recompute by another graph.
    settings.automatic_dynamic_shapes = False
    settings.recompile_limit = max(settings.recompile_limit, 8 * count)
    settings.accumulated_recompile_limit = max(settings.accumulated_recompile_limit, 64 * count)


# ---------------------------------------------------------------------------- fall-backs

def adapted(config, device):
    """The config with unsupported settings of `device` replaced, each with a warning."""
    changes = {}
    params = config.train_params
    if params.precision == 'bf16' and not has_bf16(device):
        log.warning('train_params.precision=bf16: %s would only emulate bf16; using fp32',
                    device)
        changes['precision'] = 'fp32'
    if params.compile and (reason := cannot_compile(device)):
        log.warning('train_params.compile: %s; running uncompiled', reason)
        changes['compile'] = False
    return dataclasses.replace(config, train_params=dataclasses.replace(params, **changes))


def has_bf16(device):
    """Whether `device` computes in bf16 without emulation."""
    if device.type == 'cuda':
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == 'cpu' and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def cannot_compile(device):
    """The reason why torch.compile cannot run on `device`, or None."""
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
    """Bytes that this process can allocate; None if unknown."""
    found = []
    meminfo, cgroup = Path('/proc/meminfo'), Path('/sys/fs/cgroup')
    if meminfo.is_file():
        lines = dict(line.split(':') for line in meminfo.read_text().splitlines())
        found.append(int(lines['MemAvailable'].split()[0]) * 1024)
    if (cgroup / 'memory.max').is_file() and (limit := (cgroup / 'memory.max').read_text().strip()).isdigit():
        found.append(int(limit) - int((cgroup / 'memory.current').read_text()))
    return min(found, default=None)


def is_out_of_memory(error):
    """Whether an exception means that memory is exhausted, on a GPU, on a CPU or in Python."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in OUT_OF_MEMORY))
