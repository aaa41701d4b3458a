"""Checks of the config: values, sizes that fit together, disk and memory."""

import os
import re
import shutil
import time

import torch

from modules import memory
from modules.build import build_discriminator, build_model
from modules.objective import needs_discriminator
from support import hardware
from support.errors import UserError
from tools.doctor.finding import BLOCKS, GIB, NOTE, OK, WARNING, Finding

USUAL_SIZES = 32, 64, 128, 256, 512


def check_config(case):
    """Load the config, which all later checks need, into `case.config`."""
    try:
        case.config = case.load()
    except UserError as error:
        what, _, todo = str(error).partition('; ')
        # A key that is wrong has its cure in the message; a size that does not fit has none.
        size = re.search(r'image_size=(\d+)', what)
        todo = todo or size and _working_size(case, int(size[1]))
        todo = todo or 'correct the value, or remove the key for its default'
        yield Finding(BLOCKS, what, case.source, todo)
        return
    config, params = case.config, case.config.train_params
    yield Finding(OK, f'{config.method} at {case.size} px, batch of {params.batch_size} in {params.accumulate} part(s)'
                      f', {params.precision}, {params.num_iterations:,} iterations', case.source)
    if params.batch_size % params.accumulate:
        yield Finding(BLOCKS, f'train_params.batch_size={params.batch_size} cannot be split into '
                              f'accumulate={params.accumulate} equal parts', case.source,
                      'choose a multiple of accumulate as batch_size')
    if params.precision == 'bf16' and not hardware.has_bf16(case.device):
        yield Finding(WARNING, f'{case.device} has no bf16 arithmetic, so training would use fp32', case.source,
                      '--set train_params.precision=fp32')


def check_networks(case):
    """Check that image, flow, window and hourglass sizes fit together, by a training step on meta tensors."""
    try:
        case.memory = memory.step_memory(case.config, case.part, case.gpus)
    except (RuntimeError, ValueError) as error:
        yield Finding(BLOCKS, f'the networks do not support {case.size} px: {" ".join(str(error).split())[:99]}',
                      case.source, _working_size(case, case.size) or 'correct the sizes in model_params')
        return
    yield Finding(OK, 'image, flow, windows and heat maps fit together')


def _working_size(case, wanted):
    """Advice for an unsupported image size: the nearest usual size that works, or an empty string."""
    for size in sorted(USUAL_SIZES, key=lambda size: abs(size - wanted)):
        try:
            config = case.load(f'model_params.image_size={size}')
            memory.frame_memory(config)
        except (UserError, RuntimeError, ValueError):
            continue
        return f'--set model_params.image_size={size}, which fits the other values'
    return ''


# ---------------------------------------------------------------------------- disk and memory

def check_disk(case):
    """Check disk space: a checkpoint holds 4 copies of the model's weights and 3 of the discriminator's."""
    with torch.device('meta'):
        networks = [(4, build_model(case.config))]
        if needs_discriminator(case.config.train_params.objective_params):
            networks.append((3, build_discriminator(case.config)))
    checkpoint = sum(4 * copies * parameter.numel() for copies, network in networks
                     for parameter in network.parameters())                   # bytes
    needed = checkpoint * (case.config.train_params.keep_checkpoints + 1)
    wanted = case.run_folder.absolute()
    folder = next(folder for folder in (wanted, *wanted.parents) if folder.is_dir())
    free = shutil.disk_usage(folder).free
    figures = f'{free / GIB:.1f} GiB free, {needed / GIB:.1f} GiB needed for checkpoints of {checkpoint / GIB:.2f} GiB'
    if not os.access(folder, os.W_OK):
        yield Finding(BLOCKS, 'no permission to write', str(folder), 'choose another --log_dir')
    elif free < needed:
        yield Finding(BLOCKS, f'the disk is full: {figures}', str(folder), 'free space, choose another --log_dir, or '
                      '--set train_params.keep_checkpoints=1')
    else:
        yield Finding(OK, figures, str(folder))


def check_memory(case):
    """Memory of a training step in the recipe's precision (modules/memory.py), compared with what the device has."""
    if case.memory is None:
        yield Finding(NOTE, 'not estimated, as the networks cannot run')
        return
    if case.gpu_memory is not None:
        limit, where = case.gpu_memory * GIB, f'{case.gpus} GPU(s) of {case.gpu_memory:g} GiB'
    elif case.device.type == 'cuda':
        limit, where = torch.cuda.mem_get_info(case.device)[0], torch.cuda.get_device_name(case.device)
    else:
        limit, where = memory.room(case.config.train_params), 'main memory'
    what = (f'a training step on {case.part} pair(s) at once takes about {case.memory} in '
            f'{case.config.train_params.precision}')
    if limit is None:
        yield Finding(NOTE, f'{what}; this system does not report its free memory', where)
    elif case.memory.total <= limit and case.gpu_memory is None:
        yield Finding(OK, f'{what}, {limit / GIB:.1f} GiB are free', where)
        yield _try_frame(case)
    else:
        yield from _plan(case, limit, where, what)


def _plan(case, limit, where, what):
    """What fits `limit` bytes per device, as values to paste."""
    fits = case.memory.total <= limit
    fitting = memory.fitting_settings(case.config, limit, case.gpus)
    todo = ' or '.join(memory.as_flags(settings) for settings, _ in fitting) or memory.NOTHING_FITS
    yield Finding(OK if fits else BLOCKS, f'{what}, {limit / GIB:.1f} GiB are available', where, '' if fits else todo)
    for settings, needed in fitting:
        yield Finding(OK, f'{memory.as_flags(settings)}: {needed}', where)


def _try_frame(case):
    """One frame rendered with untrained weights: a device or a package that is present may not work."""
    image = torch.zeros(1, 3, case.size, case.size, device=case.device)
    begin = time.perf_counter()
    with torch.inference_mode():
        frame = build_model(case.config).to(case.device).eval()(image, image).prediction
        if frame.shape != image.shape or not frame.isfinite().all():
            return Finding(BLOCKS, f'{case.device} renders no valid frame', todo='pip install --force-reinstall torch')
    return Finding(OK, f'rendered one frame, in {time.perf_counter() - begin:.1f} s with building the model')
