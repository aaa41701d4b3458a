"""What `--mode inspect` shows is what the model did; `--mode compare` shows the right frames with the right scores."""

import json
import re
import zlib
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from datasets.still import FrameList
from datasets.video import open_clip
from evaluation.cases import Case
from evaluation.protocols import Item
from figures.codes import ACROSS, TILE, Chosen, CodeUse, chosen_codes, code_figures
from figures.compare import LABEL, Comparison, compare
from figures.draw import Scales, draw, index_colours, picture_of
from figures.figure import Moment, Panel, calls_of, psnr
from figures.inspect import figures_of
from figures.methods import VideoMethod
from figures.printed import BOX, DPI
from figures.selection import largest_pose
from figures.sheet import Sheet
from inference import Renderer
from metrics.perceptual import BACKBONES, LpipsVgg
from modules.build import build_model
from modules.codebook import Codebook, CodebookParams
from modules.layers import to_unit
from modules.warp import from_displacement, identity_grid
from motion.settings import Motion
from support.errors import UserError
from support.weights import checkpoint_path
from tests.support.command_line import refused, succeeds
from tests.support.random_weights import save_random_weights
from tests.support.small import random_images, small_model
from tests.support.tiny import save_model, save_models, tiny
from tests.support.video_files import write_video
from visualizer import error_to_rgb, to_unit_range


@pytest.fixture
def model():
    return build_model(tiny('model_params.occlusion_update=logit')).eval()


@torch.no_grad()
def moment_of(model, at=None):
    """A model's moment of two noisy images."""
    source, driving = (random_images(1, seed, model.params.image_size) for seed in (1, 2))
    state, keypoints = model.encode_source(source), model.keypoints(driving)
    return Moment(source, driving, state, keypoints, keypoints, model.render(state, keypoints), True, at)


@torch.no_grad()
def named_figures(model, moment):
    return {figure.name: figure for figure in figures_of(model, moment)}


def panel(figure, title, row=None):
    """The only panel of that title, in a row (by number) or in the whole figure."""
    rows = figure.rows if row is None else [figure.rows[row]]
    found, = [panel for row in rows for panel in row.panels if panel and panel.title == title]
    return found


# ---------------------------------------------------------------------------- colours

@pytest.mark.parametrize('dx, dy, colour', [
    (0, 0, (255, 255, 255)), (4, 0, (255, 64, 64)), (-4, 0, (0, 191, 191)), (2, 0, (255, 159, 159)),
    (0, 4, (128, 238, 17)), (40, 0, (255, 64, 64))])
def test_a_flow_of_a_known_shift_has_the_known_colour(dx, dy, colour):
    """Full colour at 4 px: to the right is red, down yellow-green; half as far is half as saturated."""
    flow = identity_grid((8, 8), torch.zeros(1))[None] + from_displacement(
        torch.tensor([dx, dy]).view(1, 2, 1, 1).expand(1, 2, 8, 8) * 7 / 63)        # pixels of a 64 px image
    shown = Panel('flow', '', flow)
    scales = Scales([shown], 64)
    scales.motion['flow'] = 4.0
    assert np.abs(picture_of(shown, scales).astype(int) - colour).max() <= 1


# ---------------------------------------------------------------------------- the paper's model

@torch.no_grad()
def test_index_maps_are_those_of_quantisation_in_the_colours_of_their_numbers(model):
    moment = moment_of(model)
    chosen = chosen_codes(model, moment.generated, moment.driving)
    pyramid, middle_tap = model.encoder.tapped(moment.driving)
    for scale, feature in enumerate([middle_tap, *pyramid[1:]]):
        expected = model.appearance.learn(scale, feature).indices
        assert torch.equal(chosen[f'appearance {scale + 1}'].quantized.indices, expected)
    figure = named_figures(model, moment)['indices']
    for scale, feature in enumerate(moment.generated.motion_features):
        indices = model.motion.codebook.quantize(feature, scale).indices
        shown = panel(figure, f'motion, scale {scale + 1}')
        assert torch.equal(shown.value, indices + model.motion.codebook.slices[scale].start)
        assert figure.numbers[f'motion {scale + 1}']['indices'] == indices[0].tolist()
        assert (picture_of(shown, Scales([shown], 32)) == index_colours(shown.value[0].numpy())).all()


