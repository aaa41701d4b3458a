"""Parity of one training step with the public codes: losses, gradient norms, the update, batch-norm statistics."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.parity.comparison import FLOW, IMAGE, UNIT, Comparison, relative, relative_array, stored
from benchmarks.parity.forward import outputs_of, shared_motion
from benchmarks.parity.weights import filled, from_fixture, images, place, vgg_state
from modules.build import build_objective
from modules.layers import to_unit
from modules.losses import RandomTransform
from modules.mcnet import feature_consistency
from modules.objective import ObjectiveOutput, needs_discriminator
from modules.published.formats import FORMATS
from modules.pairs import Pairs
from modules.talking_head import Keypoints
from modules.training_step import StepResult, TrainingStep


@dataclass
class Seen:
    """Record of a training iteration whose gradients are computed but not applied.

    source:    the public code's key in FORMATS
    discriminated: of every pass of the discriminator, in order
    transformed, transformed_keypoints: the driving images that the equivariance loss made, and their keypoints
    """
    source: str
    config: Any
    training: TrainingStep
    result: StepResult
    output: ObjectiveOutput
    discriminated: list
    transformed: torch.Tensor
    transformed_keypoints: Keypoints


def filled_training(config, source):
    """Training's own step with the fixtures' weights.

    Channels come first, as in the public codes: another layout orders sums otherwise, which batch norm over two samples
    shows as it shows another number of threads. tests/test_speed_equivalence.py holds layouts against each other.
    """
    params = config.train_params
    model, discriminator = filled(config, source, needs_discriminator(params.objective_params))
    objective = build_objective(config, model, vgg_state()).to(place())
    return TrainingStep(params, objective, discriminator, place())


def pairs(fixture):
    source, driving = (2 * images(fixture[f'seeds_{name}']) - 1 for name in ('source', 'driving'))
    transform = RandomTransform(*(from_fixture(fixture[name]) for name in ('theta', 'control_params')))
    return Pairs(source, driving, transform)


def take(fixture, config, source):
    """Seen of one iteration on the fixture's pairs, with all losses, of our networks with the fixtures' weights."""
    training, part = filled_training(config, source), pairs(fixture)
    watched = {'output': training.objective, 'keypoints': training.state.model.keypoint_detector}
    if training.discriminator is not None:
        watched['discriminated'] = training.discriminator
    for network in (training.objective, training.discriminator):
        if network is not None:
            network.train(is_training(fixture))
    with outputs_of(watched) as seen:
        result = training.gradients([part], training.first_full_step)
    outputs = {name: [output for _, output in calls] for name, calls in seen.items()}
    return Seen(source, config, training, result, outputs['output'][0], outputs.get('discriminated', []),
                part.transform.warp_image(part.driving), outputs['keypoints'][2])


def is_training(fixture):
    """Whether the fixture's networks were in train mode: those files have a batch of two, and statistics after it."""
    return len(fixture['seeds_source']) > 1 and any(name.startswith('post/') for name in fixture)


def published(source, training, kind='parameters'):
    """(published name, tensor of ours) of the parameters of model and discriminator, or of batch norm's statistics.

    kind: 'parameters' or 'buffers'
    """
    model, origin = training.state.model, FORMATS[source].origin
    for prefix, network in (('model', model), ('discriminator', training.discriminator)):
        for name, tensor in getattr(network, f'named_{kind}')() if network is not None else ():
            if kind == 'parameters' or 'running' in name:
                yield origin(model, f'{prefix}.{name}').name, tensor


def raw_gradients(seen):
    """{published name: gradient norm}; tensors that we store in several parts are combined."""
    squares = Counter()
    for name, parameter in published(seen.source, seen.training):
        if parameter.grad is not None:
            squares[name] += float(parameter.grad.double().square().sum())
    return {name: square ** 0.5 for name, square in squares.items()}


def batch_norm_statistics(fixture, seen, tolerance=1e-3, floor=1e-6):
    """Comparisons of the mean of every running statistic after the step."""
    for name, buffer in published(seen.source, seen.training, 'buffers'):
        if (key := f'post/{name}/mean') in fixture:
            yield relative(key, buffer.double().mean(), fixture[key], tolerance, floor)


# ---------------------------------------------------------------------------- how far fp32 drifts

