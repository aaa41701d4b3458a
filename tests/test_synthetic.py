"""The embedded heads: deterministic, consistent with their own ground truth, alive; and training by their landmarks."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from config import schema
from datasets.face_tracker import LandmarkFinder
from datasets.loader import training_set
from datasets.synthetic import drawn
from datasets.synthetic.clips import LANDMARK_NAMES, HeadState, Identity, motion, render, synthetic_people
from datasets.synthetic.varied import Cutouts, VariedPairs, alike, varied
from inference import DrivenSource, Renderer
from load import load_model
from logger import write_checkpoint
from modules.build import build_model
from modules.dense_motion import anchored
from modules.keypoint_detector import AffineFrame
from modules.losses import landmark_guide, region_weights
from modules.pairs import micro_batches
from modules.talking_head import Keypoints
from modules.training_step import build_training_step
from modules.warp import identity_grid, read_at
from support.errors import UserError
from tests.support.tiny import ROOT
from tools.release_weights import release
from visualizer import from_bytes

REST = HeadState()
DRIVING = HeadState(yaw=10, pitch=-6, roll=6, x=-0.06, scale=1.05, jaw=0.5, smile=0.6, brow=0.5, gaze_x=0.5)
PEOPLE = (3, 5, 11)


@pytest.fixture(scope='module', params=PEOPLE)
def person(request):
    return Identity.sample(request.param)


def psnr(first, second, where=slice(None)):
    error = (first.astype(np.float64) - second.astype(np.float64))[where]
    return 10 * np.log10(255 ** 2 / np.mean(error ** 2))


def landmark(rendered, name):
    return rendered.landmarks[LANDMARK_NAMES.index(name)]


# ---- the data set

def test_people_of_other_seeds_are_other_people_and_their_clips_share_the_look():
    first, second = synthetic_people(20, 2, 4, 32, seed=0), synthetic_people(20, 1, 1, 32, seed=1)
    assert not first.keys() & second.keys()
    looks = [clip.identity.appearance for people in (first, second) for clips in people.values() for clip in clips]
    assert len(set(looks)) == 40 and len(looks) == 60
    one, other = first['id00000']
    assert one.identity.backdrop == other.identity.backdrop and one.state(0) != other.state(0)


def test_seeds_alone_decide_and_random_access_equals_reading_in_order():
    people, again = (synthetic_people(2, 2, 6, 48, seed=2) for _ in range(2))
    clip = people['id200001'][1]
    assert people == again and clip.name == 'id200001#s0001#000000#000006'
    in_order = list(clip.frames())
    assert len(in_order) == len(clip) == clip.num_frames == 6
    for frame, index in zip(again['id200001'][1].read([4, 0, 4]), (4, 0, 4)):
        assert np.array_equal(frame, in_order[index])
    assert in_order[0].shape == (48, 48, 3) and in_order[0].dtype == np.uint8
    pickled = pickle.dumps(clip)
    assert len(pickled) < 5000                               # no mesh, no texture
    assert np.array_equal(pickle.loads(pickled).read([2])[0], in_order[2])


# ---- motion

def test_what_is_kept_of_drawn_heads_has_a_bound_in_bytes():
    """256 heads were kept, whatever their size: 1.6 GiB of each process at 256 px."""
    keep, calls = drawn.Drawn(limit=250), []

    @keep
    def draw(name):
        calls.append(name)
        return np.zeros(100, np.uint8),
    for name in ('a', 'b', 'a', 'c', 'a', 'b'):          # c makes room by b, whose last use is the oldest
        draw(name)
    assert calls == ['a', 'b', 'c', 'b'] and keep.bytes == 200
    assert draw('b') is draw('b')


def test_motion_is_smooth_lively_and_within_range_whatever_its_length():
    assert motion(7, 40)[:10] == motion(7, 10) != motion(8, 10)
    states = [state for seed in range(6) for state in motion(seed, 250)]
    values = np.array([[s.yaw, s.pitch, s.roll, s.jaw, s.blink, s.smile, s.brow, s.gaze_x]
                       for s in states]).reshape(6, 250, -1)
    steps = np.abs(np.diff(values, axis=1))
    assert (np.abs(values).max((0, 1)) <= [32, 18, 15, 1, 1, 1, 1, 1]).all()
    assert steps[..., :3].max() < 5                          # degrees from frame to frame
    assert np.ptp(values[..., 0]) > 30 and np.ptp(values[..., 3]) > 0.5
    assert (values[..., 4].max(1) > 0.9).all()               # everybody blinks within ten seconds
    assert (values[..., 4] > 0.7).mean() < 0.2               # but not for long
    assert (values[..., 4].std(1) > 0.1).all()               # and lids are never still


# ---- landmarks

@pytest.mark.parametrize('change, name, axis, sign', [
    ({'yaw': 15}, 'nose_tip', 0, 1), ({'pitch': 12}, 'nose_tip', 1, -1), ({'x': 0.1}, 'nose_tip', 0, 1),
    ({'y': 0.1}, 'nose_tip', 1, 1), ({'roll': 10}, 'right_eye_outer', 1, 1), ({'roll': 10}, 'left_eye_outer', 1, -1)])
def test_landmarks_follow_the_pose(person, change, name, axis, sign):
    """Positive roll is clockwise."""
    moved = landmark(render(person, replace(REST, **change), 64), name) - landmark(render(person, REST, 64), name)
    assert sign * moved[axis] > 1


def test_expressions_move_their_landmarks(person):
    shown = lambda **state: dict(zip(LANDMARK_NAMES, render(person, HeadState(**state), 128).landmarks))
    gap = lambda places: (places['lower_lip'] - places['upper_lip'])[1]
    width = lambda places: (places['mouth_right'] - places['mouth_left'])[0]
    rest, puckered = shown(), shown(pucker=1)
    assert abs(gap(rest)) < 0.5 and gap(shown(jaw=1)) > 6
    assert width(shown(smile=1)) > width(rest) + 3
    assert shown(brow=1)['left_brow_middle'][1] < rest['left_brow_middle'][1] - 1
    assert shown(gaze_x=1)['left_pupil'][0] > rest['left_pupil'][0] + 1
    assert width(puckered) < 0.75 * width(rest)
    np.testing.assert_allclose(puckered['nose_tip'], rest['nose_tip'], atol=0.5)


def test_blinking_changes_the_eyes_and_nothing_else(person):
    opened, closed = render(person, REST, 128), render(person, HeadState(blink=1), 128)
    rows, columns = np.nonzero(np.abs(opened.image.astype(int) - closed.image).max(2) > 8)
    assert len(rows) > 40
    eyes = np.array([landmark(opened, name) for name in LANDMARK_NAMES if 'eye' in name])
    assert columns.min() > eyes[:, 0].min() - 5 and columns.max() < eyes[:, 0].max() + 5
    assert rows.min() > eyes[:, 1].min() - 9 and rows.max() < eyes[:, 1].max() + 9


# ---- pictures

def test_a_small_picture_is_a_large_one_from_further_away(person):
    small, large = render(person, DRIVING, 64), render(person, DRIVING, 256)
    averaged = large.image.reshape(64, 4, 64, 4, 3).mean((1, 3))
    assert psnr(small.image, averaged) > 24
    assert np.abs((small.landmarks + 0.5) * 4 - 0.5 - large.landmarks).max() < 3


def test_the_head_fills_the_frame_like_a_face_crop(person):
    """Chin to forehead takes 0.5 to 0.7 of the image height, as in VoxCeleb crops."""
    rendered = render(person, REST, 128)
    assert 0.5 < (landmark(rendered, 'chin') - landmark(rendered, 'forehead'))[1] / 128 < 0.7


SMALL = ['dataset_params.synthetic_params.train_people=2', 'dataset_params.synthetic_params.frames=3',
         'dataset_params.synthetic_params.cache=null', 'train_params.batch_size=2', 'train_params.num_iterations=2']


@pytest.fixture(scope='module')
def config():
    return schema.load(ROOT / 'config' / 'heads-128.yaml', SMALL)


@pytest.fixture(scope='module')
def batch(config):
    return torch.utils.data.default_collate([training_set(config)[i] for i in range(2)])


# ---- landmarks

def test_lids_meet_when_the_eye_closes_and_follow_the_head():
    person = Identity.sample(3)
    gaps = [landmark(shown, 'left_lid_lower') - landmark(shown, 'left_lid_upper')
            for shown in (render(person, HeadState(blink=blink), 128) for blink in (0, 0.5, 1))]
    opened, half, closed = (float(gap[1]) for gap in gaps)
    assert opened > 1.5 * half > 1.5 * closed > 0 and closed < 0.25 * opened
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


def test_one_pair_of_five_is_one_frame_twice():
    clip, = synthetic_people(1, 1, 12, 32, seed=0, even=True)['id00000']
    pairs = [alike(clip, 3, 7, np.random.default_rng(seed)) for seed in range(300)]
    assert 0.12 < np.mean([first == second for first, second in pairs]) < 0.28
    assert {first for first, _ in pairs} == {3} and len(set(pairs)) > 5


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
    places = torch.rand(2, len(model.landmarks), 2)
    places[1] = torch.nan
    model.keypoint_detector.finder = lambda images: places.clone()
    found = model.keypoints(images)
    torch.testing.assert_close(found.value, torch.stack([places[0], detected.value[1]]), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.jacobian[1], detected.jacobian[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize('width, said', [(1.0, 0), (0.6, 1)])
def test_a_driver_that_begins_in_another_pose_than_the_source_is_said(config, width, said, caplog):
    model, frame = build_model(config).eval(), np.zeros((128, 128, 3), np.uint8)
    ahead = torch.rand(1, len(model.landmarks), 2)
    found = iter([ahead, 0.5 * ahead * torch.tensor([width, 1.0]) + 0.2])       # size and place do not count
    model.keypoint_detector.finder = lambda images: next(found)
    DrivenSource(Renderer(model, 'cpu'), frame, frame)
    assert caplog.text.count('different poses') == said


def test_mediapipe_finds_the_landmarks_of_synthetic_heads(config):
    pytest.importorskip('mediapipe')
    names = config.model_params.kp_detector_params.landmarks
    shown = render(Identity.sample(3), HeadState(yaw=10), 256)
    images = from_bytes(torch.from_numpy(np.stack([shown.image, np.zeros_like(shown.image)])))
    found, none = LandmarkFinder(names)(images)
    apart = (found + 1) * 127.5 - torch.from_numpy(np.stack([landmark(shown, name) for name in names]))
    assert apart.norm(dim=1).median() < 5 and apart.norm(dim=1).max() < 16 and none.isnan().all()


@pytest.mark.parametrize('name, changes, message', [
    ('demo-64', ['dataset_params.synthetic_params.landmarks=[chin]'], 'horizontal_flip'),
    ('heads-128', ['dataset_params.synthetic_params.landmarks=[nosetip]'], 'nose_tip'),
    ('heads-128', ['model_params.kp_detector_params.num_kp=10',
                   f'model_params.kp_detector_params.landmarks={["chin"] * 10}'], 'in the same order'),
    ('demo-fomm-64', [f'model_params.kp_detector_params.{key}' for key in (
        'landmarks=[chin, nose_tip, upper_lip]', 'num_kp=3', 'rigid_keypoints=3')], 'only method synergy')])
def test_landmarks_must_be_known_come_with_the_pairs_and_not_be_flipped(name, changes, message):
    with pytest.raises(UserError, match=message):
        schema.load(ROOT / 'config' / f'{name}.yaml', changes)


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
    weights = region_weights(torch.tensor([[[0.0, 0.0]]]), 8.0, (65, 65))[0, 0]       # heavy at its landmark only
    assert weights[32, 32] == pytest.approx(8) and weights[0, 0] == pytest.approx(1)


def test_an_anchored_flow_passes_through_the_keypoints_and_stays_elsewhere():
    flow = identity_grid((64, 64), torch.zeros(1))[None] + 0.1
    driving = torch.tensor([[[0.2, -0.4], [-0.5, 0.1], [-0.45, 0.1]]])
    source = driving + torch.tensor([[0.05, -0.1], [0.0, 0.0], [0.1, 0.0]])
    moved = anchored(flow, source, driving, 0.05)
    missed = [(read_at(of, driving) - source).norm(dim=2).amax() for of in (flow, moved)]
    assert missed[1] < 0.4 * missed[0]
    torch.testing.assert_close(moved[:, -16:], flow[:, -16:])            # far below the last keypoint


def test_an_affine_frame_follows_affine_maps():
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