@torch.no_grad()
def test_switching_compensation_off_by_hand_gives_the_frame_of_the_figure(model):
    moment = moment_of(model)
    figure = named_figures(model, moment)['ablation']
    heads, forward = model.motion.update, model.appearance.forward
    model.appearance.forward = lambda scale, warped, *rest: warped if scale == 1 else forward(scale, warped, *rest)
    by_hand = model.render(moment.state, moment.keypoints).prediction
    model.appearance.forward = forward
    torch.testing.assert_close(panel(figure, 'no appearance 2').value, by_hand)
    assert not torch.allclose(panel(figure, 'no appearance 2').value, panel(figure, 'no appearance 3').value)
    for layer in (heads.motion[-1], heads.occlusion[-1]):       # no residuals
        layer.weight.zero_(), layer.bias.zero_()
    by_hand = model.render(moment.state, moment.keypoints).prediction
    torch.testing.assert_close(panel(figure, 'no motion').value, by_hand)
    assert figure.numbers['no motion']['psnr'] == pytest.approx(psnr(by_hand, moment.driving), abs=1e-3)
    assert f'{figure.numbers["no motion"]["psnr"]:.2f} dB' in panel(figure, 'no motion').note
    assert set(figure.numbers) == {'whole model', 'no motion', 'no appearance', 'none at all',
                                   *(f'no {part}' for part in model.parts)}


def test_a_codebook_with_one_live_code_shows_exactly_that(model):
    codebook = Codebook(CodebookParams(num_codes=8, code_dim=2, num_scales=1, num_heads=1))
    codebook.embedding.data[:] = 9
    codebook.embedding.data[5] = 0
    chosen = Chosen('appearance', 0, codebook, codebook.quantize(torch.zeros(1, 2, 4, 4), 0))
    frame = np.random.default_rng(0).integers(60, 255, (32, 32, 3), np.uint8)
    use = CodeUse(chosen, 32)
    use.add(chosen, frame)
    numbers = use.as_json()
    assert numbers['used'] == 1 and numbers['perplexity'] == pytest.approx(1)
    assert numbers['dead'] == [0, 1, 2, 3, 4, 6, 7] and numbers['counts'] == [0] * 5 + [16, 0, 0]
    usage, every, atlas = code_figures(model, {'appearance 1': use}, 'over one frame')
    assert usage.rows[0].panels[0].value.tolist() == numbers['counts']
    picture = panel(every, 'codes 0 to 7').value.numpy()
    tiles = [picture[1:1 + TILE, 1 + i * (TILE + 2):][:, :TILE] for i in range(ACROSS)]
    assert [bool(tile.std()) for tile in tiles[:8]] == [i == 5 for i in range(8)]
    assert (tiles[5] == frame[:8, :8].repeat(4, 0).repeat(4, 1)).all()
    assert [shown.title for row in atlas.rows for shown in row.panels] == ['code 5: 100.0 % of all places']


@torch.no_grad()
@pytest.mark.parametrize('book', ['motion', 'appearance'])
def test_codes_read_at_a_place_are_those_of_attention_there(model, book):
    moment = moment_of(model, at=(20, 9))                       # token (1, 2) of 4 x 4 of 8 px
    figure = named_figures(model, moment)['reads']
    retrieval = getattr(model, book).retrieval
    with ExitStack() as stack:
        seen = [stack.enter_context(calls_of(layer.cross_attention)) for layer in retrieval.layers]
        model.render(moment.state, moment.keypoints)
    side = retrieval.size[0]
    token = 9 * side // 32 * side + 20 * side // 32
    shares = 0
    for layer, calls in zip(retrieval.layers, seen):
        x, context = calls[1]                                   # scale 2
        attention = layer.cross_attention
        q = attention.heads(attention.query(x))[0, :, token]
        shares += torch.einsum('hd,hkd->hk', q / q.shape[-1] ** 0.5, context.keys[0]).softmax(1).mean(0)
    shares /= len(retrieval.layers)
    torch.testing.assert_close(panel(figure, f'{book}, scale 2').value, shares)
    start = getattr(model, book).codebook.slices[1].start
    assert figure.numbers['codes'][f'{book} 2'][0]['code'] == int(shares.argmax()) + start


