"""One process or many: what `torchrun` says about this process, with answers for a single one."""

import os
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from support.errors import UserError


def start(device):
    """Join the process group that torchrun announces, if any; returns this process's torch.device."""
    if 'RANK' not in os.environ:
        return device
    if device.type == 'cuda':
        device = torch.device('cuda', int(os.environ['LOCAL_RANK']))
        torch.cuda.set_device(device)
    dist.init_process_group('nccl' if device.type == 'cuda' else 'gloo')
    return device


@contextmanager
def explained():
    """Within it, the loss of another process of the group becomes a UserError."""
    try:
        yield
    except RuntimeError as error:
        if world() == 1 or not (isinstance(error, dist.DistError) or 'gloo' in str(error)):
            raise
        raise UserError('another process of this run has ended, which its own message or the system explains; '
                        'the same command goes on') from error


def stop():
    if _joined():
        dist.destroy_process_group()


def _joined():
    return dist.is_available() and dist.is_initialized()


def announced():
    """(rank, world) of this process as torchrun says, joined or not: for work that needs no word from the others."""
    return int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))


def rank():
    return dist.get_rank() if _joined() else 0


def world():
    return dist.get_world_size() if _joined() else 1


def add_up(*tensors):
    """Replace each tensor by its sum over the processes, in place; not differentiable, see `total`."""
    if world() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def take_maximum(tensor):
    """Replace `tensor` by its element-wise maximum over the processes, in place."""
    if world() > 1:
        dist.all_reduce(tensor, dist.ReduceOp.MAX)


def total(tensor):
    """The sum over the processes; gradients flow back to all of them."""
    if world() == 1:
        return tensor
    from torch.distributed.nn.functional import all_reduce
    return all_reduce(tensor)


def any_rank(*flags, device):
    """For each flag, whether it is set in any process; every process gets the same answer."""
    flags = torch.stack([torch.as_tensor(flag, device=device).float() for flag in flags])
    take_maximum(flags)
    return [bool(flag) for flag in flags.tolist()]


def mean(values):
    """Scalars by name, averaged over the processes: dict of 0-dim tensors -> dict of floats."""
    stacked = torch.stack([value.detach().float() for value in values.values()])
    add_up(stacked)
    return dict(zip(values, (stacked / world()).tolist()))


def wait():
    if world() > 1:
        dist.barrier()


def wait_long():
    """As `wait`, where processes may arrive hours apart."""
    if world() > 1:
        dist.barrier(dist.new_group(backend='gloo', timeout=timedelta(days=7)))
