"""All methods: interface, recipes, parts and checkpoints of FOMM, MCNet, MRFA and DaGAN; the ablations."""

import json
import subprocess

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from config import schema
from logger import read_checkpoint
from modules.build import build_discriminator, build_model, build_objective
from modules.depth import DepthNetwork, DepthParams
from modules.discriminator import MultiScaleDiscriminator, MultiScaleDiscriminatorParams
from modules.fomm import Fomm
from modules.keypoint_detector import KeypointDetector, KeypointDetectorParams
from modules.losses import ADVERSARIAL_FORMS, RandomTransform, feature_matching
from modules.mcnet import feature_consistency
from modules.objective import DiscriminatorObjective
from modules.pairs import micro_batches
from modules.published.formats import (
    FORMATS, ImportFault, flatten_checkpoint, has_discriminator, import_tensors, published_shapes)
from modules.talking_head import Generated, Keypoints
from modules.token_pose import TokenKeypointDetector, TokenPoseParams, sine_position
from modules.training_step import build_training_step
from modules.warp import identity_grid, to_displacement
from support.errors import UserError
from tests.support.agents import ended, in_two_processes
from tests.support.command_line import succeeds
from tests.support.inputs import published
from tests.support.small import QUICK, SMALL_METHOD, SMALL_SYNERGY, random_images, small_config, small_model
from tests.support.tiny import ROOT, SHARED, tiny
from tests.support.training import assert_near, train_in
from tools.import_checkpoint import import_published

FIRST_ORDER = 'fomm', 'mcnet', 'mrfa', 'mrfa-fomm', 'dagan'
# Compensated scales of motion and of appearance.
ABLATIONS = {'baseline': (0, 0), 'smc': (1, 0), 'mmc': (4, 0), 'mmc-sac': (4, 1),
             **dict.fromkeys(('mmc-mac', 'progressive', 'shared', 'equal'), (4, 4))}


def train(config, steps):
    """`steps` training steps on one batch; yields (losses, model) after each."""
    step = build_training_step(schema.override(config, ['train_params.learning_rate=2e-3']), torch.device('cpu'))
    batch = {'source': random_images(2, 1), 'driving': random_images(2, 2), 'index': torch.arange(2)}
    for number in range(steps):
        result = step(micro_batches(batch, config.train_params), step.first_full_step + number)
        assert result.finite
        yield result.losses, step.state.model


# ---------------------------------------------------------------------------- the interface

