"""benchmarks.parity: what is cheap enough of it, and that it can fail.

By hand, half an hour of one core: python -m benchmarks.parity ../shared/facts/reference
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.parity import __main__ as command
from benchmarks.parity import step, trajectory, weights
from benchmarks.parity.comparison import Comparison, relative
from benchmarks.parity.kinds import compare
from tests.support.tiny import REFERENCE, ROOT, tiny

CHEAP = ['smac_fixture_A', 'smac_losses_A_eval', 'smac_losses_A_train', 'fomm_fixture_A', 'mcnet_fixture_A',
         'mrfa_fomm_fixture_A', 'dagan_fixture_A', 'openface_fixture_A']


@pytest.mark.skipif(not REFERENCE.is_dir(), reason='reference fixtures are not here')
@pytest.mark.parametrize('name', CHEAP)
def test_forward_passes_and_losses_are_the_public_codes(name):
    comparisons = compare(REFERENCE / f'{name}.npz')
    assert len(comparisons) >= 2
    assert [comparison.name for comparison in comparisons if not comparison.verdict()[-1]] == []


@pytest.mark.parametrize('ours, passes', [(1.0005, True), (0.998, False), (float('nan'), False)])
def test_a_comparison_can_fail(ours, passes):
    assert relative('loss', ours, 1.0).verdict()[-1] == passes
    assert not Comparison('shape', np.zeros(2), np.zeros(3), 1, 1).verdict()[-1]


@pytest.mark.parametrize('keys, config, complaint', [
    (['deformation', 'mask_s4'], None, 'of no known kind'),
    (['prediction', 'feat_list_0_sub'], 'fomm-vox-256.yaml', 'of method mcnet, the config of fomm')])
def test_a_fixture_of_another_kind_is_one_clear_line(keys, config, complaint, tmp_path, capsys):
    np.savez(tmp_path / 'fixture.npz', **{key: np.zeros(1) for key in keys})
    arguments = [str(tmp_path / 'fixture.npz')] + (['--config', str(ROOT / 'config' / config)] if config else [])
    assert command.main(arguments) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count('\n') == 1


def test_a_value_out_of_tolerance_is_a_failure(tmp_path, capsys):
    np.savez(tmp_path / 'fixture.npz', image=np.zeros((1, 3, 96, 96), np.float32), pooled=np.ones((1, 736), np.float32),
             embedding=np.zeros((1, 128), np.float32))
    threads = torch.get_num_threads()
    assert command.main([str(tmp_path / 'fixture.npz')]) == 1
    output = capsys.readouterr().out
    assert 'OUT' in output and 'fixture.npz: 0 of 2 within tolerance' in output and torch.get_num_threads() == threads


# ---------------------------------------------------------------------------- several steps

@pytest.fixture(scope='module')
def trajectory_of_three():
    """(what a trajectory of three small steps was given, what it computed); the discriminator enters at the second."""
    config = tiny('train_params.objective_params.loss_weights.perceptual=1', 'train_params.ema_decay=0.9',
                  'train_params.objective_params.perceptual_scales=[1]', 'train_params.milestones=[2]',
                  'train_params.ema_exclude=[keypoint_detector, dense_motion]')
    given = {'iterations': np.array([1, 2, 3]), 'final_prediction_seeds': np.array([1, 2])}
    rng = np.random.default_rng(0)
    for k in range(3):
        given |= {f'step{k}/seeds_source': np.array([k, 10 + k]), f'step{k}/seeds_driving': np.array([20 + k, 30 + k]),
                  f'step{k}/theta': np.eye(2, 3, dtype=np.float32)[None].repeat(2, 0),
                  f'step{k}/control_params': 0.005 * rng.standard_normal((2, 1, 25)).astype(np.float32)}
    with pytest.MonkeyPatch.context() as patch:
        for module in (step, trajectory):
            patch.setattr(module, 'images', lambda seeds: F.interpolate(weights.images(seeds), size=32, mode='area'))
        return given, trajectory.run(given, config)


def failed(given, computed, ours):
    """Comparisons out of tolerance of `ours` with a fixture that holds what was computed."""
    theirs = given | {name: value for name, value in computed.items() if not isinstance(value, set)}
    theirs |= {f'step{k}/grad_norm_names': np.array(sorted(computed[f'step{k}/gradients'])) for k in range(3)}
    return [comparison.name for comparison in trajectory.compare(theirs, ours) if not comparison.verdict()[-1]]


def late_discriminator(ours):
    for name in [name for name in ours if name.startswith('step1/') and ('log/l_d' in name or 'gan' in name)]:
        del ours[name]


def rate_after_step(ours):
    ours['step2/learning_rates'] = ours['step2/learning_rates'] * 2


def frozen_network(ours):
    ours['step1/gradients'] = {name for name in ours['step1/gradients'] if 'kp_detector' not in name}


@pytest.mark.parametrize('mistake, shows_in', [
    (late_discriminator, '2: losses of one side only'), (rate_after_step, '3: learning rates'),
    (frozen_network, '2: gradients of one side only')])
def test_a_mistake_shows_in_a_trajectory(trajectory_of_three, mistake, shows_in):
    given, computed = trajectory_of_three
    assert failed(given, computed, computed) == []
    mistake(ours := dict(computed))
    assert any(name.startswith(shows_in) for name in failed(given, computed, ours))
