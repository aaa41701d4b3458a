"""`--mode compare` shows the frames that it says, where it says, with the scores that they have."""

import json
import re
import weakref
import zlib
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import run
from datasets.video import open_clip
from datasets.video_writer import VideoWriter
from evaluation.cases import Case
from evaluation.protocols import Item
from figures import compare as figure
from figures.compare import Comparison, compare
from figures.methods import RenderedMethod, VideoMethod
from figures.printed import BOX, DPI, FigureStyle
from figures.selection import Time, Zoom, around, as_unit, largest_pose
from inference import Renderer
from logger import write_checkpoint
from metrics import face
from metrics.base import Unavailable
from metrics.face import Faces
from metrics.perceptual import BACKBONES, LpipsVgg
from modules.build import build_model
from motion.settings import Motion
from support.errors import UserError
from support.weights import checkpoint_path
from tests.support.random_weights import save_random_weights
from tests.support.tiny import tiny
from visualizer import error_to_rgb

SMALL = FigureStyle(8)


class Clip:
    """Smooth noise of its own, in memory."""

    fps = Fraction(25)

    def __init__(self, name, count=6, size=32, seed=0):
        random = np.random.default_rng(seed)
        self.name = name
        self.pictures = [np.asarray(Image.fromarray(random.integers(0, 256, (4, 4, 3), np.uint8)).resize((size, size)))
                         for _ in range(count)]

    def __len__(self):
        return len(self.pictures)

    def read(self, indices):
        return [self.pictures[i] for i in indices]

    def frames(self):
        return iter(self.pictures)


class Fake:
    """A method that makes of each driving frame what `make` says."""

    def __init__(self, name, cases, make):
        self.name, self.cases, self.make, self.made = name, cases, make, []

    def frames(self, number, indices):
        for index in indices:
            self.made.append(index)
            yield self.make(index, self.cases[number].driving.pictures[index])


def noisy(amounts):
    """Adds so much to each frame's pixels, one amount per frame, up and down in turn."""
    sign = np.where(np.arange(32 * 32 * 3).reshape(32, 32, 3) % 2, 1, -1)
    return lambda index, frame: (frame.astype(int) + sign * amounts[index]).clip(0, 255).astype(np.uint8)


def dark(index, frame):
    return frame // 2


def job_of(tmp_path, *more, truth=True, **how):
    """(Comparison of two fake methods on two pairs, its cases)."""
    clips = [Clip('anna', seed=1), Clip('bert', seed=2), Clip('carl', seed=3)]
    cases = (Case(Item('anna'), clips[0], clips[0]), Case(Item('bert'), clips[1], clips[1]))
    if not truth:
        cases = (Case(Item('anna', driving='bert'), clips[0], clips[1]),
                 Case(Item('carl', driving='bert'), clips[2], clips[1]))
    methods = (Fake('Okapi', cases, noisy([3, 9, 1, 27, 5, 5])), Fake('Quagga', cases, dark), *more)
    return Comparison(tmp_path / 'out', cases, methods, **{'style': SMALL, 'videos': False} | how)


def printed(tmp_path):
    return np.asarray(Image.open(tmp_path / 'out' / 'comparison.png').convert('RGB'))


def crop(picture, box):
    x0, y0, x1, y1 = box
    return picture[y0:y1, x0:x1]


def at(frame, box):
    """The frame at the size of a box of the figure."""
    x0, y0, x1, y1 = box
    return np.asarray(Image.fromarray(frame).resize((x1 - x0, y1 - y0), Image.Resampling.BICUBIC))


def psnr_by_hand(one, other):
    return 10 * np.log10(255 ** 2 / np.mean((one.astype(float) - other) ** 2))


# ---------------------------------------------------------------------------- the figure

def test_cells_contain_the_frames_of_their_pair_moment_and_method(tmp_path):
    job = job_of(tmp_path, truth=False, frames=(4, 1))
    report = compare(job)
    picture = printed(tmp_path)
    assert [(row['source'], row['driving'], row['frame']) for row in report['rows']] == [
        ('anna', 'bert', 4), ('anna', 'bert', 1), ('carl', 'bert', 4), ('carl', 'bert', 1)]
    for row, case in zip(report['rows'], np.repeat(np.array(job.cases, dtype=object), 2)):
        driving = case.driving.pictures[row['frame']]
        expected = [case.source.pictures[0], driving, *(m.make(row['frame'], driving) for m in job.methods)]
        for boxes, frame in zip(row['boxes'], expected, strict=True):
            assert set(boxes) == {'frame'}
            assert (crop(picture, boxes['frame']) == at(frame, boxes['frame'])).all()
        assert row['scores'] == {'Okapi': {}, 'Quagga': {}}           # no truth, no score
    assert picture.shape[1] == round(8 / 2.54 * DPI)
    covered = np.zeros(picture.shape[:2], bool)
    for row in report['rows']:
        for boxes in row['boxes']:
            x0, y0, x1, y1 = boxes['frame']
            assert not covered[y0:y1, x0:x1].any()
            covered[y0:y1, x0:x1] = True


