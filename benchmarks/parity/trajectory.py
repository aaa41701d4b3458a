"""Eight consecutive iterations of training, by train.py itself, through the start of adversarial training.

train.py runs as it does from a checkpoint of imported weights; only what it reads (pairs, transforms, VGG19) and what it
writes are the fixture's and a recorder's. So the order of the step, Adam, EMA, learning rates, the discriminator's turn
and its start, and the passes that move batch norm are the real ones.
"""

from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import numpy as np
import torch

import train
from benchmarks.parity.comparison import Comparison, numpy, relative
from benchmarks.parity.weights import filled, from_fixture, images, vgg_state
from config import schema
from modules.losses import RandomTransform
from modules.published.names import smac_origin

# What the released code logs, from what ours logs and the weights of the losses.
LOGGED = {
    'log/l_g_pix': lambda found, weights: found['l1'],
    'perceptual_raw': lambda found, weights: found['perceptual'],
    'perceptual_lr_raw_unweighted': lambda found, weights: found['first_scale_perceptual'],
    'log/l_g_pix_lr_0': lambda found, weights: weights['first_scale'] * found['first_scale_l1'],
    'log/l_g_motion_codebook_code': lambda found, weights: found['motion_code'],
    'log/l_g_motion_codebook_recon':
        lambda found, weights: weights['motion_reconstruction'] * found['motion_reconstruction'],
    'log/l_g_app_codebook_code': lambda found, weights: found['appearance_code'],
    'log/l_equivariance_value': lambda found, weights: found['equivariance_value'],
    'log/l_equivariance_jacobian': lambda found, weights: found['equivariance_jacobian'],
    'log/l_kpd': lambda found, weights: found['keypoint_distance'],
    'l_g_total': lambda found, weights: found['total'],
    'gan_g_raw': lambda found, weights: found['adversarial'],
    'log/d_weight': lambda found, weights: weights['adversarial'] * found['adaptive_weight'],
    'gan_d_real_raw': lambda found, weights: found['discriminator_real'],
    'gan_d_fake_raw': lambda found, weights: found['discriminator_fake'],
}


class Recorder:
    """Stands for the run folder: gives train.py the checkpoint to go on from, and keeps what it would write."""

    path = Path('fixture')

    def __init__(self, checkpoint, origin):
        """origin: our name, 'model.…' or 'discriminator.…' -> the published one."""
        self.checkpoint, self.origin = checkpoint, origin
        self.figures, self.changes, self.ema_changes, self.statistics, self.last = [], [], [], [], None

    def newest(self):
        return self.path, self.checkpoint

    def rewind(self, step):
        pass

    def scalars(self, step, figures):
        self.figures.append(figures)

    def save(self, state, step, keep):
        self.changes.append(self._changes(state, model='model', discriminator='discriminator'))
        self.ema_changes.append(self._changes(state, model='ema'))
        self.statistics.append({self.origin(f'{part}.{name}'): float(tensor.double().mean())
                                for part in ('model', 'discriminator') for name, tensor in state[part].items()
                                if 'running' in name})
        self.last = {part: {name: tensor.clone() for name, tensor in state[part].items()} for part in ('model', 'ema')}

    def _changes(self, state, **parts):
        """Norm of every published tensor's change since the start; parts that we keep apart are put together."""
        squares = {}
        for owner, part in parts.items():
            for name, tensor in state[part].items():
                if tensor.is_floating_point():
                    published = self.origin(f'{owner}.{name}')
                    change = (tensor.double() - self.checkpoint[part][name]).square().sum()
                    squares[published] = squares.get(published, 0.0) + float(change)
        return {name: square ** 0.5 for name, square in squares.items()}


def run_training(fixture, config):
    """The iterations of the fixture, taken by train.py: (Recorder, our model)."""
    iterations, pairs = fixture['iterations'].tolist(), fixture['seeds_source'].shape[1]
    config = schema.override(config, [
        f'train_params.num_iterations={iterations[-1]}', f'train_params.batch_size={pairs}', 'train_params.log_every=1',
        'train_params.save_every=1', f'train_params.val_every={2 * iterations[-1]}', 'dataset_params.root_dir=null'])
    model, discriminator = filled(config, 'smac', with_discriminator=True)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    checkpoint = {'config': config.as_dict(), 'step': iterations[0] - 1, 'model': weights, 'ema': weights,
                  'discriminator': {name: tensor.clone() for name, tensor in discriminator.state_dict().items()}}
    recorder = Recorder(checkpoint, lambda name: smac_origin(model, name).name
                        if not name.endswith('codebook.idle') else name)

    def loader(config, step):
        for k, _ in enumerate(iterations):
            source, driving = (2 * images(fixture[f'seeds_{name}'][k]) - 1 for name in ('source', 'driving'))
            yield {'source': source, 'driving': driving, 'index': torch.full((pairs,), k),
                   'skipped': torch.zeros(pairs)}

    def transform(seed, indices):
        return RandomTransform(*(from_fixture(fixture[f'step{indices[0]}/{name}'])
                                 for name in ('theta', 'control_params')))

    def cast(build):
        return lambda *arguments: build(*arguments).to(torch.get_default_dtype())

    with ExitStack() as stack:
        for place, name, stand_in in ((train, 'training_loader', loader), (train, 'draw_transform', transform),
                                      (train, 'Validation', mock.Mock()), (train.weights, 'vgg19', vgg_state),
                                      (train, 'build_objective', cast(train.build_objective)),
                                      (train, 'build_discriminator', cast(train.build_discriminator))):
            stack.enter_context(mock.patch.object(place, name, stand_in))
        train.train(config, recorder, torch.device('cpu'))
    return recorder, model


def smac_trajectory(fixture, config):
    """Losses and changes after every iteration; every parameter's change and the predictions after the last."""
    recorder, model = run_training(fixture, config)
    weights = config.train_params.objective_params.loss_weights
    for k, _ in enumerate(fixture['iterations']):
        theirs = {name.removeprefix(f'step{k}/'): value for name, value in fixture.items()
                  if name.startswith(f'step{k}/')}
        yield relative(f'step {k} learning rate', recorder.figures[k]['learning_rate'], theirs['learning_rates'][0],
                       1e-9, 1e-12)
        yield from step_losses(k, theirs, recorder.figures[k], weights)
        yield from step_changes(k, theirs, recorder)
        yield from step_statistics(k, fixture['bn_names'], theirs, recorder.statistics[k])
    yield from final_changes(fixture, recorder)
    yield from final_predictions(fixture, recorder, model)
