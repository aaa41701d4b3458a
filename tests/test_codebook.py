"""Codes: who may use which, what Eq. 1, 3, 4 and 5 compute, and where their gradients go."""

import pytest
import torch

from modules.build import build_model
from modules.codebook import Codebook, CodebookParams, allocate, nearest, take_turns, usage
from tests.support.tiny import tiny

# ---------------------------------------------------------------------------- allocation, Sec. 3.2.1

def test_progressive_scale_i_uses_the_first_i_groups():
    slices = allocate(1024, 4, 'progressive')
    assert [(part.start, part.stop) for part in slices] == [(0, 256), (0, 512), (0, 768), (0, 1024)]


def test_equal_split_is_a_partition_and_shared_is_everything():
    equal = allocate(1024, 4, 'equal')
    assert sorted(code for part in equal for code in range(1024)[part]) == list(range(1024))
    assert all(part == slice(0, 1024) for part in allocate(1024, 4, 'shared'))


def test_a_single_scale_uses_all_codes():
    assert allocate(1024, 1, 'progressive') == [slice(0, 1024)]


def test_codes_that_cannot_be_split_are_refused():
    with pytest.raises(ValueError, match='num_codes=10'):
        CodebookParams(num_codes=10, num_scales=4)


# ---------------------------------------------------------------------------- quantisation

@pytest.fixture
def codebook():
    torch.manual_seed(0)
    book = Codebook(CodebookParams(num_codes=16, code_dim=4, num_scales=4, num_heads=1))
    torch.nn.init.normal_(book.embedding)
    return book


def test_nearest_is_the_nearest():
    torch.manual_seed(0)
    vectors, codes = torch.randn(50, 4), torch.randn(16, 4)
    assert torch.equal(nearest(vectors, codes), torch.cdist(vectors, codes).argmin(1))


def test_ties_go_to_the_lower_index():
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
    torch.manual_seed(0)
    book = Codebook(CodebookParams(num_codes=8, code_dim=4, num_scales=1, num_heads=1, revive_after=3))
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
    torch.manual_seed(0)
    book = Codebook(CodebookParams(num_codes=32, code_dim=4, num_scales=4, num_heads=1, revive_after=20,
                                   feature_start=True, whitened=whitened))
    for _ in range(2):
        chosen = [book.quantize(z, scale) for scale, z in enumerate(scales_apart())]
        book.revive(chosen)
    used = [usage(quantized.indices, part.stop - part.start)[0] for part, quantized in zip(book.slices, chosen)]
    assert (min(used) > 0.5) == whitened, used


def test_codes_begin_on_features():
    torch.manual_seed(0)
    book = Codebook(CodebookParams(num_codes=8, code_dim=4, num_scales=1, num_heads=1, revive_after=50,
                                   feature_start=True))
    z = torch.randn(1, 4, 4, 4) + 3
    quantized = book.quantize(z, 0)
    book.revive([quantized])
    features = z.permute(0, 2, 3, 1).reshape(16, 4)
    away = torch.cdist(book.embedding.detach(), features).min(1).values
    assert (away > 1e-6).sum() == len(quantized.indices.unique())        # those in use stay where they were drawn
    book.embedding.data.zero_()
    book.revive([book.quantize(z, 0)])
    assert not book.embedding.any()                                       # and only the beginning is that quick


def test_codes_that_begin_on_features_need_revival():
    with pytest.raises(ValueError, match='revive_after'):
        CodebookParams(feature_start=True)


# ---------------------------------------------------------------------------- where gradients go, Eq. 3 and 5

@pytest.fixture(scope='module')
def learned():
    torch.manual_seed(0)
    model = build_model(tiny())
    for book in (model.motion.codebook, model.appearance.codebook):
        torch.nn.init.normal_(book.embedding, std=0.5)
    return model, model(torch.rand(2, 3, 32, 32) * 2 - 1, torch.rand(2, 3, 32, 32) * 2 - 1)


def reached(model, scalar):
    """Names of the parameters that get a gradient which is not zero everywhere."""
    names, parameters = zip(*model.named_parameters())
    gradients = torch.autograd.grad(scalar, parameters, retain_graph=True, allow_unused=True)
    return {name for name, gradient in zip(names, gradients) if gradient is not None and gradient.any()}


def only(names, *prefixes):
    return all(name.startswith(prefixes) for name in names)


def test_motion_code_loss_trains_encoder_and_codes_alone(learned):
    model, generated = learned
    names = reached(model, generated.losses['motion_code'])
    assert 'motion.codebook.embedding' in names and 'motion.encode.0.weight' in names
    assert only(names, 'motion.codebook.', 'motion.encode.')


def test_motion_reconstruction_passes_the_codes_and_stops_at_the_flow(learned):
    model, generated = learned
    names = reached(model, generated.losses['motion_reconstruction'])
    assert 'motion.encode.0.weight' in names and 'motion.decode.3.weight' in names
    assert 'motion.codebook.embedding' not in names    # straight through
    assert only(names, 'motion.encode.', 'motion.decode.')


def test_appearance_code_loss_trains_image_encoder_embedding_and_codes(learned):
    model, generated = learned
    names = reached(model, generated.losses['appearance_code'])
    assert {'appearance.codebook.embedding', 'encoder.stem.weight'} <= names
    assert {f'appearance.embed.{scale}.weight' for scale in range(4)} <= names
    assert only(names, 'appearance.codebook.', 'appearance.embed.', 'encoder.')


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
    torch.manual_seed(0)
    model = build_model(tiny())
    flow = (torch.rand(1, 8, 8, 2) * 2 - 1).requires_grad_()
    residual, _, feature = model.motion(0, flow, torch.randn(1, 16, 4, 4), torch.randn(1, 8, 4, 4),
                                        model.motion.project_codes())
    learned = model.motion.learn([flow], [feature])
    (learned.reconstruction_loss + learned.quantized[0].loss).backward(retain_graph=True)
    assert flow.grad is None
    residual.sum().backward()    # the refinement itself is differentiable in the flow it refines
    assert flow.grad.any()