@pytest.mark.parametrize('name', ['synergy', *FIRST_ORDER])
@torch.no_grad()
def test_a_batch_gives_what_its_samples_give_alone(name):
    model, source, driving = small_model(name), random_images(3, 1), random_images(3, 2)
    together = model(source, driving)
    assert together.prediction.shape == source.shape and together.prediction.std() > 0.01
    for i in range(3):
        alone = model(source[i:i + 1], driving[i:i + 1])
        torch.testing.assert_close(together.prediction[i:i + 1], alone.prediction, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('name', ['synergy', *FIRST_ORDER])
@torch.no_grad()
def test_one_encoded_source_serves_many_poses(name):
    model, source, driving = small_model(name), random_images(1, 1), random_images(3, 2)
    rendered = model.render(model.encode_source(source), model.keypoints(driving))
    straight = model(source.expand(3, -1, -1, -1), driving)
    torch.testing.assert_close(rendered.prediction, straight.prediction, atol=1e-4, rtol=1e-4)
    assert not rendered.losses and rendered.source_keypoints is None


@pytest.mark.parametrize('name, count', [
    ('fomm', 45_575_391 + 14_215_368), ('fomm-adv', 45_575_391 + 14_215_368), ('mcnet', 87_583_005 + 14_258_268),
    ('mrfa-fomm', 14_153_592 + 37_730_268 + 64_325_476), ('mrfa', 12_234_310 + 37_730_268 + 64_325_476),
    ('dagan', 46_096_917 + 14_262_519 + 11_689_512 - 513_000 + 3_152_724)])         # its ResNet without the classifier
def test_parameters_are_as_many_as_published(name, count):
    with torch.device('meta'):
        model = build_model(schema.load(ROOT / 'config' / f'{name}-vox-256.yaml'))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


# ---------------------------------------------------------------------------- training

def test_consistency_moves_the_memory_and_not_the_feature():
    feature = torch.randn(2, 3, 8, 8, requires_grad=True)
    value = torch.randn(2, 3, 4, 4, requires_grad=True)
    feature_consistency(feature, value).backward()
    assert feature.grad is None and value.grad.abs().min() > 0
    same = torch.randn(2, 3, 4, 4)
    assert feature_consistency(same, same) == 0 and feature_consistency(same, same + 2) == pytest.approx(2)


@pytest.mark.parametrize('name', ['fomm', 'fomm-adv', 'mcnet', 'mrfa', 'dagan'])
def test_a_recipe_trains(name):
    history = [losses for losses, _ in train(small_config(name), 16)]
    assert history[-1]['l1'] < 0.9 * history[0]['l1']
    assert history[-1]['total'] < 0.9 * history[0]['total']
    assert ('feature_consistency' in history[0]) == (name == 'mcnet')
    assert ('discriminator_real' in history[0]) == (name in ('fomm-adv', 'dagan'))
    if 'discriminator_real' in history[0]:
        first, *_, last = (losses['discriminator_real'] + losses['discriminator_fake'] for losses in history)
        assert last < first


@pytest.mark.parametrize('name', ABLATIONS)
def test_an_ablation_builds_and_steps(name):
    (losses, model), = train(schema.load(ROOT / 'config' / 'ablation' / f'{name}.yaml', SMALL_SYNERGY), 1)
    motion, appearance = ABLATIONS[name]
    assert (model.motion_scales, model.appearance_scales) == (motion, appearance)
    assert ('motion_code' in losses, 'appearance_code' in losses) == (motion > 0, appearance > 0)
    assert not motion or model.motion.codebook.slices[-1] == slice(12 if name == 'equal' else 0, 16)


def test_ablations_are_the_rows_of_both_tables():
    assert {path.stem for path in (ROOT / 'config' / 'ablation').glob('*.yaml')} == ABLATIONS.keys()


# ---------------------------------------------------------------------------- adversarial losses

@pytest.mark.parametrize('config', [tiny(), small_config('fomm-adv')], ids=['synergy', 'fomm-adv'])
def test_total_is_the_weighted_sum_and_its_gradient_that_of_autograd(config):
    """Taking gradients at the image and sending them down once must equal the plain backward pass."""
    model, discriminator = build_model(config).eval(), build_discriminator(config).eval().requires_grad_(False)
    objective, size = build_objective(config, model), config.model_params.image_size
    source, driving = random_images(2, 1, size), random_images(2, 2, size)
    transform = RandomTransform.draw(2, torch.Generator().manual_seed(0))
    step = objective(source, driving, transform, discriminator=discriminator)
    step.total.backward()
    ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()

    weights, generated = objective.weights, model(source, driving)
    images = {1: generated.prediction, weights['first_scale']: generated.first_scale_prediction}
    plain = sum(scale * weights['l1'] * (image - driving).abs().mean()
                for scale, image in images.items() if image is not None)
    keypoints = generated.driving_keypoints.map(torch.Tensor.detach)
    fake, real = discriminator(generated.prediction, keypoints), discriminator(driving, keypoints)
    form = ADVERSARIAL_FORMS[objective.params.adversarial]
    plain += weights['adversarial'] * step.losses.get('adaptive_weight', 1) * sum(map(form.generator, fake.logits))
    plain += weights['feature_matching'] * feature_matching(real.features, fake.features)
    own = generated.losses | objective._keypoint_losses(generated, driving, transform)
    plain += sum(weights[name] * loss for name, loss in own.items())
    torch.testing.assert_close(step.total.detach(), plain.detach())
    plain.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, atol=1e-5, rtol=1e-3, msg=lambda m: f'{name}: {m}')


