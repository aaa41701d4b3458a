"""Figures and videos of `--mode compare` show the right frames with the right scores."""

import json
import re
import zlib
from dataclasses import replace
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from datasets.video import open_clip
from evaluation.cases import Case
from evaluation.protocols import Item
from figures import compare as figure
from figures.compare import Comparison, compare
from figures.methods import VideoMethod
from figures.printed import BOX, DPI, FigureStyle
from figures.selection import Time, Zoom, around, as_unit, largest_pose
from figures.sheet import Sheet
from inference import Renderer
from metrics import face
from metrics.base import Unavailable
from metrics.face import Faces
from metrics.perceptual import BACKBONES, LpipsVgg
from modules.build import build_model
from motion.settings import Motion
from support.errors import UserError
from support.weights import checkpoint_path
from tests.support.command_line import refused, succeeds
from tests.support.random_weights import save_random_weights
from tests.support.tiny import save_model, tiny
from tests.support.video_files import write_video
from visualizer import error_to_rgb

SMALL = FigureStyle(8)


class Clip:
    """Smooth noise of its own, in memory."""

    fps = Fraction(25)

    def __init__(self, name, count=6, seed=0):
        random = np.random.default_rng(seed)
        self.name = name
        self.pictures = [np.asarray(Image.fromarray(random.integers(0, 256, (4, 4, 3), np.uint8)).resize((32, 32)))
                         for _ in range(count)]

    def __len__(self):
        return len(self.pictures)

    def read(self, indices):
        return [self.pictures[i] for i in indices]

    def frames(self):
        return iter(self.pictures)


class Fake:
    """A method whose frames are `make` of the driving frames."""

    def __init__(self, name, cases, make):
        self.name, self.cases, self.make, self.made = name, cases, make, []

    def frames(self, number, indices):
        for index in indices:
            self.made.append(index)
            yield self.make(index, self.cases[number].driving.pictures[index])


def noisy(index, frame):
    """Another amount added to each frame's pixels, up and down in turn."""
    sign = np.where(np.arange(32 * 32 * 3).reshape(32, 32, 3) % 2, 1, -1)
    return (frame.astype(int) + sign * [3, 9, 1, 27, 5, 5][index]).clip(0, 255).astype(np.uint8)