# Relative differences of the public code's gradient norms, fp32 and float64: (median, largest) of each network in train
# mode, then in eval mode; for fixtures that hold no float64. From those that do: FOMM's with a discriminator, DaGAN's
# with ResNet-50, MCNet's, the larger of MRFA's two priors; this paper's was measured with our code in float64.
DRIFT = {'smac': {'net_g': ((7e-4, 1.2e-1), (1.6e-4, 6e-3)), 'net_motion_estimator': ((9e-3, 3e-2), (4e-4, 2.8e-3)),
                  'net_d': ((5e-4, 5e-3), (5e-5, 4e-4))},
         'fomm': {'generator': ((5e-3, 5e-2), (1e-4, 1.3e-3)), 'kp_detector': ((1e-1, 2e-1), (4e-4, 1.6e-3)),
                  'discriminator': ((7e-5, 6e-4), (2e-7, 1.5e-5))},
         'dagan': {'generator': ((1e-2, 3e-1), (2e-4, 3e-3)), 'kp_detector': ((4e-1, 6e-1), (1.7e-3, 2.6e-3)),
                   'discriminator': ((1e-4, 5e-4), (8e-6, 1.5e-4))},
         'mcnet': {'generator': ((1.1e-3, 1e-2), (6e-5, 1.1e-3)), 'kp_detector': ((9e-3, 2.2e-2), (3e-4, 2e-3))},
         'mrfa': {'model/encoder': ((2.4e-2, 3.6e-2), (1.1e-3, 7e-3)),
                  'model/dense_motion': ((1.1e-2, 1.6e-2), (8e-4, 2.6e-3)),
                  'model/decoder': ((4.7e-3, 2e-2), (4e-4, 2.6e-2))}}
MARGIN = 10          # times that drift is allowed. Set after seeing 6 for MRFA, whose arithmetic we order otherwise
MEANINGLESS = 0.25   # a limit above is not checked: fp32 does not determine these gradients


class Limits:
    """Tolerances of values that depend little on the method: ten times the drift of the public codes.

    In train mode, batch norm over two samples at the bottom of an hourglass amplifies rounding a hundredfold.
    """

    def __init__(self, training):
        self.keypoint = (2e-4, 2e-5) if training else FLOW
        self.loss = 6e-4 if training else 6e-6
        self.term = 2e-3 if training else 1e-5
        self.flow = (3e-3, 3e-4) if training else FLOW
        self.logit = (3e-3, 3e-4) if training else UNIT        # of the occlusion, ten times as large
        self.image = (2e-1, 3e-3) if training else (2e-3, 3e-5)


def drift(fixture, names, known):
    """Limits (median, largest) of relative differences: what fp32 did to the public code's own norms, times MARGIN."""
    if 'f64/grad_norms' in fixture:
        place = {str(name): i for i, name in enumerate(fixture['grad_norm_names'])}
        chosen = [place[name] for name in names]
        precise = fixture['f64/grad_norms'][chosen]
        error = np.abs(fixture['grad_norms'][chosen] - precise) / precise
        known = np.median(error), error.max()
    return tuple(max(1e-3, MARGIN * value) for value in known)


def network_of(name):
    """The network that a published parameter belongs to: MRFA's parts are networks of their own."""
    return name.split('.')[0] if name.startswith('model/') else name.split('/')[0]


def gradient_norms(fixture, seen):
    """Comparisons of gradient norms: the median and the largest difference of each network, and missing ones.

    A gradient that is 0 in exact arithmetic (a bias before batch norm) is noise; so are those below 1e-4 of the median.
    """
    ours, values = raw_gradients(seen), dict(zip(map(str, fixture['grad_norm_names']), fixture['grad_norms'].tolist()))
    precise = dict(zip(values, fixture.get('f64/grad_norms', fixture['grad_norms']).tolist()))
    random = set(map(str, fixture.get('grad_random_names', ())))
    missing = sorted((set(values) ^ set(ours)) - random)
    yield Comparison(f'parameters with a gradient here or there alone: {", ".join(missing[:3]) or "none"}',
                     np.array([len(missing)]), np.zeros(1), 0, 0)
    for network in dict.fromkeys(map(network_of, values)):
        names = [name for name in values if network_of(name) == network and name not in random]
        floor = 1e-4 * np.median([precise[name] for name in names])
        names = [name for name in names if precise[name] > floor]
        error = np.array([abs(ours.get(name, np.nan) - values[name]) / values[name] for name in names])
        usual, largest = drift(fixture, names, DRIFT[seen.source][network][not is_training(fixture)])
        for what, found, limit in (('median', np.median(error), usual), ('largest', error.max(), largest)):
            if limit < MEANINGLESS:
                which = names[int(error.argmax())] if what == 'largest' else f'of {len(names)} gradient norms, relative'
                yield Comparison(f'{network}: {what} {which}', np.array([found]), np.zeros(1), limit, limit)