def test_adversarial_forms_by_hand():
    logits = torch.tensor([-1., 0.5, 3.])
    lsgan, hinge = ADVERSARIAL_FORMS['lsgan'], ADVERSARIAL_FORMS['hinge']
    assert lsgan.generator(logits) == lsgan.real(logits) == pytest.approx((4 + 0.25 + 4) / 3)
    assert lsgan.fake(logits) == pytest.approx((1 + 0.25 + 9) / 3)
    assert hinge.generator(logits) == pytest.approx(-2.5 / 3)
    assert hinge.real(logits) == pytest.approx((2 + 0.5 + 0) / 3)
    assert hinge.fake(logits) == pytest.approx((0 + 1.5 + 4) / 3)
    assert feature_matching([torch.zeros(2), torch.ones(3)], [torch.ones(2), torch.full((3,), 3.)]) == 3


def test_keypoints_condition_the_discriminator_without_gradient():
    config = small_config('fomm-adv')
    discriminator, image = build_discriminator(config), random_images(1)
    here, there = (Keypoints(torch.full((1, 4, 2), x)) for x in (-0.5, 0.5))
    assert (discriminator(image, here).logits[0] - discriminator(image, there).logits[0]).abs().max() > 1e-4

    generated = Generated(image, [], [], driving_keypoints=Keypoints(here.value.clone().requires_grad_()))
    total, _ = DiscriminatorObjective(discriminator, config.train_params.objective_params)(image, generated)
    total.backward()
    assert generated.driving_keypoints.value.grad is None and discriminator.scales[0].head.weight.grad.any()


def test_spectral_norm_bounds_every_kernel():
    params = MultiScaleDiscriminatorParams(scales=(1, 0.5), block_expansion=4, num_blocks=2, spectral_norm=True)
    discriminator = MultiScaleDiscriminator(params, num_kp=4)
    for _ in range(30):
        output = discriminator(random_images(1), None)
    assert len(output.logits) == 2 and len(output.features) == 4
    for module in discriminator.modules():
        if isinstance(module, nn.Conv2d):
            assert float(torch.linalg.matrix_norm(module.weight.detach().flatten(1), 2)) == pytest.approx(1, abs=1e-3)


# ---------------------------------------------------------------------------- published checkpoints

def published_tensors(source, model, discriminator=None):
    """{'<network>/<name>': random tensor} of the format `source`."""
    shapes = published_shapes(source, model, discriminator)
    return {name: torch.randn(shape) for name, shape in shapes.items()} | FORMATS[source].constants(model)


def as_file(tensors, prefix=''):
    """What the public codes save: one state dict per network, and the optimisers'."""
    contents = {'epoch': 99, 'optimizer_generator': {'state': {}, 'param_groups': []}}
    for name, tensor in tensors.items():
        network, name = name.split('/', 1)
        contents.setdefault(network, {})[prefix + name] = tensor
    return contents


def save_safetensors(networks, path):
    save_file({f'{network}.{name}': tensor.contiguous().clone()
               for network, tensors in networks.items() for name, tensor in tensors.items()}, path)


@pytest.mark.parametrize('name', ['fomm', 'fomm-adv', 'mcnet', 'dagan'])
def test_a_published_file_fills_every_tensor(name):
    source = name.removesuffix('-adv')
    model, discriminator = (build(small_config(name)) for build in (build_model, build_discriminator))
    tensors = published_tensors(source, model, discriminator)
    flat = flatten_checkpoint(source, [as_file(tensors, 'module.' if source == 'mcnet' else '')])
    assert has_discriminator(source, flat)
    after = model.state_dict() | discriminator.state_dict()
    before = {key: value.clone() for key, value in after.items()}
    import_tensors(source, flat, model, discriminator)
    same = [key for key, value in after.items() if torch.equal(value, before[key])]
    assert all(key.endswith('num_batches_tracked') for key in same), same
    assert torch.equal(model.head.weight, tensors['generator/final.weight'])
    if name == 'fomm':
        original = discriminator.scales[0].blocks[1].conv.parametrizations.weight.original
        assert torch.equal(original, tensors['discriminator/discs.1.down_blocks.1.conv.weight_orig'])
    if name == 'mcnet':
        kernels = tensors['generator/mbUnit.conv_kv.weight']
        assert torch.equal(model.compensation.key_value.weight, kernels.flatten(0, 1))
        assert torch.equal(model.levels[1].residual[1].conv1.weight, tensors['generator/resblock.3.conv1.weight'])


