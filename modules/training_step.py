"""One iteration of training: pairs in, changed weights out.

What train.py's loop calls is what benchmarks/parity compares with the released code and benchmarks/speed times.
"""

import copy
import itertools
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from modules.build import build_discriminator, build_model, build_objective
from modules.losses import RandomTransform
from modules.objective import DiscriminatorObjective, Step, needs_discriminator
from support import distributed
from support.errors import UserError, did_you_mean_or_known
from support.weights import load_optimizer, load_weights


class Pairs(NamedTuple):
    """A micro-batch of training pairs.

    source, driving: (B, 3, H, W) in [-1, 1]
    transform:       the equivariance transform of each pair
    """
    source: Tensor
    driving: Tensor
    transform: RandomTransform

    def to(self, device):
        return Pairs(self.source.to(device, non_blocking=True), self.driving.to(device, non_blocking=True),
                     self.transform.to(device))


@dataclass
class Taken:
    """What an iteration did.

    losses:        unweighted losses, detached scalars by name, means over the micro-batches of this process; 'total'
                   is Eq. 6; also the discriminator's where it took part
    step:          what the objective gave for the last micro-batch
    adversarial:   whether the discriminator took part
    motion_only:   whether keypoints and coarse flow were trained alone
    gradient_norm: L2 norm of the model's gradient before clipping, a scalar
    finite:        whether weights were updated; losses and gradient of all processes were finite then
    stop:          whether any process is asked to stop
    """
    losses: dict[str, Tensor]
    step: Step
    adversarial: bool
    motion_only: bool
    gradient_norm: Tensor | None = None
    finite: bool = True
    stop: bool = False


class TrainingStep:
    """The networks, and how an iteration changes them.

    objective:     modules.objective.Objective around the model
    discriminator: a network, or None where the objective asks none
    state:         State of both
    """

    def __init__(self, params, objective, discriminator, device):
        """params: TrainParams; the networks are on `device`, where they stay as they are: State holds their tensors.

        Within a process group the networks of all processes train as one.
        """
        self.params, self.device = params, device
        self.objective, self.discriminator = objective, discriminator
        self.state = State(params, objective.model, discriminator)
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=params.precision == 'bf16')
        if params.checkpointing:
            objective.model.recompute_blocks()
        if params.compile:
            for block in objective.model.outer_blocks():
                block.compile()

        self._spread = distributed.world() > 1
        self._generator = self._shared(objective, find_unused_parameters=params.motion_iterations > 0)
        self._discriminator = None
        if discriminator is not None:
            self._discriminator = self._shared(DiscriminatorObjective(discriminator, params.objective_params))

    def __call__(self, parts, number, stop=False):
        """Take iteration `number`, counted from 1, on a list of equal micro-batches (Pairs); returns Taken.

        stop: whether this process is asked to stop, for all to know

        All processes skip an iteration that is not finite in any of them: nothing is changed then.
        """
        torch.manual_seed(hash_seed(self.params.seed, number, distributed.rank()))
        self.state.set_learning_rate(number)
        undo = self.state.remember_buffers()
        taken = self.gradients(parts, number)
        taken.gradient_norm = self.state.clip_gradients()
        wrong = ~torch.isfinite(taken.gradient_norm + taken.losses['total'])
        broken, taken.stop = distributed.any_rank(wrong, stop, device=self.device)
        taken.finite = not broken
        if taken.finite:
            self.update(taken)
        else:
            undo()
            self.state.zero_grad()
        return taken

    @property
    def whole(self):
        """The first iteration in which everything takes part."""
        return 1 + max(self.params.motion_iterations,
                       self.params.objective_params.adversarial_start if self.discriminator is not None else 0)

    def gradients(self, parts, number):
        """Add the gradients of iteration `number` to the networks' own, means over the micro-batches; returns Taken.

        parts: list of Pairs, images (B, 3, H, W), alike in size
        """
        motion_only = number <= self.params.motion_iterations
        adversarial = self.discriminator is not None and number >= self.whole
        found = []
        for part in parts:
            part = part.to(self.device)
            with self._exchange(last=len(found) == len(parts) - 1):
                step = self.generate(part, adversarial, motion_only)
                self.backward(step.total / len(parts))
                found.append({'total': step.total.detach(), **step.losses})
                if adversarial:
                    found[-1] |= self.discriminate(part.driving, step.generated, len(parts))
        losses = {name: sum(losses[name] for losses in found) / len(found) for name in found[0]}
        return Taken(losses, step, adversarial, motion_only)

    def generate(self, part, adversarial, motion_only):
        """The generator's turn, forward: the objective's Step for one micro-batch of Pairs (B, 3, H, W)."""
        with frozen(self.discriminator) if adversarial else nullcontext(), self._autocast:
            return self._generator(*part, self.discriminator if adversarial else None, motion_only)

    def backward(self, total):
        """The generator's turn, backward, from the scalar `total`."""
        total.backward()

    def discriminate(self, driving, generated, parts):
        """The discriminator's turn, forward and backward: its losses by name. Sees what was made before the update."""
        with self._autocast:
            total, losses = self._discriminator(driving, generated)
        (total / parts).backward()
        return losses

    def update(self, taken):
        """Optimisers, what the model does after them, EMA."""
        self.state.update(taken.adversarial, None if taken.motion_only else taken.step.generated)

    def _shared(self, module, **options):
        """The module, its gradients averaged over the processes where there are several."""
        # Every buffer (batch norm, code usage) is a function of the global batch: alike everywhere without being sent.
        return DistributedDataParallel(module, broadcast_buffers=False, **options) if self._spread else module

    @contextmanager
    def _exchange(self, last):
        """Within it, processes exchange gradients if this is the `last` micro-batch."""
        with ExitStack() as context:
            for network in (self._generator, self._discriminator):
                if self._spread and not last and network is not None:
                    context.enter_context(network.no_sync())
            yield