def test_zoom_shows_the_region_and_marks_it_and_errors_lie_below(tmp_path):
    job = job_of(tmp_path, frames=(2,), zoom=Zoom((8, 4, 16, 12)), error=True)
    row = compare(job)['rows'][0]
    picture, case = printed(tmp_path), job.cases[0]
    driving = case.driving.pictures[2]
    source, driven, *made = row['boxes']
    assert set(source) == {'frame'} and set(driven) == {'frame', 'zoom'} and row['zoom'] == (8, 4, 16, 12)
    for boxes, frame in zip((driven, *made), (driving, *(method.make(2, driving) for method in job.methods))):
        assert (crop(picture, boxes['zoom']) == at(frame[4:16, 8:24], boxes['zoom'])).all()
        x0, y0, x1, y1 = boxes['zoom']
        assert (x1 - x0) * 12 == pytest.approx((y1 - y0) * 16, abs=16)
        cell, plain, scale = crop(picture, boxes['frame']), at(frame, boxes['frame']), (x1 - x0) / 32
        marked = (cell != plain).any(-1)
        assert (cell[marked] == BOX).all()
        rows, columns = np.nonzero(marked)
        inside = slice(rows.min() + 3, rows.max() - 2), slice(columns.min() + 3, columns.max() - 2)
        assert not marked[inside].any()                               # around the region, not over it
        for found, wanted in ((rows, (4, 16)), (columns, (8, 24))):
            assert found.min() == pytest.approx(wanted[0] * scale, abs=3)
            assert found.max() == pytest.approx(wanted[1] * scale, abs=3)
    for boxes, method in zip(made, job.methods):
        expected = error_to_rgb(method.make(2, driving)[None], driving[None])[0]
        assert (crop(picture, boxes['error']) == at(expected, boxes['error'])).all()


def test_scores_below_a_cell_are_those_of_its_frame(tmp_path, monkeypatch):
    shown, cells = [], figure.cells
    monkeypatch.setattr(figure, 'cells', lambda *given: shown.append(cells(*given)) or shown[-1])
    equal = Fake('same', (), lambda index, frame: frame)
    job = job_of(tmp_path, equal, frames=(3, 0))
    equal.cases = job.cases
    report = compare(job)
    for row, drawn, case in zip(report['rows'], shown, np.repeat(np.array(job.cases, dtype=object), 2)):
        driving = case.driving.pictures[row['frame']]
        assert drawn[0].notes == [] and drawn[1].notes == [f'frame {row["frame"]}']
        for method, cell in zip(job.methods[:2], drawn[2:]):
            expected = psnr_by_hand(method.make(row['frame'], driving), driving)
            assert cell.notes[0] == f'{expected:.2f} dB'
            assert row['scores'][method.name]['psnr.rgb'] == pytest.approx(expected, abs=1e-3)
        assert drawn[4].notes[0] == 'equal' and row['scores']['same']['psnr.rgb'] is None
    # They are written below the cell that they are of.
    picture = printed(tmp_path)
    for boxes in report['rows'][0]['boxes'][1:]:
        x0, _, x1, y1 = boxes['frame']
        assert (picture[y1 + 2:y1 + 30, x0:x1] < 128).any()
    assert json.loads((tmp_path / 'out' / 'comparison.json').read_text())['rows'][0]['frame'] == 3


