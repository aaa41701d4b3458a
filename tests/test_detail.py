"""The source's detail along the flow: where it comes from, where it stays out, and every way to ask for it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from animate import animate
from inference import Renderer
from modules.talking_head import Generated, Keypoints
from modules.warp import from_displacement, identity_grid
from motion.detail import add_detail, agreement, large_frames, visibility
from motion.settings import Motion
from support.errors import UserError
from tests.support.toys import SIZE, ToyClip, ToyHead

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
    torch.manual_seed(0)
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


def test_a_file_gets_the_same_frames(model, tmp_path):
    frames = list(ToyClip(num_frames=5).frames())
    assert animate(model, picture(64), frames, tmp_path / 'r.mp4', size='source', fps=10, relative=False) == 5
    from datasets.video import open_clip
    clip = open_clip(tmp_path / 'r.mp4')
    assert (len(clip), clip.fps) == (5, 10) and clip.read([0])[0].shape == (64, 64, 3)


def test_a_moving_source_lends_the_detail_of_each_frame(model):
    class Moving:
        fps, name = 25, 'moving'

        def frames(self):
            return iter([picture(64), picture(64)[::-1].copy(), picture(64)])

    driving = list(ToyClip(num_frames=3).frames())
    driven = model.follow(Moving(), motion=Motion(relative=False), detail=True)
    made, = driven.render(driving)
    for i, source in enumerate(Moving().frames()):
        alone, = model.follow(source, motion=Motion(relative=False), detail=True).render([driving[i]])
        assert np.abs(made.frames[i].astype(int) - alone.frames[0]).max() <= 1


@pytest.mark.parametrize('size', [16, 5000])
def test_sizes_that_cannot_be_are_refused(model, size):
    with pytest.raises(UserError, match=f'--size {size}: must be 32'):
        list(animate(model, picture(64), [picture(32)], size=size))


def test_keypoints_alone_find_the_same_at_any_size_of_the_driver(model):
    """Frames that are larger than the model's images are reduced, by the one filter that clips are read with."""
    from datasets.still import resized
    large = picture(96)
    assert torch.equal(model.keypoints([large]).value, model.keypoints([resized(large, SIZE)]).value)
    assert isinstance(model.keypoints([large]), Keypoints)