# ---------------------------------------------------------------------------- the compared methods

@torch.no_grad()
def test_mcnet_shows_its_memory_before_and_after_conditioning():
    model = small_model('mcnet')
    moment = moment_of(model)
    figures, compensation = named_figures(model, moment), model.compensation
    assert torch.equal(panel(figures['memory'], 'channel 2', row=0).value, compensation.memory[:, 2:3])
    feature, source = moment.generated.features[1], moment.state.keypoints.value
    style = compensation.identity(torch.cat([feature.mean((2, 3)), source.flatten(1)], 1))
    conditioned = compensation.condition(compensation.memory, style)
    torch.testing.assert_close(panel(figures['memory'], 'all channels', row=2).value, conditioned)
    compensation.forward = lambda scale, warped, keypoints: (warped, None, None)
    by_hand = model.render(moment.state, moment.keypoints).prediction
    torch.testing.assert_close(panel(figures['ablation'], 'no memory').value, by_hand)


@torch.no_grad()
def test_dagan_shows_disparities_and_the_frame_without_attention():
    model = small_model('dagan')
    moment = moment_of(model)
    figures = named_figures(model, moment)
    for name, image in (('source', moment.source), ('driving', moment.driving)):
        torch.testing.assert_close(panel(figures['depth'], f'disparity of the {name}').value,
                                   model.depth(to_unit(image)))
    torch.testing.assert_close(panel(figures['ablation'], 'no attention').value, model.decode(moment.generated.warped))


@torch.no_grad()
def test_mrfa_shows_what_each_token_reads():
    model = small_model('mrfa')
    figure, side = named_figures(model, moment_of(model))['tokens'], model.keypoint_detector.patches_across
    assert len(figure.rows) == model.keypoint_detector.num_kp
    for k, (row, numbers) in enumerate(zip(figure.rows, figure.numbers.values())):
        image, *maps = row.panels
        torch.testing.assert_close(image.points, model.keypoints(image.value).value[0, [k]])
        for shown, share in zip(maps, numbers.values()):
            assert shown.value.shape == (1, 1, side, side)
            assert 0 < share < 1 and float(shown.value.sum()) == pytest.approx(share)      # other tokens have the rest


@pytest.mark.parametrize('method', ['fomm', 'mcnet', 'mrfa', 'dagan'])
def test_every_figure_can_be_drawn_and_its_numbers_saved(method):
    model = small_model(method)
    moment = moment_of(model, at=(63, 0))
    for figure in named_figures(model, moment).values():
        png, scales = draw(figure, moment.size)
        assert png.startswith(b'\x89PNG')
        json.dumps([figure.numbers, scales.as_json()], allow_nan=False)


def test_inspect_writes_a_page_with_its_figures(tmp_path, capsys):
    save_model(tmp_path / 'model.pt', tiny('dataset_params.synthetic_params={test_people: 1, frames: 4}'))
    succeeds(capsys, '--mode', 'inspect', '--checkpoint', tmp_path / 'model.pt', '--out', tmp_path / 'out', '--device',
             'cpu', '--at', 3, 4, '--code_frames', 4)
    page = (tmp_path / 'out' / 'inspect.html').read_text(encoding='utf-8')
    assert page.count('data:image/png') >= 6 and 'http://' not in page and 'Talking Codebooks' in page
    report = json.loads((tmp_path / 'out' / 'inspect.json').read_text(encoding='utf-8'))
    use = report['codes']['motion 4']
    assert use['used'] + len(use['dead']) == use['codes'] == len(use['counts'])


