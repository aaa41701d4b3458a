"""The paper's model: interface, scales, masks, configs; who may use which codes, Eq. 1, 3, 4 and 5."""

import pytest
import torch

from config import schema
from modules.appearance_compensation import partition_windows, reverse_windows
from modules.build import build_model, build_objective
from modules.codebook import Codebook, CodebookParams, allocate, nearest, take_turns, usage
from modules.losses import RandomTransform, laplacian
from modules.retrieval import Retrieval
from modules.warp import from_displacement, identity_grid, invert_2x2, to_displacement, warp
from tests.support.tiny import ROOT, SIZES, tiny


def random_images(batch, size=32):
    return torch.rand(batch, 3, size, size) * 2 - 1


# ---------------------------------------------------------------------------- geometry

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


def pass_on(model):
    model.appearance.retrieval.forward = lambda query, *others: query


@pytest.mark.parametrize('change, passing, changing', [
    (pass_on, RESIDUAL, ()), (lambda model: None, (*RESIDUAL, *IDENTITY), RESIDUAL)],
    ids=['residual', 'identity start'])
def test_starts_that_pass_features(change, passing, changing):
    """A residual adds nothing where retrieval changes nothing, and an identity start changes nothing."""
    assert all(torch.equal(*pair) for pair in compensated_by(change, *passing))
    assert not any(torch.allclose(*pair, atol=1e-2) for pair in compensated_by(change, *changing))


def test_an_identity_start_learns():
    model = build_model(tiny(*RESIDUAL, *IDENTITY))
    model(random_images(2), random_images(2)).prediction.square().mean().backward()
    layer = model.appearance.retrieval.layers[0]
    for output in (layer.self_attention.project, layer.cross_attention.project, layer.feed_forward[-1]):
        assert output.weight.grad.any()


def test_with_an_image_skip_the_untrained_decoder_shows_the_source_moved():
    model = build_model(tiny('model_params.image_skip=true')).eval()
    source, driving = random_images(2), random_images(2)
    with torch.no_grad():
        generated = model(source, driving)
    painted = generated.prediction - warp(source, generated.flows[-1])
    bias = model.decoder.head[-1].bias[:, None, None]
    torch.testing.assert_close(painted, bias.expand_as(painted), atol=1e-5, rtol=0)
    torch.testing.assert_close(generated.first_scale_prediction, generated.prediction)


def test_a_decoder_that_sees_the_keypoints_changes_the_picture_and_no_flow():
    model = build_model(tiny('model_params.pose_scales=[2, 4]')).eval()
    source, driving = random_images(2), random_images(2)
    with torch.no_grad():
        before = model(source, driving)
        for scale in model.pose.values():
            torch.nn.init.normal_(scale.weight)
            after = model(source, driving)
            assert all(map(torch.equal, after.flows, before.flows))
            assert not torch.equal(after.prediction, before.prediction)
            before = after


# ---------------------------------------------------------------------------- retrieval

def test_codes_outside_of_a_scales_slice_are_never_read():
    retrieval = Retrieval(8, 2, 2, 4)
    query, codes = torch.randn(1, 8, 4, 4), torch.randn(16, 8)
    other = torch.cat([codes[:8], torch.randn(8, 8)])
    part = slice(0, 8)
    same = retrieval(query, retrieval.project(codes), part), retrieval(query, retrieval.project(other), part)
    assert torch.equal(*same)
    assert not torch.equal(retrieval(query, retrieval.project(other), slice(0, 16)), same[0])


def test_hidden_tokens_are_not_read_by_others():
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


def test_a_flow_that_points_outside_everywhere_gives_finite_features():
    model = build_model(tiny())
    warped = torch.randn(1, 16, 4, 4)
    outside = torch.full((1, 8, 8, 2), 5.0)
    assert model.appearance(0, warped, outside, model.appearance.project_codes()).isfinite().all()


# ---------------------------------------------------------------------------- the interface

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

CONFIGS = [path.relative_to(ROOT) for path in sorted((ROOT / 'config').glob('*.yaml'))
           if schema.load(path).method == 'synergy']


@pytest.mark.parametrize('path', CONFIGS, ids=str)
def test_every_shipped_config_makes_a_step(path):
    guided = ['model_params.kp_detector_params.rigid_keypoints=3', 'model_params.kp_detector_params.landmarks=[]',
              'model_params.pose_scales=[3, 4]'] if path.name.startswith('heads') else []
    config = schema.load(ROOT / path, [*SIZES, *guided])
    model = build_model(config)
    objective = build_objective(config, model)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    step = objective(random_images(2), random_images(2), RandomTransform.draw(2, torch.Generator()))
    step.total.backward()
    optimizer.step()
    assert step.total.isfinite() and all(parameter.isfinite().all() for parameter in model.parameters())


# ---------------------------------------------------------------------------- the Laplacian pyramid

