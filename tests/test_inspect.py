"""What `--mode inspect` shows is what the model did."""

import json

import torch

import run
from logger import write_checkpoint
from modules.build import build_model
from modules.warp import warp
from tests.tiny import tiny


def setting():
    torch.manual_seed(0)
    model = build_model(tiny()).eval()
    size = model.params.image_size
    return model, torch.rand(1, 3, size, size) * 2 - 1, torch.rand(1, 3, size, size) * 2 - 1


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
    chosen = model.chosen_codes(generated, driving)
    pyramid, middle_tap = model.encoder.tapped(driving)
    for scale, feature in enumerate([middle_tap, *pyramid[1:]]):
        expected = model.appearance.learn(scale, feature).indices
        assert torch.equal(chosen[f'appearance {scale + 1}'].quantized.indices, expected)


def test_inspect_writes_a_page_with_its_figures(tmp_path, capsys):
    config = tiny('dataset_params.synthetic_params={train_people: 2, test_people: 2, frames: 4}')
    model = build_model(config)
    write_checkpoint(tmp_path / 'model.pt', {'config': config.as_dict(), 'step': 0, 'model': model.state_dict(),
                                             'ema': model.state_dict()})
    arguments = ['--mode', 'inspect', '--checkpoint', tmp_path / 'model.pt', '--out', tmp_path / 'out', '--device',
                 'cpu',
                 '--at', '3', '4', '--code_frames', '4']
    assert run.main([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
    page = (tmp_path / 'out' / 'inspect.html').read_text(encoding='utf-8')
    assert page.count('data:image/png') >= 6 and 'http://' not in page
    assert json.loads((tmp_path / 'out' / 'inspect.json').read_text(encoding='utf-8'))
