"""Process groups of `torchrun`, with answers for a single process, and one-line errors for lost ones.

https://docs.pytorch.org/docs/stable/elastic/run.html
"""

import hashlib
import json
import os
import secrets
import socket
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from support.errors import UserError
from support.files import UNFINISHED, writing

PATIENCE = 'COLLECTIVE_TIMEOUT'      # environment variable: seconds that processes wait for one another, at most
DEFAULT_PATIENCE = 600
ROLL_CALL = 5                        # seconds in which the remaining processes check in after a failure
SEEN_WITHIN = 60                     # seconds in which a new file on a network disk becomes visible to all machines
SILENCE = 3600                       # seconds without `beat` after which a process counts as lost


@dataclass
class _Ties:
    """What connects the processes besides their group.

    store:    key-value store, which outlives lost processes
    hosts:    host name of each rank
    patience: seconds that processes wait for one another at most
    nccl:     whether NCCL exchanges tensors on GPUs
    lost:     whether a process was lost
    meetings: number of calls of `wait_long`
    """
    store: dist.Store
    hosts: list
    patience: float
    nccl: bool
    lost: bool = False
    meetings: int = 0


_ties = None                         # while the group is joined


def start(device):
    """Join the process group of torchrun, if any; returns this process's torch.device.

    If a machine has more processes than GPUs, they share them and use gloo, as NCCL requires a GPU per process.
    Raises UserError if processes are missing.
    """
    global _ties
    if 'RANK' not in os.environ:
        return device
    seconds = float(os.environ.get(PATIENCE, DEFAULT_PATIENCE))
    patience, backend = timedelta(seconds=seconds), 'gloo'
    if device.type == 'cuda':
        local, gpus = int(os.environ['LOCAL_RANK']), torch.cuda.device_count()
        device = torch.device('cuda', local % gpus)
        torch.cuda.set_device(device)
        if int(os.environ['LOCAL_WORLD_SIZE']) <= gpus:
            # NCCL's watchdog would end this process without saying which one is lost: `any_rank` is to notice first.
            backend, patience = 'cpu:gloo,cuda:nccl', 2 * patience
    try:
        store, rank, world = next(dist.rendezvous('env://', timeout=patience))
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=patience)
        hosts, tokens = zip(*gather((socket.gethostname(), secrets.token_hex(8))))
        _ties = _Ties(dist.PrefixStore(tokens[0], store), hosts, seconds, 'nccl' in backend)
    except RuntimeError as error:
        reason = str(error).strip().partition('\n')[0]
        raise UserError(f'rank {os.environ["RANK"]} on {socket.gethostname()}: not all of '
                        f'{os.environ["WORLD_SIZE"]} processes have joined ({reason}); check that all '
                        f'machines reach {os.environ.get("MASTER_ADDR")}; GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME '
                        'select the network') from error
    return device


@contextmanager
def explained():
    """Turns the loss of another process of the group into a UserError that names it."""
    try:
        yield
    except RuntimeError as error:
        if world() == 1 or not (isinstance(error, dist.DistError) or 'gloo' in str(error)):
            raise
        raise UserError(f'{_lost()}; its own message or the system log says why; '
                        'rerun the same command to resume') from error


def _lost():
    """In words, the ranks that fail to check in after a failure."""
    me, all_ranks, store = rank(), range(world()), _ties.store
    _ties.lost = True
    if not _ties.nccl:                 # NCCL could block here, before the message is out
        dist.destroy_process_group()   # processes that wait for this one notice, too
    try:
        store.set(f'left/{me}', '')
        end = time.monotonic() + ROLL_CALL
        while (silent := [other for other in all_ranks if not store.check([f'left/{other}'])]):
            if time.monotonic() > end:
                break
            time.sleep(0.1)
    except RuntimeError:               # the store is on the first machine
        return f'the machine of {_named([0])} cannot be reached any more'
    if not silent:
        return 'the connection between the processes of this run was lost'
    return f'{_named(silent)} {"has ended or hangs" if len(silent) == 1 else "have ended or hang"}'


def _named(ranks):
    """'rank 3 on node2, rank 5 on node3'"""
    return ', '.join(f'rank {rank} on {_ties.hosts[rank]}' for rank in ranks)


def stop():
    global _ties
    if _joined() and not (_ties is not None and _ties.lost):
        dist.destroy_process_group()
    _ties = None


def _joined():
    return dist.is_available() and dist.is_initialized()


def rank():
    return dist.get_rank() if _joined() else 0


def world():
    return dist.get_world_size() if _joined() else 1


