"""Reconstruction and animation, driven by a toy model on small clips: streaming, rates, pairs, files, errors."""

import csv
import json
import logging
import types
import warnings
import weakref
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import inference
from animate import animate, animate_pairs
from config.schema import DatasetParams
from datasets import build
from datasets.video import open_clip
from datasets.video_writer import VideoWriter
from evaluation.cases import Case, ClipFinder, choose_items, find_cases
from evaluation.protocols import PROTOCOLS, Item, as_csv, load_list
from inference import Motion, Renderer, find_best_frame
from metrics.face import FAN_URLS, face_alignment_network
from modules.talking_head import Generated, Keypoints, SourceState, TalkingHead
from modes.options import find_pairs
from modules.warp import identity_grid, warp
from reconstruction import reconstruct
from support import streaming
from support.errors import UserError
from support.weights import checkpoint_path
from tests.random_weights import save_random_weights
from tests.tiny import tiny
from visualizer import (CELL, MOMENTS, beside, draw_keypoints, flow_to_rgb, grid, save_png, to_tensor,
                        to_uint8, training_sheet)

SIZE = 32
NTSC = Fraction(30000, 1001)


class ToyHead(TalkingHead):
    """Shifts the source by the mean motion of keypoints, which are centres of mass of bright colours."""

    def __init__(self, num_kp=5):
        super().__init__()
        self.heat = nn.Conv2d(3, num_kp, 3, padding=1)
        nn.init.normal_(self.heat.weight, std=2)
        self.sources_encoded, self.largest_batch = 0, 0

    def keypoints(self, image):
        heat = self.heat(image).float().flatten(2).softmax(-1)                         # (B, K, H*W)
        return Keypoints(heat @ identity_grid(image.shape[-2:], image).flatten(0, 1))

    def encode_source(self, image):
        self.sources_encoded += 1
        return SourceState(self.keypoints(image), image)

    def render(self, source, driving):
        batch = driving.value.shape[0]
        self.largest_batch = max(self.largest_batch, batch)
        shift = (driving.value - source.keypoints.value).mean(1)                        # (B, 2)
        image = source.features.expand(batch, -1, -1, -1)
        flow = identity_grid(image.shape[-2:], image) - shift[:, None, None]            # (B, H, W, 2)
        return Generated(warp(image, flow), [flow], [torch.ones(batch, 1, 8, 8)])

    def forward(self, source, driving):
        return self.render(self.encode_source(source), self.keypoints(driving))


class ToyClip:
    """A bright disc on a gradient, moving; frames are made when asked for, and counted while they live."""

    def __init__(self, name='clip', num_frames=12, fps=Fraction(25), seed=0):
        self.name, self.fps, self.num_frames, self.seed = name, fps, num_frames, seed
        self.alive, self.most_alive = 0, 0

    def __len__(self):
        return self.num_frames

    def frame(self, index):
        y, x = np.mgrid[:SIZE, :SIZE]
        centre = SIZE / 2 + 6 * np.array([np.sin(index / 5 + self.seed), np.cos(index / 7)])
        disc = np.hypot(x - centre[0], y - centre[1]) < 6
        frame = np.stack([disc * 200 + 20, x * 4 + self.seed * 10, y * 4], axis=-1).astype(np.uint8)
        self.alive += 1
        self.most_alive = max(self.most_alive, self.alive)
        weakref.finalize(frame, self.forget)
        return frame

    def forget(self):
        self.alive -= 1

    def read(self, indices):
        return [self.frame(i) for i in indices]

    def frames(self):
        return (self.frame(i) for i in range(self.num_frames))


class BrokenClip(ToyClip):
    def frames(self):
        yield from self.read(range(3))
        raise UserError(f'{self.name}: frame 3 does not decode')


@pytest.fixture
def model():
    torch.manual_seed(0)
    return ToyHead()


