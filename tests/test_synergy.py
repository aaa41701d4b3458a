"""The paper's model as a whole: interface, scales, masks, configs."""

import pytest
import torch

from benchmarks.parity.kinds import compare
from config import schema
from modules.appearance_compensation import partition_windows, reverse_windows
from modules.build import build_discriminator, build_model, build_objective
from modules.losses import RandomTransform
from modules.retrieval import Retrieval
from modules.warp import from_displacement, identity_grid, invert_2x2, to_displacement, warp
from tests.support.tiny import ROOT, SHARED, SIZES, tiny


def random_images(batch, size=32):
    return torch.rand(batch, 3, size, size) * 2 - 1


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    model = build_model(tiny())
    with torch.no_grad():    # away from the special initial values
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


# ---------------------------------------------------------------------------- geometry

def test_identity_flow_moves_nothing():
    image = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(warp(image, identity_grid((16, 16), image)[None]), image, atol=1e-5, rtol=0)


def test_flow_of_one_pixel_moves_by_one_pixel():
    image = torch.rand(1, 1, 8, 8)
    shift = torch.zeros(1, 2, 8, 8)
    shift[:, 0] = 1
    flow = identity_grid((8, 8), image) + from_displacement(shift)
    torch.testing.assert_close(warp(image, flow)[..., :-1], image[..., 1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(to_displacement(flow), shift, atol=1e-5, rtol=0)


def test_closed_form_inverse_is_the_inverse():
    matrix = torch.eye(2) + 0.3 * torch.randn(5, 4, 2, 2)
    torch.testing.assert_close(invert_2x2(matrix), torch.linalg.inv(matrix))


def test_transform_jacobian_is_the_derivative():
    transform = RandomTransform.draw(2, torch.Generator().manual_seed(1), sigma_tps=0.1)
    points = torch.rand(2, 6, 2) * 2 - 1
    derivative = torch.stack([torch.autograd.functional.jacobian(
        lambda p: transform.warp_coordinates(p).sum((0, 1))[i], points) for i in range(2)], dim=-2)
    torch.testing.assert_close(transform.jacobian(points), derivative, atol=1e-4, rtol=1e-4)


def test_windows_reverse():
    feature = torch.rand(2, 6, 16, 16)
    windows = partition_windows(feature, 4)
    assert windows.shape == (2, 16, 96)
    assert torch.equal(windows[0, 5].view(4, 4, 6), feature[0, :, 4:8, 4:8].permute(1, 2, 0))
    back = reverse_windows(windows, 4, 6)
    assert torch.equal(back, feature) and back.is_contiguous(memory_format=torch.channels_last)


# ---------------------------------------------------------------------------- starts that pass features on

def compensated_by(change, *overrides):
    """F_w and F_c of every scale, of a fresh model that `change` was applied to."""
    torch.manual_seed(0)
    model = build_model(tiny(*overrides)).eval()
    change(model)
    with torch.no_grad():
        generated = model(random_images(2), random_images(2))
    return list(zip(generated.warped, generated.compensated))


RESIDUAL = ('model_params.residual_appearance=true',)
IDENTITY = ('model_params.appearance_codebook_params.identity_start=true',)


def test_residual_compensation_adds_nothing_where_retrieval_changes_nothing():
    def pass_on(model):
        model.appearance.retrieval.forward = lambda query, *others: query
    for warped, compensated in compensated_by(pass_on, *RESIDUAL):
        assert torch.equal(warped, compensated)
    for warped, compensated in compensated_by(pass_on):
        assert not torch.allclose(warped, compensated, atol=1e-2)


def test_an_identity_start_passes_the_query():
    keep = lambda model: None
    for warped, compensated in compensated_by(keep, *RESIDUAL, *IDENTITY):
        assert torch.equal(warped, compensated)
    for warped, compensated in compensated_by(keep, *RESIDUAL):
        assert not torch.allclose(warped, compensated, atol=1e-2)


def test_an_identity_start_learns():
    torch.manual_seed(0)
    model = build_model(tiny(*RESIDUAL, *IDENTITY))
    model(random_images(2), random_images(2)).prediction.square().mean().backward()
    layer = model.appearance.retrieval.layers[0]
    for output in (layer.self_attention.project, layer.cross_attention.project, layer.feed_forward[-1]):
        assert output.weight.grad.any()


def test_with_an_image_skip_the_untrained_decoder_shows_the_source_moved():
    torch.manual_seed(0)
    model = build_model(tiny('model_params.image_skip=true')).eval()
    source, driving = random_images(2), random_images(2)
    with torch.no_grad():
        generated = model(source, driving)
    painted = generated.prediction - warp(source, generated.flows[-1])
    bias = model.decoder.head[-1].bias[:, None, None]
    torch.testing.assert_close(painted, bias.expand_as(painted), atol=1e-5, rtol=0)
    torch.testing.assert_close(generated.first_scale_prediction, generated.prediction)


# ---------------------------------------------------------------------------- retrieval

def test_codes_outside_of_a_scales_slice_are_never_read():
    torch.manual_seed(0)
    retrieval = Retrieval(8, 2, 2, 4)
    query, codes = torch.randn(1, 8, 4, 4), torch.randn(16, 8)
    other = torch.cat([codes[:8], torch.randn(8, 8)])
    part = slice(0, 8)
    same = retrieval(query, retrieval.project(codes), part), retrieval(query, retrieval.project(other), part)
    assert torch.equal(*same)
    assert not torch.equal(retrieval(query, retrieval.project(other), slice(0, 16)), same[0])


def test_hidden_tokens_are_not_read_by_others():
    torch.manual_seed(0)
    retrieval = Retrieval(8, 2, 1, 4)
    retrieval.layers[0].feed_forward[2].weight.data.zero_()    # its convolutions would mix neighbours
    codes = retrieval.project(torch.randn(16, 8))
    query = torch.randn(1, 8, 4, 4)
    changed = query.clone()
    changed[..., 3, 3] += 1
    visible = torch.ones(1, 16, dtype=torch.bool)
    visible[0, 15] = False
    before, after = (retrieval(q, codes, slice(0, 16), visible) for q in (query, changed))
    torch.testing.assert_close(before.flatten(2)[..., :15], after.flatten(2)[..., :15])


def test_a_flow_that_points_outside_everywhere_gives_finite_features(model):
    warped = torch.randn(1, 16, 4, 4)
    outside = torch.full((1, 8, 8, 2), 5.0)
    assert model.appearance(0, warped, outside, model.appearance.project_codes()).isfinite().all()


# ---------------------------------------------------------------------------- the interface

def test_a_batch_equals_its_samples_alone(model):
    source, driving = random_images(3), random_images(3)
    with torch.no_grad():
        together = model(source, driving).prediction
        alone = torch.cat([model(source[i:i + 1], driving[i:i + 1]).prediction for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_encode_once_and_render_equals_forward(model):
    source, driving = random_images(1), random_images(3)
    with torch.no_grad():
        rendered = model.render(model.encode_source(source), model.keypoints(driving))
        forward = model(source.expand(3, -1, -1, -1), driving)
    torch.testing.assert_close(rendered.prediction, forward.prediction, atol=1e-4, rtol=1e-4)
    assert len(rendered.flows) == 5 and rendered.first_scale_prediction is None and not rendered.losses


def test_inference_first_does_not_spoil_training():
    """Cached grids must not be inference tensors."""
    model = build_model(tiny('model_params.image_size=48', 'model_params.dense_motion_params.scale_factor=0.5'))
    with torch.inference_mode():
        model.eval().render(model.encode_source(random_images(1, 48)), model.keypoints(random_images(1, 48)))
    model.train()(random_images(2, 48), random_images(2, 48)).prediction.mean().backward()


@pytest.mark.parametrize('motion, appearance', [(0, 0), (1, 0), (4, 0), (4, 1), (0, 4)])
def test_absent_and_single_scale_compensation(motion, appearance):
    model = build_model(tiny(f'model_params.motion_codebook_params.num_scales={motion}',
                             f'model_params.appearance_codebook_params.num_scales={appearance}'))
    generated = model(random_images(2), random_images(2))
    assert len(generated.residuals) == motion and len(generated.flows) == motion + 1
    assert ('motion_code' in generated.losses) == bool(motion)
    untouched = [torch.equal(w, c) for w, c in zip(generated.warped, generated.compensated)]
    assert untouched == [False] * appearance + [True] * (4 - appearance)


# ---------------------------------------------------------------------------- the objective

def test_total_is_the_weighted_sum_and_its_gradient_that_of_autograd():
    """Taking gradients at the image and sending them down once must equal the plain backward pass."""
    torch.manual_seed(0)
    config = tiny()
    model, discriminator = build_model(config).eval(), build_discriminator(config).eval()
    objective = build_objective(config, model)
    source, driving = random_images(2), random_images(2)
    transform = RandomTransform.draw(2, torch.Generator().manual_seed(0))
    step = objective(source, driving, transform, discriminator=discriminator.requires_grad_(False))
    step.total.backward()
    ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()

    weights = config.train_params.objective_params.loss_weights
    generated = model(source, driving)
    logits, = discriminator(generated.prediction, generated.driving_keypoints).logits
    plain = ((generated.prediction - driving).abs().mean() * weights['l1']
             + weights['first_scale'] * (generated.first_scale_prediction - driving).abs().mean() * weights['l1']
             - weights['adversarial'] * step.losses['adaptive_weight'] * logits.mean()
             + sum(weights[name] * loss for name, loss in generated.losses.items())
             + sum(weights[name] * loss
                   for name, loss in objective._keypoint_losses(generated, driving, transform).items()))
    torch.testing.assert_close(step.total.detach(), plain.detach())
    plain.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, atol=1e-5, rtol=1e-3, msg=lambda m: f'{name}: {m}')


CONFIGS = [path.relative_to(ROOT) for path in sorted((ROOT / 'config').glob('*.yaml'))
           if schema.load(path).method == 'synergy']


@pytest.mark.parametrize('path', CONFIGS, ids=str)
def test_every_shipped_config_makes_a_step(path):
    guided = [f'model_params.kp_detector_params.{key}' for key in ('rigid_keypoints=3', 'landmarks=[]')
              ] if path.name.startswith('heads') else []
    config = schema.load(ROOT / path, [*SIZES, *guided])
    model = build_model(config)
    objective = build_objective(config, model)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    step = objective(random_images(2), random_images(2), RandomTransform.draw(2, torch.Generator()))
    step.total.backward()
    optimizer.step()
    assert step.total.isfinite() and all(parameter.isfinite().all() for parameter in model.parameters())


def test_sizes_follow_the_config():
    """512 px builds, with its token grid and windows from the config."""
    params = schema.load(ROOT / 'config/vox-256.yaml', ['model_params.image_size=512']).model_params
    assert params.grid == 64 and params.flow_size == 128


# ---------------------------------------------------------------------------- parity

FIXTURES = SHARED / 'facts' / 'reference'


@pytest.mark.skipif(not FIXTURES.is_dir(), reason='reference fixtures are not here')
@pytest.mark.parametrize('name', ['smac_fixture_A', 'smac_losses_A_eval', 'smac_losses_A_train'])
def test_parity_with_the_released_code(name):
    comparisons = compare(FIXTURES / f'{name}.npz')
    assert [comparison.name for comparison in comparisons if not comparison.verdict()[-1]] == []
