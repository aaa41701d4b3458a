"""What `--mode inspect` shows is what the model did."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import run
from figures.codes import TILE, Chosen, chosen_codes, count_codes, draw_all_codes
from figures.draw import EMPTY, Scales, draw_panel, index_colours
from figures.figure import Moment, Panel, psnr
from figures.inspect import figures_of
from figures.sheet import EDGE, draw_sheet
from logger import write_checkpoint
from modules.build import build_model
from modules.codebook import Codebook, CodebookParams
from modules.layers import to_unit, tokens
from modules.warp import from_displacement, identity_grid, to_displacement, warp
from tests.support.small import small_model
from tests.support.tiny import tiny


def setting():
    torch.manual_seed(0)
    model = build_model(tiny()).eval()
    size = model.params.image_size
    return model, torch.rand(1, 3, size, size) * 2 - 1, torch.rand(1, 3, size, size) * 2 - 1


@torch.no_grad()
def moment_of(model, at=None, size=None):
    """A model's moment of two noisy images."""
    size = size or model.params.image_size
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
    picture = draw_panel(shown, scales, 64)
    assert np.abs(picture.astype(int) - colour).max() <= 1


def test_where_nothing_moves_a_pixel_is_full_colour_and_not_a_thirtieth():
    still = Panel('residual', '', torch.full((1, 4, 4, 2), 1e-4))
    heat = Panel('heat', '', torch.full((1, 1, 4, 4), 0.03), unit='px')
    scales = Scales([still, heat, heat._replace(unit='of features')], 64)
    assert scales.motion == {'residual': 1.0} and scales.heat == {'px': 1.0, 'of features': 0.03}
    assert draw_panel(heat, scales, 4).max() == round(255 * 0.09)


def test_maps_of_one_unit_share_black_and_white():
    low, high = (Panel('map', '', torch.tensor([[[[a, b]]]]), unit='x') for a, b in ((-1., 0.), (0., 3.)))
    scales = Scales([low, high], 64)
    assert draw_panel(low, scales, 1)[0, :, 0].tolist() == [0, 64]
    assert draw_panel(high, scales, 1)[0, :, 0].tolist() == [64, 255]
    assert draw_panel(low._replace(unit=''), scales, 1)[0, :, 0].tolist() == [0, 255]


# ---------------------------------------------------------------------------- the paper's model

@torch.no_grad()
def test_a_frame_without_compensation_is_the_warped_source_decoded():
    model, source, driving = setting()
    state, keypoints = model.encode_source(source), model.keypoints(driving)
    plain = model.render(model.without(state, model.parts), keypoints)
    assert len(plain.flows) == 1 and not plain.residuals
    coarse = plain.flows[0]
    by_hand = [warp(feature, coarse) * torch.nn.functional.interpolate(
        plain.occlusions[0], feature.shape[-2:], mode='bilinear', align_corners=True)
        for feature in state.features.pyramid]
    for ours, expected in zip(plain.compensated, by_hand):
        torch.testing.assert_close(ours, expected)


@torch.no_grad()
def test_leaving_out_one_part_leaves_the_others():
    model, source, driving = setting()
    state, keypoints = model.encode_source(source), model.keypoints(driving)
    whole = model.render(state, keypoints)
    part = model.render(model.without(state, ['appearance 2']), keypoints)
    assert torch.equal(part.compensated[1], part.warped[1]) and torch.equal(part.compensated[0], whole.compensated[0])
    assert not torch.equal(whole.compensated[1], whole.warped[1])
    assert all(torch.equal(a, b) for a, b in zip(part.flows, whole.flows))


@torch.no_grad()
def test_chosen_codes_are_those_of_quantisation():
    model, source, driving = setting()
    generated = model.render(model.encode_source(source), model.keypoints(driving))
    chosen = chosen_codes(model, generated, driving)
    pyramid, middle_tap = model.encoder.tapped(driving)
    for scale, feature in enumerate([middle_tap, *pyramid[1:]]):
        expected = model.appearance.learn(scale, feature).indices
        assert torch.equal(chosen[f'appearance {scale + 1}'].quantized.indices, expected)