def test_small_features_count_for_more_than_their_pixels():
    """Of two differences with the same sum of pixels, the sharp one costs more than the flat one; plain L1 is blind."""
    flat, sharp = torch.full((1, 1, 16, 16), 0.3), torch.zeros(1, 1, 16, 16)
    sharp[..., 5, 5] = flat.sum()
    assert laplacian(sharp) > 1.5 * 0.3 and laplacian(flat) < 1e-6
    difference = torch.randn(1, 3, 16, 16).requires_grad_()
    laplacian(difference).backward()
    assert (difference.grad != 0).float().mean() > 0.95      # bands may just cancel


# ---------------------------------------------------------------------------- allocation, Sec. 3.2.1

@pytest.mark.parametrize('allocation, scales, parts', [
    ('progressive', 4, [(0, 256), (0, 512), (0, 768), (0, 1024)]), ('shared', 4, [(0, 1024)] * 4),
    ('equal', 4, [(0, 256), (256, 512), (512, 768), (768, 1024)]), ('progressive', 1, [(0, 1024)])])
def test_codes_that_each_scale_may_use(allocation, scales, parts):
    assert allocate(1024, scales, allocation) == [slice(*part) for part in parts]


@pytest.mark.parametrize('params, message', [
    (dict(num_codes=10, num_scales=4), 'num_codes=10'), (dict(feature_start=True), 'revive_after')])
def test_codes_that_cannot_be_split_or_begin_on_features_are_refused(params, message):
    with pytest.raises(ValueError, match=message):
        CodebookParams(**params)


# ---------------------------------------------------------------------------- quantisation

def book_of(num_codes, num_scales=1, **params):
    return Codebook(CodebookParams(num_codes=num_codes, code_dim=4, num_scales=num_scales, num_heads=1, **params))


@pytest.fixture
def codebook():
    book = book_of(16, num_scales=4)
    torch.nn.init.normal_(book.embedding)
    return book


def test_nearest_is_the_nearest_and_ties_go_to_the_lower_index():
    vectors, codes = torch.randn(50, 4), torch.randn(16, 4)
    assert torch.equal(nearest(vectors, codes), torch.cdist(vectors, codes).argmin(1))
    assert nearest(torch.zeros(1, 2), torch.ones(3, 2)).item() == 0


def test_a_code_quantises_to_itself(codebook):
    z = codebook.embedding.detach()[:4].t().reshape(1, 4, 2, 2)
    quantized = codebook.quantize(z, 0)
    assert torch.equal(quantized.indices.flatten(), torch.arange(4))
    assert torch.equal(quantized.vectors, z) and quantized.loss == 0


def test_loss_is_the_formula(codebook):
    z = torch.randn(2, 4, 3, 3)
    codes = codebook.embedding.detach()
    z_q = codes[torch.cdist(z.permute(0, 2, 3, 1).reshape(-1, 4), codes).argmin(1)].view(2, 3, 3, 4).permute(0, 3, 1, 2)
    torch.testing.assert_close(codebook.quantize(z, 3).loss, 1.25 * (z - z_q).square().mean())


def test_straight_through_gradient_equals_the_incoming_one(codebook):
    z = torch.randn(2, 4, 3, 3, requires_grad=True)
    incoming = torch.randn(2, 4, 3, 3)
    codebook.quantize(z, 2).vectors.backward(incoming)
    assert torch.equal(z.grad, incoming) and codebook.embedding.grad is None


def test_a_scale_trains_only_its_own_codes(codebook):
    codebook.quantize(torch.randn(2, 4, 8, 8), 1).loss.backward()
    assert codebook.embedding.grad[:8].any() and not codebook.embedding.grad[8:].any()


def test_usage_counts_codes_and_perplexity():
    share, perplexity = usage(torch.tensor([0, 1, 0, 1]), 4)
    assert share == 0.5 and perplexity.item() == pytest.approx(2)


def test_idle_codes_are_revived_and_used_ones_left_alone():
    book = book_of(8, revive_after=3)
    torch.nn.init.normal_(book.embedding)
    before = book.embedding.detach().clone()
    z = before[0].view(1, 4, 1, 1).expand(1, 4, 2, 2) + 1e-3
    for _ in range(3):
        assert torch.equal(book.embedding, before)
        book.revive([book.quantize(z, 0)])
    moved = (book.embedding != before).any(1)
    assert moved.tolist() == [False] + [True] * 7
    torch.testing.assert_close(book.embedding[1:], z[0, :, 0, 0].expand(7, 4))


def scales_apart():
    """Features of four scales that differ in mean and size, (8, 4, 8, 8) each."""
    torch.manual_seed(1)
    return [mean + size * torch.randn(8, 4, 8, 8) for mean, size in ((0, 1), (10, 1), (-5, 0.1), (3, 4))]