# ---------------------------------------------------------------------------- this paper

# Limits in train mode of losses that drift by more than 1e-4 there: ten to twenty times the drift.
UNSTEADY = {'gan_g_raw': 4e-3, 'log/l_g_gan': 4e-3, 'gan_grad_norm': 6.5e-2, 'recon_grad_norm': 5e-3}


def smac_step(fixture, config):
    """Comparisons of one full generator step: losses, last-layer gradients, every parameter's gradient norm."""
    seen = take(fixture, config, 'smac')
    step, training = seen.output, is_training(fixture)
    limits = Limits(training)
    yield from shared_motion(fixture, step.generated, limits.keypoint, limits.flow)
    for name, value in smac_scalars(config, seen.result, seen.output).items():
        yield relative(name, value, fixture[name], UNSTEADY.get(name, 1e-3) if training else 1e-3)
    for name, terms in zip(('perceptual_terms_scale_layer', 'perceptual_lr_terms_scale_layer'), step.perceptual_terms):
        yield relative_array(name, terms, fixture[name])
    yield stored(fixture, 'out_s4', step.generated.prediction, (3e-1, 1e-2) if training else IMAGE)
    yield from gradient_norms(fixture, seen)
    if training:
        yield from batch_norm_statistics(fixture, seen, 3e-3)


def smac_scalars(config, result, output):
    """{name in the released code's log: our scalar} of a step."""
    losses, weights = result.losses, config.train_params.objective_params.loss_weights
    found = {'log/l_g_pix': losses['l1'], 'log/l_g_percep': losses['perceptual'],
             'perceptual_raw': losses['perceptual'],
             'perceptual_lr_raw_unweighted': losses['first_scale_perceptual'],
             'log/l_g_pix_lr_0': weights['first_scale'] * losses['first_scale_l1'],
             'log/l_g_percep_lr_0': weights['first_scale'] * losses['first_scale_perceptual'],
             'log/l_g_motion_codebook_code': losses['motion_code'],
             'log/l_g_motion_codebook_recon': weights['motion_reconstruction'] * losses['motion_reconstruction'],
             'log/l_g_app_codebook_code': losses['appearance_code'],
             'log/l_equivariance_value': losses['equivariance_value'],
             'log/l_equivariance_jacobian': losses['equivariance_jacobian'],
             'log/l_kpd': losses['keypoint_distance'], 'l_g_total': losses['total']}
    if result.adversarial:
        weight = weights['adversarial'] * losses['adaptive_weight']
        real, fake = (losses[f'discriminator_{name}'] for name in ('real', 'fake'))
        found |= {'log/l_g_percep': losses['perceptual'] + losses['l1'],     # added in place to what is logged
                  'gan_g_raw': losses['adversarial'], 'log/l_g_gan': weight * losses['adversarial'],
                  'log/d_weight': weight, 'recon_grad_norm': output.gradient_norms[0],
                  'gan_grad_norm': output.gradient_norms[1], 'log/l_d_real': real, 'log/l_d_fake': fake,
                  'gan_d_real_raw': real, 'gan_d_fake_raw': fake}
    return found


# ---------------------------------------------------------------------------- FOMM and its descendants

# Their names -> ours, before weights.
LOSSES = {'perceptual': 'perceptual', 'equivariance_value': 'equivariance_value', 'equivariance': 'equivariance_value',
          'equivariance_jacobian': 'equivariance_jacobian', 'kp_distance': 'keypoint_distance',
          'feat_consistent': 'feature_consistency', 'gen_gan': 'adversarial', 'feature_matching': 'feature_matching'}

CLIPPED = {'mcnet': ('kp_detector', 'generator'), 'mrfa': ('encoder', 'dense_motion')}    # in the configs' order


def first_order_step(fixture, config, source):
    """Comparisons of one step of FOMM, MCNet, DaGAN or MRFA: losses, their terms, gradient norms."""
    seen = take(fixture, config, source)
    limits = Limits(is_training(fixture))
    yield from first_order_motion(fixture, seen, limits)
    yield from first_order_losses(fixture, seen, limits)
    yield from gradient_norms(fixture, seen)
    yield from first_order_update(fixture, seen)
    if is_training(fixture):
        # Ten times the drift: 3e-7 absolute of a mean, 2e-5 behind DaGAN's attention.
        yield from batch_norm_statistics(fixture, seen, 1e-4, 2e-4 if source == 'dagan' else 3e-6)