@torch.no_grad()
def test_index_maps_are_those_of_quantize_in_the_colours_of_their_numbers():
    model, _, _ = setting()
    moment = moment_of(model)
    figures = named_figures(model, moment)
    for scale, feature in enumerate(moment.generated.motion_features):
        indices = model.motion.codebook.quantize(feature, scale).indices
        shown = panel(figures['indices'], f'motion, scale {scale + 1}')
        assert torch.equal(shown.value, indices + model.motion.codebook.slices[scale].start)
        assert figures['indices'].numbers[f'motion {scale + 1}']['indices'] == indices[0].tolist()
        picture = draw_panel(shown._replace(under=None), Scales([shown], 32), indices.shape[-1])
        assert (picture == index_colours(shown.value[0].numpy())).all()


@torch.no_grad()
def test_switching_compensation_off_by_hand_gives_the_frame_of_the_figure():
    torch.manual_seed(0)
    model = build_model(tiny('model_params.occlusion_update=logit')).eval()
    moment = moment_of(model)
    figure = named_figures(model, moment)['ablation']
    heads = model.motion.update
    for layer in (heads.motion[-1], heads.occlusion[-1]):       # no residuals
        layer.weight.zero_(), layer.bias.zero_()
    by_hand = model.render(moment.state, moment.keypoints).prediction
    torch.testing.assert_close(panel(figure, 'no motion').value, by_hand)
    assert figure.numbers['no motion']['psnr'] == pytest.approx(psnr(by_hand, moment.driving), abs=1e-3)
    assert f'{figure.numbers["no motion"]["psnr"]:.2f} dB' in panel(figure, 'no motion').note
    assert set(figure.numbers) == {'whole model', 'no motion', 'no appearance', 'none at all',
                                   *(f'no {part}' for part in model.parts)}
    forward = model.appearance.forward
    model.appearance.forward = lambda scale, warped, *rest: warped if scale == 1 else forward(scale, warped, *rest)
    by_hand = model.render(moment.state, moment.keypoints).prediction
    model.appearance.forward = forward
    figure = named_figures(model, moment)['ablation']              # of a model without residuals, all its scales again
    torch.testing.assert_close(panel(figure, 'no appearance 2').value, by_hand)
    assert not torch.allclose(panel(figure, 'no appearance 2').value, panel(figure, 'no appearance 3').value)


def test_a_codebook_with_one_live_code_shows_exactly_that():
    codebook = Codebook(CodebookParams(num_codes=8, code_dim=2, num_scales=1, num_heads=1))
    codebook.embedding.data[:] = 9
    codebook.embedding.data[5] = 0
    found = codebook.quantize(torch.zeros(1, 2, 4, 4), 0)
    frame = np.random.default_rng(0).integers(60, 255, (32, 32, 3), np.uint8)
    uses = count_codes([(frame, {'appearance 1': Chosen('appearance', 0, codebook, found)})], {}, 32)
    numbers = uses['appearance 1'].as_json()
    assert numbers['used'] == 1 and numbers['perplexity'] == pytest.approx(1)
    assert numbers['dead'] == [0, 1, 2, 3, 4, 6, 7] and numbers['counts'] == [0] * 5 + [16, 0, 0]
    sheet = draw_all_codes('appearance', uses, 32)
    top = np.flatnonzero((sheet[:, EDGE:EDGE + TILE] == EMPTY).all((1, 2)))[0]
    tiles = [sheet[top:top + TILE, EDGE + i * (TILE + 2):][:, :TILE] for i in range(8)]
    assert [bool((tile == EMPTY).all()) for tile in tiles] == [i != 5 for i in range(8)]
    window = uses['appearance 1'].windows[5, 0][8:16, 8:16]      # its middle third
    assert (tiles[5] == window.repeat(4, 0).repeat(4, 1)).all() and (window == frame[:8, :8]).all()


@torch.no_grad()
@pytest.mark.parametrize('book', ['motion', 'appearance'])
def test_codes_read_at_a_place_are_those_of_attention_there(book):
    model, _, _ = setting()
    moment = moment_of(model, at=(20, 9))                       # token (1, 2) of 4 x 4 of 8 px
    figure = named_figures(model, moment)['reads']
    assert set(figure.numbers['codes']) == {f'{name} {scale}' for name in ('motion', 'appearance')
                                            for scale in range(1, 5)}
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


# ---------------------------------------------------------------------------- MCNet

