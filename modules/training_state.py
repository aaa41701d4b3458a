"""What a training step updates: weights, EMA, optimisers and buffers."""

import copy
import itertools

import torch

from support.errors import UserError, did_you_mean_or_known


class State:
    """Weights, EMA and optimisers of one run."""

    def __init__(self, params, model, discriminator):
        self.params = params
        self.model, self.discriminator = model, discriminator
        self.optimizer = torch.optim.Adam(model.parameters(), params.learning_rate, params.betas, fused=True)
        self.discriminator_optimizer = None
        if discriminator is not None:
            self.discriminator_optimizer = torch.optim.Adam(
                discriminator.parameters(), params.discriminator_learning_rate, params.betas, fused=True)

        # The EMA is a whole model, which validation and inference use directly.
        self.ema = copy.deepcopy(model).eval().requires_grad_(False)
        average, follow = [], []
        for name, tensor in model.state_dict(keep_vars=True).items():
            averaged = isinstance(tensor, torch.nn.Parameter) and name.split('.')[0] not in params.ema_exclude
            (average if averaged else follow).append(name)
        live, ema = (dict(network.state_dict()) for network in (model, self.ema))
        self._average = [ema[name] for name in average], [live[name] for name in average]
        self._follow = [ema[name] for name in follow], [live[name] for name in follow]
        self.clip_groups()                   # refuses a wrong name before the first step
        self._buffers = [buffer for network in (model, discriminator) if network is not None
                         for buffer in network.buffers()]

    def factor(self, step):
        """What the learning rates are multiplied with at `step`."""
        return self.params.gamma ** sum(step > milestone for milestone in self.params.milestones)

    def learning_rate(self, step):
        return self.params.learning_rate * self.factor(step)

    def set_learning_rate(self, step):
        rates = {self.optimizer: self.params.learning_rate,
                 self.discriminator_optimizer: self.params.discriminator_learning_rate}
        for optimizer, rate in rates.items():
            if optimizer is not None:
                optimizer.param_groups[0]['lr'] = rate * self.factor(step)

    def clip_gradients(self):
        """Scale each group's gradients down to clip_norm; returns the L2 norm of the whole gradient before."""
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), float('inf'))
        for group in self.clip_groups():
            torch.nn.utils.clip_grad_norm_(group, self.params.clip_norm, self.norm_type)
        return norm

    @property
    def norm_type(self):
        return float(self.params.clip_norm_type.removeprefix('l'))

    def clip_groups(self):
        """Lists of parameters, each clipped by its own norm; UserError for a network that the model does not have."""
        networks = dict(self.model.named_children())
        for name in itertools.chain(*self.params.clip_apart):
            if name not in networks:
                raise UserError(f'train_params.clip_apart: the model has no network {name}'
                                f'{did_you_mean_or_known(name, networks)}')
        if not self.params.clip_norm:
            return []
        if not self.params.clip_apart:
            return [list(self.model.parameters())]
        return [[parameter for name in group for parameter in networks[name].parameters()]
                for group in self.params.clip_apart]

    def remember_buffers(self):
        """A function that restores all buffers (batch norm, code usage) to their present values."""
        before = [buffer.clone() for buffer in self._buffers]
        return lambda: [buffer.copy_(old) for buffer, old in zip(self._buffers, before)]

    def zero_grad(self):
        self.optimizer.zero_grad()
        if self.discriminator_optimizer is not None:
            self.discriminator_optimizer.zero_grad()

    @torch.no_grad()
    def update(self, adversarial, observed):
        """One step of the optimisers, then codes and EMA.

        observed: what TalkingHead.observe returned per micro-batch; empty if only the model's motion was trained
        """
        self.optimizer.step()
        if adversarial:
            self.discriminator_optimizer.step()
        self.zero_grad()
        if observed:
            self.model.after_update(observed)
        torch._foreach_lerp_(*self._average, 1 - self.params.ema_decay)
        for ema, live in zip(*self._follow):
            ema.copy_(live)

    def checkpoint(self, config, step):
        """All that resuming needs, as a dict for RunFolder.save."""
        state = {'config': config.as_dict(), 'step': step, 'model': self.model.state_dict(),
                 'ema': self.ema.state_dict(), 'optimizer': self.optimizer.state_dict()}
        if self.discriminator is not None:
            state |= {'discriminator': self.discriminator.state_dict(),
                      'discriminator_optimizer': self.discriminator_optimizer.state_dict()}
        return state
