"""Animation of a pair and reconstruction of clips by a toy model: streaming, the best frame, scores, files."""

import csv
import json
import logging
import types
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from animate import write_animation
from datasets.video import open_clip
from inference import Renderer
from metrics.face import face_alignment_network
from modules.warp import identity_grid
from motion import best_frame
from motion.best_frame import find_best_frame
from motion.settings import Motion
from reconstruction import reconstruct
from support import streaming
from support.errors import UserError
from tests.support.toys import NTSC, SCALED, SIZE, BrokenClip, ToyClip, names_in, renderer, results_in
from visualizer import CELL, MOMENTS, beside, draw_keypoints, flow_to_rgb, grid, save_png, to_tensor, to_uint8

pytestmark = pytest.mark.usefixtures('no_weights')


def collect(model, driving, batch_size=4, anchor=None, relative=True):
    """Frames of an animation before they are encoded, (T, H, W, 3)."""
    driven = renderer(model, batch_size).follow(ToyClip(seed=3).frame(0), driving, Motion(relative, relative), anchor)
    return np.concatenate([batch.frames for batch in driven.render(driving.frames())]).astype(int)


@pytest.mark.parametrize('relative', [False, True])
def test_animation_equals_rendering_frame_by_frame(model, relative):
    alone, together = (collect(model, ToyClip(num_frames=9), size, relative=relative) for size in (1, 4))
    assert len(alone) == 9 and np.abs(alone - together).max() <= 1       # one level: sums in another order


def test_relative_animation_is_the_source_at_its_anchor_and_absolute_is_not(model):
    source = ToyClip(seed=3).frame(0).astype(int)
    assert np.abs(collect(model, ToyClip(), relative=True)[0] - source).max() <= 1
    assert np.abs(collect(model, ToyClip(), relative=False)[0] - source).max() > 20
    differences = np.abs(collect(model, ToyClip(), anchor=7) - source).mean(axis=(1, 2, 3))
    assert differences.argmin() == 7 and differences[7] < 0.1


def test_frame_rate_and_length_are_the_drivers_and_frames_may_lie_beside_the_source(model, tmp_path):
    source, driving, result = ToyClip(seed=3).frame(0), ToyClip(num_frames=9, fps=NTSC), tmp_path / 'new' / 'result.mp4'
    count = write_animation(renderer(model), source, driving, result, SCALED, show=beside)
    clip = open_clip(result)
    assert count == len(clip) == 9 and clip.fps == NTSC and names_in(tmp_path) == ['new/result.mp4']
    frame = clip.read([5])[0].astype(int)
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


def test_face_alignment_loads_its_weights_from_the_place_it_names(random_fan, monkeypatch):
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


# ---------------------------------------------------------------------------- reconstruction

REPORTS = ['contact_sheet.png', 'list.csv', 'metrics.csv', 'metrics.json', 'metrics.md', 'report.html']


def test_reconstruction_writes_scores_videos_and_a_sheet(model, tmp_path):
    clips = [ToyClip('a#1', 10, NTSC), ToyClip('b#2', 7, seed=2)]
    made = reconstruct(renderer(model), clips, tmp_path / 'new' / 'out')

    out = tmp_path / 'new' / 'out'
    assert results_in(out) == [*REPORTS, 'videos/a#1.mp4', 'videos/b#2.mp4']
    written = open_clip(out / 'videos' / 'a#1.mp4')
    assert written.fps == NTSC and len(written) == 10
    assert written.read([0])[0].shape == (SIZE, 3 * SIZE, 3)                 # source | driving | prediction
    report = json.loads((out / 'metrics.json').read_text())
    assert [clip['frames'] for clip in report['clips']] == [10, 7] and made.summary['frames'] == 17
    assert 'vgg16' in made.skipped['lpips.vgg'] and report['skipped'] == made.skipped
    assert [row['clip'] for row in csv.DictReader((out / 'metrics.csv').open())] == ['a#1', 'b#2', 'mean']
    assert model.sources_encoded == 2 and model.largest_batch == 4 and not model.training


def test_the_first_frame_is_reconstructed_from_itself_whatever_the_batch_size(model, tmp_path):
    summary = reconstruct(renderer(model), [ToyClip(num_frames=1)], tmp_path / 'one', save_videos=False).summary
    assert summary['copy'] == {'l1.mean_abs': 0, 'psnr.rgb': None, 'ssim.gauss11': pytest.approx(1)}
    assert summary['model']['l1.mean_abs'] < 1e-3
    assert results_in(tmp_path / 'one') == REPORTS
    one, four = (reconstruct(renderer(model, size), [ToyClip()], tmp_path, save_videos=False).summary
                 for size in (1, 4))
    assert one['model'] == pytest.approx(four['model'], rel=1e-4)


