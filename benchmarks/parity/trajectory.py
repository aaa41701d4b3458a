"""Consecutive iterations of training: same weights, same pairs, through the start of adversarial training.

`walk` takes them, each by one call of the TrainingStep as train.py makes it, and notes what the fixture holds, under
its names; trajectory_limits.compare sets the two side by side.
"""

import zlib

import numpy as np
import torch

from benchmarks.parity.comparison import numpy
from benchmarks.parity.forward import outputs_of
from benchmarks.parity.step import filled_training, pairs, smac_scalars
from benchmarks.parity.trajectory_limits import compare
from benchmarks.parity.weights import images
from modules.published.formats import FORMATS

NETWORKS = ('net_g', 'net_motion_estimator', 'net_d')


def smac_trajectory(fixture, config):
    """All comparisons of a fixture of several iterations."""
    return compare(fixture, walk(fixture, config))


def walk(fixture, config):
    """{name in the fixture: our value} of training on the fixture's pairs and iterations."""
    training = filled_training(config, 'smac')
    state, weights = training.state, Weights(training)
    for network in (training.objective, training.discriminator):
        network.train()
    seeds = fixture['final_prediction_seeds']
    found = {'start/prediction_s4': predict(state.ema, seeds)}
    for k, number in enumerate(fixture['iterations'].tolist()):
        given = {name.removeprefix(f'step{k}/'): value for name, value in fixture.items()
                 if name.startswith(f'step{k}/')}
        now = iteration(training, weights, config, given, number)
        means = batch_norm_means(training)
        now['bn_means'] = np.array([means[str(name)] for name in fixture['bn_names']])
        found |= {f'step{k}/{name}': value for name, value in now.items()}
    for which in ('param', 'ema'):
        found |= {f'final/{which}_{name}': value for name, value in weights.moved(which).items()}
    found |= {f'post/{name}/mean': value for name, value in batch_norm_means(training).items()}
    found['final/num_batches_tracked_net_d'] = np.array(
        [int(buffer) for name, buffer in training.discriminator.named_buffers() if name.endswith('tracked')])
    found['final/prediction_ema_s4'] = predict(state.ema, seeds)
    found['final/prediction_raw_s4'] = predict(state.model.eval(), seeds)
    return found


def iteration(training, weights, config, given, number):
    """Take iteration `number` on the pairs `given`: {name in the fixture: our value}."""
    state, gradients, before = training.state, {}, weights.generator()
    hook = state.optimizer.register_step_pre_hook(lambda *_: gradients.update(weights.gradient_norms()))
    with outputs_of({'output': training.objective, 'discriminated': training.discriminator}) as seen:
        result = training([pairs(given)], number)
    hook.remove()
    changes = [np.abs(now - old).mean() for now, old in zip(weights.generator(), before, strict=True)]
    output = seen['output'][0][1]
    found = scalars(config, result, output, seen['discriminated']) | forward(output)
    found |= {f'delta_norm/{network}': size for network, size in weights.moved_networks().items()}
    return found | {'gradients': gradients, 'learning_rates': learning_rates(state),
                    'mean_abs_param_delta_net_g': float(np.mean(changes))}


def predict(model, seeds):
    """The frame that a model in eval mode makes of images by their seeds, [:, :, ::4, ::4]."""
    with torch.no_grad():
        return numpy(model(*(2 * images([seed]) - 1 for seed in seeds)).prediction[:, :, ::4, ::4])


def scalars(config, result, output, discriminated):
    """What the released code logs of an iteration; discriminated: passes of the discriminator, real and fake last."""
    found = smac_scalars(config, result, output)
    if result.adversarial:
        for name, (_, output) in zip(('real', 'fake'), discriminated[-2:]):
            found[f'log/out_d_{name}'] = output.logits[0].detach().mean()
    return {name: float(value) for name, value in found.items()}


def forward(step):
    """Forward values of an iteration."""
    generated, dense = step.generated, step.generated.dense_motion
    found = {f'kp_{name}_{part}': numpy(getattr(keypoints, part))
             for name, keypoints in (('source', generated.source_keypoints), ('driving', generated.driving_keypoints))
             for part in ('value', 'jacobian')}
    return found | {'deformation': numpy(dense.flow), 'occlusion_map': numpy(dense.occlusion_logit.sigmoid()),
                    'out_s4': numpy(generated.prediction[:, :, ::4, ::4]),
                    'perceptual_terms_scale_layer': numpy(step.perceptual_terms[0]),
                    'perceptual_lr_terms_scale_layer': numpy(step.perceptual_terms[1])}


