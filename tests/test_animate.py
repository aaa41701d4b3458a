"""Animation of one pair by a toy model: streaming, rates, anchors, the best frame."""

import logging
import types
import warnings

import numpy as np
import pytest
import torch

from animate import write_animation
from datasets.video import open_clip
from metrics.face import FAN_URLS, face_alignment_network
from motion import best_frame
from motion.best_frame import find_best_frame
from motion.settings import Motion
from reconstruction import reconstruct
from support import streaming
from support.errors import UserError
from support.weights import checkpoint_path
from tests.support.random_weights import save_random_weights
from tests.support.toys import NTSC, SCALED, SIZE, ToyClip, names_in, renderer
from visualizer import MOMENTS, beside, to_tensor, to_uint8

pytestmark = pytest.mark.usefixtures('no_weights')


def collect(model, driving, batch_size=4, anchor=None, relative=True):
    """Frames of an animation before they are encoded, (T, H, W, 3)."""
    driven = renderer(model, batch_size).follow(ToyClip(seed=3).frame(0), driving, Motion(relative, relative), anchor)
    return np.concatenate([batch.frames for batch in driven.render(driving.frames())]).astype(int)


@pytest.mark.parametrize('relative', [False, True])
def test_animation_equals_rendering_frame_by_frame(model, relative):
    alone, together = (collect(model, ToyClip(num_frames=9), size, relative=relative) for size in (1, 4))
    assert len(alone) == 9 and np.abs(alone - together).max() <= 1       # one level: sums in another order


def test_relative_animation_starts_at_the_source_and_absolute_does_not(model):
    source = ToyClip(seed=3).frame(0).astype(int)
    assert np.abs(collect(model, ToyClip(), relative=True)[0] - source).max() <= 1
    assert np.abs(collect(model, ToyClip(), relative=False)[0] - source).max() > 20


def test_at_the_anchor_the_result_is_the_source(model):
    made, source = collect(model, ToyClip(), anchor=7), ToyClip(seed=3).frame(0).astype(int)
    differences = np.abs(made - source).mean(axis=(1, 2, 3))
    assert differences.argmin() == 7 and differences[7] < 0.1


def test_frame_rate_length_and_size_are_the_drivers(model, tmp_path):
    result = tmp_path / 'new' / 'result.mp4'
    count = write_animation(renderer(model), ToyClip().frame(0), ToyClip(num_frames=9, fps=NTSC), result, SCALED)
    clip = open_clip(result)
    assert count == len(clip) == 9 and clip.fps == NTSC and clip.read([0])[0].shape == (SIZE, SIZE, 3)
    assert names_in(tmp_path) == ['new/result.mp4']


def test_side_by_side_shows_source_driving_result(model, tmp_path):
    source, driving = ToyClip(seed=3).frame(0), ToyClip()
    write_animation(renderer(model), source, driving, tmp_path / 'r.mp4', SCALED, show=beside)
    frame = open_clip(tmp_path / 'r.mp4').read([5])[0].astype(int)
    assert frame.shape == (SIZE, 3 * SIZE, 3)
    assert np.abs(frame[:, :SIZE] - source).mean() < 8                    # H.264 with subsampled colour
    assert np.abs(frame[:, SIZE:2 * SIZE] - driving.frame(5)).mean() < 8


def test_long_clips_stream(model, tmp_path):
    driving = ToyClip(num_frames=600)
    write_animation(renderer(model, 8), ToyClip().frame(0), driving, tmp_path / 'r.mp4', SCALED)
    # One batch in work, as many as the pipeline holds before and after it, one more at each of its ends.
    assert driving.most_alive <= (2 * streaming.DEPTH + 3) * 8 and model.sources_encoded == 1
    assert len(open_clip(tmp_path / 'r.mp4')) == 600


def test_long_clips_stream_through_reconstruction(model, tmp_path):
    clip = ToyClip(num_frames=200)
    reconstruct(renderer(model, 8), [clip], tmp_path, save_videos=False)
    assert clip.most_alive <= (streaming.DEPTH + 3) * 8 + 2 + MOMENTS and model.sources_encoded == 1