def test_leaving_out_the_first_frame(model, tmp_path):
    report = reconstruct(renderer(model), [ToyClip(num_frames=5)], tmp_path, include_first=False, save_videos=False)
    assert report.summary['frames'] == 4 and report.summary['copy']['l1.mean_abs'] > 0
    sheet = np.asarray(Image.open(tmp_path / 'contact_sheet.png'))
    assert sheet[-CELL // 2, -CELL // 2].max() > 50                       # the last moment was met, its cell is filled
    assert json.loads((tmp_path / 'metrics.json').read_text())['protocol']['name'] == 'same-identity-no-first'


def test_a_broken_clip_is_named_and_nothing_half_written_stays(model, tmp_path):
    report = reconstruct(renderer(model), [ToyClip('good'), BrokenClip('broken')], tmp_path)
    assert 'frame 3 does not decode' in report.about['coverage']['problems']['broken']
    assert results_in(tmp_path) == [*REPORTS, 'videos/good.mp4']
    assert not [name for name in names_in(tmp_path) if 'partial' in name]
    with pytest.raises(UserError, match='none of 1 clips could be scored; the first: broken: frame 3'):
        reconstruct(renderer(model), [BrokenClip('broken')], tmp_path / 'alone')


def test_an_interrupted_reconstruction_resumes_to_the_same_numbers(model, tmp_path, monkeypatch):
    clips = [ToyClip('a', 9), ToyClip('b', 6, seed=2), ToyClip('c', 5, seed=4)]
    reconstruct(renderer(model), clips, tmp_path / 'whole')
    follow, followed = Renderer.follow, []

    def interrupted(self, source, *rest):
        followed.append(source)
        if len(followed) == 3:
            raise KeyboardInterrupt
        return follow(self, source, *rest)

    monkeypatch.setattr(Renderer, 'follow', interrupted)
    with pytest.raises(KeyboardInterrupt):
        reconstruct(renderer(model), clips, tmp_path / 'parts')
    assert not [name for name in names_in(tmp_path / 'parts') if 'partial' in name]
    assert results_in(tmp_path / 'parts') == ['videos/a.mp4', 'videos/b.mp4']

    def rebuilt(**changes):
        followed[:] = [None] * 3
        reconstruct(renderer(model), clips, tmp_path / 'parts', **changes)
        return len(followed) - 3

    assert rebuilt() == 1
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    assert names_in(whole) == names_in(parts)
    for name in names_in(whole):
        if name.endswith('.mp4'):           # an encoder may find other bytes for the same frames
            one, other = (np.stack(list(open_clip(folder / name).frames())).astype(int) for folder in (whole, parts))
            assert one.shape == other.shape and np.abs(one - other).mean() < 1
        else:
            assert (whole / name).read_bytes() == (parts / name).read_bytes()
    (tmp_path / 'parts' / 'videos' / 'b.mp4').unlink()
    assert rebuilt() == 1 and rebuilt() == 0
    assert rebuilt(subject={'weights': 'others'}) == 3 and rebuilt() == 0       # each has its own folder


@pytest.mark.parametrize('clips, message', [
    ([], 'no clips'),
    ([ToyClip('same'), ToyClip('same')], 'two clips are named same'),
    ([ToyClip('short', 1)], 'short: has 1 frame'),
])
def test_clips_that_cannot_be_reconstructed_are_refused_before_the_work(model, tmp_path, clips, message):
    with pytest.raises(UserError, match=message):
        reconstruct(renderer(model), clips, tmp_path / 'out', include_first=False)
    assert not (tmp_path / 'out').exists()


# ---------------------------------------------------------------------------- pictures


def test_frames_survive_the_way_to_tensors_and_back():
    frames = [np.arange(192, dtype=np.uint8).reshape(8, 8, 3) + np.uint8(64 * i) for i in range(2)]
    tensor = to_tensor(frames)
    assert tensor.shape == (2, 3, 8, 8) and tensor.min() >= -1 and tensor.max() <= 1
    assert np.array_equal(to_uint8(tensor), np.stack(frames))
    assert to_uint8(torch.full((1, 3, 1, 1), 7.0)).max() == 255


def test_stillness_is_white_and_directions_have_their_own_colours():
    grid_ = identity_grid((8, 8), torch.zeros(1))
    right, left = (grid_ + torch.tensor([shift, 0.]) for shift in (1., -1.))
    white, red, cyan = flow_to_rgb(torch.stack([grid_, right, left]))
    assert (white == 255).all() and red[0, 0, 0] == 255 and cyan[0, 0, 0] == 0


def test_keypoints_are_drawn_at_corner_aligned_positions():
    image = np.zeros((65, 65, 3), np.uint8)
    centre, corner = (draw_keypoints(image, [point]) for point in ([0, 0], [1, -1]))
    assert centre[32, 32].any() and np.array_equal(centre, centre[::-1, ::-1])
    assert corner[0, 64].any() and not corner[0, 60].any() and not image.any()


def test_sheet_holds_ragged_rows_and_long_texts(tmp_path):
    image = np.full((16, 16, 3), 128, np.uint8)
    sheet = grid([[image, image], [image]], ['a very long title that does not fit above its column', 'b'], ['x', 'y'])
    assert sheet.shape[0] > 2 * CELL and 2 * CELL < sheet.shape[1] < 3 * CELL
    save_png(tmp_path / 'sheet.png', sheet)
    assert names_in(tmp_path) == ['sheet.png'] and np.array_equal(np.asarray(Image.open(tmp_path / 'sheet.png')), sheet)
    with pytest.raises(UserError, match='cannot be written'):
        save_png(tmp_path / 'absent' / 'sheet.png', sheet)