def job_of(tmp_path, truth=True, **how):
    """A Comparison of two fake methods on two pairs."""
    clips = [Clip('anna', seed=1), Clip('bert', seed=2), Clip('carl', seed=3)]
    cases = (Case(Item('anna'), clips[0], clips[0]), Case(Item('bert'), clips[1], clips[1]))
    if not truth:
        cases = (Case(Item('anna', driving='bert'), clips[0], clips[1]),
                 Case(Item('carl', driving='bert'), clips[2], clips[1]))
    methods = (Fake('Okapi', cases, noisy), Fake('Quagga', cases, lambda index, frame: frame // 2))
    return Comparison(tmp_path / 'out', cases, methods, **{'style': SMALL, 'videos': False} | how)


@pytest.fixture
def figures(monkeypatch):
    """The Matplotlib figures of comparisons."""
    made, finished = [], Sheet.finished
    monkeypatch.setattr(Sheet, 'finished', lambda sheet: made.append(finished(sheet)) or made[-1])
    return made


def pictures_in(figure):
    """The pictures of a figure, row by row, as arrays."""
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes]


# ---------------------------------------------------------------------------- the figure

def test_cells_contain_the_frames_of_their_pair_moment_and_method(tmp_path, figures):
    job = job_of(tmp_path, truth=False, frames=(4, 1))
    rows = compare(job)['rows']
    assert [(row['source'], row['driving'], row['frame']) for row in rows] == [
        ('anna', 'bert', 4), ('anna', 'bert', 1), ('carl', 'bert', 4), ('carl', 'bert', 1)]
    expected = []
    for row, case in zip(rows, np.repeat(np.array(job.cases, dtype=object), 2)):
        driving = case.driving.pictures[row['frame']]
        expected += [case.source.pictures[0], driving, *(m.make(row['frame'], driving) for m in job.methods)]
        assert row['scores'] == {'Okapi': {}, 'Quagga': {}}           # no truth, no score
    assert all((found == frame).all() for found, frame in zip(pictures_in(figures[0]), expected, strict=True))
    places = [axes.get_position() for axes in figures[0].axes]
    assert not any(one.overlaps(other) for one, other in combinations(places, 2))
    assert all(0 < place.x0 and place.x1 < 1 and 0 < place.y0 and place.y1 < 1 for place in places)
    assert Image.open(tmp_path / 'out' / 'comparison.png').width == pytest.approx(8 / 2.54 * DPI, abs=1)
    assert [method.made for method in job.methods] == [[1, 4, 1, 4]] * 2      # no others are rendered


def test_zoom_shows_the_region_and_marks_it_and_errors_lie_below(tmp_path, figures):
    job = job_of(tmp_path, frames=(2,), zoom=Zoom((8, 4, 16, 12)), error=True)
    assert compare(job)['rows'][0]['zoom'] == (8, 4, 16, 12)
    driving = job.cases[0].driving.pictures[2]
    frames = [driving, *(method.make(2, driving) for method in job.methods)]
    found = pictures_in(figures[0])[:9]
    source, marked, zoomed, errors = found[0], found[1:4], found[4:7], found[7:9]
    assert (source == driving).all() or (source == job.cases[0].source.pictures[0]).all()
    for frame, shown, region in zip(frames, marked, zoomed):
        assert (region == frame[4:16, 8:24]).all()
        changed = (shown != frame.repeat(16, 0).repeat(16, 1)).any(-1)
        assert (shown[changed] == BOX).all() and not changed[4 * 16:16 * 16, 8 * 16:24 * 16].any()
        rows, columns = np.nonzero(changed)
        assert (rows.min(), columns.min()) == pytest.approx((4 * 16, 8 * 16), abs=4)
        assert (rows.max(), columns.max()) == pytest.approx((16 * 16, 24 * 16), abs=4)
    for shown, made in zip(errors, frames[1:]):
        assert (shown == error_to_rgb(made[None], driving[None])[0]).all()


def test_scores_below_a_cell_are_those_of_its_frame(tmp_path, figures, monkeypatch):
    """PSNR, and LPIPS where its weights are."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    job = job_of(tmp_path, frames=(3, 0))
    equal = Fake('same', job.cases, lambda index, frame: frame)
    report = compare(replace(job, methods=(*job.methods, equal)))
    assert 'vgg16' in report['left_out']['lpips.vgg'] and report['rows'][0]['scores']['same']['psnr.rgb'] is None
    driving = job.cases[0].driving.pictures[3]
    errors = [np.mean((method.make(3, driving).astype(float) - driving) ** 2) for method in job.methods]
    assert [axes.get_xlabel() for axes in figures[0].axes[:5]] == [
        '', 'frame 3', *(f'{10 * np.log10(255 ** 2 / error):.2f} dB' for error in errors), 'equal']
    assert [axes.get_title() for axes in figures[0].axes[:6]] == ['source', 'driving', 'Okapi', 'Quagga', 'same', '']
    assert json.loads((tmp_path / 'out' / 'comparison.json').read_text()) == json.loads(json.dumps(report))

    weights = checkpoint_path(BACKBONES['vgg'])
    weights.parent.mkdir(parents=True)
    with torch.device('meta'):
        network = torchvision.models.vgg16()
    save_random_weights(network, weights)
    compare(job)
    lpips = LpipsVgg('cpu')
    for method, axes in zip(job.methods, figures[1].axes[2:4], strict=True):
        expected = float(lpips(as_unit(method.make(3, driving)), as_unit(driving))[0])
        assert f'dB, LPIPS {expected:.3f}' in axes.get_xlabel().replace('\n', ' ')


@pytest.mark.parametrize('background, corner', [('white', 255), ('dark', 24)])
def test_the_pdf_has_the_size_of_the_figure_lossless_frames_and_text_as_text(tmp_path, background, corner):
    compare(job_of(tmp_path, style=FigureStyle(9, background), frames=(0,)))
    picture = np.asarray(Image.open(tmp_path / 'out' / 'comparison.png').convert('RGB'))
    data = (tmp_path / 'out' / 'comparison.pdf').read_bytes()
    assert (picture[0, 0] == corner).all()
    width, height = map(float, re.search(rb'/MediaBox \[ ?0 0 ([\d.]+) ([\d.]+) ?\]', data).groups())
    assert width == pytest.approx(9 / 2.54 * 72, abs=0.2) and height == pytest.approx(len(picture) * 72 / DPI, abs=0.3)
    assert data.count(b'/Subtype /Image') == 2 * 4 and b'DCTDecode' not in data
    page = zlib.decompress(data[data.index(b'stream\n', data.index(b'/FlateDecode')) + 7:])
    shown = b''.join(re.findall(rb'\(([^)]*)\)', page)).replace(b'\0', b'')
    for text in (b'source', b'Okapi', b'dB', b'frame0', b'Frame0ofeach'):
        assert text in shown.replace(b' ', b'')


# ---------------------------------------------------------------------------- which frames

@pytest.mark.parametrize('rule, expected', [('worst', 3), ('best', 2)])
@pytest.mark.parametrize('videos', [True, False])
def test_worst_and_best_are_by_psnr_of_the_first_method(tmp_path, rule, expected, videos):
    report = compare(job_of(tmp_path, frames=rule, videos=videos))
    assert [row['frame'] for row in report['rows']] == [expected, expected]
    assert 'Okapi' in report['rule'] and {'worst': 'lowest', 'best': 'highest'}[rule] in report['rule']


def test_the_largest_pose_is_the_frame_farthest_from_the_first(tmp_path):
    job = job_of(tmp_path)
    for row, case in zip(compare(job)['rows'], job.cases):
        first, *others = (picture.astype(int) for picture in case.driving.pictures)
        assert row['frame'] == 1 + np.argmax([np.abs(other - first).mean() for other in others])
    torch.manual_seed(0)
    renderer, clip = Renderer(build_model(tiny()), 'cpu', batch_size=4), Clip('anna', 9, seed=5)
    points = renderer.keypoints(clip.pictures).value
    assert largest_pose(clip, renderer) == int((points - points[0]).norm(dim=-1).mean(1).argmax())


def test_at_a_time_the_frame_on_display_is_shown(tmp_path):
    report = compare(job_of(tmp_path, frames=(Time(Fraction('0.1')), 1, Time(Fraction('0.16')))))      # 40 ms each
    assert [row['frame'] for row in report['rows']] == [2, 1, 4] * 2
    assert report['rule'] == 'Frames 1, at 0.1 s, at 0.16 s of each driving video, counted from 0.'
    with pytest.raises(UserError, match='anna has no frame 6; the last is 5'):
        job_of(tmp_path, frames=(Time(Fraction('0.24')),))


# ---------------------------------------------------------------------------- videos

def test_videos_show_all_columns_for_all_frames_of_the_driver(tmp_path):
    job = job_of(tmp_path, truth=False, videos=True)
    compare(job)
    paths = sorted((tmp_path / 'out' / 'videos').iterdir())
    assert [path.name for path in paths] == ['000_anna--bert.mp4', '001_carl--bert.mp4']
    for path, case in zip(paths, job.cases):
        clip, driving = open_clip(path), case.driving.pictures[4]
        assert len(clip) == len(case.driving) and clip.fps == case.driving.fps
        frame = clip.read([4])[0].astype(int)
        assert frame.shape == (256 + 2 * figure.LABEL, 4 * 256, 3)
        for column, expected in enumerate([case.source.pictures[0], driving,
                                           *(method.make(4, driving) for method in job.methods)]):
            cell = frame[-256:, column * 256:][:, :256].reshape(32, 8, 32, 8, 3).mean((1, 3))
            assert np.abs(cell - expected).mean() < 6
            assert (frame[:2 * figure.LABEL, column * 256:][:, :256] > 128).any()              # its name


def test_a_video_of_another_rate_shows_the_frame_on_display(tmp_path):
    cases, fast = job_of(tmp_path).cases, Clip('fast', 12, seed=7)
    fast.fps = Fraction(50)
    method = VideoMethod('elsewhere', (fast, fast), cases)
    expected = [fast.pictures[i] for i in (1, 3, 5, 7, 9, 11)]        # those that begin before the middle of a tick
    assert all((a == b).all() for a, b in zip(method.frames(0, range(6)), expected, strict=True))
    assert all((a == b).all() for a, b in zip(method.frames(0, [4, 0]), (expected[4], expected[0]), strict=True))
    with pytest.raises(UserError, match='anna--anna: lasts 0.12 s by elsewhere but 0.24 s'):
        VideoMethod('elsewhere', (Clip('short', 3), fast), cases)


# ---------------------------------------------------------------------------- regions by landmarks

def test_a_mouth_is_found_in_the_truth_else_in_the_result(tmp_path, monkeypatch):
    """A stand-in for MediaPipe that finds a mouth wherever a picture is bright enough, 10 px wide around (14, 20)."""
    def faces(frames):
        landmarks = torch.full((1, 478, 2), torch.nan, dtype=torch.float64)
        if frames.mean() > 0.3:
            landmarks[0] = torch.tensor([14., 20.])
            landmarks[0, 61], landmarks[0, 291] = torch.tensor([9., 20.]), torch.tensor([19., 20.])
        return Faces(landmarks, torch.zeros(1, 3))

    monkeypatch.setattr(face, 'mediapipe_faces', lambda: faces)
    for truth in (True, False):
        for row in compare(job_of(tmp_path, truth, frames=(2,), zoom=Zoom('mouth')))['rows']:
            x, y, w, h = row['zoom']
            assert (w, h) in ((15, 8), (16, 8))                       # half as wide again, twice as wide as high
            assert abs(x + w / 2 - 14) <= 1 and abs(y + h / 2 - 20) <= 1
    dim = job_of(tmp_path, truth=False, frames=(2,), zoom=Zoom('mouth'))
    for method in dim.methods:
        method.make = lambda index, frame: frame // 8
    with pytest.raises(UserError, match='anna--bert, frame 2: no face is found, so no mouth; give --zoom x y w h'):
        compare(dim)

    def missing():
        raise Unavailable('finding faces needs MediaPipe: pip install mediapipe')
    monkeypatch.setattr(face, 'mediapipe_faces', missing)
    with pytest.raises(UserError, match='mouth needs landmarks; otherwise give x y w h: .*pip install mediapipe'):
        Zoom('mouth')


@pytest.mark.parametrize('middle', [(1, 1), (31, 31), (16, 30)])
def test_a_region_lies_inside_of_the_frame(middle):
    points = np.array(middle) + np.array([[-6, 0], [6, 0], [0, -2], [0, 2]])
    x, y, w, h = around(points, 3, (32, 32, 3))
    assert 0 <= x <= x + w <= 32 and 0 <= y <= y + h <= 32 and w == pytest.approx(3 * h, abs=2)


# ---------------------------------------------------------------------------- the command line

@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """Untrained tiny models of two methods, of 32 px; {name: path}."""
    folder = tmp_path_factory.mktemp('models')
    paths = {name: folder / f'{name}.pt' for name in ('ours', 'rival')}
    for seed, path in enumerate(paths.values()):
        save_model(path, seed=seed)
    return paths


def test_from_checkpoints_a_folder_and_a_list_to_the_figure(models, tmp_path, capsys, figures):
    """What is printed is what the renderer makes, with and without videos; the pair that is its own truth is scored."""
    for seed, name in enumerate(('anna', 'bert')):
        write_video(tmp_path / 'clips' / f'{name}.mp4', Clip(name, 5, seed=seed).pictures)
    for name in ('anna--anna', 'bert--anna'):
        write_video(tmp_path / 'elsewhere' / f'{name}.mp4', Clip(name, 5, seed=9).pictures)
    (tmp_path / 'pairs.csv').write_text('source,driving\nclips/anna.mp4,\nclips/bert.mp4,clips/anna.mp4\n')
    arguments = ('--mode', 'compare', '--checkpoints', f'Ours={models["ours"]}', models['rival'], '--generated',
                 f'third={tmp_path / "elsewhere"}', '--list', tmp_path / 'pairs.csv', '--frames', 3, 1, '--width_cm', 9,
                 '--device', 'cpu', '--out')
    assert 'Frames 3, 1 of each driving video' in succeeds(capsys, *arguments, tmp_path / 'out')
    succeeds(capsys, *arguments, tmp_path / 'again', '--pictures_only')
    found, again = map(pictures_in, figures)
    assert all((one == other).all() for one, other in zip(found, again, strict=True))
    assert len(list((tmp_path / 'out' / 'videos').iterdir())) == 2 and not (tmp_path / 'again' / 'videos').exists()

    rows = json.loads((tmp_path / 'out' / 'comparison.json').read_text())['rows']
    model = build_model(tiny())
    model.load_state_dict(torch.load(models['rival'], weights_only=True)['ema'])
    driving, source = (open_clip(tmp_path / 'clips' / f'{name}.mp4') for name in ('anna', 'bert'))
    batch, = Renderer(model, 'cpu').follow(source.read([0])[0], driving, Motion()).render(driving.frames())
    assert (rows[3]['source'], rows[3]['driving'], rows[3]['frame']) == ('bert', 'anna', 1)
    assert np.abs(found[3 * 5 + 3].astype(int) - batch.frames[1]).max() <= 1
    assert (found[4] == open_clip(tmp_path / 'elsewhere' / 'anna--anna.mp4').read([3])[0]).all()
    assert rows[0]['scores']['third'] and not rows[3]['scores']['third']


def test_one_pair_is_its_own_truth_if_both_are_one_file(models, tmp_path, capsys):
    write_video(tmp_path / 'anna.mp4', Clip('anna', 4, seed=1).pictures)
    Image.fromarray(Clip('bert', seed=2).pictures[0]).save(tmp_path / 'bert.png')
    for source, more in (('anna.mp4', ('--frames', 'worst', '--error')), ('bert.png', ())):
        succeeds(capsys, '--mode', 'compare', '--checkpoints', models['ours'], '--device', 'cpu', '--pictures_only',
                 '--source_image', tmp_path / source, '--driving_video', tmp_path / 'anna.mp4', '--width_cm', 9,
                 '--out', tmp_path / 'out', *more)
        report = json.loads((tmp_path / 'out' / 'comparison.json').read_text())
        assert report['rows'][0]['same_identity'] == bool(more)


LISTED = ('--list', 'pairs.csv')
MISTAKES = [
    (('--list', 'gone.csv'), "gone.csv, row 3: driving 'emil.mp4' is not found"),
    (('--list', 'moments.csv'), 'moments.csv: anna--bert@0.04s has times'),
    ((), 'either --list, or --source_image'),
    (('--source_image', 'x'), 'need each other'),
    (('--source_image', 'x', '--driving_video', 'y', '--pairs', 1), '--pairs is not read without --list'),
    ((*LISTED, '--frames', 'worst', '3'), 'expected largest_pose, worst, best, or frame numbers'),
    ((*LISTED, '--frames', 0, 3), 'bert has no frame 3; the last is 2'),
    ((*LISTED, '--frames', 'worst'), 'anna--bert: --frames worst needs the ground truth'),
    ((*LISTED, '--error'), 'anna--bert: --error needs the ground truth'),
    ((*LISTED, '--zoom', 1, 2, 3), '--zoom 1 2 3: expected x y w h'),
    ((*LISTED, '--zoom', 20, 0, 16, 16), '--zoom 20 0 16 16: must lie within 32x32'),
    ((*LISTED, '--background', 'blue'), '--background blue: expected white or dark'),
    ((*LISTED, '--width_cm', 1), '--width_cm 1: 3 columns do not fit'),
    ((*LISTED, '--generated', 'x=empty'), 'has no video for 1 of 1 pairs')]


def test_mistakes_are_one_line_and_come_before_the_work(models, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('anna', 'bert'):
        write_video(tmp_path / f'{name}.mp4', Clip(name, 3).pictures)
    (tmp_path / 'pairs.csv').write_text('source,driving\nanna.mp4,bert.mp4\n')
    (tmp_path / 'gone.csv').write_text('source,driving\nanna.mp4,bert.mp4\nanna.mp4,emil.mp4\n')
    (tmp_path / 'moments.csv').write_text('source,driving,driving_time\nanna.mp4,bert.mp4,0.04\n')
    (tmp_path / 'empty').mkdir()
    for arguments, message in MISTAKES:
        assert message in refused(capsys, '--mode', 'compare', '--device', 'cpu', '--out', 'out', '--checkpoints',
                                  models['ours'], *arguments)
    assert not (tmp_path / 'out').exists()
    job = job_of(tmp_path)
    with pytest.raises(UserError, match='400 rows do not fit in one figure; give fewer --pairs or --frames'):
        replace(job, cases=job.cases * 200)
