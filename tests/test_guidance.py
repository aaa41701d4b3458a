"""Keypoints guided to landmarks, weighted regions, and the varied pairs of synthetic heads that carry landmarks."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from config import schema
from datasets.face_tracker import LandmarkFinder
from datasets.loader import training_set
from datasets.synthetic.clips import LANDMARK_NAMES, HeadState, Identity, any_state, render, synthetic_people
from datasets.synthetic.varied import Cutouts, VariedPairs, varied
from load import load_model
from logger import write_checkpoint
from modules.build import build_model
from modules.keypoint_detector import AffineFrame
from modules.losses import landmark_guide, region_weights
from modules.talking_head import Keypoints
from modules.pairs import micro_batches
from modules.training_step import build_training_step
from modules.warp import identity_grid
from support.errors import UserError
from tests.support.tiny import ROOT
from tools.release_weights import release
from visualizer import from_bytes

SMALL = ['dataset_params.synthetic_params.train_people=2', 'dataset_params.synthetic_params.frames=3',
         'dataset_params.synthetic_params.cache=null', 'train_params.batch_size=2', 'train_params.num_iterations=2']


@pytest.fixture(scope='module')
def config():
    return schema.load(ROOT / 'config' / 'heads-128.yaml', SMALL)


@pytest.fixture(scope='module')
def batch(config):
    return torch.utils.data.default_collate([training_set(config)[i] for i in range(2)])


def landmark(rendered, name):
    return rendered.landmarks[LANDMARK_NAMES.index(name)]


# ---- landmarks

def test_lids_meet_when_the_eye_closes_and_follow_the_head():
    person = Identity.sample(3)
    gaps = [landmark(shown, 'left_lid_lower') - landmark(shown, 'left_lid_upper')
            for shown in (render(person, HeadState(blink=blink), 128) for blink in (0, 0.5, 1))]
    heights = [float(gap[1]) for gap in gaps]
    assert heights[0] > 1.5 * heights[1] > 1.5 * heights[2] > 0
    assert heights[2] < 0.25 * heights[0]
    tilted = render(person, HeadState(roll=15), 128)
    gap = landmark(tilted, 'left_lid_lower') - landmark(tilted, 'left_lid_upper')
    assert np.degrees(np.arctan2(-gap[0], gap[1])) == pytest.approx(15, abs=1)


def test_lids_lie_where_the_picture_changes_from_skin_to_eye():
    person, size = Identity.sample(3), 256
    opened, closed = (render(person, HeadState(blink=blink), size) for blink in (0, 1))
    changed = np.abs(opened.image.astype(int) - closed.image).sum(-1) > 60
    for side in ('left', 'right'):
        upper, lower = (landmark(opened, f'{side}_lid_{which}') for which in ('upper', 'lower'))
        column = np.flatnonzero(changed[int(upper[1]) - 12:int(lower[1]) + 12, round(float(upper[0]))])
        rows = column + int(upper[1]) - 12
        assert abs(rows.min() - upper[1]) < 4 and abs(rows.max() - lower[1]) < 4


def test_a_pucker_brings_the_corners_of_the_mouth_together():
    person = Identity.sample(5)
    rest, round_ = (render(person, HeadState(pucker=pucker), 128) for pucker in (0, 1))
    width = lambda shown: landmark(shown, 'mouth_right')[0] - landmark(shown, 'mouth_left')[0]
    assert width(round_) < 0.75 * width(rest)
    np.testing.assert_allclose(landmark(rest, 'nose_tip'), landmark(round_, 'nose_tip'), atol=0.5)


def test_any_state_covers_what_motion_rarely_shows():
    states = [any_state(seed) for seed in range(400)]
    values = lambda name: np.array([getattr(state, name) for state in states])
    assert min(np.mean(values('blink') < 0.1), np.mean(values('blink') > 0.85)) > 0.2
    assert np.mean(values('jaw') > 0.5) > 0.2 and np.mean(values('jaw') == 0) > 0.2
    assert any_state(7) == any_state(7)


# ---- pairs

def test_landmarks_follow_the_camera():
    """The landmarks of a varied frame lie where a white dot of the cutout lands."""
    size = 96
    for seed in range(6):
        places = np.float32([[[40.0, 50.0]], [[55.0, 42.0]]])
        cutouts = np.zeros((2, size, size, 4), np.uint8)
        cutouts[..., 3] = 255
        for cutout, ((x, y),) in zip(cutouts, places.astype(int)):
            cutout[y - 2:y + 3, x - 2:x + 3, :3] = 255
        frames, moved = varied(cutouts, places, np.random.default_rng(seed))
        for frame, ((x, y),) in zip(frames, moved):
            top, left = int(y) - 7, int(x) - 7
            light = frame[max(top, 0):top + 15, max(left, 0):left + 15].astype(float).sum(-1)
            rows, columns = np.nonzero(light > 0.5 * (light.max() + np.median(light)))
            assert abs(columns.mean() + max(left, 0) - x) < 1.5 and abs(rows.mean() + max(top, 0) - y) < 1.5


def test_the_background_stands_still():
    cutouts = np.zeros((2, 64, 64, 4), np.uint8)
    frames, _ = varied(cutouts, np.zeros((2, 1, 2), np.float32), np.random.default_rng(1))
    assert frames[0].std() > 1 and np.abs(frames[0].astype(int) - frames[1]).mean() < 12      # noise alone


def test_kept_cutouts_are_the_drawn_ones(tmp_path):
    people = synthetic_people(2, 1, 2, 32, seed=0, even=True)
    clip = people['id00001'][0]
    drawn, kept, again = Cutouts(None, people), Cutouts(tmp_path, people), Cutouts(tmp_path, people)
    for cutouts in (kept, again, kept):
        for ours, theirs in zip(cutouts(clip, 1), drawn(clip, 1)):
            np.testing.assert_array_equal(ours, theirs)
    assert len(list(tmp_path.iterdir())) == 3


def test_plain_pairs_carry_landmarks_of_their_frames():
    clip = synthetic_people(1, 1, 4, 64, seed=0)['id00000'][0]
    frames, further = VariedPairs(['nose_tip'], False, None)(clip, [1, 3], None)
    np.testing.assert_array_equal(frames[1], clip.read([3])[0])
    shown = render(clip.identity, clip.state(3), 64)
    np.testing.assert_allclose((further['landmarks'][1, 0] + 1) * 31.5, landmark(shown, 'nose_tip'), atol=1e-3)


def test_landmarks_and_flips_exclude_each_other():
    with pytest.raises(UserError, match='horizontal_flip'):
        schema.load(ROOT / 'config' / 'demo-64.yaml', ['dataset_params.synthetic_params.landmarks=[chin]'])
    with pytest.raises(UserError, match='nose_tip'):
        schema.load(ROOT / 'config' / 'heads-128.yaml', ['dataset_params.synthetic_params.landmarks=[nosetip]'])


# ---- weights to give away

def test_released_weights_are_the_averaged_ones(tmp_path, config):
    state = build_training_step(config, torch.device('cpu')).state
    write_checkpoint(tmp_path / '00000007.pt', state.checkpoint(config, 7))
    out = tmp_path / 'weights.safetensors'
    assert len(release(tmp_path / '00000007.pt', out)) == 64
    loaded, model = load_model(str(out))
    assert loaded.model_params == config.model_params
    ours, theirs = model.state_dict(), state.ema.state_dict()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor.half().to(tensor.dtype) if tensor.is_floating_point() else tensor)


def test_a_damaged_release_is_one_line(tmp_path):
    (tmp_path / 'cut.safetensors').write_bytes(b'\x10\0\0\0\0\0\0\0{"a"')
    save_file({'a': torch.zeros(1)}, tmp_path / 'other.safetensors')
    with pytest.raises(UserError, match='damaged'):
        load_model(str(tmp_path / 'cut.safetensors'))
    with pytest.raises(UserError, match='not a checkpoint of this project'):
        load_model(str(tmp_path / 'other.safetensors'))


# ---- keypoints at landmarks

def test_training_moves_images_by_the_landmarks_of_the_dataset(batch, config):
    step = build_training_step(config, torch.device('cpu'))
    pairs, = micro_batches(batch, config.train_params)
    generated = step.objective(*pairs).generated
    found = torch.stack([generated.source_keypoints.value, generated.driving_keypoints.value], 1)
    torch.testing.assert_close(found, pairs.landmarks)


def test_inference_has_the_keypoints_of_the_finder_and_without_a_face_those_of_the_network(config):
    model, images = build_model(config).eval(), torch.rand(2, 3, 128, 128)
    detected = model.keypoints(images)
    places = torch.rand(2, 33, 2)
    places[1] = torch.nan
    model.keypoint_detector.finder = lambda images: places.clone()
    found = model.keypoints(images)
    torch.testing.assert_close(found.value, torch.stack([places[0], detected.value[1]]), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.jacobian[1], detected.jacobian[1], atol=1e-5, rtol=0)


def test_mediapipe_finds_the_landmarks_of_synthetic_heads(config):
    pytest.importorskip('mediapipe')
    names = config.model_params.kp_detector_params.landmarks
    shown = render(Identity.sample(3), HeadState(yaw=10), 256)
    images = from_bytes(torch.from_numpy(np.stack([shown.image, np.zeros_like(shown.image)])))
    found, none = LandmarkFinder(names)(images)
    apart = (found + 1) * 127.5 - torch.from_numpy(np.stack([landmark(shown, name) for name in names]))
    assert apart.norm(dim=1).median() < 5 and apart.norm(dim=1).max() < 16 and none.isnan().all()


def test_landmarks_must_come_with_the_pairs_and_be_found():
    with pytest.raises(UserError, match='in the same order'):
        schema.load(ROOT / 'config' / 'heads-128.yaml', ['model_params.kp_detector_params.num_kp=10',
                                                         f'model_params.kp_detector_params.landmarks={["chin"] * 10}'])
    with pytest.raises(UserError, match='only method synergy'):
        schema.load(ROOT / 'config' / 'demo-fomm-64.yaml', [f'model_params.kp_detector_params.{key}' for key in (
            'landmarks=[chin, nose_tip, upper_lip]', 'num_kp=3', 'rigid_keypoints=3')])


# ---- guidance

def test_the_guide_is_zero_at_the_landmarks_and_grows_with_the_distance():
    places = torch.tensor([[[0.2, -0.4], [-0.5, 0.1]]])
    grid = identity_grid((32, 32), places)

    def at(offset):
        distance = (grid - (places + offset)[:, :, None, None]).square().sum(-1)
        heatmap = (-0.5 * distance / 0.01).flatten(2).softmax(-1).view(1, 2, 32, 32)
        return landmark_guide(Keypoints(places + offset, heatmap=heatmap), places)
    (here, entropy), (there, farther) = at(0.0), at(0.3)
    assert here == 0 and there == pytest.approx(0.3, abs=1e-6) and farther > entropy + 1


def test_regions_are_heavy_at_their_landmarks_only():
    weights = region_weights(torch.tensor([[[0.0, 0.0]]]), 8.0, (65, 65))[0, 0]
    assert weights[32, 32] == pytest.approx(8) and weights[0, 0] == pytest.approx(1)


def test_an_affine_frame_follows_affine_maps():
    torch.manual_seed(0)
    frame, points = AffineFrame(6).eval(), torch.randn(1, 9, 2)
    change = torch.tensor([[1.1, 0.3], [-0.2, 0.8]])
    before, after = frame(points), frame(points @ change.T + 0.3)
    torch.testing.assert_close(after, change @ before)


def test_training_brings_keypoints_to_landmarks_and_weighs_eyes_and_mouth(batch):
    config = schema.load(ROOT / 'config' / 'heads-128-motion.yaml', [*SMALL, 'train_params.motion_iterations=1'])
    step = build_training_step(config, torch.device('cpu'))
    first, *_, last = [step(micro_batches(batch, config.train_params), 1).losses for _ in range(12)]
    assert last['landmark_guide'] < 0.8 * first['landmark_guide']
    unweighted = schema.override(config, ['train_params.objective_params.region_weight=1'])
    plain = build_training_step(unweighted, torch.device('cpu'))(micro_batches(batch, config.train_params), 1).losses
    assert first['l1'] > 1.2 * plain['l1']