@pytest.fixture(autouse=True)
def no_weights(tmp_path_factory, monkeypatch):
    """No metric or detector finds weights, whatever the machine has."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path_factory.mktemp('torch')))


def renderer(model, batch_size=4, precision='fp32'):
    return Renderer(model, 'cpu', batch_size, precision)


SCALED = Motion(adapt_scale=True)


def names_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file())


def results_in(folder):
    """Without what is kept to go on from."""
    return [name for name in names_in(folder) if not name.startswith('clips/')]


# Reconstruction

def test_reconstruction_writes_scores_videos_and_a_sheet(model, tmp_path):
    clips = [ToyClip('a#1', 10, NTSC), ToyClip('b#2', 7, seed=2)]
    made = reconstruct(renderer(model), clips, tmp_path / 'new' / 'out')

    out = tmp_path / 'new' / 'out'
    assert results_in(out) == ['contact_sheet.png', 'metrics.csv', 'metrics.json', 'videos/a#1.mp4', 'videos/b#2.mp4']
    written = open_clip(out / 'videos' / 'a#1.mp4')
    assert written.fps == NTSC and len(written) == 10
    assert written.read([0])[0].shape == (SIZE, 3 * SIZE, 3)                 # source | driving | prediction
    report = json.loads((out / 'metrics.json').read_text())
    assert [clip['frames'] for clip in report['clips']] == [10, 7] and made.summary['frames'] == 17
    assert 'vgg16' in made.skipped['lpips.vgg'] and report['skipped'] == made.skipped
    assert [row['clip'] for row in csv.DictReader((out / 'metrics.csv').open())] == ['a#1', 'b#2', 'mean']
    assert model.sources_encoded == 2 and model.largest_batch == 4 and not model.training


def test_first_frame_is_rebuilt_from_itself_and_equals_its_copy(model, tmp_path):
    summary = reconstruct(renderer(model), [ToyClip(num_frames=1)], tmp_path, save_videos=False).summary
    assert summary['copy'] == {'l1.mean_abs': 0, 'psnr.rgb': None, 'ssim.gauss11': pytest.approx(1)}
    assert summary['model']['l1.mean_abs'] < 1e-3
    assert results_in(tmp_path) == ['contact_sheet.png', 'metrics.csv', 'metrics.json']


def test_scores_do_not_depend_on_the_batch_size(model, tmp_path):
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
    with pytest.raises(UserError, match='broken: frame 3'):
        reconstruct(renderer(model), [ToyClip('good'), BrokenClip('broken')], tmp_path)
    assert results_in(tmp_path) == ['videos/good.mp4']
    assert [name for name in names_in(tmp_path) if 'broken' in name or 'partial' in name] == []


def test_an_interrupt_leaves_nothing_half_written(model, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(model, 'render', interrupt)
    with pytest.raises(KeyboardInterrupt):
        reconstruct(renderer(model), [ToyClip()], tmp_path)
    assert names_in(tmp_path) == []


def test_an_interrupted_reconstruction_goes_on_to_the_same_numbers(model, tmp_path, monkeypatch):
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
    assert results_in(tmp_path / 'parts') == ['videos/a.mp4', 'videos/b.mp4']

    def rebuilt(**changes):
        followed[:] = [None] * 3
        reconstruct(renderer(model), clips, tmp_path / 'parts', **changes)
        return len(followed) - 3

    assert rebuilt() == 1
    for name in names_in(tmp_path / 'whole'):
        assert (tmp_path / 'whole' / name).read_bytes() == (tmp_path / 'parts' / name).read_bytes()
    (tmp_path / 'parts' / 'videos' / 'b.mp4').unlink()
    assert rebuilt() == 1 and rebuilt() == 0
    assert rebuilt(subject={'weights': 'others'}) == 3 and rebuilt() == 3       # whose videos lay there meanwhile


@pytest.mark.parametrize('clips, message', [
    ([], 'no clips'),
    ([ToyClip('same'), ToyClip('same')], 'two clips are named same'),
    ([ToyClip('short', 1)], 'short: has 1 frame'),
])
def test_what_cannot_be_reconstructed_is_said_before_it_begins(model, tmp_path, clips, message):
    with pytest.raises(UserError, match=message):
        reconstruct(renderer(model), clips, tmp_path / 'out', include_first=False)
    assert not (tmp_path / 'out').exists()


def test_a_folder_that_is_a_file_is_refused(model, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match='file'):
        reconstruct(renderer(model), [ToyClip()], tmp_path / 'file')


def test_a_diverged_model_is_named(model, tmp_path):
    with torch.no_grad():
        model.heat.weight.fill_(float('nan'))
    with pytest.raises(UserError, match='not finite'):
        reconstruct(renderer(model), [ToyClip()], tmp_path)
    assert names_in(tmp_path) == []


# Animation of one pair

def collect(model, driving, batch_size=4, anchor=None, relative=True):
    """Frames of an animation before they are encoded, (T, H, W, 3)."""
    driven = renderer(model, batch_size).follow(ToyClip(seed=3).frame(0), driving, Motion(relative, True), anchor)
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
    count = animate(renderer(model), ToyClip().frame(0), ToyClip(num_frames=9, fps=NTSC), result, SCALED)
    clip = open_clip(result)
    assert count == len(clip) == 9 and clip.fps == NTSC and clip.read([0])[0].shape == (SIZE, SIZE, 3)
    assert names_in(tmp_path) == ['new/result.mp4']


def test_side_by_side_shows_source_driving_result(model, tmp_path):
    source, driving = ToyClip(seed=3).frame(0), ToyClip()
    animate(renderer(model), source, driving, tmp_path / 'r.mp4', SCALED, show=beside)
    frame = open_clip(tmp_path / 'r.mp4').read([5])[0].astype(int)
    assert frame.shape == (SIZE, 3 * SIZE, 3)
    assert np.abs(frame[:, :SIZE] - source).mean() < 8                    # H.264 with subsampled colour
    assert np.abs(frame[:, SIZE:2 * SIZE] - driving.frame(5)).mean() < 8


def test_long_clips_stream(model, tmp_path):
    driving = ToyClip(num_frames=600)
    animate(renderer(model, 8), ToyClip().frame(0), driving, tmp_path / 'r.mp4', SCALED)
    # One batch in work, as many as the pipeline holds before and after it, one more at each of its ends.
    assert driving.most_alive <= (2 * streaming.DEPTH + 3) * 8 and model.sources_encoded == 1
    assert len(open_clip(tmp_path / 'r.mp4')) == 600


def test_long_clips_stream_through_reconstruction(model, tmp_path):
    clip = ToyClip(num_frames=200)
    reconstruct(renderer(model, 8), [clip], tmp_path, save_videos=False)
    assert clip.most_alive <= (streaming.DEPTH + 3) * 8 + 2 + MOMENTS and model.sources_encoded == 1


def test_an_anchor_outside_the_clip_is_refused(model, tmp_path):
    with pytest.raises(UserError, match='clip: has no frame 12 .* 0 to 11'):
        animate(renderer(model), ToyClip().frame(0), ToyClip(), tmp_path / 'r.mp4', SCALED, anchor=12)
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
    monkeypatch.setattr(inference, 'MOST_CANDIDATES', 5)
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
    monkeypatch.setattr(inference, 'face_alignment_network', lambda device: Detector())
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
        assert inference._landmarks(detector, ToyClip().frame(0)) is None


def test_no_face_anywhere_falls_back_to_keypoints(model, monkeypatch, caplog):
    nobody = types.SimpleNamespace(get_landmarks_from_image=lambda image: None)
    monkeypatch.setattr(inference, 'face_alignment_network', lambda device: nobody)
    assert find_best_frame(renderer(model), ToyClip().frame(5), ToyClip()) == 5
    assert 'no face was found in the source' in caplog.text


# Pairs

def case_of(source, driving, **moments):
    return Case(Item(source.name, driving=driving.name, **moments), source, driving)


def people():
    """Clips of three people by name."""
    names = ('id1#a', 'id1#b', 'id1#c', 'id2#a', 'id3#a', 'id3#b')
    return {name: ToyClip(name, 5, seed=i) for i, name in enumerate(names)}


def test_the_same_seed_gives_the_same_pairs_in_all_modes():
    config = tiny('dataset_params.synthetic_params.test_people=5')
    dataset, size = config.dataset_params, config.model_params.image_size
    names = [clip.name for clip in build.test_clips(dataset, size)]
    for seed in (0, 1):
        animated = [case.item for case in find_pairs(None, dataset, size, 4, seed)]
        assert animated == choose_items(PROTOCOLS['cross-identity-relative'], None, names[::-1], 4, seed)[1]
        assert len(animated) == 4 and all(item.source != item.driver for item in animated)


def test_a_list_that_one_mode_has_written_is_read_by_the_others(model, tmp_path):
    config = tiny('dataset_params.synthetic_params.test_people=4')
    dataset, size = config.dataset_params, config.model_params.image_size
    drawn = find_pairs(None, dataset, size, 3, 0)
    animate_pairs(renderer(model), drawn, tmp_path / 'animation')
    written = tmp_path / 'animation' / 'list.csv'
    assert load_list(written) == [case.item for case in drawn]                                  # --mode evaluate
    assert [case.item for case in find_pairs(written, dataset, size, 99, 5)] == load_list(written)    # --mode animate
    (tmp_path / 'timed.csv').write_text(as_csv([replace(drawn[0].item, source_time=0.08, anchor_time=0.2)]))
    case, = find_pairs(tmp_path / 'timed.csv', dataset, size, 99, 5)
    assert case.moments() == (2, range(12)) and case.anchor == 5


def test_pairs_are_animated_side_by_side_with_a_sheet(model, tmp_path):
    clips = people()
    cases = [case_of(clips['id1#a'], clips['id2#a']), case_of(clips['id3#b'], clips['id1#c'])]
    results = animate_pairs(renderer(model), cases, tmp_path, Motion(start='nearest'))
    assert [path.name for path in results] == ['000_id1#a--id2#a.mp4', '001_id3#b--id1#c.mp4']
    assert names_in(tmp_path) == sorted([path.name for path in results] + ['contact_sheet.png', 'list.csv'] +
                                        [f'moments/{path.stem}.png' for path in results])
    assert open_clip(results[0]).read([0])[0].shape == (SIZE, 3 * SIZE, 3)


def test_a_pair_may_name_its_moments(model, tmp_path):
    source, driving = ToyClip('a', seed=3), ToyClip('b')
    result, = animate_pairs(renderer(model), [case_of(source, driving, source_time=0.16, driving_time=0.4)], tmp_path)
    clip = open_clip(result)
    assert len(clip) == 1
    shown = clip.read([0])[0].astype(int)
    assert np.abs(shown[:, :SIZE] - source.frame(4)).mean() < 8                      # H.264 with subsampled colour
    assert np.abs(shown[:, SIZE:2 * SIZE] - driving.frame(10)).mean() < 8


def test_a_pair_may_name_its_anchor(model, tmp_path):
    with pytest.raises(UserError, match='no frame 99'):
        animate_pairs(renderer(model), [case_of(ToyClip('a'), ToyClip('b'), anchor=99)], tmp_path)
    assert names_in(tmp_path) == []


@pytest.fixture
def dataset(tmp_path):
    """Two clips in root/test, and an image beside the list of pairs: the DatasetParams of root."""
    root = tmp_path / 'root' / 'test'
    root.mkdir(parents=True)
    for name in ('id1#a.mp4', 'id2#b.mp4'):
        with VideoWriter(root / name, Fraction(25)) as video:
            for frame in ToyClip(num_frames=3).frames():
                video.write(frame)
    (tmp_path / 'lists').mkdir()
    Image.fromarray(ToyClip().frame(0)).resize((50, 50)).save(tmp_path / 'lists' / 'portrait.png')
    return DatasetParams(root_dir=str(root.parent))


def test_lists_that_count_frames_and_name_files_are_read_by_all_modes(model, dataset, tmp_path):
    path, root = tmp_path / 'lists' / 'pairs.csv', tmp_path / 'root' / 'test'
    path.write_text(f'\ufeffsource, driving, anchor\nid1#a.mp4, id2#b.mp4, 2\n\n'
                    f'portrait.png, {root}/id1#a.mp4,\n', encoding='utf-8')
    cases = find_pairs(path, dataset, SIZE, 99, 0)
    assert [(case.source.name, case.driving.name, case.anchor) for case in cases] == [
        ('id1#a', 'id2#b', 2), ('portrait', 'id1#a', None)]
    assert [case.sound for case in cases] == [root / 'id2#b.mp4', root / 'id1#a.mp4']
    assert len(animate_pairs(renderer(model), cases, tmp_path / 'out')) == 2

    # --mode evaluate, which knows the test set by name; and the videos that another one made
    clips = {clip.name: clip for clip in build.test_clips(dataset, SIZE)}
    _, items = choose_items(PROTOCOLS['cross-identity-relative'], str(path), clips)
    found, missing = find_cases(items, ClipFinder(clips, [], SIZE, [path.parent]))
    assert [(case.source.name, case.driving.name, case.anchor) for case in found] == [
        ('id1#a', 'id2#b', 2), ('portrait', 'id1#a', None)] and not missing
    assert found[0].item.name == 'id1#a--id2#b'
    assert load_list(tmp_path / 'out' / 'list.csv') == items


@pytest.mark.parametrize('text, message', [
    ('clip,driver\na,b\n', 'pairs.csv: the first row must name'),
    ('', 'pairs.csv: the first row must name'),
    ('source,driver\na,b\n', "pairs.csv: unknown column 'driver'"),
    ('source,driving\n', 'pairs.csv: names nothing'),
    ('source,driving\nid1#a.mp4,id2#b.mp4\n,id1#a.mp4\n', 'pairs.csv, row 3: source is empty'),
    ('source,driving\nid1#a.mp4,gone.mp4\n', "pairs.csv, row 2: driving 'gone.mp4' is not found in .*lists or .*test"),
    ('source,driving,anchor\nid1#a.mp4,id2#b.mp4,first\n', "pairs.csv, row 2: anchor is 'first'"),
    ('source,driving,anchor,anchor_time\nid1#a.mp4,id2#b.mp4,1,0.5\n', 'pairs.csv, row 2: anchor is .* anchor_time'),
    ('source,driving\nid1#a.mp4,id2,b.mp4\n', 'pairs.csv, row 2: has more fields'),
    ('source,driving\nid1#a.mp4,pairs.csv\n', 'pairs.csv, row 2: .*not a known kind of video'),
])
def test_mistakes_in_a_list_are_named_by_file_and_row(dataset, tmp_path, text, message):
    path = tmp_path / 'lists' / 'pairs.csv'
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        find_pairs(path, dataset, SIZE, 99, 0)
    assert '\n' not in str(error.value)


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(UserError, match='pairs.csv'):
        find_pairs(tmp_path / 'pairs.csv', None, SIZE, 99, 0)


# Pictures

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


def test_training_sheet_shows_all_there_is(model):
    source, driving = (to_tensor(ToyClip(seed=seed).read([0, 4])) for seed in (0, 1))
    generated = model(source, driving)
    columns = 2 + 1 + 1 + 1 + 1
    sheet = training_sheet(source, driving, generated, model.keypoints(source), model.keypoints(driving))
    assert sheet.shape[1] // CELL == columns and sheet.shape[0] // CELL == 2
    generated.first_scale_prediction = F.avg_pool2d(generated.prediction, 2)
    assert training_sheet(source, driving, generated).shape[1] // CELL == columns + 1