def test_lpips_stands_below_psnr_where_its_weights_are(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    shown, cells = [], figure.cells
    monkeypatch.setattr(figure, 'cells', lambda *given: shown.append(cells(*given)) or shown[-1])
    without = compare(job_of(tmp_path, frames=(3,)))
    assert [len(cell.notes) for cell in shown[0][2:]] == [1, 1] and 'vgg16' in without['left_out']['lpips.vgg']
    weights = checkpoint_path(BACKBONES['vgg'])
    weights.parent.mkdir(parents=True)
    with torch.device('meta'):
        network = torchvision.models.vgg16()
    save_random_weights(network, weights)
    job = job_of(tmp_path, frames=(3,))
    report = compare(job)
    lpips, driving = LpipsVgg('cpu'), job.cases[0].driving.pictures[3]
    for method, cell in zip(job.methods, shown[2][2:], strict=True):
        expected = float(lpips(as_unit(method.make(3, driving)), as_unit(driving))[0])
        assert expected > 0 and cell.notes[1] == f'LPIPS {expected:.3f}' and cell.notes[0].endswith(' dB')
        assert report['rows'][0]['scores'][method.name]['lpips.vgg'] == pytest.approx(expected)
    assert report['left_out'] == {} and len(report['rows'][0]['scores']) == 2


@pytest.mark.parametrize('background, corner', [('white', 255), ('dark', 24)])
def test_the_pdf_has_the_size_of_the_figure_lossless_frames_and_text_as_text(tmp_path, background, corner):
    compare(job_of(tmp_path, style=FigureStyle(9, background), frames=(0,)))
    picture, data = printed(tmp_path), (tmp_path / 'out' / 'comparison.pdf').read_bytes()
    assert (picture[0, 0] == corner).all()
    width, height = map(float, re.search(rb'/MediaBox \[ ?0 0 ([\d.]+) ([\d.]+) ?\]', data).groups())
    assert width == pytest.approx(9 / 2.54 * 72, abs=0.2) and height == pytest.approx(len(picture) * 72 / DPI, abs=0.01)
    assert data.count(b'/Subtype /Image') == 2 * 4 and b'DCTDecode' not in data
    page = zlib.decompress(data[data.index(b'stream\n', data.index(b'/FlateDecode')) + 7:])
    shown = b''.join(re.findall(rb'\(([^)]*)\)', page)).replace(b'\0', b'')
    for text in (b'source', b'Okapi', b'dB', b'frame0', b'Frame0ofeachdrivingvideo'):
        assert text in shown.replace(b' ', b'')


# ---------------------------------------------------------------------------- which frames

@pytest.mark.parametrize('rule, expected', [('worst', 3), ('best', 2)])
@pytest.mark.parametrize('videos', [True, False])
def test_worst_and_best_are_by_psnr_of_the_first_method(tmp_path, rule, expected, videos):
    report = compare(job_of(tmp_path, frames=rule, videos=videos))
    assert [row['frame'] for row in report['rows']] == [expected, expected]
    assert 'Okapi' in report['rule'] and {'worst': 'lowest', 'best': 'highest'}[rule] in report['rule']


def test_the_largest_pose_is_the_frame_farthest_from_the_first(tmp_path):
    report = compare(job_of(tmp_path))
    for row, case in zip(report['rows'], job_of(tmp_path).cases):
        first, *others = (picture.astype(int) for picture in case.driving.pictures)
        assert row['frame'] == 1 + np.argmax([np.abs(other - first).mean() for other in others])
    torch.manual_seed(0)
    renderer, clip = Renderer(build_model(tiny()), 'cpu', batch_size=4), Clip('anna', 9, seed=5)
    points = renderer.keypoints(clip.pictures).value
    assert largest_pose(clip, renderer) == int((points - points[0]).norm(dim=-1).mean(1).argmax())


def test_the_rule_is_printed_under_the_figure(tmp_path, monkeypatch):
    texts, caption = [], figure.PrintedFigure.caption
    monkeypatch.setattr(figure.PrintedFigure, 'caption', lambda self, text: texts.append(text) or caption(self, text))
    report = compare(job_of(tmp_path, frames=(3, 0)))
    assert texts == [report['rule']] == ['Frames 3, 0 of each driving video, counted from 0.']
    bottom = max(box[3] for row in report['rows'] for boxes in row['boxes'] for box in boxes.values())
    assert (printed(tmp_path)[bottom + 40:] < 128).any()


def test_at_a_time_the_frame_on_display_is_shown(tmp_path):
    job = job_of(tmp_path, frames=(Time(Fraction('0.1')), 1, Time(Fraction('0.16'))))       # 40 ms each
    report = compare(job)
    assert [row['frame'] for row in report['rows']] == [2, 1, 4] * 2
    assert report['rule'] == 'Frames 1, at 0.1 s, at 0.16 s of each driving video, counted from 0.'
    with pytest.raises(UserError, match='anna has no frame 6; the last is 5'):
        job_of(tmp_path, frames=(Time(Fraction('0.24')),))


def test_more_rows_than_a_picture_can_hold_are_refused_before_the_work(tmp_path):
    job = job_of(tmp_path)
    with pytest.raises(UserError, match='400 rows do not fit in one figure; give fewer --pairs or --frames'):
        replace(job, cases=job.cases * 200)


def test_only_what_is_shown_is_rendered_without_videos(tmp_path):
    job = job_of(tmp_path, frames=(4, 1))
    compare(job)
    assert [method.made for method in job.methods] == [[1, 4, 1, 4]] * 2 and not (tmp_path / 'out' / 'videos').exists()


# ---------------------------------------------------------------------------- videos

def test_videos_show_all_columns_for_all_frames_of_the_driver(tmp_path):
    job = job_of(tmp_path, truth=False, videos=True)
    compare(job)
    paths = sorted((tmp_path / 'out' / 'videos').iterdir())
    assert [path.name for path in paths] == ['000_anna--bert.mp4', '001_carl--bert.mp4']
    for path, case in zip(paths, job.cases):
        clip = open_clip(path)
        assert len(clip) == len(case.driving) and clip.fps == case.driving.fps
        for index in (0, 4):
            frame, driving = clip.read([index])[0].astype(int), case.driving.pictures[index]
            expected = [case.source.pictures[0], driving, *(method.make(index, driving) for method in job.methods)]
            assert frame.shape == (256 + 2 * figure.LABEL, 4 * 256, 3)
            for column, picture in enumerate(expected):
                cell = frame[-256:, column * 256:][:, :256].reshape(32, 8, 32, 8, 3).mean((1, 3))
                assert np.abs(cell - picture).mean() < 6
                assert (frame[:2 * figure.LABEL, column * 256:][:, :256] > 128).any()          # its name


def test_a_video_of_another_rate_shows_what_is_on_display_then(tmp_path):
    cases = job_of(tmp_path).cases
    fast = Clip('fast', 12, seed=7)
    fast.fps = Fraction(50)
    method = VideoMethod('elsewhere', (fast, fast), cases)
    expected = [fast.pictures[i] for i in (1, 3, 5, 7, 9, 11)]        # those that begin before the middle of a tick
    assert all((a == b).all() for a, b in zip(method.frames(0, range(6)), expected, strict=True))
    assert all((a == b).all() for a, b in zip(method.frames(0, [4, 0]), (expected[4], expected[0]), strict=True))
    with pytest.raises(UserError, match='anna--anna: lasts 0.12 s by elsewhere but 0.24 s'):
        VideoMethod('elsewhere', (Clip('short', 3), fast), cases)


def test_while_others_render_a_method_keeps_its_frames_alone(tmp_path):
    """Beside the frames of a batch a model makes features that are hundreds of MB at 256 px."""
    torch.manual_seed(0)
    cases, made = job_of(tmp_path).cases, []
    renderer = Renderer(build_model(tiny()), 'cpu', batch_size=3)
    render = renderer.model.render
    renderer.model.render = lambda *given: made.append(weakref.ref(generated := render(*given))) or generated
    for frame in RenderedMethod('Okapi', renderer, cases, Motion()).frames(0, range(6)):
        assert frame.shape == (32, 32, 3) and made[0]() is None
    assert len(made) == 2


# ---------------------------------------------------------------------------- regions by landmarks

def test_a_mouth_is_looked_for_in_the_truth_else_in_what_was_made(tmp_path, monkeypatch):
    """A stand-in for MediaPipe that finds a mouth wherever a picture is bright enough, 20 px wide around (14, 20)."""
    def faces(frames):
        landmarks = torch.full((1, 478, 2), torch.nan, dtype=torch.float64)
        if frames.mean() > 0.3:
            landmarks[0] = torch.tensor([14., 20.])
            landmarks[0, 61], landmarks[0, 291] = torch.tensor([9., 20.]), torch.tensor([19., 20.])
        return Faces(landmarks, torch.zeros(1, 3))

    monkeypatch.setattr(face, 'mediapipe_faces', lambda: faces)
    for truth in (True, False):
        job = job_of(tmp_path, truth=truth, frames=(2,), zoom=Zoom('mouth'))
        for row in compare(job)['rows']:
            x, y, w, h = row['zoom']
            assert (w, h) == (15, 8) or (w, h) == (16, 8)             # half as wide again, twice as wide as high
            assert abs(x + w / 2 - 14) <= 1 and abs(y + h / 2 - 20) <= 1
    dim = job_of(tmp_path, truth=False, frames=(2,), zoom=Zoom('mouth'))
    for method in dim.methods:
        method.make = lambda index, frame: frame // 8
    with pytest.raises(UserError, match='anna--bert, frame 2: no face is found, so no mouth; give --zoom x y w h'):
        compare(dim)


@pytest.mark.parametrize('middle', [(1, 1), (31, 31), (16, 30)])
def test_a_region_lies_inside_of_the_frame(middle):
    points = np.array(middle) + np.array([[-6, 0], [6, 0], [0, -2], [0, 2]])
    x, y, w, h = around(points, 3, (32, 32, 3))
    assert 0 <= x <= x + w <= 32 and 0 <= y <= y + h <= 32 and w == pytest.approx(3 * h, abs=2)


def test_a_mouth_without_mediapipe_is_one_line(monkeypatch):
    def missing():
        raise Unavailable('finding faces needs MediaPipe: pip install mediapipe')

    monkeypatch.setattr(face, 'mediapipe_faces', missing)
    with pytest.raises(UserError, match='mouth needs landmarks; otherwise give x y w h: .*pip install mediapipe'):
        Zoom('mouth')


# ---------------------------------------------------------------------------- the command line

def call(*arguments):
    return run.main(['--mode', 'compare', *map(str, arguments)])


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """Untrained tiny models of two methods, of 32 px; {name: path}."""
    folder, paths = tmp_path_factory.mktemp('models'), {}
    for seed, name in enumerate(('ours', 'rival')):
        torch.manual_seed(seed)
        config = tiny()
        state = build_model(config).state_dict()
        paths[name] = folder / f'{name}.pt'
        write_checkpoint(paths[name], {'config': config.as_dict(), 'step': 4, 'model': state, 'ema': state})
    return paths


def write_clip(path, clip):
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, clip.fps) as writer:
        for frame in clip.frames():
            writer.write(frame)