@pytest.mark.parametrize('source, dtype, save, suffix', [        # each two of these that can meet
    ('smac', torch.float16, torch.save, '.pth'), ('smac', torch.bfloat16, save_safetensors, '.safetensors'),
    ('fomm', torch.bfloat16, torch.save, '.pth'), ('fomm', torch.float16, save_safetensors, '.safetensors'),
    ('mcnet', torch.float16, torch.save, '.pth'), ('mcnet', torch.bfloat16, save_safetensors, '.safetensors')])
def test_files_in_half_precision_are_imported_as_float32(tmp_path, source, dtype, save, suffix):
    files, config = published(source)
    paths = [tmp_path / f'{n}{suffix}' for n in range(len(files))]
    for path, networks in zip(paths, files):
        save({network: {name: tensor.to(dtype) if tensor.is_floating_point() else tensor
                        for name, tensor in tensors.items()} for network, tensors in networks.items()}, path)
    import_published(source, paths, config, tmp_path / 'model.pt')
    imported = read_checkpoint(tmp_path / 'model.pt')['ema']
    assert {tensor.dtype for tensor in imported.values()} == {torch.float32, torch.int64}
    assert all(torch.equal(tensor, tensor.to(dtype).float())
               for tensor in imported.values() if tensor.is_floating_point())


def test_files_of_another_method_or_network_are_refused():
    zero, one = torch.zeros(1), torch.ones(1)
    fomm, mcnet = ({'generator': {mark: zero}, 'kp_detector': {'kp.bias': zero}}
                   for mark in ('final.bias', 'module.mbUnit.mb'))
    net_g = {'params': {'encoder.blocks.0.bias': zero}, 'params_ema': {'encoder.blocks.0.bias': one}}
    estimator = {'params': {'dense_motion_network.mask.bias': zero}}
    for source, files, complaint in [
            ('fomm', [mcnet], 'it is one of format mcnet'),
            ('mcnet', [fomm], 'it is one of format fomm'),
            ('smac', [fomm], 'it is one of format fomm'),
            ('fomm', [net_g], 'it is one of format smac'),
            ('fomm', [{'model': {}, 'epoch': 3}], 'it holds model, epoch'),
            ('fomm', [[1]], 'it holds a list'),
            ('fomm', [fomm, fomm], 'generator is in two'),
            ('smac', [net_g, net_g], 'net_g is in two'),
            ('smac', [net_g], 'net_motion_estimator is in none'),
            ('fomm', [], 'generator is in none'),
            ('fomm', [{'generator': fomm['generator']}], 'kp_detector is in none'),
            ('fomm', [fomm | {'avd_network': {'x': zero}}], 'avd_network is not of format fomm')]:
        with pytest.raises(ImportFault, match=complaint):
            flatten_checkpoint(source, files)
    # The order of the paper's files does not matter, and averaged weights are another variant.
    raw, ema = (flatten_checkpoint('smac', [estimator, net_g], ema=ema) for ema in (False, True))
    assert raw['net_g/encoder.blocks.0.bias'] == 0 and ema['net_g/encoder.blocks.0.bias'] == 1
    assert raw.keys() == ema.keys() and not has_discriminator('smac', raw)


# ---------------------------------------------------------------------------- MRFA