def learning_rates(state):
    """Of the released code's three optimisers: generator, motion estimator, discriminator."""
    ours = state.optimizer.param_groups[0]['lr'], state.discriminator_optimizer.param_groups[0]['lr']
    return np.array([ours[0], *ours])


def batch_norm_means(training):
    """{published name: mean} of every running statistic of batch norm."""
    origin, model = FORMATS['smac'].origin, training.state.model
    return {origin(model, f'{prefix}.{name}').name: float(buffer.double().mean())
            for prefix, network in (('model', model), ('discriminator', training.discriminator))
            for name, buffer in network.named_buffers() if 'running' in name}


class Weights:
    """The weights of a TrainingStep, by their published names, and how far they have moved since."""

    def __init__(self, training):
        state, origin = training.state, FORMATS['smac'].origin
        networks = {'model': state.model, 'discriminator': state.discriminator, 'ema': state.ema}
        self.parameters = {prefix: dict(network.named_parameters()) for prefix, network in networks.items()}
        self.start = {prefix: {name: tensor.detach().clone() for name, tensor in named.items()}
                      for prefix, named in self.parameters.items()}
        # {published name: our names, in order}: parts that we keep apart are one tensor there.
        self.origins = {}
        for prefix, named in self.parameters.items():
            kept = self.origins.setdefault(prefix, {})
            for name in named:
                place = origin(state.model, f'{"model" if prefix == "ema" else prefix}.{name}')
                kept.setdefault(place.name, {})[place.part] = name
        self.origins['ema'] = {name: parts for name, parts in self.origins['ema'].items() if name.startswith('net_g/')}

    def _tensors(self, prefix, value):
        """(published name, values of all its parts as one flat array) of value(our name), where that is not None."""
        for name, parts in self.origins[prefix].items():
            found = [value(parts[part]) for part in sorted(parts)]
            if found[0] is not None:
                yield name, torch.cat([part.detach().flatten() for part in found]).double().numpy()

    def generator(self):
        """The published generator's weights, tensor by tensor, copied."""
        return [array for name, array in self._tensors('model', self.parameters['model'].get)
                if name.startswith('net_g/')]

    def gradient_norms(self):
        return {name: float(np.linalg.norm(array)) for prefix in ('model', 'discriminator')
                for name, array in self._tensors(prefix, lambda ours: self.parameters[prefix][ours].grad)}

    def _changes(self, which):
        for prefix in ('ema',) if which == 'ema' else ('model', 'discriminator'):
            now, start = self.parameters[prefix], self.start[prefix]
            yield from self._tensors(prefix, lambda ours: now[ours].detach() - start[ours])

    def moved(self, which):
        """{'delta_norm', 'delta_probe', 'norm'} of every tensor of 'param' or 'ema', each {published name: value}."""
        found = {'delta_norm': {}, 'delta_probe': {}, 'norm': {}}
        for name, change in self._changes(which):
            found['delta_norm'][name] = float(np.linalg.norm(change))
            found['delta_probe'][name] = float(change @ direction(name, change.size))
        for prefix in ('ema',) if which == 'ema' else ('model', 'discriminator'):
            for name, array in self._tensors(prefix, self.parameters[prefix].get):
                found['norm'][name] = float(np.linalg.norm(array))
        return found

    def moved_networks(self):
        """Norm of the change of each whole network, and of the running average of the generator."""
        sizes = {network: [] for network in (*NETWORKS, 'ema')}
        for which in ('param', 'ema'):
            for name, change in self._changes(which):
                sizes['ema' if which == 'ema' else name.split('/')[0]].append(np.linalg.norm(change))
        return {network: float(np.linalg.norm(found)) for network, found in sizes.items()}


def direction(name, size):
    """The unit vector on which the fixture projects the change of a tensor: random, by its published name."""
    found = np.random.default_rng(zlib.crc32(f'probe/{name}'.encode())).standard_normal(size)
    return found / np.linalg.norm(found)
