"""Parity of consecutive training steps of the paper's model, before and after the first adversarial one.

Steps are chaotic: batch norm over two samples amplifies rounding, and Adam's first update turns a gradient that is only
rounding into a whole step. So losses are compared in the first two steps, within ten times the distance of the released
code from itself in double precision: 5e-6 before the first update; after it 6e-4 (L1), 7e-4 (perceptual), 4e-3 (first
scale), 1.5e-2 (motion codes). In all steps: which losses and gradients exist, and the learning rates. The distance of a
network's weights from their start is compared after its first update, and within the perceptual limit after its second.
"""

import numpy as np
import torch

from benchmarks.parity.comparison import FLOW, IMAGE, Comparison, numpy, relative
from benchmarks.parity.forward import outputs_of
from benchmarks.parity.step import filled_training, pairs, published, smac_scalars
from benchmarks.parity.weights import images

BEFORE = 5e-5
# Relative limits of logged losses: (first step, second step).
LOSSES = {'log/l_g_pix': (BEFORE, 6e-3), 'log/l_g_percep': (BEFORE, 7e-3), 'perceptual_raw': (BEFORE, 7e-3),
          'perceptual_lr_raw_unweighted': (BEFORE, 4e-2), 'log/l_g_pix_lr_0': (BEFORE, 4e-2),
          'log/l_g_percep_lr_0': (BEFORE, 4e-2), 'log/l_g_motion_codebook_recon': (BEFORE, 0.15),
          'log/l_g_motion_codebook_code': (BEFORE, 0.15), 'log/l_equivariance_value': (BEFORE,),
          'log/l_equivariance_jacobian': (BEFORE,), 'log/l_g_app_codebook_code': (BEFORE,), 'log/l_kpd': (BEFORE,),
          'l_g_total': (BEFORE,)}
# Logged only in adversarial steps; limits apply in none, as all of them come after the first update.
ADVERSARIAL = dict.fromkeys(('log/d_weight', 'log/l_d_real', 'log/l_d_fake', 'log/l_g_gan', 'gan_g_raw'), ())
# Relative limits of a network's distance from its start, after its first and second update: ten times what another
# order of sums does to it. The running average moves by less than the rounding of some weights.
NETWORKS = {'net_g': (3e-5, 7e-3), 'net_motion_estimator': (3e-5,), 'net_d': (3e-5,), 'ema': (1e-3, 7e-3)}


def smac_trajectory(fixture, config):
    """All comparisons of a fixture of several training steps."""
    return compare(fixture, run(fixture, config))


def compare(fixture, ours):
    """Comparisons of the first prediction, and of each step."""
    yield Comparison('start: prediction', ours['start/prediction_s4'], fixture['start/prediction_s4'], *IMAGE)
    updates = dict.fromkeys(NETWORKS, 0)
    for k, number in enumerate(fixture['iterations'].tolist()):
        theirs, found = ({name.removeprefix(f'step{k}/'): value for name, value in values.items()
                          if name.startswith(f'step{k}/')} for values in (fixture, ours))
        for what, there, here in (('losses', *({*values} & {*LOSSES, *ADVERSARIAL} for values in (theirs, found))),
                                  ('gradients', set(map(str, theirs['grad_norm_names'])), found['gradients'])):
            names = sorted(there ^ here)
            yield Comparison(f'{number}: {what} of one side only: {", ".join(names[:3]) or "none"}',
                             np.array([len(names)]), np.zeros(1), 0, 0)
        yield Comparison(f'{number}: learning rates', found['learning_rates'], theirs['learning_rates'], 1e-12, 1e-12)
        for name, limits in LOSSES.items():
            if k < len(limits):
                yield relative(f'{number}: {name}', found.get(name, np.nan), theirs[name], limits[k], 1e-9)
        for name, limits in NETWORKS.items():
            ours_moved, moved = found[f'delta_norm/{name}'], float(theirs[f'delta_norm/{name}'])
            if moved == 0 or updates[name] < len(limits):
                limit = 0 if moved == 0 else limits[updates[name]]
                yield relative(f'{number}: distance of {name}', ours_moved, moved, limit, 0)
            updates[name] += moved > 0
        if k == 0:
            yield Comparison(f'{number}: deformation', found['deformation'], theirs['deformation'], *FLOW)
            yield Comparison(f'{number}: prediction', found['out_s4'], theirs['out_s4'], *IMAGE)


def run(fixture, config):
    """{name in the fixture: our value} of training on the fixture's pairs and steps."""
    training = filled_training(config, 'smac')
    state, distances = training.state, Distances(training)
    for network in (training.objective, training.discriminator):
        network.train()
    source, driving = (2 * images([seed]) - 1 for seed in fixture['final_prediction_seeds'])
    with torch.no_grad():
        found = {'start/prediction_s4': numpy(state.ema(source, driving).prediction[:, :, ::4, ::4])}
    for k, number in enumerate(fixture['iterations'].tolist()):
        given = {name.removeprefix(f'step{k}/'): value for name, value in fixture.items()
                 if name.startswith(f'step{k}/')}
        gradients = set()
        hook = state.optimizer.register_step_pre_hook(lambda *_: gradients.update(distances.with_gradient()))
        with outputs_of({'output': training.objective}) as seen:
            result = training([pairs(given)], number)
        hook.remove()
        now = {name: float(value) for name, value in smac_scalars(config, result, seen['output'][0][1]).items()}
        now |= {f'delta_norm/{name}': value for name, value in distances().items()}
        rates = [optimizer.param_groups[0]['lr'] for optimizer in (state.optimizer, state.discriminator_optimizer)]
        now |= {'gradients': gradients, 'learning_rates': np.array([rates[0], *rates])}
        generated = seen['output'][0][1].generated
        found |= {f'step{k}/{name}': value for name, value in now.items()}
        found |= {f'step{k}/deformation': numpy(generated.dense_motion.flow),
                  f'step{k}/out_s4': numpy(generated.prediction[:, :, ::4, ::4])}
    return found


class Distances:
    """L2 distances of the published networks' weights from those at construction."""

    def __init__(self, training):
        self.named, self.networks = list(published('smac', training)), {'ema': []}
        for name, parameter in self.named:
            self.networks.setdefault(name.split('/')[0], []).append(parameter)
        for (name, _), average in zip(self.named, training.state.ema.parameters()):
            if name.startswith('net_g/'):
                self.networks['ema'].append(average)
        self.start = {name: [tensor.detach().clone() for tensor in network] for name, network in self.networks.items()}

    def __call__(self):
        return {name: float(sum((now.detach() - start).double().square().sum()
                                for now, start in zip(network, self.start[name]))) ** 0.5
                for name, network in self.networks.items()}

    def with_gradient(self):
        """Published names of the parameters that have a gradient."""
        return {name for name, parameter in self.named if parameter.grad is not None}
