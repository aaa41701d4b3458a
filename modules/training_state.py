"""State of training: weights, EMA, optimisers and buffers."""

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
        self._check_networks('ema_exclude', params.ema_exclude)
        self.ema = copy.deepcopy(model).eval().requires_grad_(False)
        average, follow = ([], []), ([], [])
        ema = self.ema.state_dict()
        for name, tensor in model.state_dict(keep_vars=True).items():
            averages = isinstance(tensor, torch.nn.Parameter) or (
                params.ema_statistics and name.endswith(('running_mean', 'running_var')))
            averaged = averages and name.split('.')[0] not in params.ema_exclude
            for tensors, own in zip(average if averaged else follow, (ema[name], tensor.detach())):
                tensors.append(own)
        self._average, self._follow = average, follow
        self._buffers = {network: _buffers(network) for network in (model, discriminator) if network is not None}
        self._check_networks('clip_apart', itertools.chain(*params.clip_apart))

    def factor(self, step):
        """Factor on both learning rates at `step`."""
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
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in self.model.parameters()
                                              if parameter.grad is not None])
        for group in self.clip_groups():
            torch.nn.utils.clip_grad_norm_(group, self.params.clip_norm, self.norm_type)
        return norm

    @property
    def norm_type(self):
        return float(self.params.clip_norm_type.removeprefix('l'))

    def clip_groups(self):
        """Lists of parameters, each clipped by its own norm."""
        networks = dict(self.model.named_children())
        if not self.params.clip_norm:
            return []
        if not self.params.clip_apart:
            return [list(self.model.parameters())]
        return [[parameter for name in group for parameter in networks[name].parameters()]
                for group in self.params.clip_apart]

    def _check_networks(self, key, names):
        """UserError for a name of train_params.`key` that is no network of the model."""
        networks = dict(self.model.named_children())
        for name in names:
            if name not in networks:
                raise UserError(f'train_params.{key}: the model has no network {name}'
                                f'{did_you_mean_or_known(name, networks)}')

    def remember_buffers(self, *networks):
        """A function that restores the networks' buffers (batch norm, code usage) to their present values."""
        buffers = [buffer for network in networks if network is not None for buffer in self._buffers[network]]
        before = [torch.empty_like(buffer) for buffer in buffers]
        _copy(before, buffers)
        return lambda: _copy(buffers, before)

    def zero_grad(self):
        self.optimizer.zero_grad()
        if self.discriminator_optimizer is not None:
            self.discriminator_optimizer.zero_grad()

    @torch.no_grad()
    def update(self, adversarial, kept):
        """One step of the optimisers, then codes and EMA.

        kept: what TalkingHead.keep_for_update returned per micro-batch; empty if only the model's motion was trained
        """
        self.optimizer.step()
        if adversarial:
            self.discriminator_optimizer.step()
        self.zero_grad()
        if kept:
            self.model.after_update(kept)
        torch._foreach_lerp_(*self._average, 1 - self.params.ema_decay)
        _copy(*self._follow)

    def checkpoint(self, config, step):
        """All that resuming needs, as a dict for RunFolder.save."""
        state = {'config': config.as_dict(), 'step': step, 'model': self.model.state_dict(),
                 'ema': self.ema.state_dict(), 'optimizer': self.optimizer.state_dict()}
        if self.discriminator is not None:
            state |= {'discriminator': self.discriminator.state_dict(),
                      'discriminator_optimizer': self.discriminator_optimizer.state_dict()}
        return state


def _buffers(network):
    """The buffers that training changes: those in the state dict, without constants such as blur kernels."""
    names = network.state_dict().keys()
    return [buffer for name, buffer in network.named_buffers() if name in names]


@torch.no_grad()
def _copy(targets, sources):
    """Copy lists of tensors, one kernel for all tensors of a type."""
    by_type = {}
    for target, source in zip(targets, sources, strict=True):
        pair = by_type.setdefault(target.dtype, ([], []))
        pair[0].append(target)
        pair[1].append(source)
    for pair in by_type.values():
        torch._foreach_copy_(*pair)