@pytest.mark.parametrize('allocation', ['progressive', 'shared', 'equal'])
def test_scales_take_turns_in_reviving_codes_that_they_may_read(allocation):
    slices = allocate(16, 4, allocation)
    turns = take_turns(slices)
    assert sorted(code for codes in turns for code in codes) == list(range(16))
    assert all(part.start <= code < part.stop for part, codes in zip(slices, turns) for code in codes)
    assert all(turns)


@pytest.mark.parametrize('whitened', [False, True])
def test_whitened_features_of_all_scales_share_codes(whitened):
    book = book_of(32, num_scales=4, revive_after=20, feature_start=True, whitened=whitened)
    for _ in range(2):
        chosen = [book.quantize(z, scale) for scale, z in enumerate(scales_apart())]
        book.revive(chosen)
    used = [usage(quantized.indices, part.stop - part.start)[0] for part, quantized in zip(book.slices, chosen)]
    assert (min(used) > 0.5) == whitened, used


def test_codes_begin_on_features():
    book = book_of(8, revive_after=50, feature_start=True)
    z = torch.randn(1, 4, 4, 4) + 3
    quantized = book.quantize(z, 0)
    book.revive([quantized])
    features = z.permute(0, 2, 3, 1).reshape(16, 4)
    away = torch.cdist(book.embedding.detach(), features).min(1).values
    assert (away > 1e-6).sum() == len(quantized.indices.unique())        # those in use stay where they were drawn
    book.embedding.data.zero_()
    book.revive([book.quantize(z, 0)])
    assert not book.embedding.any()                                       # and only the beginning is that quick


# ---------------------------------------------------------------------------- where gradients go, Eq. 3 and 5

@pytest.fixture(scope='module')
def learned():
    torch.manual_seed(0)
    model = build_model(tiny())
    for book in (model.motion.codebook, model.appearance.codebook):
        torch.nn.init.normal_(book.embedding, std=0.5)
    return model, model(random_images(2), random_images(2))


def reached(model, scalar):
    """Names of the parameters that get a gradient which is not zero everywhere."""
    names, parameters = zip(*model.named_parameters())
    gradients = torch.autograd.grad(scalar, parameters, retain_graph=True, allow_unused=True)
    return {name for name, gradient in zip(names, gradients) if gradient is not None and gradient.any()}


@pytest.mark.parametrize('loss, some, alone', [
    ('motion_code', ['motion.codebook.embedding', 'motion.encode.0.weight'], ('motion.codebook.', 'motion.encode.')),
    # The codes are passed straight through, and the flow is not reached.
    ('motion_reconstruction', ['motion.encode.0.weight', 'motion.decode.3.weight'],
     ('motion.encode.', 'motion.decode.')),
    ('appearance_code', ['appearance.codebook.embedding', 'encoder.stem.weight',
                         *(f'appearance.embed.{scale}.weight' for scale in range(4))],
     ('appearance.codebook.', 'appearance.embed.', 'encoder.'))])
def test_a_loss_trains_what_it_shall_alone(learned, loss, some, alone):
    model, generated = learned
    names = reached(model, generated.losses[loss])
    assert set(some) <= names and all(name.startswith(alone) for name in names)


def test_the_coarsest_appearance_code_does_not_see_the_encoder_end(learned):
    """Released code: it learns from a mid-encoder feature."""
    model, generated = learned
    names = reached(model, generated.appearance_quantized[0].loss)
    assert 'encoder.levels.3.blocks.0.0.conv1.weight' in names
    assert not any(name.startswith(('encoder.middle', 'encoder.head', 'encoder.levels.3.blocks.1')) for name in names)


def test_prediction_trains_codes_through_attention_and_the_motion_estimator(learned):
    model, generated = learned
    names = reached(model, generated.prediction.square().mean())
    assert {'motion.codebook.embedding', 'appearance.codebook.embedding', 'keypoint_detector.kp.weight',
            'dense_motion.mask.weight', 'dense_motion.occlusion.weight'} <= names
    assert not any(name.startswith('motion.decode') for name in names)    # D_M serves the codebook alone


def test_every_parameter_learns_from_something(learned):
    model, generated = learned
    total = (generated.prediction.square().mean() + generated.first_scale_prediction.square().mean()
             + sum(generated.losses.values()))
    everything = {name for name, _ in model.named_parameters()}
    ignored = {name for name in everything if name.endswith('key.bias')}      # by the softmax
    assert everything - reached(model, total) <= ignored


def test_learning_the_codes_leaves_the_flow_alone():
    model = build_model(tiny())
    flow = (torch.rand(1, 8, 8, 2) * 2 - 1).requires_grad_()
    residual, _, feature = model.motion(0, flow, torch.randn(1, 16, 4, 4), torch.randn(1, 8, 4, 4),
                                        model.motion.project_codes())
    _, (quantized,), reconstruction_loss = model.motion.learn([flow], [feature])
    (reconstruction_loss + quantized.loss).backward(retain_graph=True)
    assert flow.grad is None
    residual.sum().backward()    # the refinement itself is differentiable in the flow it refines
    assert flow.grad.any()