@torch.no_grad()
def test_without_corrections_every_scale_has_the_prior():
    model = small_model('mrfa-fomm')
    for head in (model.refinement.update.motion[-1], model.refinement.update.occlusion[-1]):
        nn.init.zeros_(head.weight), nn.init.zeros_(head.bias)
    generated = model(random_images(1, 1), random_images(1, 2))
    prior, *refined = generated.flows
    assert [flow.shape[1] for flow in refined] == [8, 16, 32, 64] and len(generated.occlusions) == 5
    torch.testing.assert_close(refined[1], prior, atol=1e-5, rtol=0)                # its own grid
    assert (prior - identity_grid((16, 16), prior)).abs().max() > 0.01
    nn.init.constant_(model.refinement.update.motion[-1].bias, 0.5)
    moved = [to_displacement(flow) for flow in model(random_images(1, 1), random_images(1, 2)).flows[1:]]
    still = [to_displacement(flow) for flow in refined]
    # Half a pixel at each scale, and what coarser scales have corrected counts twice at the next.
    for correction, ours, theirs in zip((0.5, 1.5, 3.5, 7.5), moved, still):
        torch.testing.assert_close(ours - theirs, torch.full_like(ours, correction), atol=1e-4, rtol=0)


def test_keypoints_may_share_one_map_of_jacobians():
    params = KeypointDetectorParams(num_kp=4, block_expansion=4, num_blocks=1, shared_jacobian=True, scale_factor=1)
    detector = KeypointDetector(params)
    nn.init.normal_(detector.jacobian.weight, std=0.3), detector.kp.weight.data.mul_(30)
    found = detector(random_images(2, size=16)).jacobian
    assert detector.jacobian.weight.shape[0] == 4 and found.shape == (2, 4, 2, 2)
    assert (found[:, 0] - found[:, 1]).abs().max() > 1e-3        # each reads it where it is


# ---------------------------------------------------------------------------- DaGAN

@torch.no_grad()
def test_a_fresh_dagan_renders_as_fomm_does():
    model = small_model('dagan')
    nn.init.zeros_(model.attention.gamma)
    source, driving = random_images(1, 1), random_images(2, 2)
    state, pose = model.encode_source(source), model.keypoints(driving)
    torch.testing.assert_close(model.render(state, pose).prediction, Fomm.render(model, state, pose).prediction)
    nn.init.ones_(model.attention.gamma)
    assert (model.render(state, pose).prediction - Fomm.render(model, state, pose).prediction).abs().max() > 1e-3


@torch.no_grad()
def test_keypoints_see_the_disparity():
    model, image = small_model('dagan'), random_images(1)
    before = model.keypoints(image).value
    model.depth.decoder.heads[0].bias.add_(3)
    assert (model.keypoints(image).value - before).abs().max() > 1e-5


def test_the_depth_network_is_never_trained():
    model = small_model('dagan').train()
    before = {name: tensor.clone() for name, tensor in model.depth.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    model(random_images(2, 1), random_images(2, 2)).prediction.square().mean().backward()
    optimizer.step()
    assert not any(module.training for module in model.depth.modules()) and model.encoder.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.depth.state_dict().items())
    assert all(parameter.grad is None for parameter in model.depth.parameters())


@pytest.mark.parametrize('layers, widths', [(18, [8, 8, 16, 32, 64]), (50, [8, 32, 64, 128, 256])])
@torch.no_grad()
def test_disparities_of_both_depth_networks(layers, widths):
    network = DepthNetwork(DepthParams(num_layers=layers, block_expansion=8))
    image = (random_images(2) + 1) / 2
    features = network.encoder(image)
    assert [feature.shape[1] for feature in features] == widths
    disparities = network.decoder(features)
    assert [tuple(disparity.shape[1:]) for disparity in disparities] == [(1, side, side) for side in (64, 32, 16, 8)]
    assert 0 < disparities[0].min() < disparities[0].max() < 1 and torch.equal(network(image), disparities[0])


# ---------------------------------------------------------------------------- published files