def noise(name, count=6, seed=0, fps=Fraction(25)):
    """A clip of smooth noise of its own."""
    random = np.random.default_rng(seed)
    return FrameList([np.asarray(Image.fromarray(random.integers(0, 256, (4, 4, 3), np.uint8)).resize((32, 32)))
                      for _ in range(count)], name, fps)


def first(clip):
    return clip.read([0])[0]


class Fake:
    """A method whose frames are `make` of the driving frames."""

    def __init__(self, name, cases, make):
        self.name, self.cases, self.make, self.made = name, cases, make, []

    def frames(self, number, indices):
        for index in indices:
            self.made.append(index)
            yield self.make(index, *self.cases[number].driving.read([index]))


def noisy(index, frame):
    """Another amount added to each frame's pixels, up and down in turn."""
    sign = np.where(np.arange(32 * 32 * 3).reshape(32, 32, 3) % 2, 1, -1)
    return (frame.astype(int) + sign * [3, 9, 1, 27, 5, 5][index]).clip(0, 255).astype(np.uint8)


def job_of(tmp_path, truth=True, **how):
    """A Comparison of two fake methods on two pairs."""
    clips = [noise(name, seed=seed) for seed, name in enumerate(('anna', 'bert', 'carl'), 1)]
    cases = (Case(Item('anna'), clips[0], clips[0]), Case(Item('bert'), clips[1], clips[1]))
    if not truth:
        cases = (Case(Item('anna', driving='bert'), clips[0], clips[1]),
                 Case(Item('carl', driving='bert'), clips[2], clips[1]))
    methods = (Fake('Okapi', cases, noisy), Fake('Quagga', cases, lambda index, frame: frame // 2))
    return Comparison(tmp_path / 'out', cases, methods, **{'width': 8, 'videos': False} | how)


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
        driving, = case.driving.read([row['frame']])
        expected += [first(case.source), driving, *(m.make(row['frame'], driving) for m in job.methods)]
        assert row['scores'] == {'Okapi': {}, 'Quagga': {}}           # no truth, no score
    assert all((found == frame).all() for found, frame in zip(pictures_in(figures[0]), expected, strict=True))
    places = [axes.get_position() for axes in figures[0].axes]
    assert not any(one.overlaps(other) for one, other in combinations(places, 2))
    assert all(0 < place.x0 and place.x1 < 1 and 0 < place.y0 and place.y1 < 1 for place in places)
    assert Image.open(tmp_path / 'out' / 'comparison.png').width == pytest.approx(8 / 2.54 * DPI, abs=1)
    assert [method.made for method in job.methods] == [[1, 4, 1, 4]] * 2      # no others are rendered


def test_zoom_shows_the_region_and_marks_it_and_errors_lie_below(tmp_path, figures):
    job = job_of(tmp_path, frames=(2,), zoom=(8, 4, 16, 12), error=True)
    assert compare(job)['rows'][0]['zoom'] == (8, 4, 16, 12)
    driving, = job.cases[0].driving.read([2])
    frames = [driving, *(method.make(2, driving) for method in job.methods)]
    found = pictures_in(figures[0])[:9]
    source, marked, zoomed, errors = found[0], found[1:4], found[4:7], found[7:9]
    assert (source == driving).all() or (source == first(job.cases[0].source)).all()
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
    driving, = job.cases[0].driving.read([3])
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
        expected = float(lpips(*to_unit_range([method.make(3, driving), driving])[:, None])[0])
        assert f'dB, LPIPS {expected:.3f}' in axes.get_xlabel().replace('\n', ' ')


def test_the_pdf_has_the_size_of_the_figure_lossless_frames_and_text_as_text(tmp_path):
    compare(job_of(tmp_path, width=9, frames=(0,)))
    picture = np.asarray(Image.open(tmp_path / 'out' / 'comparison.png').convert('RGB'))
    data = (tmp_path / 'out' / 'comparison.pdf').read_bytes()
    assert (picture[0, 0] == 255).all()
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
        start, *others = (picture.astype(int) for picture in case.driving.frames())
        assert row['frame'] == 1 + np.argmax([np.abs(other - start).mean() for other in others])
    renderer, clip = Renderer(build_model(tiny()), 'cpu', batch_size=4), noise('anna', 9, seed=5)
    points = renderer.keypoints(list(clip.frames())).value
    assert largest_pose(clip, renderer) == int((points - points[0]).norm(dim=-1).mean(1).argmax())


# ---------------------------------------------------------------------------- videos

def test_videos_show_all_columns_for_all_frames_of_the_driver(tmp_path):
    job = job_of(tmp_path, truth=False, videos=True)
    compare(job)
    paths = sorted((tmp_path / 'out' / 'videos').iterdir())
    assert [path.name for path in paths] == ['000_anna--bert.mp4', '001_carl--bert.mp4']
    for path, case in zip(paths, job.cases):
        clip, (driving,) = open_clip(path), case.driving.read([4])
        assert len(clip) == len(case.driving) and clip.fps == case.driving.fps
        frame = clip.read([4])[0].astype(int)
        assert frame.shape == (256 + 2 * LABEL, 4 * 256, 3)
        for column, expected in enumerate([first(case.source), driving,
                                           *(method.make(4, driving) for method in job.methods)]):
            cell = frame[-256:, column * 256:][:, :256].reshape(32, 8, 32, 8, 3).mean((1, 3))
            assert np.abs(cell - expected).mean() < 6
            assert (frame[:2 * LABEL, column * 256:][:, :256] > 128).any()              # its name


def test_a_video_of_another_rate_shows_the_frame_on_display(tmp_path):
    cases, fast = job_of(tmp_path).cases, noise('fast', 12, seed=7, fps=Fraction(50))
    method = VideoMethod('elsewhere', (fast, fast), cases)
    expected = fast.read([1, 3, 5, 7, 9, 11])        # those that begin before the middle of a tick
    assert all((a == b).all() for a, b in zip(method.frames(0, range(6)), expected, strict=True))
    assert all((a == b).all() for a, b in zip(method.frames(0, [4, 0]), (expected[4], expected[0]), strict=True))
    with pytest.raises(UserError, match='anna--anna: lasts 0.12 s by elsewhere but 0.24 s'):
        VideoMethod('elsewhere', (noise('short', 3), fast), cases)


# ---------------------------------------------------------------------------- the command line

@pytest.fixture(scope='module')
def models(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp('models'), 'ours', 'rival')


def test_from_checkpoints_a_folder_and_a_list_to_the_figure(models, tmp_path, capsys, figures):
    """What is printed is what the renderer makes, with and without videos; the pair that is its own truth is scored."""
    for seed, name in enumerate(('anna', 'bert')):
        write_video(tmp_path / 'clips' / f'{name}.mp4', noise(name, 5, seed=seed).frames())
    for name in ('anna--anna', 'bert--anna'):
        write_video(tmp_path / 'elsewhere' / f'{name}.mp4', noise(name, 5, seed=9).frames())
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
    write_video(tmp_path / 'anna.mp4', noise('anna', 4, seed=1).frames())
    Image.fromarray(first(noise('bert', seed=2))).save(tmp_path / 'bert.png')
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
    ((*LISTED, '--width_cm', 1), '--width_cm 1: 3 columns do not fit'),
    ((*LISTED, '--generated', 'x=empty'), 'has no video for 1 of 1 pairs')]


def test_mistakes_are_one_line_and_come_before_the_work(models, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('anna', 'bert'):
        write_video(tmp_path / f'{name}.mp4', noise(name, 3).frames())
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