def first_order_motion(fixture, seen, limits):
    """Comparisons of source, driving and transformed keypoints, flow, occlusion, warped source and prediction."""
    generated = seen.output.generated
    logit = limits.logit if seen.source == 'mrfa' else None
    yield from shared_motion(fixture, generated, limits.flow, limits.flow, logit)
    for part in ('value', 'jacobian'):
        yield stored(fixture, f'kp_transformed_{part}', getattr(seen.transformed_keypoints, part), limits.flow)
    pictures = {'out_s4': to_unit(generated.prediction), 'transformed_frame_s4': to_unit(seen.transformed)}
    if seen.source == 'mrfa':
        pictures['warp_img_s4'] = generated.warped_source
    for name, picture in pictures.items():
        if name in fixture:
            yield stored(fixture, name, picture, limits.image)


def first_order_losses(fixture, seen, limits):
    """Comparisons of every loss, their weighted sum, and the terms of the perceptual and other losses."""
    losses = {name: float(value) for name, value in seen.result.losses.items()}
    weights = seen.config.train_params.objective_params.loss_weights
    for theirs, ours in LOSSES.items():
        if f'log/{theirs}' in fixture:
            yield relative(f'log/{theirs}', weights[ours] * losses[ours], fixture[f'log/{theirs}'], limits.loss)
    yield relative('loss_total_generator', losses['total'], fixture['loss_total_generator'], limits.loss)
    yield relative_array('perceptual_terms_scale_layer', seen.output.perceptual_terms[0],
                         fixture['perceptual_terms_scale_layer'], limits.term)
    if 'feat_consistent_terms' in fixture:
        generated = seen.output.generated
        terms = torch.stack(list(map(feature_consistency, generated.features, generated.values)))
        yield relative_array('feat_consistent_terms', terms, fixture['feat_consistent_terms'], limits.term)
    if seen.training.discriminator is not None:
        turn = losses['discriminator_real'] + losses['discriminator_fake']
        yield relative('log/disc_gan', turn, fixture['log/disc_gan'], limits.loss)
        fake, real = seen.discriminated[:2]
        terms = torch.stack([F.l1_loss(*pair) for pair in zip(fake.features, real.features)])
        yield relative_array('feature_matching_terms', terms, fixture['feature_matching_terms'], limits.term)
        for name, output in (('fake', fake), ('real', real)):
            yield stored(fixture, f'disc_map_{name}_s4', output.logits[0], limits.image)


def first_order_update(fixture, seen):
    """Comparisons of gradient norms before and after clipping, and of the weights' change in the first update."""
    state = seen.training.state
    tolerance = max(1e-3, 10 * float(np.max([abs(fixture[name] / fixture[f'f64/{name}'] - 1) for name in fixture
                                             if name.startswith('clip/') and f'f64/{name}' in fixture] or [1e-3])))
    for network, group in zip(CLIPPED.get(seen.source, ()), state.clip_groups(), strict=True):
        gradients = [parameter.grad for parameter in group if parameter.grad is not None]
        found = torch.nn.utils.get_total_norm(gradients, state.norm_type)
        kind = 'inf' if seen.config.train_params.clip_norm_type == 'inf' else 'l2'
        name = f'clip/{network}_total_norm_{kind}'
        yield relative(name, found, fixture[name], tolerance)
    trained = [(name, parameter, parameter.detach().clone())
               for name, parameter in published(seen.source, seen.training) if parameter.requires_grad]
    state.clip_gradients()
    if 'grad_norms_after_clip' in fixture:
        ours = raw_gradients(seen)
        theirs = dict(zip(map(str, fixture['grad_norm_names']), fixture['grad_norms_after_clip']))
        for network in dict.fromkeys(map(network_of, theirs)):
            names = [name for name in theirs if network_of(name) == network]
            clipped, wanted = (float(np.linalg.norm([norms[name] for name in names])) for norms in (ours, theirs))
            yield relative(f'{network}: gradient norm after clipping', clipped, wanted, tolerance)
    seen.training.update(seen.result)
    yield from mean_changes(fixture, trained)


def mean_changes(fixture, trained):
    """Mean absolute change of each network's parameters by Adam's first step.

    That is the rate times the gradient's sign, but for gradients of the order of Adam's epsilon.
    trained: (published name, parameter, its value before)
    """
    sums, counts = Counter(), Counter()
    for name, parameter, before in trained:
        network = name.split('/')[0]
        sums[network] += float((parameter.detach() - before).abs().double().sum())
        counts[network] += before.numel()
    for network, total in sums.items():
        key = f'mean_abs_param_delta/{network}'
        yield relative(key, total / counts[network], fixture[key], 1e-3, 1e-9)
