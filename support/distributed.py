"""One process or many: what `torchrun` says about this process, with answers for a single one."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist


def start(device):
    """Join the process group that torchrun announces, if any; returns this process's torch.device."""
    if 'RANK' not in os.environ:
        return device
    if device.type == 'cuda':
        device = torch.device('cuda', int(os.environ['LOCAL_RANK']))
        torch.cuda.set_device(device)
    dist.init_process_group('nccl' if device.type == 'cuda' else 'gloo')
    return device


def stop():
    if dist.is_initialized():
        dist.destroy_process_group()


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def world():
    return dist.get_world_size() if dist.is_initialized() else 1


def any_rank(*flags, device):
    """For each flag, whether it is set in any process; every process gets the same answer."""
    flags = torch.stack([torch.as_tensor(flag, device=device).float() for flag in flags])
    if world() > 1:
        dist.all_reduce(flags, dist.ReduceOp.MAX)
    return [bool(flag) for flag in flags.tolist()]


def mean(values):
    """Scalars by name, averaged over the processes: dict of 0-dim tensors -> dict of floats."""
    stacked = torch.stack([value.detach().float() for value in values.values()])
    if world() > 1:
        dist.all_reduce(stacked)
        stacked /= world()
    return dict(zip(values, stacked.tolist()))


def wait():
    if world() > 1:
        dist.barrier()


def wait_long():
    """As `wait`, where processes may arrive hours apart."""
    if world() > 1:
        dist.barrier(dist.new_group(backend='gloo', timeout=timedelta(days=7)))