def test_from_checkpoints_a_folder_and_a_list_to_the_figure(models, tmp_path, capsys):
    """What is printed is what the renderer makes, with and without videos; the pair that is its own truth is scored."""
    for seed, name in enumerate(('anna', 'bert')):
        write_clip(tmp_path / 'clips' / f'{name}.mp4', Clip(name, 5, seed=seed))
    for name in ('anna--anna', 'bert--anna'):
        write_clip(tmp_path / 'elsewhere' / f'{name}.mp4', Clip(name, 5, seed=9))
    (tmp_path / 'pairs.csv').write_text('source,driving\nclips/anna.mp4,\nclips/bert.mp4,clips/anna.mp4\n')
    arguments = ('--checkpoints', f'Ours={models["ours"]}', models['rival'], '--generated',
                 f'third={tmp_path / "elsewhere"}', '--list', tmp_path / 'pairs.csv', '--frames', 3, 1, '--width_cm', 9,
                 '--device', 'cpu')
    assert call(*arguments, '--out', tmp_path / 'out') == 0
    assert 'Frames 3, 1 of each driving video' in capsys.readouterr().out
    assert call(*arguments, '--pictures_only', '--out', tmp_path / 'again') == 0
    picture = printed(tmp_path)
    assert (np.asarray(Image.open(tmp_path / 'again' / 'comparison.png').convert('RGB')) == picture).all()
    assert len(list((tmp_path / 'out' / 'videos').iterdir())) == 2 and not (tmp_path / 'again' / 'videos').exists()

    report = json.loads((tmp_path / 'out' / 'comparison.json').read_text())
    assert report['methods'] == ['Ours', 'rival', 'third']
    config = tiny()
    model = build_model(config)
    model.load_state_dict(torch.load(models['rival'], weights_only=True)['ema'])
    driving, source = (open_clip(tmp_path / 'clips' / f'{name}.mp4') for name in ('anna', 'bert'))
    driven = Renderer(model, 'cpu').follow(source.read([0])[0], driving, Motion())
    batch, = driven.render(driving.frames())
    row = report['rows'][3]
    assert (row['source'], row['driving'], row['frame']) == ('bert', 'anna', 1) and row['scores']['rival'] == {}
    assert np.abs(crop(picture, row['boxes'][3]['frame']).astype(int) - at(batch.frames[1], row['boxes'][3]['frame'])
                  ).max() <= 1
    third = open_clip(tmp_path / 'elsewhere' / 'anna--anna.mp4').read([3])[0]
    first = report['rows'][0]
    assert (crop(picture, first['boxes'][4]['frame']) == at(third, first['boxes'][4]['frame'])).all()
    assert first['scores']['third']['psnr.rgb'] == pytest.approx(psnr_by_hand(third, driving.read([3])[0]), abs=1e-3)


