"""Relative and absolute transfer, hulls, scale, best frame; FOMM's formulas by hand."""

import numpy as np
import pytest
import torch

from motion.transfer import (OneEuroFilter, RelativeMotion, absolute_motion, best_frame_by_keypoints,
                                     hull_area, movement_scale, pose_distance)
from modules.talking_head import Keypoints


def random_keypoints(batch, seed, num_kp=7):
    generator = torch.Generator().manual_seed(seed)
    value = torch.rand(batch, num_kp, 2, generator=generator) * 1.6 - 0.8
    jacobian = torch.eye(2) + 0.3 * torch.rand(batch, num_kp, 2, 2, generator=generator)
    return Keypoints(value, jacobian)


def test_hull_area_by_hand():
    square = [[0, 0], [2, 0], [2, 2], [0, 2]]
    assert hull_area(square) == 4
    assert hull_area(square + [[1, 1], [1, 0], [0.5, 1.5], [2, 2]]) == 4     # inside, on an edge, twice
    assert hull_area([[0, 0], [3, 0], [0, 4]]) == 6


def test_keypoints_that_are_not_finite_have_no_area():
    assert np.isnan(hull_area([[0, 0], [1, 0], [0, np.nan]])) and np.isnan(hull_area([[0, 0], [np.inf, 0], [0, 1]]))


@pytest.mark.parametrize('points', [[[1, 2]], [[1, 2]] * 5, [[0, 0], [1, 1]], [[0, 0], [1, 1], [2, 2], [3, 3]]])
def test_points_without_extent_have_no_area_and_do_not_scale(points):
    assert hull_area(points) == 0
    flat = Keypoints(torch.tensor([points], dtype=torch.float32))
    assert movement_scale(flat, random_keypoints(1, 0)) == 1
    assert np.isfinite(pose_distance(points, points))


@pytest.mark.parametrize('adapt_scale', [False, True])
def test_a_driver_that_has_not_moved_leaves_the_source_as_it_is(adapt_scale):
    source, initial = random_keypoints(1, 0), random_keypoints(1, 1)
    kp = RelativeMotion(source, initial, adapt_scale)(initial)
    assert torch.equal(kp.value, source.value)
    torch.testing.assert_close(kp.jacobian, source.jacobian)


def test_relative_motion_by_its_formula():
    source, initial, driving = random_keypoints(1, 0), random_keypoints(1, 1), random_keypoints(3, 2)
    kp = RelativeMotion(source, initial, adapt_scale=False)(driving)
    torch.testing.assert_close(kp.value, source.value + driving.value - initial.value)
    torch.testing.assert_close(kp.jacobian, driving.jacobian @ torch.linalg.inv(initial.jacobian) @ source.jacobian)


def test_absolute_motion_is_the_identity():
    driving = random_keypoints(3, 0)
    assert absolute_motion(driving) is driving


def test_adapted_motion_does_not_depend_on_the_drivers_size():
    source, initial, driving = random_keypoints(1, 0), random_keypoints(1, 1), random_keypoints(3, 2)
    near = RelativeMotion(source, initial, adapt_scale=True)(driving)
    far = RelativeMotion(source, initial._replace(value=initial.value / 3), adapt_scale=True)(
        driving._replace(value=driving.value / 3))
    torch.testing.assert_close(near.value, far.value)


def test_scale_is_a_ratio_of_lengths():
    kp = random_keypoints(1, 0)
    assert movement_scale(kp._replace(value=kp.value * 2), kp) == pytest.approx(2)


def test_methods_without_jacobians():
    source, initial, driving = (Keypoints(random_keypoints(b, seed).value) for b, seed in ((1, 0), (1, 1), (3, 2)))
    assert RelativeMotion(source, initial, adapt_scale=True)(driving).jacobian is None


def test_relative_motion_of_half_precision_keypoints_is_computed_in_full():
    source, initial = random_keypoints(1, 0), random_keypoints(1, 1)
    kp = RelativeMotion(source, initial.map(torch.Tensor.bfloat16), adapt_scale=True)(random_keypoints(2, 2))
    assert kp.value.dtype == kp.jacobian.dtype == torch.float32


def test_best_frame_sees_pose_not_place_or_size():
    driving = random_keypoints(6, 0)
    source = Keypoints(driving.value[4:5] * 0.5 + 0.2)
    assert best_frame_by_keypoints(source, driving) == 4
    assert pose_distance(source.value[0], driving.value[4]) < 1e-9 < pose_distance(source.value[0], driving.value[3])


FPS = 25


def stream(value, batch_size, strength=1):
    """`value` (T, K, 2), smoothed in batches as a video is."""
    smooth = OneEuroFilter(strength, FPS)
    return torch.cat([smooth(Keypoints(part)).value for part in value.split(batch_size)])


def test_smoothing_calms_resting_keypoints_and_hardly_delays_moving_ones():
    noise = 0.004 * torch.randn(200, 5, 2, generator=torch.Generator().manual_seed(0))
    jitter = stream(noise, 8)[20:].diff(dim=0).std() / noise[20:].diff(dim=0).std()
    assert jitter < 0.25

    line = torch.arange(100.)[:, None, None] / FPS * torch.tensor([0.5, 0])      # half a unit per second
    behind = (line - stream(line, 8))[50:, :, 0] / (0.5 / FPS)
    assert behind.min() >= 0 and behind.max() < 0.5                              # frames


def test_smoothing_is_causal_and_does_not_depend_on_the_batches():
    value = torch.rand(20, 3, 2, generator=torch.Generator().manual_seed(0))
    smoothed = stream(value, 8)
    assert torch.equal(smoothed, stream(value, 1)) and torch.equal(smoothed[0], value[0])
    assert torch.equal(smoothed[:10], stream(value[:10], 8))


def test_smoothing_averages_jacobians_with_their_keypoints():
    value, columns = random_keypoints(6, 0).value, torch.tensor([[1., 2.], [3., 4.]])
    # A Jacobian that is a linear function of its keypoint stays one only if both are averaged alike.
    smoothed = OneEuroFilter(2, FPS)(Keypoints(value, value[..., None] * columns))
    torch.testing.assert_close(smoothed.jacobian, smoothed.value[..., None] * columns)
    assert not torch.allclose(smoothed.value[1:], value[1:])