def add_up(*tensors):
    """Replace each tensor by its sum over the processes, in place; not differentiable."""
    if world() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def take_maximum(tensor):
    """Replace `tensor` by its element-wise maximum over the processes, in place."""
    if world() > 1:
        dist.all_reduce(tensor, dist.ReduceOp.MAX)


def any_rank(*flags, device):
    """For each flag, whether it is set in any process: a list of bools, alike in all of them.

    The one place of a training step where the host waits. Raises DistError if it takes longer than COLLECTIVE_TIMEOUT.
    """
    flags = torch.stack([flag.float() if isinstance(flag, torch.Tensor) else
                         torch.full((), float(flag), device=device) for flag in flags])
    if world() > 1:
        _await(dist.all_reduce(flags, dist.ReduceOp.MAX, async_op=True), _ties.patience)
    return [bool(flag) for flag in flags.tolist()]


def _await(work, patience):
    """Wait for a collective, at most `patience` seconds; DistError then, so that `explained` can name the lost one.

    Reading a result of NCCL instead would block until its watchdog ends the process.
    """
    end = time.monotonic() + patience
    while not work.is_completed():
        if time.monotonic() > end:
            raise dist.DistError(f'no answer for {patience:g} s')
        time.sleep(0.0005)
    work.wait()


def mean(values):
    """Scalars by name, averaged over the processes: dict of 0-dim tensors -> dict of floats."""
    stacked = torch.stack([value.detach().float() for value in values.values()])
    if world() > 1:
        _await(dist.all_reduce(stacked, async_op=True), _ties.patience)
    return dict(zip(values, (stacked / world()).tolist()))


def wait():
    if world() > 1:
        _await(dist.barrier(async_op=True), _ties.patience)


def gather(value):
    """The picklable values of all processes by rank, the same list on each."""
    if world() == 1:
        return [value]
    values = [None] * world()
    dist.all_gather_object(values, value)
    return values


# ---------------------------------------------------------------------------- agreement

def agree(facts):
    """UserError on all processes if their facts differ; it names those that differ from rank 0.

    facts: {what: value}, short texts
    """
    found = gather(facts)
    for what, wanted in found[0].items():
        others = [rank for rank, theirs in enumerate(found) if theirs[what] != wanted]
        if others:
            raise UserError(f'{what}: {_named(others)} has {found[others[0]][what]}, but {_named([0])} has {wanted}; '
                            'make them equal on all machines')


def digest(words):
    """Length and hash of a list of words, for `agree`."""
    return f'{len(words):,} (SHA-256 {hashlib.sha256(json.dumps(words).encode()).hexdigest()[:12]})'


def check_shared(folder):
    """UserError on all processes unless each sees a file that rank 0 writes to the existing `folder`."""
    if world() == 1:
        return
    token = Path(folder, f'.{gather(secrets.token_hex(8))[0]}{UNFINISHED}')
    if rank() == 0:
        with writing(token):
            token.touch()
    wait()
    end = time.monotonic() + SEEN_WITHIN
    while not (seen := token.exists()) and token.parent.is_dir() and time.monotonic() < end:
        time.sleep(0.5)
    blind = [rank for rank, seen in enumerate(gather(seen)) if not seen]
    if rank() == 0:
        token.unlink()
    if blind:
        raise UserError(f'{folder}: {_named(blind)} does not see files that {_named([0])} writes there; '
                        'choose a folder that all machines share')


# ---------------------------------------------------------------------------- long waits

def beat():
    """Report that this process is alive, at least every SILENCE seconds while others `wait_long` for it."""
    if world() > 1:
        _ties.store.add(f'beats/{rank()}', 1)


def wait_long():
    """As `wait`, for processes that may arrive hours apart. UserError for those that stop to `beat`.

    The store counts who has arrived: a process cannot end while a collective of its own is pending.
    """
    if world() == 1:
        return
    _ties.meetings += 1
    _ties.store.add('arrived', 1)
    heard = {}                         # rank: (its number of beats, since when)
    while _ties.store.add('arrived', 0) < _ties.meetings * world():
        time.sleep(min(1, SILENCE / 100))
        beat()
        now = time.monotonic()
        for other in range(world()):
            beats = _ties.store.add(f'beats/{other}', 0)
            if other not in heard or heard[other][0] != beats:
                heard[other] = beats, now
        if silent := [other for other, (_, since) in heard.items() if now - since > SILENCE]:
            raise UserError(f'{_named(silent)} gave no sign of life for {SILENCE} s; rerun the same command to resume')
    wait()                             # the store ends with rank 0, and others may still count