@torch.no_grad()
def test_mcnet_shows_its_memory_before_and_after_conditioning():
    model = small_model('mcnet')
    moment = moment_of(model)
    figures, compensation = named_figures(model, moment), model.compensation
    memory = figures['memory']
    assert torch.equal(panel(memory, 'channel 2', row=0).value, compensation.memory[:, 2:3])
    feature, source = moment.generated.features[1], moment.state.keypoints.value
    style = compensation.identity(torch.cat([feature.mean((2, 3)), source.flatten(1)], 1))
    conditioned = compensation.condition(compensation.memory, style)
    torch.testing.assert_close(panel(memory, 'all channels', row=2).value, conditioned)
    torch.testing.assert_close(panel(memory, 'channel 2', row=2).value, conditioned[:, 2:3])
    torch.testing.assert_close(panel(figures['recall'], 'values in memory', row=1).value, moment.generated.values[1])
    torch.testing.assert_close(panel(figures['recall'], 'warped feature', row=1).value, feature)
    elsewhere = moment.state.keypoints._replace(value=source + 0.5)
    other = named_figures(model, replace(moment, state=replace(moment.state, keypoints=elsewhere)))['memory']
    assert not torch.allclose(panel(other, 'all channels', row=2).value, conditioned)
    assert torch.equal(panel(other, 'all channels', row=0).value, panel(memory, 'all channels', row=0).value)


