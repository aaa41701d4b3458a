"""Landmarks, head pose, expression and jitter: by hand, with random weights, and with MediaPipe on clips."""

import hashlib
import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import validation
from datasets.face_tracker import MODEL_URL, SHIPPED_MODEL, FaceDetector, landmarker_path
from datasets.video import open_clip
from evaluation.scores import Scorer
from metrics import expression as expressions
from metrics import face
from metrics.base import Cached
from metrics.expression import DenseAkd, Expression, face_scores
from metrics.face import Akd, AkdEuclidean, Ard, Faces
from metrics.jitter import LandmarkJitter, PixelJitter
from support.weights import checkpoint_path
from tests.support.tiny import ROOT, SHARED
from visualizer import to_unit_range

REAL = SHARED / 'real'
needs_mediapipe = pytest.mark.skipif(not REAL.is_dir(), reason='no clips')


def frames_of(pattern, step=1, count=None, folder='test'):
    """Some frames of a real clip: (B, 3, 256, 256) in [0, 1]."""
    clip = open_clip(next((REAL / folder).glob(pattern)), 256)
    return to_unit_range(list(itertools.islice(clip.frames(), 0, None if count is None else count * step, step)))


def plain(red, green):
    return torch.tensor([red, green, 0.5])[:, None, None].expand(3, 8, 8)


def test_a_shift_in_pixels_gives_that_akd_and_misses_are_counted(monkeypatch):
    """A stand-in for a detector: 68 points, moved by the frame's mean red and green, 10 px each; none in the dark."""
    points = torch.rand(68, 2, dtype=torch.float64) * 256

    def landmarks(frames):
        shift = 10 * frames[:, :2].mean((2, 3)).double()
        return torch.where(frames.flatten(1).any(1)[:, None, None], points + shift[:, None], torch.nan)
    monkeypatch.setattr(face, 'fan_landmarks', lambda device: Cached(landmarks))
    driving = torch.stack([plain(0, 0), plain(0, 0), plain(0.5, 0.5)])
    generated = torch.stack([plain(0, 0), plain(0.3, 0.4), plain(0.1, 0.5)])       # moved by (0, 0), (3, 4), (-4, 0) px
    akd, dark = Akd('cpu'), torch.zeros(3, 8, 8)
    assert akd(generated, driving).tolist() == pytest.approx([0, 3.5, 2], abs=1e-5)
    assert AkdEuclidean('cpu')(generated, driving).tolist() == pytest.approx([0, 5, 4], abs=1e-5)
    scores = akd(torch.stack([plain(0, 0), dark, dark]), torch.stack([dark, dark, plain(0, 0)]))
    assert scores.isnan().all() and akd.misses == {'generated': 2, 'driving': 2}
    akd.start_clip()
    assert akd(driving, driving).eq(0).all() and not akd.misses.total()


@pytest.mark.parametrize('splits', [[6], [1, 1, 1, 1, 1, 1], [2, 4]])
def test_jitter_by_hand_whatever_the_batches(splits):
    """Alternating by 0.1 has second differences of 0.4; a constant error and a drift have none."""
    jitter, driving = PixelJitter('cpu'), torch.rand(6, 3, 4, 4)
    shaking = torch.tensor([0.1, -0.1] * 3)[:, None, None, None]
    drift = torch.linspace(0, 0.2, 6)[:, None, None, None]
    for error, expected in ((shaking, 0.4), (drift, 0), (torch.tensor(0.1), 0)):
        jitter.start_clip()
        pairs = zip((driving + error).split(splits), driving.split(splits))
        scores = torch.cat([jitter(*pair) for pair in pairs])
        assert scores.tolist() == pytest.approx([math.nan] * 2 + [expected] * 4, nan_ok=True, abs=1e-6)


# face-alignment with random weights

def test_landmarks_are_those_of_the_first_face_of_each_frame(random_fan, monkeypatch):
    akd = Akd('cpu')
    network = face.face_alignment_network('cpu')
    boxes = {0: [], 1: [np.array([30., 20, 220, 240, 0.9]), np.array([0., 0, 90, 90, 0.7])]}
    monkeypatch.setattr(network.face_detector, 'detect_from_batch',
                        lambda frames: [boxes[bool(frame.any())] for frame in frames])
    face_in, nobody = torch.randint(0, 256, (3, 256, 256)) / 255, torch.zeros(3, 256, 256)
    frames = torch.stack([nobody, face_in])
    found = akd.features(frames)
    assert found.shape == (2, 68, 2) and found[0].isnan().all()

    image = (face_in * 255).round().byte().permute(1, 2, 0).numpy()
    expected = network.get_landmarks_from_image(image, detected_faces=boxes[1])
    assert len(expected) == 2 and (found[1].numpy() == expected[0]).all() and (expected[0] != expected[1]).any()

    assert akd(frames, frames).tolist() == pytest.approx([math.nan, 0], nan_ok=True)
    assert akd.misses == {'generated': 1, 'driving': 1}
    assert sorted(akd.weights) == ['2DFAN4-11f355bf06.pth.tar', 's3fd-619a316812.pth']


