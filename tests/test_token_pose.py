"""MRFA's token transformer: published names and shapes, places of patches and positions, what tokens read."""

import json

import pytest
import torch

from config import schema
from modules.build import build_model
from modules.published.formats import published_shapes
from modules.token_pose import TokenKeypointDetector, TokenPoseParams, sine_position
from support.errors import UserError
from tests.support.tiny import ROOT, SHARED

SMALL = TokenPoseParams(width=4, stem_width=4, num_modules=2, patch_size=2, dim=16, num_heads=2, num_layers=2)


@pytest.fixture
def detector():
    torch.manual_seed(0)
    return TokenKeypointDetector(SMALL, num_kp=3, image_size=64).eval()


@pytest.mark.parametrize('prior, config', [('mtia', 'mrfa-vox-256'), ('fomm', 'mrfa-fomm-vox-256')])
def test_names_and_shapes_are_those_of_the_released_code(prior, config):
    path = SHARED / 'facts' / 'reference' / f'mrfa_{prior}_state_shapes.json'
    if not path.is_file():
        pytest.skip('no reference shapes')
    stored = json.loads(path.read_text())
    theirs = {name: shape for name, shape in stored.get('model', stored).items()
              if not name.startswith(('vgg.', 'pyramid.'))}
    with torch.device('meta'):
        model = build_model(schema.load(ROOT / 'config' / f'{config}.yaml'))
    assert {name.removeprefix('model/'): list(shape)
            for name, shape in published_shapes('mrfa', model).items()} == theirs


def test_positions_by_hand():
    """Rows fill the first half, columns the second, counted from one; sines and cosines alternate."""
    position = sine_position(16, 192)[0]
    torch.testing.assert_close(position[0, :4], torch.tensor([0.3827, 0.9239, 0.3185, 0.9479]), atol=1e-4, rtol=0)
    torch.testing.assert_close(position[17, 96:100], torch.tensor([0.7071, 0.7071, 0.6038, 0.7971]), atol=1e-4, rtol=0)
    assert float(position.double().sum()) == pytest.approx(24186.457, abs=1e-2)


def test_patches_lie_row_by_row_with_channels_fastest(detector):
    feature = torch.arange(4 * 16 * 16.).view(1, 4, 16, 16)
    patches = detector._patches(feature)                                       # 8 x 8 patches of 2 x 2
    assert patches.shape == (1, 64, 16)
    assert patches[0, 8 * 3 + 5, (2 * 1 + 0) * 4 + 2] == feature[0, 2, 2 * 3 + 1, 2 * 5]


@torch.no_grad()
def test_fresh_jacobians_are_the_identity_and_positions_enter_before_every_layer(detector):
    image = torch.rand(2, 3, 64, 64)
    found = detector(image)
    assert found.value.shape == (2, 3, 2) and found.value.abs().max() < 1
    torch.testing.assert_close(found.jacobian, torch.eye(2).expand(2, 3, 2, 2))
    entered = []
    hooks = [module.register_forward_hook(lambda _, inputs, output: entered.append((inputs[0], output)))
             for module in detector.layers]
    detector(image)
    [hook.remove() for hook in hooks]
    added = entered[1][0] - entered[0][1]                                      # between two layers
    torch.testing.assert_close(added[:, 6:], detector.position.expand(2, -1, -1), atol=1e-5, rtol=0)
    assert added[:, :6].abs().max() == 0                                       # learned tokens never get it


@torch.no_grad()
def test_attention_weights_are_those_that_the_layer_uses(detector):
    layer, x = detector.layers[0], torch.randn(2, 70, 16)
    value = layer.query_key_value(layer.norm1(x)).chunk(3, dim=-1)[2].unflatten(-1, (2, 8)).transpose(1, 2)
    read = layer.attention_weights(x, torch.arange(70)) @ value
    after = x + layer.project(read.transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x), after + layer.mlp(layer.norm2(after)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('key, value, message', [
    ('prior_model', 'tpsm', 'expected one of fomm, mtia'), ('token_pose_params.dim', 190, 'multiple of 4'),
    ('token_pose_params.patch_size', 5, 'which patch_size=5 does not divide')])
def test_sizes_that_do_not_fit_are_refused_by_name(key, value, message):
    with pytest.raises(UserError, match=message):
        schema.load(ROOT / 'config' / 'mrfa-vox-256.yaml', [f'model_params.{key}={value}'])