@torch.no_grad()
def test_what_mcnet_finds_is_its_values_weighted_by_what_it_reads():
    model = small_model('mcnet')
    moment = moment_of(model, at=(40, 21))
    figures = named_figures(model, moment)
    shares = panel(figures['reads'], 'scale 1').value.flatten() / 100
    assert float(shares.sum()) == pytest.approx(1, abs=1e-5)
    values = panel(figures['recall'], 'values in memory', row=0).value[0].flatten(1)             # (C, M*M)
    found = panel(figures['recall'], 'recalled', row=0).value[0]
    side = found.shape[-1]
    torch.testing.assert_close(values @ shares, found[:, 21 * side // 64, 40 * side // 64])


@torch.no_grad()
def test_mcnet_without_memory_decodes_what_is_warped():
    model = small_model('mcnet')
    moment = moment_of(model)
    figure = named_figures(model, moment)['ablation']
    model.compensation.forward = lambda scale, warped, keypoints: (warped, None, None)
    by_hand = model.render(moment.state, moment.keypoints).prediction
    torch.testing.assert_close(panel(figure, 'no memory').value, by_hand)
    assert not torch.allclose(by_hand, moment.generated.prediction)


# ---------------------------------------------------------------------------- MRFA

@torch.no_grad()
def test_mrfa_shows_each_correction():
    model = small_model('mrfa')
    moment = moment_of(model)
    figure = named_figures(model, moment)['refinement']
    torch.nn.init.zeros_(model.refinement.update.motion[-1].weight)
    torch.nn.init.zeros_(model.refinement.update.motion[-1].bias)
    prior = model.render(moment.state, moment.keypoints).flows
    torch.testing.assert_close(panel(figure, 'flow so far', row=0).value, prior[1])
    total = torch.zeros(1, 2, 4, 4)                             # corrections so far, in pixels of their grid
    for i, flow in enumerate(moment.generated.flows[1:]):
        before, correction = (panel(figure, title, row=i).value for title in ('flow so far', 'correction'))
        torch.testing.assert_close(before + correction, flow)
        torch.testing.assert_close(panel(figure, 'refined', row=i).value, flow)
        total = 2 * F.interpolate(total, flow.shape[1:3], mode='bilinear', align_corners=True)
        torch.testing.assert_close(to_displacement(before) - to_displacement(prior[i + 1]), total, atol=1e-4, rtol=0)
        total = total + to_displacement(flow) - to_displacement(before)
        torch.testing.assert_close(panel(figure, 'visible after', row=i).value, moment.generated.occlusions[i + 1])
        px = (correction * 63 / 2).norm(dim=-1)
        assert figure.numbers[f'refinement {i + 1}']['correction_px_max'] == pytest.approx(float(px.max()), rel=1e-4)


@torch.no_grad()
def test_mrfa_shows_what_each_token_reads():
    model = small_model('mrfa')
    figure = named_figures(model, moment_of(model))['tokens']
    assert len(figure.rows) == model.keypoint_detector.num_kp
    for row, numbers in zip(figure.rows, figure.numbers.values()):
        image, *maps = row.panels
        torch.testing.assert_close(image.points, model.keypoints(image.value).value[0, [figure.rows.index(row)]])
        for value, share in zip(maps, numbers.values()):
            side = model.keypoint_detector.patches_across
            assert value.value.shape == (1, 1, side, side) and float(value.value.sum()) == pytest.approx(share)
            assert 0 < share < 1                                # the other tokens get the rest


@torch.no_grad()
def test_mrfa_shows_the_correlation_of_a_place():
    model = small_model('mrfa')
    moment = moment_of(model, at=(40, 21))
    figure = named_figures(model, moment)['correlation']
    driving = model.structure.encode_driving(moment.keypoints.value)
    source = model.structure.encode_source(moment.state.keypoints.value, moment.state.features.small.image)
    by_hand = torch.einsum('c,chw->hw', driving[0, :, 21 // 4, 40 // 4], source[0]) / len(driving[0]) ** 0.5
    torch.testing.assert_close(panel(figure, 'correlation').value[0, 0], by_hand)
    # The 16 px iteration reads its own grid: what it sees is cut out of the whole around where its flow points.
    flow = panel(named_figures(model, moment)['refinement'], 'flow so far', row=1).value[0, 21 // 4, 40 // 4]
    steps = torch.arange(-3, 4) * 2 / 15
    around = flow + torch.stack(torch.meshgrid(steps, steps, indexing='ij')[::-1], -1)
    expected = F.grid_sample(by_hand[None, None], around[None], align_corners=True)
    torch.testing.assert_close(panel(figure, '7 x 7 around the flow', row=2).value, expected, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------------------- DaGAN

@torch.no_grad()
def test_dagan_shows_disparities_and_what_a_place_attends_to():
    model = small_model('dagan')
    moment = moment_of(model, at=(40, 21))
    figures = named_figures(model, moment)
    for name, image in (('source', moment.source), ('driving', moment.driving)):
        torch.testing.assert_close(panel(figures['depth'], f'disparity of the {name}').value,
                                   model.depth(to_unit(image)))
    before, after = (panel(figures['attention'], title).value for title in ('warped feature', 'with attention'))
    torch.testing.assert_close(model.decode(after), moment.generated.prediction)
    shares = panel(figures['reads'], 'attention').value.flatten() / 100
    assert float(shares.sum()) == pytest.approx(1, abs=1e-5)
    y, x = 21 * 16 // 64, 40 * 16 // 64
    found = tokens(F.relu(model.attention.value(before)))[0].T @ shares
    torch.testing.assert_close(before[0, :, y, x] + model.attention.gamma * found, after[0, :, y, x])
    torch.testing.assert_close(panel(figures['ablation'], 'no attention').value, model.decode(before))


# ---------------------------------------------------------------------------- all methods

@pytest.mark.parametrize('method', ['fomm', 'mcnet', 'mrfa', 'dagan'])
def test_every_figure_can_be_drawn_and_its_numbers_saved(method):
    model = small_model(method)
    moment = moment_of(model, at=(63, 0))
    for figure in named_figures(model, moment).values():
        picture, scales = draw_sheet(figure, moment.size, arrows=True)
        assert picture.dtype == np.uint8 and picture.std() > 5
        json.dumps([figure.numbers, scales.as_json()], allow_nan=False)


def test_inspect_writes_a_page_with_its_figures(tmp_path, capsys):
    config = tiny('dataset_params.synthetic_params={train_people: 2, test_people: 2, frames: 4}')
    model = build_model(config)
    write_checkpoint(tmp_path / 'model.pt', {'config': config.as_dict(), 'step': 0, 'model': model.state_dict(),
                                             'ema': model.state_dict()})
    arguments = ['--mode', 'inspect', '--checkpoint', tmp_path / 'model.pt', '--out', tmp_path / 'out', '--device',
                 'cpu', '--at', '3', '4', '--arrows', '--code_frames', '4']
    assert run.main([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
    page = (tmp_path / 'out' / 'inspect.html').read_text(encoding='utf-8')
    assert page.count('data:image/png') >= 6 and 'http://' not in page
    report = json.loads((tmp_path / 'out' / 'inspect.json').read_text(encoding='utf-8'))
    use = report['codes']['motion 4']
    assert use['used'] + len(use['dead']) == use['codes'] == len(use['counts'])
