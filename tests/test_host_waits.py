"""What a step asks of the host and of other processes: one flag read back, no numbers sent, few collectives."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from config import schema
from metrics import image
from modules import codebook, training_state, warp
from modules.build import METHODS, build_model
from modules.layers import BatchNorm2d
from modules.losses import RandomTransform
from modules.pairs import Pairs, micro_batches
from modules.training_step import TrainingStep, build_training_step
from support import distributed
from tests.support.inputs import smallest
from tests.support.small import small_config
from tests.support.tiny import tiny
from tests.support.training import random_batch

CPU = torch.device('cpu')


class Misfits(TorchDispatchMode):
    """Within it, notes operations on tensors of several devices, such as copies, and float64 off the CPU."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [part for part in tree_leaves((args, kwargs, result)) if isinstance(part, torch.Tensor)]
        kinds = {(tensor.device.type, tensor.dtype) for tensor in tensors}
        if len({device for device, _ in kinds}) > 1 or any(
                dtype == torch.float64 and device != 'cpu' for device, dtype in kinds):
            self.found.append((function, kinds))
        return result


def config_of(method, *sets):
    return smallest(*sets) if method == 'synergy' else small_config(method)


@pytest.fixture
def pretended(monkeypatch):
    """FakeTensorMode in which a training step runs on a GPU that is not there."""
    monkeypatch.setattr(torch.backends.cudnn, 'enabled', False)     # whose grid_sample cannot be pretended
    # Backward passes need a real GPU. benchmarks/cost.py runs them too, on tensors of which nothing can be read.
    monkeypatch.setattr(torch.autograd, 'grad', lambda outputs, inputs, *args, **options: [
        torch.empty_like(tensor) for tensor in (inputs if isinstance(inputs, list) else [inputs])])
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device('cuda'):
        yield


def step_and_pairs(method, device, monkeypatch):
    """A TrainingStep with two phases, and a batch, under FakeTensorMode, which can neither move nor copy networks.

    The paper's model revives, whitens, and has regions.
    """
    sets = ['train_params.objective_params.region_landmarks=[0, 2]', *(
        f'model_params.{book}_codebook_params.{option}' for book in ('motion', 'appearance')
        for option in ('revive_after=2', 'whitened=true'))]
    config = schema.override(config_of(method, *sets), ['train_params.motion_iterations=2'])
    size = config.model_params.image_size
    landmarks = torch.empty(2, 2, 4, 2) if method == 'synergy' else None
    pairs = Pairs(torch.empty(2, 3, size, size), torch.empty(2, 3, size, size),
                  RandomTransform(torch.empty(2, 2, 3), torch.empty(2, 1, 25)), landmarks)
    monkeypatch.setattr(nn.Module, 'to', lambda module, *args, **options: module)
    monkeypatch.setattr(training_state, 'copy', SimpleNamespace(deepcopy=lambda model: build_model(config)))
    return build_training_step(config, device), pairs


@pytest.fixture
def flags(monkeypatch):
    """What steps asked of `any_rank`, which finds no flag set."""
    asked = []
    monkeypatch.setattr(distributed, 'any_rank', lambda *flags, device: asked.append(flags) or [False, False])
    return asked


@pytest.mark.parametrize('method', sorted(METHODS))
def test_a_step_reads_back_one_flag_and_sends_nothing(method, pretended, flags, monkeypatch):
    """Also nothing per code and per landmark."""
    step, pairs = step_and_pairs(method, torch.device('cuda'), monkeypatch)
    monkeypatch.setattr(torch.Tensor, 'backward', lambda total: [
        setattr(parameter, 'grad', torch.empty_like(parameter)) for parameter in step.objective.model.parameters()])
    step([pairs], step.first_full_step)                             # grids are made once, and kept
    with Misfits() as misfits:
        results = step([pairs], step.first_full_step), step([pairs], 1)
    assert [result.motion_only for result in results] == [False, True] and not misfits.found and len(flags) == 3


@pytest.fixture
def grids_forgotten():
    """Afterwards, grids that were kept for the CPU are made again: those of FakeTensorMode hold no numbers."""
    yield
    for made in (warp._identity_grid, warp._pixels_per_unit, warp._cached_corners, codebook._spread):
        made.cache_clear()


@pytest.mark.parametrize('method', sorted(METHODS))
def test_backward_passes_and_updates_read_nothing_back(method, flags, grids_forgotten, monkeypatch):
    """Backward passes of a GPU need one. Those of CPU tensors without data do not, and raise where a number is read."""
    updates = []
    with FakeTensorMode(allow_non_fake_inputs=True):
        step, pairs = step_and_pairs(method, CPU, monkeypatch)
        step.state.optimizer.register_step_post_hook(lambda *_: updates.append(True))
        results = [step([pairs], number) for number in (1, step.first_full_step)]
    assert [result.motion_only for result in results] == [True, False] and len(updates) == len(flags) == 2


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


@pytest.mark.parametrize('method', sorted(METHODS))
def test_nothing_of_a_frame_is_computed_elsewhere_or_waited_for(method, monkeypatch):
    """On a GPU that is only pretended, no number can be read, devices do not mix, and nothing is float64."""
    monkeypatch.setattr(torch.backends.cudnn, 'enabled', False)     # whose grid_sample cannot be pretended
    config = config_of(method)
    size = config.model_params.image_size
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device('cuda'):
            model = build_model(config).eval()
            source, driving = (torch.empty(count, 3, size, size) for count in (1, 2))
        with torch.inference_mode():
            model.render(model.encode_source(source), model.keypoints(driving))    # grids are made once, and kept
            with Misfits() as misfits:
                generated = model.render(model.encode_source(source), model.keypoints(driving))
    assert not misfits.found
    assert generated.prediction.device.type == 'cuda' and generated.prediction.shape == (2, 3, size, size)


def test_metrics_of_an_apple_gpu_are_float64_on_the_cpu_only():
    with FakeTensorMode(allow_non_fake_inputs=True), Misfits() as misfits:
        frames = torch.empty(2, 3, 16, 16, device='mps')
        scores = [metric('mps')(frames, frames) for metric in (image.L1, image.Psnr, image.Ssim, image.SsimUniform)]
    assert {(score.device.type, score.dtype) for score in scores} == {('cpu', torch.float64)}
    assert not [kinds for _, kinds in misfits.found if ('mps', torch.float64) in kinds]
