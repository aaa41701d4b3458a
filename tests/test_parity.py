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

FORWARD = ['fomm_fixture_A', 'mcnet_fixture_A', 'mrfa_fomm_fixture_A', 'dagan_fixture_A', 'openface_fixture_A']


@pytest.mark.skipif(not REFERENCE.is_dir(), reason='reference fixtures are not here')
@pytest.mark.parametrize('name', FORWARD)
def test_a_forward_pass_is_the_public_codes(name):
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

def repeated(fixture):
    """What a trajectory computes that agrees with the fixture exactly."""
    ours = dict(fixture)
    for k in range(len(fixture['iterations'])):
        ours[f'step{k}/gradients'] = set(map(str, fixture[f'step{k}/grad_norm_names']))
    return ours


def stored_as_fixture(ours, given):
    """The fixture that holds a trajectory's results, and what it was given."""
    fixture = given | {name: value for name, value in ours.items() if not isinstance(value, set)}
    return fixture | {f'step{k}/grad_norm_names': np.array(sorted(ours[f'step{k}/gradients']))
                      for k in range(len(given['iterations']))}


def failed(fixture, ours):
    return [comparison.name for comparison in trajectory.compare(fixture, ours) if not comparison.verdict()[-1]]


@pytest.fixture(scope='module')
def stored():
    if not (REFERENCE / 'traj_A.npz').is_file():
        pytest.skip('reference fixtures are not here')
    with np.load(REFERENCE / 'traj_A.npz', allow_pickle=False) as fixture:
        return {name: fixture[name] for name in fixture.files}


def late_discriminator(ours):
    """Adversarial training one step late."""
    for name in [name for name in ours if name.startswith('step4/') and ('log/l_d' in name or 'gan' in name)]:
        del ours[name]


def rate_after_step(ours):
    ours['step2/learning_rates'] = ours['step2/learning_rates'] * 0.5


def frozen_network(ours):
    ours['step1/gradients'] = {name for name in ours['step1/gradients'] if 'kp_detector' not in name}


MISTAKES = {late_discriminator: '5002: losses of one side only', rate_after_step: '5000: learning rates',
            frozen_network: '4999: gradients of one side only'}


def test_a_trajectory_agrees_with_itself(stored):
    assert failed(stored, repeated(stored)) == []


@pytest.mark.parametrize('mistake', MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_shows_in_a_trajectory(stored, mistake):
    ours = repeated(stored)
    mistake(ours)
    assert any(name.startswith(MISTAKES[mistake]) for name in failed(stored, ours))


def test_a_trajectory_is_taken_by_the_step_that_trains(monkeypatch):
    """A small one: results are compared under their names, and the discriminator enters at the step of the config."""
    small = lambda seeds: F.interpolate(weights.images(seeds), size=32, mode='area')
    monkeypatch.setattr(step, 'images', small)
    monkeypatch.setattr(trajectory, 'images', small)
    config = tiny('train_params.objective_params.loss_weights.perceptual=1', 'train_params.ema_decay=0.9',
                  'train_params.objective_params.perceptual_scales=[1]', 'train_params.milestones=[2]',
                  'train_params.ema_exclude=[keypoint_detector, dense_motion]')
    given = {'iterations': np.array([1, 2, 3]), 'final_prediction_seeds': np.array([1, 2])}
    rng = np.random.default_rng(0)
    for k in range(3):
        given |= {f'step{k}/seeds_source': np.array([k, 10 + k]), f'step{k}/seeds_driving': np.array([20 + k, 30 + k]),
                  f'step{k}/theta': np.eye(2, 3, dtype=np.float32)[None].repeat(2, 0),
                  f'step{k}/control_params': 0.005 * rng.standard_normal((2, 1, 25)).astype(np.float32)}
    ours = trajectory.run(given, config)
    assert failed(stored_as_fixture(ours, given), ours) == []
    assert ['log/l_d_real' in ''.join(name for name in ours if name.startswith(f'step{k}/')) for k in range(3)] == [
        False, True, True]
    assert [ours[f'step{k}/learning_rates'][0] for k in range(3)] == pytest.approx([8e-5, 8e-5, 4e-5])
    moved = [ours[f'step{k}/delta_norm/net_g'] for k in range(3)]
    assert 0 < moved[0] < moved[1] and ours['step0/delta_norm/ema'] == pytest.approx(0.1 * moved[0], rel=1e-2)
    assert ours['step0/delta_norm/net_d'] == 0 < ours['step1/delta_norm/net_d']
