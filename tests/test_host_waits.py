"""What a step asks of the host and of other processes: one flag read back, no numbers sent, few collectives."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from modules.build import METHODS
from modules.layers import BatchNorm2d
from modules.pairs import micro_batches
from modules.training_step import TrainingStep, build_training_step
from support import distributed
from tests.support.small import small_config
from tests.support.tiny import tiny
from tests.support.training import random_batch

CPU = torch.device('cpu')
# Functions that read a tensor's values, and those that make a tensor of numbers of the host.
READS = {'item', 'tolist', '__bool__', '__float__', '__int__', '__index__', 'cpu', 'numpy', 'nonzero', 'equal'}
SENDS = {'tensor', 'new_tensor', 'as_tensor', 'from_numpy'}


class Waits(TorchFunctionMode):
    """Within it, notes calls for which the host would wait for a GPU, or a GPU for the host."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = function.__name__
        indexed = name in ('__getitem__', '__setitem__') and any(isinstance(part, list) for part in (
            args[1] if isinstance(args[1], tuple) else args[1:2]))
        if name in READS | SENDS or indexed:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize('motion_only', [False, True], ids=['full', 'motion'])
@pytest.mark.parametrize('method', sorted(METHODS))
def test_a_step_reads_back_one_flag_and_sends_nothing(method, motion_only):
    """Also nothing per code: the paper's model revives and whitens."""
    sets = ['train_params.motion_iterations=2', *(f'model_params.{book}_codebook_params.{option}' for book in (
        'motion', 'appearance') for option in ('revive_after=2', 'whitened=true'))]
    config = tiny(*sets) if method == 'synergy' else small_config(method)
    step, size = build_training_step(config, CPU), config.model_params.image_size
    batch = random_batch(2)
    images = {name: F.interpolate(batch[name], size=size) for name in ('source', 'driving')}
    parts = micro_batches(batch | images, step.params)
    number = 1 if motion_only else step.first_full_step
    step(parts, number)                                     # grids are made once, and kept
    with Waits() as waits:
        step(parts, number)
    assert waits.found == ['tolist']


def test_collectives_of_a_step(monkeypatch):
    """One for each batch norm forward, one backward, and one each for the adaptive weight and the flags."""
    calls, reduce = [], dist.all_reduce
    passes = []
    monkeypatch.setattr(TrainingStep, '_distributed', lambda self, module, **options: module)   # DDP's buckets apart
    monkeypatch.setattr(distributed, '_ties', SimpleNamespace(patience=60))
    monkeypatch.setattr(distributed, '_await', lambda work, patience: None)                     # fake ones never end
    dist.init_process_group('fake', store=FakeStore(), rank=0, world_size=2)
    try:
        monkeypatch.setattr(dist, 'all_reduce',
                            lambda *args, **options: (calls.append(args), reduce(*args, **options))[1])
        config = tiny()
        step = build_training_step(config, CPU)
        for network in (step.objective, step.discriminator):
            for module in network.modules():
                if isinstance(module, BatchNorm2d):
                    module.register_forward_hook(lambda *call: passes.append(call[0]))
        step(micro_batches(random_batch(2), config.train_params), step.first_full_step)
    finally:
        dist.destroy_process_group()
    assert len(passes) == 3 * 4 + 4 + 3 * 2        # detector: driving, source, transformed; dense motion; discriminator
    assert len(calls) == 2 * len(passes) + 2


def test_a_collective_that_nobody_answers_ends_with_an_error_in_time():
    """Before NCCL's watchdog would end the process without naming the lost one."""
    with pytest.raises(dist.DistError, match='no answer for 0.01 s'):
        distributed._await(SimpleNamespace(is_completed=lambda: False), 0.01)
