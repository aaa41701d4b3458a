"""bf16 rounds what networks compute, not where images are read: against fp32, at 256 px, for every method."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from config import schema
from logger import RunFolder
from modules import training_step
from modules.build import build_model
from modules.half_weights import HalfWeights
from modules.losses import RandomTransform, equivariance
from modules.talking_head import Keypoints
from modules.pairs import micro_batches
from modules.training_step import build_training_step
from modules.warp import identity_grid, occlude, warp
from tests.support.half_step import (CONFIGS, PIXELS, SIZE, assert_bf16_is_near_fp32, config_of, one_step,
                                     pair_of_frames)
from tests.support.small import small_config
from tests.support.tiny import tiny
from tests.support.training import random_batch
from validation import Validation

CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def pairs():
    return pair_of_frames()


@pytest.mark.parametrize('narrow', [True, pytest.param(False, marks=pytest.mark.full)], ids=['narrow', 'full'])
@pytest.mark.parametrize('method', CONFIGS)
def test_a_step_in_bf16_is_near_one_in_fp32(method, narrow, pairs):
    assert_bf16_is_near_fp32(config_of(method, narrow), pairs)


@pytest.mark.parametrize('method', CONFIGS)
def test_weights_that_are_converted_together_compute_what_autocast_does(method, monkeypatch):
    config, pairs = config_of(method, narrow=True, size=64), pair_of_frames(64)
    output, losses, gradients = one_step(config, pairs, 'bf16')
    monkeypatch.setattr(training_step, 'HalfWeights', lambda model: nullcontext)
    wanted, theirs, wanted_gradients = one_step(config, pairs, 'bf16')
    torch.testing.assert_close(output.generated.prediction, wanted.generated.prediction, atol=0.01, rtol=0)
    assert {name: float(value) for name, value in losses.items()} == pytest.approx(
        {name: float(value) for name, value in theirs.items()}, rel=1e-3, abs=1e-4)
    assert [name for name, gradient in wanted_gradients.items()
            if gradient.any() and torch.cosine_similarity(gradient, gradients[name], dim=0) < 0.999] == []


def test_weights_are_fp32_after_a_step_that_fails():
    model = build_model(tiny())
    before = dict(model.named_parameters())
    with pytest.raises(ZeroDivisionError), HalfWeights(model)():
        assert model.encoder.stem.weight.dtype == torch.bfloat16
        assert model.keypoint_detector.kp.weight is before['keypoint_detector.kp.weight']
        1 / 0
    assert all(parameter is before[name] for name, parameter in model.named_parameters()) and len(before) > 100


@pytest.mark.parametrize('method', CONFIGS)
def test_no_position_is_rounded(method, monkeypatch):
    """Whatever reads a picture or a feature gets its positions in fp32."""
    config = tiny(config='config/vox-256-plus.yaml') if method == 'synergy' else small_config(method)
    config = schema.override(config, ['train_params.precision=bf16'])
    kinds, read = [], F.grid_sample

    def seen(x, grid, **options):
        kinds.append(grid.dtype)
        return read(x, grid, **options)
    monkeypatch.setattr(F, 'grid_sample', seen)
    step, size = build_training_step(config, CPU), config.model_params.image_size
    batch = {name: value if name == 'index' else F.interpolate(value, size=size)
             for name, value in random_batch(2).items()}
    assert step(micro_batches(batch, step.params), step.first_full_step).finite
    assert len(kinds) >= 3 and set(kinds) == {torch.float32}


def test_a_warp_of_a_bf16_feature_reads_where_fp32_does(monkeypatch):
    flow = (identity_grid((SIZE, SIZE), torch.zeros(()))[None] * 0.99 + 0.003).requires_grad_()
    read, grids = F.grid_sample, []
    monkeypatch.setattr(F, 'grid_sample', lambda x, grid, **options: (grids.append(grid), read(x, grid, **options))[1])
    with torch.autocast('cpu', torch.bfloat16):
        warped = warp(torch.rand(1, 4, SIZE, SIZE, dtype=torch.bfloat16), flow)
    assert warped.dtype == torch.bfloat16
    assert PIXELS * (grids[0].float() - flow).norm(dim=-1).max() <= 0.02


def test_occlusion_keeps_the_type_of_a_feature():
    feature = torch.rand(1, 4, 8, 8, dtype=torch.bfloat16)
    assert occlude(feature, torch.rand(1, 1, 4, 4)).dtype == torch.bfloat16


def test_equivariance_is_the_same_under_autocast():
    generator = torch.Generator().manual_seed(0)
    transform = RandomTransform.draw(2, generator)
    keypoints, moved = (Keypoints(torch.rand(2, 10, 2, generator=generator) * 2 - 1,
                                  torch.eye(2) + 0.1 * torch.randn(2, 10, 2, 2, generator=generator)) for _ in range(2))
    image = torch.rand(2, 3, 64, 64, generator=generator)
    plain = *equivariance(keypoints, moved, transform), transform.warp_image(image)
    with torch.autocast('cpu', torch.bfloat16):
        found = *equivariance(keypoints, moved, transform), transform.warp_image(image)
    assert all(map(torch.equal, found, plain))


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
def test_validation_renders_at_the_precision_and_batch_size_of_the_config(tmp_path, precision):
    config = tiny(f'train_params.precision={precision}', 'train_params.val_pairs=3', 'animate_params.batch_size=2')
    run = RunFolder(tmp_path)
    model, kinds, sizes = build_model(config).eval(), set(), []
    model.decoder.stem.register_forward_hook(lambda *call: kinds.add(call[-1].dtype))
    model.keypoint_detector.register_forward_hook(lambda *call: sizes.append(len(call[-1].value)))
    Validation(config, run, CPU)(model, 1)
    run.close()
    assert kinds == {torch.bfloat16 if precision == 'bf16' else torch.float32}
    assert sizes[:4] == [2, 2, 1, 1]             # source and driving frames of two batches, before the picture