# MediaPipe on real clips

def test_the_shipped_landmarker_is_the_published_file():
    assert hashlib.sha256(SHIPPED_MODEL.read_bytes()).hexdigest() in (SHIPPED_MODEL.with_suffix('.md')).read_text()


def test_a_landmarker_under_torch_home_takes_precedence(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    assert landmarker_path() == SHIPPED_MODEL
    own = checkpoint_path(MODEL_URL)
    own.parent.mkdir(parents=True)
    own.touch()
    assert landmarker_path() == own


@needs_mediapipe
def test_turning_the_picture_turns_the_head_as_much(landmarker):
    frames = frames_of('id10002*', step=40, count=4)
    images = [Image.fromarray(image) for image in (frames * 255).byte().permute(0, 2, 3, 1).numpy()]
    turned = to_unit_range([image.rotate(12, Image.Resampling.BICUBIC) for image in images])
    ard = Ard('cpu')
    scores = ard(turned, frames)
    assert not ard.misses.total()
    # Roll changes by 12 degrees; pitch and yaw, seen in the camera's axes, by a little.
    assert (ard.features(turned) - ard.features(frames))[:, 2].abs().tolist() == pytest.approx([12] * 4, abs=1.5)
    assert scores.tolist() == pytest.approx([4] * 4, abs=1.2)
    assert (ard(frames, frames) == 0).all()
    dark = torch.zeros(2, 3, 64, 64)
    ard.start_clip()
    assert ard(dark, dark).isnan().all() and ard.misses == {'generated': 2, 'driving': 2}


@needs_mediapipe
def test_landmarks_move_with_the_picture_and_jitter_with_its_shaking(landmarker):
    frames = frames_of('id10005*', count=5)
    faces = face.mediapipe_faces()
    shifted = frames.roll((6, -4), dims=(2, 3))
    moved = (faces(shifted).landmarks - faces(frames).landmarks).mean(1)
    torch.testing.assert_close(moved, torch.tensor([[-4., 6]]).double().expand(5, 2), atol=0.7, rtol=0)

    jitter = LandmarkJitter('cpu')
    jitter.start_clip()
    assert (jitter(frames, frames)[2:] == 0).all()
    jitter.start_clip()
    shaking = torch.stack([frame.roll(3 * (-1) ** i, dims=2) for i, frame in enumerate(frames)])
    scores = jitter(shaking, frames)[2:]                   # 12 px in x, none in y
    assert scores.tolist() == pytest.approx([6] * 3, abs=1)


# Expression

def test_expression_is_the_mean_difference_and_what_follows_within_the_clip(monkeypatch):
    """Frames that hold their blendshapes as pixels, NaN for no face; movements of half the driver's amplitude."""
    monkeypatch.setattr(face, 'mediapipe_faces', lambda: lambda frames: Faces(None, None, frames.flatten(1)))
    expression, driving = Expression('cpu'), torch.rand(30, 52, generator=torch.Generator().manual_seed(0)).double()
    generated = driving.mean(0) + 0.5 * (driving - driving.mean(0)) + 0.1
    driving[:, 44:46] = 0.3                                   # the driver does not smile
    generated[4], driving[7] = torch.nan, torch.nan
    expression.start_clip()
    scores = torch.cat([expression(*pair) for pair in zip(generated[:, None].split(8), driving[:, None].split(8))])
    assert scores.isnan().nonzero().flatten().tolist() == [4, 7] and expression.misses == {'generated': 1, 'driving': 1}
    torch.testing.assert_close(scores[:4], (generated - driving).abs().mean(1)[:4])
    details = expression.details()
    for name in ('jaw opening', 'blinks', 'brows'):           # a constant offset and the level do not count
        assert details[f'{name}, correlation'] == pytest.approx(1)
        assert details[f'{name}, amplitude'] == pytest.approx(0.5)
    assert details['smile, correlation'] is None and details['smile, amplitude'] is None
    expression.start_clip()
    expression(generated[:1, None], driving[8:, None])        # a copied source: one frame against all
    assert expression.details()['jaw opening, correlation'] == expression.details()['jaw opening, amplitude'] == 0


@needs_mediapipe
def test_blendshapes_have_the_indices_that_movements_use(landmarker):
    with FaceDetector(1, blendshapes=True) as detector:
        image = (frames_of('id10001*', count=1)[0] * 255).byte().permute(1, 2, 0).numpy()
        shapes, = detector._landmarker.detect(detector._image(np.ascontiguousarray(image))).face_blendshapes
    names = {shape.index: shape.category_name for shape in shapes}
    assert {movement: [names[i] for i in indices] for movement, indices in expressions.MOVEMENTS.items()} == {
        'jaw opening': ['jawOpen'], 'blinks': ['eyeBlinkLeft', 'eyeBlinkRight'],
        'smile': ['mouthSmileLeft', 'mouthSmileRight'], 'brows': ['browInnerUp', 'browOuterUpLeft', 'browOuterUpRight']}


@needs_mediapipe
def test_a_driver_expresses_itself_and_a_frozen_face_nothing(landmarker):
    frames = frames_of('id10001*', step=4, count=16)
    expression, akd = Expression('cpu'), DenseAkd('cpu')
    expression.start_clip()
    assert (expression(frames, frames) == 0).all() and (akd(frames, frames) == 0).all()
    assert expression.details()['jaw opening, correlation'] == pytest.approx(1)
    frozen, large = frames[:1], torch.nn.functional.interpolate(frames, scale_factor=2, mode='bilinear')
    assert expression(frozen, frames)[1:].mean() > 0.02 and akd(frozen, frames)[1:].mean() > 2
    twice = akd(large.roll((12, -16), dims=(2, 3)), large)     # by 20 px, which are 10 of frames of 256
    assert twice.tolist() == pytest.approx([10] * 16, abs=1)


@needs_mediapipe
def test_the_landmarker_runs_once_per_frame_for_all_metrics(landmarker, monkeypatch):
    detect, seen = FaceDetector.detect, []
    monkeypatch.setattr(FaceDetector, 'detect', lambda self, frame: seen.append(1) or detect(self, frame))
    ids = ['ard.mediapipe', 'akd.mediapipe', 'expression.mediapipe', 'jitter.mediapipe']
    scorer = Scorer(ids, 'cpu', copies=True)
    driving = list(open_clip(next((REAL / 'test').glob('id10001*')), 256).read(range(7)))
    batches = [(driving[i:i + 3], [frame[:, ::-1] for frame in driving[i:i + 3]]) for i in (0, 3, 6)]
    clip = scorer.score('clip', driving[0], iter(batches))
    assert len(seen) == 7 + 7 + 1 and set(clip.scores) == set(ids)         # the copied source once
    assert set(clip.copied) == {'akd.mediapipe', 'expression.mediapipe'}
    assert clip.copied['expression.mediapipe'][0] == 0 < clip.copied['expression.mediapipe'][6]


@needs_mediapipe
def test_mediapipe_is_loaded_once_and_closed_at_exit(landmarker):
    """Though no one holds it between two uses, as when frames are tried one by one."""
    code = ('from metrics import face\nfrom datasets import face_tracker\nopened = []\n'
            'opener = face_tracker._open_landmarker\n'
            'face_tracker._open_landmarker = lambda *given: opened.append(1) or opener(*given)\n'
            'face.mediapipe_faces()\nface.mediapipe_faces()\nprint(len(opened))')
    ran = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout == '1\n' and 'Exception' not in ran.stderr and 'Traceback' not in ran.stderr


# Validation while training

@needs_mediapipe
def test_face_scores_are_those_of_the_metrics(landmarker):
    frames = frames_of('id10003*', step=20, count=3)
    generated = frames.roll(1, dims=0)
    generated[2] = 0                                           # without a face
    scores = face_scores(generated, frames)
    for name, metric in (('expression', Expression('cpu')), ('landmarks', DenseAkd('cpu'))):
        metric.start_clip()
        expected = metric(generated, frames)
        assert expected[2].isnan() and torch.equal(scores[name].nan_to_num(), expected.nan_to_num())


def test_validation_without_faces_or_landmarker_logs_the_rest(no_weights):
    assert face_scores(torch.zeros(2, 3, 64, 64), torch.zeros(2, 3, 64, 64)) == {}
    scores = {'psnr': torch.tensor([20.0, 30]), 'expression': torch.tensor([math.nan, 0.05]),
              'landmarks': torch.tensor([math.nan, math.nan])}
    assert validation._means(scores) == {'psnr': 25, 'expression': pytest.approx(0.05)}
    assert validation._captions(scores, 2) == ['psnr 20', 'psnr 30, expression 0.05']
