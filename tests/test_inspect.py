"""What `--mode inspect` shows is what the model did."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from figures.codes import ACROSS, TILE, Chosen, CodeUse, chosen_codes, code_figures
from figures.draw import Scales, draw, index_colours, picture_of
from figures.figure import Moment, Panel, psnr
from figures.inspect import figures_of
from modules.build import build_model
from modules.codebook import Codebook, CodebookParams
from modules.layers import to_unit
from modules.warp import from_displacement, identity_grid
from tests.support.command_line import succeeds
from tests.support.small import small_model
from tests.support.tiny import save_model, tiny


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model(tiny('model_params.occlusion_update=logit')).eval()


@torch.no_grad()
def moment_of(model, at=None):
    """A model's moment of two noisy images."""
    size = model.params.image_size
    source, driving = (F.interpolate(2 * torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) - 1,
                                     size=size, mode='bilinear') for seed in (1, 2))
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
    seen = [[] for _ in retrieval.layers]
    hooks = [layer.cross_attention.register_forward_pre_hook(lambda _, inputs, calls=calls: calls.append(inputs))
             for layer, calls in zip(retrieval.layers, seen)]
    model.render(moment.state, moment.keypoints)
    [hook.remove() for hook in hooks]
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
    save_model(tmp_path / 'model.pt', tiny('dataset_params.synthetic_params={test_people: 2, frames: 4}'))
    succeeds(capsys, '--mode', 'inspect', '--checkpoint', tmp_path / 'model.pt', '--out', tmp_path / 'out', '--device',
             'cpu', '--at', 3, 4, '--code_frames', 4)
    page = (tmp_path / 'out' / 'inspect.html').read_text(encoding='utf-8')
    assert page.count('data:image/png') >= 6 and 'http://' not in page and 'Talking Codebooks' in page
    report = json.loads((tmp_path / 'out' / 'inspect.json').read_text(encoding='utf-8'))
    use = report['codes']['motion 4']
    assert use['used'] + len(use['dead']) == use['codes'] == len(use['counts'])
