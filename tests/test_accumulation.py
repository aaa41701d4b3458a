"""What a step learns does not depend on how its batch is split over micro-batches and processes; nor on earlier steps.

Batch norm is the exception: its statistics are of a micro-batch. It is frozen here.
"""

import subprocess
from dataclasses import replace

import pytest
import torch

from modules.layers import BatchNorm2d
from modules.pairs import draw_transform, micro_batches
from modules.training_step import build_training_step
from support import distributed
from tests.support.agents import ended, in_two_processes
from tests.support.tiny import tiny
from tests.support.training import assert_bit_equal, random_batch

CPU = torch.device('cpu')
BATCH = 4
# All options of the improved recipe. Rates so low that weights stay: Adam would turn rounding into whole steps. Codes
# are revived in the third step. Image losses so low that the adaptive weight is not at its limit of 1.
OPTIONS = [f'train_params.batch_size={BATCH}', 'train_params.learning_rate=1e-12',
           'train_params.discriminator_learning_rate=1e-12', 'train_params.precision=fp32',
           'train_params.objective_params.loss_weights.l1=1e-4',
           'train_params.objective_params.loss_weights.first_scale=100',
           *(f'model_params.{book}_codebook_params.{option}' for book in ('motion', 'appearance')
             for option in ('num_codes=128', 'revive_after=2', 'feature_start=true', 'whitened=true'))]


def learned(accumulate):
    """Per step of three: losses, gradient of the model, and its state dict; adversarial from the second on."""
    config = tiny(*OPTIONS, config='config/vox-256-plus.yaml')
    step = build_training_step(config, CPU)
    for network in (step.objective, step.discriminator):
        for module in network.modules():
            if isinstance(module, BatchNorm2d):
                module.eval()
    gradients, found = [], []
    step.state.optimizer.register_step_pre_hook(lambda *_: gradients.append(
        torch.cat([parameter.grad.flatten() for parameter in step.state.model.parameters()])))
    own = torch.arange(BATCH).chunk(distributed.world())[distributed.rank()]
    for number in (1, 2, 3):
        batch = {name: value[own] for name, value in random_batch(BATCH, number).items()}
        result = step(micro_batches(batch, replace(config.train_params, accumulate=accumulate)), number)
        losses = distributed.mean(result.losses)
        found.append((losses, gradients.pop(), {name: value.clone() for name, value in
                                                step.state.model.state_dict().items()}))
    return found


@pytest.fixture(scope='module')
def whole():
    return learned(1)


def assert_same(found, wanted):
    for (losses, gradient, state), (their_losses, their_gradient, their_state) in zip(found, wanted, strict=True):
        assert losses == pytest.approx(their_losses, rel=1e-4)
        assert (gradient - their_gradient).norm() <= 1e-4 * their_gradient.norm()
        torch.testing.assert_close(state, their_state, atol=1e-5, rtol=1e-4)


def test_the_case_covers_all_that_is_a_function_of_the_batch(whole):
    weights = [losses['adaptive_weight'] for losses, *_ in whole[1:]]
    assert all(0 < weight < 1 for weight in weights)
    for book in ('motion', 'appearance'):
        codes = [state[f'{book}.codebook.embedding'] for *_, state in whole]
        assert (codes[0].abs() > 2 / 128).any()                         # some begin on features
        assert ((codes[2] - codes[0]).abs().amax(1) > 1e-3).any()       # some are revived


@pytest.mark.parametrize('accumulate', [2, 4])
def test_micro_batches_learn_what_the_batch_does(whole, accumulate):
    assert_same(learned(accumulate), whole)


def test_two_processes_with_micro_batches_learn_what_the_batch_does(whole, tmp_path):
    script = ('import sys, torch\nfrom support import distributed\nfrom tests.test_accumulation import learned\n'
              'distributed.start(torch.device("cpu"))\n'
              'torch.save(learned(2), f"{sys.argv[1]}/{distributed.rank()}.pt")\ndistributed.stop()')
    ended(in_two_processes(script, tmp_path, stderr=subprocess.PIPE))
    first, second = (torch.load(tmp_path / f'{rank}.pt', weights_only=True) for rank in (0, 1))
    assert_same(first, whole)
    assert_bit_equal(first[-1][2], second[-1][2])


def test_micro_batches_are_the_batch_in_order_with_the_samples_own_transforms():
    batch, params = random_batch(8), tiny('train_params.batch_size=8', 'train_params.accumulate=4').train_params
    parts = micro_batches(batch, params)
    assert torch.equal(torch.cat([part.driving for part in parts]), batch['driving'])
    assert [len(part.source) for part in parts] == [2, 2, 2, 2]
    assert torch.equal(parts[3].transform.theta, draw_transform(params.seed, [6, 7]).theta)


def test_a_step_is_a_function_of_its_number_and_pairs_alone():
    """Not of random numbers drawn before: exact resumption rests on this."""
    after = []
    for seed in (1, 2):
        step = build_training_step(tiny(), CPU)
        torch.manual_seed(seed)
        step(micro_batches(random_batch(2), step.params), 3)
        after.append(step.state.ema.state_dict())
    assert_bit_equal(*after)


def test_transforms_depend_on_the_sample_alone():
    together, alone = draw_transform(0, [5, 6, 7]), draw_transform(0, [6])
    assert torch.equal(together.theta[1:2], alone.theta) and torch.equal(together.control[1:2], alone.control)
    assert not torch.equal(draw_transform(1, [6]).theta, alone.theta)