def build_training_step(config, device, vgg_state=None):
    """The TrainingStep of a config, its networks freshly initialised from train_params.seed alone: alike everywhere.

    vgg_state: torchvision's VGG19 state dict; needed exactly if the perceptual weight is not 0
    """
    params = config.train_params
    torch.manual_seed(params.seed)
    model = build_model(config).to(device)
    # Channels last is the faster layout for convolutions on GPUs and, by about a sixth, on CPUs.
    objective = build_objective(config, model, vgg_state).to(device, memory_format=torch.channels_last)
    discriminator = build_discriminator(config).to(device) if needs_discriminator(params.objective_params) else None
    return TrainingStep(params, objective, discriminator, device)


# ---------------------------------------------------------------------------- what an update changes

class State:
    """Everything that an update changes: weights, EMA, optimisers."""

    def __init__(self, params, model, discriminator):
        self.params = params
        self.model, self.discriminator = model, discriminator
        self.optimizer = torch.optim.Adam(model.parameters(), params.learning_rate, params.betas, fused=True)
        self.discriminator_optimizer = None
        if discriminator is not None:
            self.discriminator_optimizer = torch.optim.Adam(
                discriminator.parameters(), params.discriminator_learning_rate, params.betas, fused=True)

        # The EMA is a model of its own, which validation and inference use as it is.
        self.ema = copy.deepcopy(model).eval().requires_grad_(False)
        average, follow = [], []
        for name, tensor in model.state_dict(keep_vars=True).items():
            averaged = isinstance(tensor, torch.nn.Parameter) and name.split('.')[0] not in params.ema_exclude
            (average if averaged else follow).append(name)
        live, ema = (dict(network.state_dict()) for network in (model, self.ema))
        self._average = [ema[name] for name in average], [live[name] for name in average]
        self._follow = [ema[name] for name in follow], [live[name] for name in follow]
        self.clip_groups()                   # a wrong name stops here, not at the first step
        self._buffers = [buffer for network in (model, discriminator) if network is not None
                         for buffer in network.buffers()]

    def factor(self, step):
        """Share of the learning rate at `step`."""
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
        """Scale the gradients of each group of networks down to clip_norm; returns the whole model's L2 norm before."""
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), float('inf'))
        for group in self.clip_groups():
            torch.nn.utils.clip_grad_norm_(group, self.params.clip_norm, self.norm_type)
        return norm

    @property
    def norm_type(self):
        return float(self.params.clip_norm_type.removeprefix('l'))

    def clip_groups(self):
        """The parameters that clip_norm limits, group by group; UserError for networks that the model has not."""
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
        """A function that takes buffers (batch norm, code usage) back to what they are now."""
        before = [buffer.clone() for buffer in self._buffers]
        return lambda: [buffer.copy_(old) for buffer, old in zip(self._buffers, before)]

    def zero_grad(self):
        self.optimizer.zero_grad()
        if self.discriminator_optimizer is not None:
            self.discriminator_optimizer.zero_grad()

    @torch.no_grad()
    def update(self, adversarial, generated):
        """One step of the optimisers; generated: what the whole model made, None if only its motion was trained."""
        self.optimizer.step()
        if adversarial:
            self.discriminator_optimizer.step()
        self.zero_grad()
        if generated is not None:
            self.model.after_update(generated)
        torch._foreach_lerp_(*self._average, 1 - self.params.ema_decay)
        for ema, live in zip(*self._follow):
            ema.copy_(live)

    def checkpoint(self, config, step):
        state = {'config': config.as_dict(), 'step': step, 'model': self.model.state_dict(),
                 'ema': self.ema.state_dict(), 'optimizer': self.optimizer.state_dict()}
        if self.discriminator is not None:
            state |= {'discriminator': self.discriminator.state_dict(),
                      'discriminator_optimizer': self.discriminator_optimizer.state_dict()}
        return state

    def adopt(self, state, path):
        """Begin with the weights that a checkpoint, read from `path`, has for inference; everything else stays as new.

        The discriminator's are taken too where both sides have one. Raises UserError if they do not fit.
        """
        for network in (self.model, self.ema):
            load_weights(network, state['ema'], path)
        if self.discriminator is not None and 'discriminator' in state:
            load_weights(self.discriminator, state['discriminator'], path)

    def load(self, state, path):
        """Go on from what `checkpoint` gave, read from `path`; UserError if it does not fit."""
        load_weights(self.model, state['model'], path)
        load_weights(self.ema, state['ema'], path)
        if self.discriminator is not None and 'discriminator' in state:
            load_weights(self.discriminator, state['discriminator'], path)
        # Imported weights have no optimiser yet: training starts from them.
        for name in ('optimizer', 'discriminator_optimizer'):
            if getattr(self, name) is not None and name in state:
                load_optimizer(getattr(self, name), state[name], path)


class frozen:
    """Within it, the network's parameters take no gradient."""

    def __init__(self, network):
        self.network = network

    def __enter__(self):
        self.network.requires_grad_(False)

    def __exit__(self, *error):
        self.network.requires_grad_(True)


# ---------------------------------------------------------------------------- samples, and their random numbers

def micro_batches(batch, params):
    """What the loader gives -> `accumulate` equal Pairs.

    batch: dict(source, driving (B, 3, H, W) in [-1, 1], index (B,), ...)
    """
    pieces = [batch[name].chunk(params.accumulate) for name in ('source', 'driving', 'index')]
    return [Pairs(source, driving, draw_transform(params.seed, index.tolist()))
            for source, driving, index in zip(*pieces, strict=True)]


def draw_transform(seed, indices):
    """The equivariance transform of each sample, a function of the seed and the sample's index."""
    drawn = [RandomTransform.draw(1, torch.Generator().manual_seed(hash_seed(seed, index, 2))) for index in indices]
    return RandomTransform(torch.cat([t.theta for t in drawn]), torch.cat([t.control for t in drawn]))


def hash_seed(*numbers):
    """A 63-bit seed from small integers; nearby ones give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