def depth_files(folder, network, **damage):
    """encoder.pth and depth.pth as their authors save them: with sizes and a classifier that nothing uses."""
    torch.manual_seed(5)
    halves = {'depth_encoder': {'height': 224, 'width': 224, 'use_stereo': False,
                                'encoder.fc.weight': torch.zeros(9, 4), 'encoder.fc.bias': torch.zeros(9)},
              'depth_decoder': {}}
    for name, shape in published_shapes('depth', network).items():
        half, name = name.split('/')
        halves[half][name] = torch.randn(shape).abs() * 0.1
    halves['depth_encoder'] |= damage
    folder.mkdir(exist_ok=True)
    for half, name in zip(halves, ('encoder.pth', 'depth.pth')):
        torch.save(halves[half], folder / name)
    return halves


def train_small(folder, name, *overrides):
    train_in(folder, small_config(name, *QUICK, *overrides))


def test_training_begins_with_the_published_depth_network_and_keeps_it(tmp_path):
    files, given = tmp_path / 'weights_19', f'model_params.depth_params.pretrained={tmp_path / "weights_19"}'
    with pytest.raises(UserError, match='encoder.pth and .*depth.pth are missing: docs/weights.md'):
        train_small(tmp_path / 'run', 'dagan', given)
    halves = depth_files(files, build_model(small_config('dagan')).depth)
    train_small(tmp_path / 'run', 'dagan', given)
    state = read_checkpoint(tmp_path / 'run' / 'checkpoints' / '00000002.pt')
    for part in ('model', 'ema'):
        assert torch.equal(state[part]['depth.encoder.stages.1.0.conv1.weight'],
                           halves['depth_encoder']['encoder.layer2.0.conv1.weight'])
        assert torch.equal(state[part]['depth.decoder.blocks.2.1.bias'],
                           halves['depth_decoder']['decoder.5.conv.conv.bias'])
    (files / 'depth.pth').unlink()               # the checkpoint holds it
    train_small(tmp_path / 'run', 'dagan', given, 'train_params.num_iterations=3')

    depth_files(files, build_model(small_config('dagan')).depth, **{'encoder.conv1.weight': torch.zeros(8, 3, 5, 5)})
    with pytest.raises(UserError, match='weights_19: tensor depth_encoder/encoder.conv1.weight has shape'):
        train_small(tmp_path / 'other', 'dagan', given)


def test_dagan_is_imported_with_its_depth_network(tmp_path):
    model = build_model(small_config('dagan'))
    tensors = published_tensors('dagan', model)
    contents = as_file({name: tensor for name, tensor in tensors.items() if not name.startswith('depth')}, 'module.')
    halves = depth_files(tmp_path, model.depth)
    with pytest.raises(ImportFault, match='depth_encoder is in none of the files'):
        flatten_checkpoint('dagan', [contents])
    files = [torch.load(tmp_path / name, weights_only=True) for name in ('encoder.pth', 'depth.pth')]
    import_tensors('dagan', flatten_checkpoint('dagan', [contents, *files]), model)
    assert torch.equal(model.disparity_encoder.first.conv.weight, tensors['generator/src_first.conv.weight'])
    assert torch.equal(model.attention.key.weight, tensors['generator/AttnModule.key_conv.weight'])
    assert torch.equal(model.depth.decoder.heads[1].bias, halves['depth_decoder']['decoder.9.conv.bias'])


@pytest.mark.parametrize('name, prior, other', [('mrfa', 'mtia', 'fomm'), ('mrfa-fomm', 'fomm', 'mtia')])
def test_mrfa_is_imported_without_its_loss_network(name, prior, other):
    model = build_model(small_config(name))
    tensors = published_tensors('mrfa', model)
    state = {name.replace('model/', 'module.'): tensor for name, tensor in tensors.items()}
    loss = {'module.vgg.slice1.0.weight': torch.zeros(1), 'module.pyramid.downs.1.weight': torch.zeros(1)}
    import_tensors('mrfa', flatten_checkpoint('mrfa', [{'model': state | loss, 'optimizer': {}, 'epoch': 99}]), model)
    assert torch.equal(model.levels[1].join.weight, tensors['model/decoder.generator.channel_block.1.conv1.weight'])
    assert torch.equal(model.refinement.update.occlusion[0].bias, tensors['model/decoder.refine.convo1.bias'])
    assert torch.equal(model.structure.source.down_blocks[0].conv.weight,
                       tensors['model/decoder.kp_img.encoder.down_blocks.0.conv.weight'])
    with pytest.raises(ImportFault, match=f'that of prior_model: {prior}, the config asks for {other}'):
        import_tensors('mrfa', tensors, build_model(small_config(dict(mtia='mrfa-fomm', fomm='mrfa')[prior])))
    with pytest.raises(ImportFault, match='it is one of format mrfa'):
        flatten_checkpoint('fomm', [{'model': state}])