def test_an_anchor_outside_the_clip_is_refused(model, tmp_path):
    with pytest.raises(UserError, match='clip: has no frame 12 .* 0 to 11'):
        write_animation(renderer(model), ToyClip().frame(0), ToyClip(), tmp_path / 'r.mp4', SCALED, anchor=12)
    assert names_in(tmp_path) == []


def test_half_precision_stays_close(model):
    source, driving = (ToyClip(seed=seed).frame(0) for seed in (3, 0))
    full, half = (renderer(model, precision=precision).follow(source)([driving])[-1].prediction.float()
                  for precision in ('fp32', 'bf16'))
    assert (full - half).abs().mean() < 0.05


def test_a_renderer_uses_no_batch_statistics(model):
    assert not renderer(model.train()).model.training


def test_all_that_the_model_makes_can_be_had_of_chosen_frames(model):
    source, driving = ToyClip(seed=3).frame(0), ToyClip()
    first, last = renderer(model, batch_size=2).follow(source, driving, Motion(adapt_scale=True)).render(
        driving.read([0, 5, 9]))
    assert [len(batch.driving) for batch in (first, last)] == [2, 1] and first.images.shape == (2, 3, SIZE, SIZE)
    assert first.generated.flows[0].shape == (2, SIZE, SIZE, 2)
    assert np.array_equal(to_uint8(first.generated.prediction), first.frames)
    assert torch.equal(first.found.value, model.keypoints(first.images).value)
    assert torch.equal(model.render(model.encode_source(to_tensor([source])), last.pose).prediction,
                       last.generated.prediction)


# The best frame

def test_best_frame_by_keypoints_says_what_was_missing(model, caplog):
    driving = ToyClip(num_frames=20)
    with caplog.at_level(logging.INFO):
        assert find_best_frame(renderer(model), driving.frame(13), driving) == 13
    assert 'keypoints' in caplog.text and 's3fd-619a316812.pth' in caplog.text and '2DFAN4' in caplog.text


def test_only_some_frames_of_a_long_clip_are_looked_at(model, monkeypatch):
    monkeypatch.setattr(best_frame, 'MOST_CANDIDATES', 5)
    looked_at = []
    driving = ToyClip(num_frames=401)
    driving.read = lambda indices: looked_at.extend(indices) or ToyClip.read(driving, indices)
    assert find_best_frame(renderer(model), driving.frame(200), driving) == 200
    assert looked_at == [0, 100, 200, 300, 400]


def test_best_frame_by_landmarks_passes_over_frames_without_a_face(model, monkeypatch, caplog):
    shapes = np.random.default_rng(0).random((12, 68, 2))

    class Detector:
        """Finds no face in even frames, and a smaller second one in the others."""

        def get_landmarks_from_image(self, image):
            index = int(np.argmin([np.abs(ToyClip().frame(i).astype(int) - image).sum() for i in range(12)]))
            return None if index % 2 == 0 and not asks_for_source.pop() else [shapes[0] * 0.1, shapes[index]]

    asks_for_source = [False] * 12 + [True]
    monkeypatch.setattr(best_frame, 'face_alignment_network', lambda device: Detector())
    # The source has the shape of frame 5, an odd one.
    with caplog.at_level(logging.INFO):
        assert find_best_frame(renderer(model), ToyClip().frame(5), ToyClip()) == 5
    assert 'landmarks' in caplog.text


def test_face_alignment_loads_its_weights_from_the_place_it_names(tmp_path, monkeypatch):
    from face_alignment.detection.sfd.net_s3fd import s3fd
    from face_alignment.models import FAN
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    (tmp_path / 'hub' / 'checkpoints').mkdir(parents=True)
    for network, url in zip((s3fd(), FAN(4)), FAN_URLS):
        save_random_weights(network, checkpoint_path(url))

    detector = face_alignment_network(torch.device('cpu'))
    monkeypatch.setattr(detector.face_detector, 'detect_from_image', lambda image: [])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert best_frame._landmarks(detector, ToyClip().frame(0)) is None


def test_no_face_anywhere_falls_back_to_keypoints(model, monkeypatch, caplog):
    nobody = types.SimpleNamespace(get_landmarks_from_image=lambda image: None)
    monkeypatch.setattr(best_frame, 'face_alignment_network', lambda device: nobody)
    assert find_best_frame(renderer(model), ToyClip().frame(5), ToyClip()) == 5
    assert 'no face was found in the source' in caplog.text
