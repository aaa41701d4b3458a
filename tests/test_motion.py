"""Relative and absolute transfer, hulls, scale, best frame; FOMM's formulas by hand; detail along the flow."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from animate import animate
from datasets.still import FrameList, resized
from inference import Renderer
from modules.talking_head import Generated, Keypoints
from modules.warp import from_displacement, identity_grid
from motion.detail import add_detail, agreement, large_frames, visibility
from motion.settings import Motion
from motion.transfer import (FACE, MEETING, OneEuroFilter, RelativeMotion, best_frame_by_keypoints, hull_area,
                             movement_scale, pose_distance)
from support.errors import UserError
from tests.support.toys import SIZE, ToyClip, ToyHead


def random_keypoints(batch, seed, num_kp=7):
    generator = torch.Generator().manual_seed(seed)
    value = torch.rand(batch, num_kp, 2, generator=generator) * 1.6 - 0.8
    jacobian = torch.eye(2) + 0.3 * torch.rand(batch, num_kp, 2, 2, generator=generator)
    return Keypoints(value, jacobian)


def test_closed_lids_and_lips_close_no_further():
    names = sorted({name for upper, lower, moved, _ in MEETING for name in (upper, lower, *moved)} | set(FACE))
    at = names.index
    source = torch.randn(1, len(names), 2)
    source[0, at('nose_bridge')], source[0, at('chin')] = torch.tensor([[0.0, -1.0], [0.0, 1.0]])
    for upper, lower, *_ in MEETING:
        source[0, at(lower)] = source[0, at(upper)] + torch.tensor([0.01, 0.0])                # closed
    opened = source.clone()
    for _, _, moved, direction in MEETING:
        opened[0, [at(name) for name in moved if name != 'chin'], 1] += 0.3 * direction
    transfer = RelativeMotion(Keypoints(source), Keypoints(opened), False, tuple(names))
    for driving, gap in ((source, 0.0), (opened, 0.0), (2 * opened - source, 0.3)):     # closed, as at first, wider
        value = transfer(Keypoints(driving)).value[0]
        for upper, lower, *_ in MEETING:
            assert value[at(lower), 1] - value[at(upper), 1] == pytest.approx(gap, abs=1e-5), upper
    torch.testing.assert_close(transfer(Keypoints(opened)).value, source)


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


# ---------------------------------------------------------------------------- detail along the flow

LARGE = 4 * SIZE


def down(image):
    return F.interpolate(image, (SIZE, SIZE), mode='bilinear', antialias=True)


def up(image):
    return F.interpolate(image, (LARGE, LARGE), mode='bicubic', antialias=True)


@pytest.fixture
def source():
    """Noise, (1, 3, LARGE, LARGE): all of its detail is finer than the model."""
    return torch.rand(1, 3, LARGE, LARGE, generator=torch.Generator().manual_seed(0)) - 0.5


def shift(x, y):
    """The flow that reads x and y model pixels to the right and below, (1, SIZE / 2, SIZE / 2, 2)."""
    displacement = torch.tensor([x, y]).float()[None, :, None, None].expand(1, 2, SIZE, SIZE)
    flow = identity_grid((SIZE, SIZE), displacement) + from_displacement(displacement)
    return F.interpolate(flow.permute(0, 3, 1, 2), (SIZE // 2, SIZE // 2), mode='bilinear',
                         align_corners=True).permute(0, 2, 3, 1)


def test_a_source_that_stands_still_comes_out_whole(source):
    assert (add_detail(down(source), shift(0, 0), source) - source).abs().max() < 0.02


@pytest.mark.parametrize('x, y', [(2, 0), (0, -3), (1, 1)])
def test_detail_moves_with_the_flow_to_the_pixel(source, x, y):
    moved = torch.roll(source, (-4 * y, -4 * x), (2, 3))
    made = add_detail(down(moved), shift(x, y), source)
    inner = slice(20, -20)
    assert (made - moved)[..., inner, inner].abs().max() < 0.03


def test_what_the_model_repaints_stays_the_models(source):
    """Where a mouth opens that the source lacks, the frame is the prediction enlarged; elsewhere, the source."""
    prediction = down(source)
    prediction[..., 10:20, 10:20] += 0.6
    made = add_detail(prediction, shift(0, 0), source)
    repainted, kept = slice(48, 72), slice(96, 120)
    assert (made - up(prediction))[..., repainted, repainted].abs().max() < 0.01
    assert (made - source)[..., kept, kept].abs().max() < 0.02


def test_light_is_the_models(source):
    prediction = down(source) + 0.05
    made = add_detail(prediction, shift(1, 0), source)
    assert float(made.mean()) == pytest.approx(float(prediction.mean()), abs=0.003)


def test_where_the_flow_repeats_one_pixel_there_is_no_detail():
    still = torch.zeros(1, 2, SIZE, SIZE)
    torn = still.clone()
    torn[:, 0, :, 8:16] = -torch.arange(8.)         # eight columns read one column of the source
    torn[:, 0, :, 16:] = -8
    assert (visibility(still) == 1).all()
    assert (visibility(torn)[..., 10:14] == 0).all() and (visibility(torn)[..., 20:] == 1).all()


def test_agreement_falls_with_the_difference():
    image = torch.zeros(1, 3, SIZE, SIZE)
    values = [float(agreement(image, image + difference)[0, 0, 5, 5]) for difference in (0, 0.05, 0.1, 0.5)]
    assert values == sorted(values, reverse=True) and values[0] == 1 and values[-1] < 1e-4


def test_a_still_driver_gives_a_still_result_and_frames_do_not_depend_on_their_batch(source):
    prediction, flow = down(source).repeat(3, 1, 1, 1), shift(1, 1).repeat(3, 1, 1, 1)
    prediction[2] += 0.1
    made = large_frames(Generated(prediction, [flow], []), source)
    assert torch.equal(made[0], made[1]) and not torch.equal(made[1], made[2])
    alone = large_frames(Generated(prediction[2:], [flow[2:]], []), source)
    assert torch.equal(alone[0], made[2])


@pytest.mark.parametrize('grid', [SIZE // 2, SIZE])
def test_numpy_computes_the_same(source, grid):
    """The program beside exported graphs, which has no PyTorch."""
    pytest.importorskip('onnxruntime')
    from tools.onnx import animate_onnx
    noise = torch.Generator().manual_seed(1)
    displacement = up(torch.rand(1, 2, 4, 4, generator=noise) * 4)[..., ::LARGE // grid, ::LARGE // grid]
    flow = identity_grid((grid, grid), displacement) + from_displacement(displacement)
    prediction = down(source) + 0.1 * torch.rand(1, 3, SIZE, SIZE, generator=noise)
    expected = add_detail(prediction, flow, source)[0].numpy()
    made = animate_onnx.add_detail(*(part[0].numpy() for part in (prediction, flow, source)))
    assert np.abs(made - expected).max() < 1e-3


# ---------------------------------------------------------------------------- every way to ask for it

@pytest.fixture
def model():
    return Renderer(ToyHead(), 'cpu', 4)


def picture(size):
    return np.random.default_rng(0).integers(0, 255, (size, size, 3), np.uint8)


def test_arrays_in_arrays_out(model):
    frames = list(ToyClip(num_frames=6).frames())
    made = list(animate(model, picture(100), frames, size=64))
    assert len(made) == 6 and made[0].shape == (64, 64, 3) and made[0].dtype == np.uint8
    plain = list(animate(model, picture(100), frames, size=64, detail='off'))
    own = list(animate(model, picture(100), frames))
    assert own[0].shape == (SIZE, SIZE, 3)
    sharpness = [np.abs(np.diff(np.stack(group).astype(int), axis=2)).mean() for group in (made, plain)]
    assert sharpness[0] > 1.5 * sharpness[1]
    # At the first frame, relative motion leaves the source as it is.
    errors = [np.abs(next(animate(model, picture(64), frames, size='source', detail=detail)).astype(int)
                     - picture(64)).mean() for detail in ('on', 'off')]
    assert errors[0] < errors[1] / 2


def test_a_moving_source_lends_the_detail_of_each_frame(model):
    moving = FrameList([picture(64), picture(64)[::-1].copy(), picture(64)], 'moving', 25)
    driving = list(ToyClip(num_frames=3).frames())
    made, = model.follow(moving, motion=Motion(relative=False), detail=True).render(driving)
    for i, source in enumerate(moving.frames()):
        alone, = model.follow(source, motion=Motion(relative=False), detail=True).render([driving[i]])
        assert np.abs(made.frames[i].astype(int) - alone.frames[0]).max() <= 1


@pytest.mark.parametrize('size', [16, 5000])
def test_sizes_that_cannot_be_are_refused(model, size):
    with pytest.raises(UserError, match=f'--size {size}: must be 32'):
        list(animate(model, picture(64), [picture(32)], size=size))


def test_keypoints_alone_find_the_same_at_any_size_of_the_driver(model):
    """Frames that are larger than the model's images are reduced, by the one filter that clips are read with."""
    large = picture(96)
    assert torch.equal(model.keypoints([large]).value, model.keypoints([resized(large, SIZE)]).value)
    assert isinstance(model.keypoints([large]), Keypoints)