def test_one_pair_is_its_own_truth_if_both_are_one_file(models, tmp_path):
    write_clip(tmp_path / 'anna.mp4', Clip('anna', 4, seed=1))
    Image.fromarray(Clip('bert', seed=2).pictures[0]).save(tmp_path / 'bert.png')
    pair = ('--checkpoints', models['ours'], '--device', 'cpu', '--pictures_only', '--driving_video',
            tmp_path / 'anna.mp4', '--width_cm', 9, '--out', tmp_path / 'out')
    assert call(*pair, '--source_image', tmp_path / 'anna.mp4', '--frames', 'worst', '--error') == 0
    assert json.loads((tmp_path / 'out' / 'comparison.json').read_text())['rows'][0]['same_identity']
    assert call(*pair, '--source_image', tmp_path / 'bert.png') == 0
    assert not json.loads((tmp_path / 'out' / 'comparison.json').read_text())['rows'][0]['same_identity']


def test_mistakes_are_one_line_and_come_before_the_work(models, tmp_path, capsys):
    def refused(*arguments):
        assert call(*arguments, '--out', tmp_path / 'out') == 2
        line, = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
        return line

    for name in ('anna', 'bert'):
        write_clip(tmp_path / f'{name}.mp4', Clip(name, 3))
    (tmp_path / 'pairs.csv').write_text('source,driving\nanna.mp4,bert.mp4\n')
    (tmp_path / 'gone.csv').write_text('source,driving\nanna.mp4,bert.mp4\nanna.mp4,emil.mp4\n')
    (tmp_path / 'moments.csv').write_text('source,driving,driving_time\nanna.mp4,bert.mp4,0.04\n')
    (tmp_path / 'empty').mkdir()
    model, pairs = ('--device', 'cpu', '--checkpoints', models['ours']), ('--list', tmp_path / 'pairs.csv')
    assert "gone.csv, row 3: driving 'emil.mp4' is not found" in refused(*model, '--list', tmp_path / 'gone.csv')
    assert 'moments.csv: anna--bert@0.04s has times' in refused(*model, '--list', tmp_path / 'moments.csv')
    assert 'either --list, or --source_image' in refused(*model)
    assert 'either --list, or --source_image' in refused(*model, *pairs, '--driving_video', 'x')
    assert 'need each other' in refused(*model, '--source_image', 'x')
    assert '--smooth is not read without --checkpoints' in refused(*pairs, '--smooth', 1, '--generated',
                                                                   f'x={tmp_path}')
    assert '--pairs is not read without --list' in refused(*model, '--source_image', 'x', '--driving_video', 'y',
                                                           '--pairs', 1)
    assert 'expected largest_pose, worst, best, or frame numbers' in refused(*model, *pairs, '--frames', 'worst', '3')
    assert '--frames 1.5: expected' in refused(*model, *pairs, '--frames', '1.5')
    assert 'bert has no frame 3; the last is 2' in refused(*model, *pairs, '--frames', '0.12s')
    assert 'bert has no frame 3; the last is 2' in refused(*model, *pairs, '--frames', 0, 3)
    assert 'anna--bert: --frames worst needs the ground truth' in refused(*model, *pairs, '--frames', 'worst')
    assert 'anna--bert: --error needs the ground truth' in refused(*model, *pairs, '--error')
    assert '--zoom 1 2 3: expected x y w h' in refused(*model, *pairs, '--zoom', 1, 2, 3)
    assert '--zoom 20 0 16 16: must lie within 32x32' in refused(*model, *pairs, '--zoom', 20, 0, 16, 16)
    assert '--background blue: expected white or dark' in refused(*model, *pairs, '--background', 'blue')
    assert '--width_cm 1: 3 columns do not fit' in refused(*model, *pairs, '--width_cm', 1)
    assert 'has no video for 1 of 1 pairs' in refused(*model, *pairs, '--generated', f'x={tmp_path / "empty"}')
    assert not (tmp_path / 'out').exists()
