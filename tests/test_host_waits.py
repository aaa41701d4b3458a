"""What a step asks of the host and of other processes: one flag read back, no numbers sent, few collectives."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from config import schema
from modules import training_state
from modules.build import METHODS, build_model
from modules.layers import BatchNorm2d
from modules.losses import RandomTransform
from modules.pairs import Pairs, micro_batches
from modules.training_step import TrainingStep, build_training_step
from support import distributed
from tests.support.misfits import Misfits
from tests.support.small import small_config
from tests.support.tiny import tiny
from tests.support.training import random_batch

CPU = torch.device('cpu')


@pytest.fixture
def pretended(monkeypatch):
    """FakeTensorMode in which a training step runs on a GPU that is not there."""
    monkeypatch.setattr(torch.backends.cudnn, 'enabled', False)     # whose grid_sample cannot be pretended
    monkeypatch.setattr(nn.Module, 'to', lambda module, *args, **options: module)
    # Backward passes need a real GPU. benchmarks/cost.py runs them too, on tensors of which nothing can be read.
    monkeypatch.setattr(torch.autograd, 'grad', lambda outputs, inputs, *args, **options: [
        torch.empty_like(tensor) for tensor in (inputs if isinstance(inputs, list) else [inputs])])
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device('cuda'):
        yield


@pytest.mark.parametrize('method', sorted(METHODS))
def test_a_step_reads_back_one_flag_and_sends_nothing(method, pretended, monkeypatch):
    """Also nothing per code and per landmark: the paper's model revives, whitens, and has regions."""
    sets = ['train_params.objective_params.region_landmarks=[0, 2]', *(
        f'model_params.{book}_codebook_params.{option}' for book in ('motion', 'appearance')
        for option in ('revive_after=2', 'whitened=true'))]
    config = schema.override(tiny(*sets) if method == 'synergy' else small_config(method),
                             ['train_params.motion_iterations=2'])
    monkeypatch.setattr(training_state, 'copy', SimpleNamespace(deepcopy=lambda model: build_model(config)))
    flags = []
    monkeypatch.setattr(distributed, 'any_rank', lambda *asked, device: flags.append(asked) or [False, False])
    step, size = build_training_step(config, torch.device('cuda')), config.model_params.image_size
    landmarks = torch.empty(2, 2, 4, 2) if method == 'synergy' else None
    parts = [Pairs(torch.empty(2, 3, size, size), torch.empty(2, 3, size, size),
                   RandomTransform(torch.empty(2, 2, 3), torch.empty(2, 1, 25)), landmarks)]
    monkeypatch.setattr(torch.Tensor, 'backward', lambda total: [
        setattr(parameter, 'grad', torch.empty_like(parameter)) for parameter in step.objective.model.parameters()])
    step(parts, step.first_full_step)                               # grids are made once, and kept
    with Misfits() as misfits:
        results = step(parts, step.first_full_step), step(parts, 1)
    assert [result.motion_only for result in results] == [False, True] and not misfits.found and len(flags) == 3


@pytest.fixture
def two_processes(monkeypatch):
    """A process group of two of which one is there; holds those waits that are bounded, as (collective, seconds)."""
    waits = []
    monkeypatch.setattr(distributed, '_ties', SimpleNamespace(patience=60))
    monkeypatch.setattr(distributed, '_await', lambda *wait: waits.append(wait))                # fake ones never end
    dist.init_process_group('fake', store=FakeStore(), rank=0, world_size=2)
    yield waits
    dist.destroy_process_group()


def test_collectives_of_a_step(two_processes, monkeypatch):
    """One for each batch norm forward, one backward, and one each for the adaptive weight and the flags."""
    calls, reduce = [], dist.all_reduce
    passes = []
    monkeypatch.setattr(TrainingStep, '_distributed', lambda self, module, **options: module)   # DDP's buckets apart
    monkeypatch.setattr(dist, 'all_reduce',
                        lambda *args, **options: (calls.append(args), reduce(*args, **options))[1])
    config = tiny()
    step = build_training_step(config, CPU)
    for network in (step.objective, step.discriminator):
        for module in network.modules():
            if isinstance(module, BatchNorm2d):
                module.register_forward_hook(lambda *call: passes.append(call[0]))
    step(micro_batches(random_batch(2), config.train_params), step.first_full_step)
    assert len(passes) == 3 * 4 + 4 + 3 * 2        # detector: driving, source, transformed; dense motion; discriminator
    assert len(calls) == 2 * len(passes) + 2


def test_a_collective_that_nobody_answers_ends_with_an_error_in_time():
    """Before NCCL's watchdog would end the process without naming the lost one."""
    with pytest.raises(dist.DistError, match='no answer for 0.01 s'):
        distributed._await(SimpleNamespace(is_completed=lambda: False), 0.01)


def test_every_result_that_the_host_reads_is_awaited_in_time(two_processes):
    distributed.any_rank(False, device=CPU)
    distributed.mean({'loss': torch.zeros(())})
    distributed.wait()
    assert [patience for _, patience in two_processes] == [60, 60, 60]