def test_a_config_without_a_prior_is_loaded_and_says_which_it_is(tmp_path, caplog):
    (tmp_path / 'old.yaml').write_text('model_params: {method: mrfa}')
    with caplog.at_level('INFO'):
        assert schema.load(tmp_path / 'old.yaml').model_params.prior_model == 'fomm'
    assert "old.yaml has no model_params.prior_model: it is MRFA with FOMM's keypoint detector" in caplog.text


# ---------------------------------------------------------------------------- all modes

@pytest.mark.parametrize('name', ['fomm', 'mcnet', 'mrfa', 'mrfa-fomm', 'dagan'])
def test_every_mode_runs(name, tmp_path, capsys):
    sets = ['--set', *SMALL_METHOD[name], *QUICK,
            'dataset_params.synthetic_params={train_people: 2, test_people: 2, frames: 3}']
    model = ['--checkpoint', tmp_path / 'run' / 'checkpoints' / '00000002.pt']
    shared = ['--device', 'cpu', '--log_dir', tmp_path, '--run_name', 'run']
    for mode, arguments in [('train', ['--config', ROOT / 'config' / f'{name}-vox-256.yaml', *sets]),
                            ('reconstruction', model), ('animate', model), ('inspect', model),
                            ('evaluate', [*model, '--metrics', 'psnr.rgb'])]:
        succeeds(capsys, '--mode', mode, *arguments, *shared)
    folder = tmp_path / 'run'
    assert json.loads((folder / 'reconstruction' / 'metrics.json').read_text())
    assert list((folder / 'animation').glob('*.mp4')) and list((folder / 'evaluation').rglob('metrics.json'))


OF_TWO = """
import json, sys
from pathlib import Path
import torch
from modes.train import train_in
from support import distributed
device = distributed.start(torch.device('cpu'))
for name, options in json.loads(sys.argv[2]).items():
    train_in(Path(sys.argv[1], name), f'config/{name}-vox-256.yaml', options, device)
distributed.stop()
"""


def test_two_processes_equal_one(tmp_path):
    """Same global batch, same weights, batch norm included; to rounding, as sums are split."""
    # Fresh token transformers hardly see the image: with gradients so small, Adam makes steps of their rounding.
    options = {name: ['train_params.batch_size=4', f'train_params.num_iterations={steps}']
               for name, steps in {'mrfa': 1, 'mrfa-fomm': 3, 'dagan': 3}.items()}
    ended(in_two_processes(OF_TWO, tmp_path / 'two', json.dumps({
        name: [*SMALL_METHOD[name], *QUICK, *own] for name, own in options.items()}), stderr=subprocess.PIPE))
    for name, own in options.items():
        train_small(tmp_path / 'one' / name, name, *own)
        one, two = (read_checkpoint(max((tmp_path / count / name / 'checkpoints').glob('*.pt')))
                    for count in ('one', 'two'))
        assert_near(one, two, ['model', *(['discriminator'] if name == 'dagan' else [])], apart=4e-3)


# ---------------------------------------------------------------------------- MRFA's token transformer

SMALL = TokenPoseParams(width=4, stem_width=4, num_modules=2, patch_size=2, dim=16, num_heads=2, num_layers=2)


@pytest.fixture
def detector():
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
