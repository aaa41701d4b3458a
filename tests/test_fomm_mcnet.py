"""FOMM and MCNet on the interface of the paper's model, their recipes and checkpoints, and the ablations' configs."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from config import schema
from logger import read_checkpoint
from modules.build import build_discriminator, build_model, build_objective
from modules.discriminator import DiscriminatorOutput, MultiScaleDiscriminator, MultiScaleDiscriminatorParams
from modules.losses import ADVERSARIAL_FORMS, RandomTransform, feature_matching
from modules.mcnet import feature_consistency
from modules.objective import DiscriminatorObjective, Objective, ObjectiveParams, needs_discriminator
from modules.published.formats import (FORMATS, ImportFault, flatten_checkpoint, has_discriminator, import_tensors,
                                       published_shapes)
from modules.talking_head import Generated, Keypoints
from tests.support.inputs import published
from tests.support.small import SMALL_METHOD, SMALL_SYNERGY, random_images, small_config, small_model
from tests.support.tiny import ROOT
from tools.import_checkpoint import import_published

ABLATIONS = sorted((ROOT / 'config' / 'ablation').glob('*.yaml'))


def train(config, steps):
    """`steps` updates on one batch; yields (losses, objective) after each."""
    torch.manual_seed(0)
    params = config.train_params.objective_params
    model = build_model(config)
    objective = build_objective(config, model).train()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3, (0.5, 0.999))
    discriminator = build_discriminator(config) if needs_discriminator(params) else None
    if discriminator is not None:
        discriminate = DiscriminatorObjective(discriminator, params)
        discriminator_optimizer = torch.optim.Adam(discriminator.parameters(), 2e-4, (0.5, 0.999))
    source, driving = random_images(2, 1), random_images(2, 2)
    transform = RandomTransform.draw(2, torch.Generator().manual_seed(3))
    for _ in range(steps):
        optimizer.zero_grad()
        if discriminator is not None:
            discriminator.requires_grad_(False)
        step = objective(source, driving, transform, discriminator=discriminator)
        step.total.backward()
        losses = {'total': step.total.detach()} | step.losses
        optimizer.step()
        if discriminator is not None:
            discriminator.requires_grad_(True)
            discriminator_optimizer.zero_grad()
            total, found = discriminate(driving, step.generated)
            total.backward()
            discriminator_optimizer.step()
            losses |= found
        yield losses, model


# ---------------------------------------------------------------------------- the interface

@pytest.mark.parametrize('name', ['fomm', 'mcnet', 'mrfa', 'mrfa-fomm', 'dagan'])
@torch.no_grad()
def test_a_batch_gives_what_its_samples_give_alone(name):
    model, source, driving = small_model(name), random_images(3, 1), random_images(3, 2)
    together = model(source, driving)
    assert together.prediction.shape == source.shape and together.prediction.std() > 0.01
    for i in range(3):
        alone = model(source[i:i + 1], driving[i:i + 1])
        torch.testing.assert_close(together.prediction[i:i + 1], alone.prediction, atol=1e-4, rtol=0)


@pytest.mark.parametrize('name', ['fomm', 'mcnet', 'mrfa', 'mrfa-fomm', 'dagan'])
@torch.no_grad()
def test_one_encoded_source_serves_many_poses(name):
    model, source, driving = small_model(name), random_images(1, 1), random_images(3, 2)
    rendered = model.render(model.encode_source(source), model.keypoints(driving))
    straight = model(source.expand(3, -1, -1, -1), driving)
    torch.testing.assert_close(rendered.prediction, straight.prediction, atol=1e-4, rtol=0)
    assert not rendered.losses and rendered.source_keypoints is None


@pytest.mark.parametrize('name', ['fomm', 'mcnet', 'mrfa', 'mrfa-fomm', 'dagan'])
@torch.no_grad()
def test_images_are_in_our_range(name):
    model = small_model(name)
    nn.init.normal_(model.head.weight, std=30.)  # saturates
    nn.init.constant_(model.dense_motion.occlusion.bias, -40.)
    prediction = model(random_images(2, 1), random_images(2, 2)).prediction
    assert -1 <= prediction.min() < -0.9 and 0.9 < prediction.max() <= 1


def test_mcnet_shows_the_warped_source_where_it_is_visible():
    model, source, driving = small_model('mcnet'), random_images(1, 1), random_images(1, 2)
    nn.init.constant_(model.dense_motion.occlusion.bias, 40.)      # everything visible
    with torch.no_grad():
        generated = model(source, driving)
    torch.testing.assert_close(generated.prediction, 2 * generated.warped_source - 1, atol=1e-4, rtol=0)


@pytest.mark.parametrize('name, sub_network, count', [
    ('fomm', None, 45_575_391 + 14_215_368), ('fomm-adv', None, 45_575_391 + 14_215_368),
    ('mcnet', None, 87_583_005 + 14_258_268), ('mcnet', 'compensation', 25_049_289),
    ('mrfa-fomm', None, 14_153_592 + 37_730_268 + 64_325_476), ('mrfa-fomm', 'dense_motion', 37_730_268),
    ('mrfa', None, 12_234_310 + 37_730_268 + 64_325_476), ('mrfa', 'keypoint_detector.backbone', 7_685_632),
    ('dagan', None, 46_096_917 + 14_262_519 + 11_689_512 - 513_000 + 3_152_724)])   # its ResNet without the classifier
def test_parameters_are_as_many_as_published(name, sub_network, count):
    with torch.device('meta'):
        model = build_model(schema.load(ROOT / 'config' / f'{name}-vox-256.yaml'))
    assert sum(p.numel() for p in (model.get_submodule(sub_network) if sub_network else model).parameters()) == count


# ---------------------------------------------------------------------------- MCNet's parts

def test_consistency_moves_the_memory_and_not_the_feature():
    feature = torch.randn(2, 3, 8, 8, requires_grad=True)
    value = torch.randn(2, 3, 4, 4, requires_grad=True)
    feature_consistency(feature, value).backward()
    assert feature.grad is None and value.grad.abs().min() > 0
    same = torch.randn(2, 3, 4, 4)
    assert feature_consistency(same, same) == 0 and feature_consistency(same, same + 2) == pytest.approx(2)


# ---------------------------------------------------------------------------- training

@pytest.mark.parametrize('name', ['fomm', 'fomm-adv', 'mcnet', 'mrfa', 'dagan'])
def test_a_recipe_trains(name):
    history = [losses for losses, _ in train(small_config(name), 16)]
    for losses in history:
        assert all(torch.isfinite(value) for value in losses.values()), losses
    assert history[-1]['l1'] < 0.9 * history[0]['l1']
    assert history[-1]['total'] < 0.9 * history[0]['total']
    assert ('feature_consistency' in history[0]) == (name == 'mcnet')
    assert ('discriminator_real' in history[0]) == (name in ('fomm-adv', 'dagan'))
    if name in ('fomm-adv', 'dagan'):
        assert history[-1]['discriminator_real'] + history[-1]['discriminator_fake'] < \
            history[0]['discriminator_real'] + history[0]['discriminator_fake']


@pytest.mark.parametrize('path', ABLATIONS, ids=lambda path: path.stem)
def test_an_ablation_builds_and_steps(path):
    config = schema.load(path, SMALL_SYNERGY)
    (losses, model), = train(config, 1)
    assert all(torch.isfinite(value) for value in losses.values())
    named = {'baseline': (0, 0), 'smc': (1, 0), 'mmc': (4, 0), 'mmc-sac': (4, 1)}
    scales = named.get(path.stem, (4, 4))
    assert (model.motion_scales, model.appearance_scales) == scales
    assert ('motion_code' in losses, 'appearance_code' in losses) == (scales[0] > 0, scales[1] > 0)
    expected = {'shared': (0, 16), 'equal': (12, 16)}.get(path.stem, (0, 16))
    if scales[0]:
        assert (model.motion.codebook.slices[-1].start, model.motion.codebook.slices[-1].stop) == expected


def test_ablations_are_the_rows_of_both_tables():
    assert {path.stem for path in ABLATIONS} == {'baseline', 'smc', 'mmc', 'mmc-sac', 'mmc-mac',
                                                 'shared', 'equal', 'progressive'}


def test_a_discriminator_is_built_only_where_it_has_a_weight():
    wanted = {name: needs_discriminator(small_config(name).train_params.objective_params) for name in SMALL_METHOD}
    assert wanted == {'fomm': False, 'fomm-adv': True, 'mcnet': False, 'mrfa': False, 'mrfa-fomm': False,
                      'dagan': True}


# ---------------------------------------------------------------------------- adversarial losses

class Still(nn.Module):
    """A model that always gives its parameter: what reaches the parameter is the gradient at the image."""

    own_losses = landmarks = ()

    def __init__(self):
        super().__init__()
        self.picture = nn.Parameter(random_images(2, 5, 8))

    def keypoints(self, image):
        return Keypoints(torch.zeros(2, 1, 2), torch.eye(2).expand(2, 1, 2, 2))

    def forward(self, source, driving):
        prediction = self.picture * 1.0
        return Generated(prediction, [], [], None, self.keypoints(source), self.keypoints(driving))

    @property
    def last_weight(self):
        return self.picture


class Constant(nn.Module):
    """Two scales, two features."""

    def forward(self, image, keypoints):
        hidden = torch.tanh(3 * image)
        return DiscriminatorOutput([hidden.mean(1, keepdim=True), hidden.amax(1, keepdim=True)],
                                   [hidden, hidden.square()])


@pytest.mark.parametrize('form', ADVERSARIAL_FORMS)
def test_the_objective_is_the_sum_it_says(form):
    weights = {'l1': 2., 'adversarial': 0.5, 'feature_matching': 10.}
    params = ObjectiveParams(weights, adversarial=form, adaptive_weight=False)
    objective, discriminate, driving = Objective(Still(), params), Constant(), random_images(2, 6, 8)
    transform = RandomTransform(torch.eye(2, 3).expand(2, 2, 3), torch.zeros(2, 1, 25))
    step = objective(driving, driving, transform, discriminator=discriminate)
    step.total.backward()

    picture = objective.model.picture.detach().requires_grad_()
    fake, real = discriminate(picture, None), discriminate(driving, None)
    if form == 'lsgan':
        adversarial = ((1 - fake.logits[0]) ** 2).mean() + ((1 - fake.logits[1]) ** 2).mean()
    else:
        adversarial = -fake.logits[0].mean() - fake.logits[1].mean()
    matching = sum((a - b).abs().mean() for a, b in zip(fake.features, real.features))
    expected = 2 * (picture - driving).abs().mean() + 0.5 * adversarial + 10 * matching
    expected.backward()
    torch.testing.assert_close(step.total, expected)
    torch.testing.assert_close(objective.model.picture.grad, picture.grad)
    assert step.gradient_norms is None and 'adaptive_weight' not in step.losses


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
    torch.manual_seed(0)
    discriminator, image = build_discriminator(config), random_images(1)
    here, there = (Keypoints(torch.full((1, 4, 2), x)) for x in (-0.5, 0.5))
    assert (discriminator(image, here).logits[0] - discriminator(image, there).logits[0]).abs().max() > 1e-4

    generated = Generated(image, [], [], driving_keypoints=Keypoints(here.value.clone().requires_grad_()))
    total, _ = DiscriminatorObjective(discriminator, config.train_params.objective_params)(image, generated)
    total.backward()
    assert generated.driving_keypoints.value.grad is None and discriminator.scales[0].head.weight.grad.any()


def test_spectral_norm_bounds_every_kernel():
    torch.manual_seed(0)
    params = MultiScaleDiscriminatorParams(scales=(1, 0.5), block_expansion=4, num_blocks=2, spectral_norm=True)
    discriminator = MultiScaleDiscriminator(params, num_kp=4)
    for _ in range(30):
        output = discriminator(random_images(1), None)
    assert len(output.logits) == 2 and len(output.features) == 4
    for module in discriminator.modules():
        if isinstance(module, nn.Conv2d):
            assert float(torch.linalg.matrix_norm(module.weight.detach().flatten(1), 2)) == pytest.approx(1, abs=1e-3)


# ---------------------------------------------------------------------------- published checkpoints

IMPORTS = [('fomm', 'fomm'), ('fomm', 'fomm-adv'), ('mcnet', 'mcnet'), ('dagan', 'dagan')]


def small_networks(name):
    config = small_config(name)
    return build_model(config), build_discriminator(config)


def published_tensors(source, model, discriminator):
    torch.manual_seed(7)
    shapes = published_shapes(source, model, discriminator)
    return {name: torch.randn(shape) for name, shape in shapes.items()} | FORMATS[source].constants(model)


def save_safetensors(networks, path):
    save_file({f'{network}.{name}': tensor.contiguous().clone()
               for network, tensors in networks.items() for name, tensor in tensors.items()}, path)


def as_file(tensors, prefix=''):
    """What the public codes save: one state dict per network, and the optimisers'."""
    contents = {'epoch': 99, 'optimizer_generator': {'state': {}, 'param_groups': []}}
    for name, tensor in tensors.items():
        network, name = name.split('/', 1)
        contents.setdefault(network, {})[prefix + name] = tensor
    return contents


@pytest.mark.parametrize('source, name', IMPORTS)
def test_a_published_file_fills_every_tensor(source, name):
    model, discriminator = small_networks(name)
    tensors = published_tensors(source, model, discriminator)
    flat = flatten_checkpoint(source, [as_file(tensors, 'module.' if source == 'mcnet' else '')])
    assert has_discriminator(source, flat)
    before = {key: value.clone() for net in (model, discriminator) for key, value in net.state_dict().items()}
    import_tensors(source, flat, model, discriminator)
    after = {key: value for net in (model, discriminator) for key, value in net.state_dict().items()}
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


@pytest.mark.parametrize('source', ['smac', 'fomm', 'mcnet'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('save, suffix', [(torch.save, '.pth'), (save_safetensors, '.safetensors')])
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
