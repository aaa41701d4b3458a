"""One training step: from training pairs to updated weights.

train.py calls it in its loop, benchmarks/parity compares it with the released code.
"""

import inspect
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from modules.build import build_discriminator, build_model, build_objective
from modules.codebook import Whitening
from modules.half_weights import HalfWeights
from modules.objective import DiscriminatorObjective, needs_discriminator
from modules.pairs import hash_seed
from modules.training_state import State
from modules.warp import to_displacement
from support import distributed, hardware
from support.errors import UserError


@dataclass
class StepResult:
    """Result of one training step.

    losses:        unweighted losses, detached scalars by name, means over the micro-batches of this process; 'total'
                   is Eq. 6; includes the discriminator's losses in adversarial steps
    diagnostics:   scalars by name, likewise
    adversarial:   whether the discriminator took part
    motion_only:   whether only keypoints and coarse flow were trained
    kept:          what TalkingHead.after_update needs, one entry per micro-batch; empty with motion_only
    gradient_norm: L2 norm of the model's gradient before clipping, a scalar
    finite:        whether weights were updated: losses and gradient were finite in all processes
    stop:          whether any process was asked to stop
    """
    losses: dict[str, Tensor]
    diagnostics: dict[str, Tensor]
    adversarial: bool
    motion_only: bool
    kept: list = field(default_factory=list)
    gradient_norm: Tensor | None = None
    finite: bool = True
    stop: bool = False


class TrainingStep:
    """The networks, and how one step updates them.

    objective:     modules.objective.Objective around the model
    discriminator: a network, or None if the objective needs none
    state:         State of both
    """

    def __init__(self, params, objective, discriminator, device):
        """params: TrainParams; the networks must be on `device` already, since State holds their tensors.

        Within a process group, the networks of all processes train as one.
        """
        self.params, self.device = params, device
        self.objective, self.discriminator = objective, discriminator
        self.state = State(params, objective.model, discriminator)
        self._whitenings = [module for module in objective.model.modules() if isinstance(module, Whitening)]
        self._half_weights = HalfWeights(objective.model) if params.precision == 'bf16' else nullcontext
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=params.precision == 'bf16')
        # The first step in which all networks and losses take part.
        self.first_full_step = 1 + max(params.motion_iterations,
                                       params.objective_params.adversarial_start if discriminator is not None else 0)
        if params.compile:
            blocks = objective.model.outer_blocks()
            hardware.allow_compiled_blocks(len(blocks))
            for block in blocks:
                block.forward = torch.compile(block.forward)
        if params.checkpointing:                     # around compiled blocks: it cannot be compiled itself
            objective.model.enable_activation_checkpointing()
        if params.precision == 'bf16' and objective.perceptual is not None:
            # Frozen weights: autocast would convert them at every use.
            objective.perceptual.network.features.to(torch.bfloat16)

        self._generator = self._distributed(objective, find_unused_parameters=params.motion_iterations > 0)
        self._discriminator = None
        if discriminator is not None:
            self._discriminator = self._distributed(DiscriminatorObjective(discriminator, params.objective_params))

    def __call__(self, parts, number, stop=False):
        """Take step `number`, counted from 1, on a list of equal micro-batches (Pairs); returns the StepResult.

        stop: whether this process was asked to stop; all processes learn of it

        If loss or gradient are not finite in any process, all skip the step: nothing changes.
        """
        self.state.set_learning_rate(number)
        restore_buffers = self.state.remember_buffers(self.state.model, self.discriminator)
        result = self.gradients(parts, number)
        result.gradient_norm = self.state.clip_gradients()
        nonfinite = ~torch.isfinite(result.gradient_norm + result.losses['total'])
        skipped, result.stop = distributed.any_rank(nonfinite, stop, device=self.device)
        result.finite = not skipped
        if skipped:
            restore_buffers()
            self.state.zero_grad()
        else:
            self.update(result)
        return result

    def gradients(self, parts, number):
        """Accumulate the gradients of step `number`, means over the micro-batches; returns the StepResult.

        Gradients do not depend on how a batch is split into micro-batches and processes, up to rounding, except by
        batch norm, whose statistics are of a micro-batch in all processes.

        parts: list of Pairs, images (B, 3, H, W), alike in size
        """
        motion_only = number <= self.params.motion_iterations
        adversarial = self.discriminator is not None and number >= self.first_full_step
        seed = hash_seed(self.params.seed, number, distributed.rank())
        parts = [part.to(self.device) for part in parts]
        images = [None] * len(parts)
        if len(parts) > 1 and not motion_only and (
                self._whitenings or adversarial and self.objective.params.adaptive_weight):
            images = self._survey(parts, adversarial, seed)
        losses, scalars, kept = [], [], []
        for k, (part, image) in enumerate(zip(parts, images)):
            torch.manual_seed(seed + k)
            with self._exchange(last=k == len(parts) - 1), nullcontext() if motion_only else self._half_weights():
                output = self.generate(part, adversarial, motion_only, image)
                (output.total / len(parts)).backward()
                losses.append({'total': output.total.detach(), **output.losses})
                if adversarial:
                    losses[-1] |= self.discriminate(part.driving, output.generated, len(parts))
            scalars.append(diagnostics(output.generated))
            if not motion_only:
                kept.append(self.state.model.keep_for_update(output.generated))
            del output
        for whitening in self._whitenings:
            whitening.release()
        return StepResult(_means(losses), _means(scalars), adversarial, motion_only, kept)

    def _survey(self, parts, adversarial, seed):
        """The ImageLosses of all micro-batches, balanced, with whitening statistics updated by the whole batch.

        What a step learns must not depend on how its batch is split. So everything that is a function of the batch and
        enters the gradient is computed by a forward pass of its own, without a graph, before the first micro-batch.
        """
        restore_buffers = self.state.remember_buffers(self.state.model)
        for whitening in self._whitenings:
            whitening.collect()
        images = []
        for k, part in enumerate(parts):
            torch.manual_seed(seed + k)
            with frozen(self.discriminator) if adversarial else nullcontext(), self._autocast:
                images.append(self.objective.survey(*part, self.discriminator if adversarial else None))
        restore_buffers()
        for whitening in self._whitenings:
            whitening.update()
        self.objective.balance(images)
        return images

    def generate(self, part, adversarial, motion_only, image=None):
        """The generator's forward pass: ObjectiveOutput for one micro-batch of Pairs (B, 3, H, W).

        image: its ImageLosses if they have been computed
        """
        with frozen(self.discriminator) if adversarial else nullcontext(), self._autocast:
            return self._generator(*part, self.discriminator if adversarial else None, motion_only, image)

    def discriminate(self, driving, generated, parts):
        """The discriminator's forward and backward pass on what was generated before the update; losses by name."""
        with self._autocast:
            total, losses = self._discriminator(driving, generated)
        (total / parts).backward()
        return losses

    def update(self, result):
        """Update weights, codes and EMA; frees the tensors in `result.kept`."""
        kept, result.kept = result.kept, []
        self.state.update(result.adversarial, kept)

    def _distributed(self, module, **options):
        """The module, with gradients averaged over the processes if there are several."""
        # Buffers (batch norm, code usage) are functions of the global batch, alike everywhere without broadcasts.
        if distributed.world() == 1:
            return module
        named = 'forward_sync_buffers', 'broadcast_buffers'                        # from PyTorch 2.14 on, and before
        known = inspect.signature(DistributedDataParallel).parameters
        options[next(name for name in named if name in known)] = False
        return DistributedDataParallel(module, gradient_as_bucket_view=True, **options)

    def _exchange(self, last):
        """Context manager: processes exchange gradients only in the backward pass of the `last` micro-batch."""
        context = ExitStack()
        for network in (self._generator, self._discriminator):
            if isinstance(network, DistributedDataParallel) and not last:
                context.enter_context(network.no_sync())
        return context


def build_training_step(config, device, vgg_state=None):
    """The TrainingStep of a config, with networks initialised from train_params.seed alone: alike in all processes.

    vgg_state: torchvision's VGG19 state dict; needed exactly if the perceptual weight is not 0
    Raises UserError for motion_iterations with a method that has no coarse flow.
    """
    params = config.train_params
    torch.manual_seed(params.seed)
    model = build_model(config).to(device)
    if params.motion_iterations and not model.has_coarse_flow:
        raise UserError(f'train_params.motion_iterations={params.motion_iterations}: method {config.method} has no '
                        'coarse flow to train alone; set it to 0')
    layout, discriminator = hardware.memory_format(device), None
    objective = build_objective(config, model, vgg_state).to(device, memory_format=layout)
    if needs_discriminator(params.objective_params):
        discriminator = build_discriminator(config).to(device, memory_format=layout)
    return TrainingStep(params, objective, discriminator, device)


@contextmanager
def frozen(network):
    """Context manager: the network's parameters take no gradient."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)


@torch.no_grad()
def diagnostics(generated):
    """Scalars that show a collapse before the losses do, by name."""
    value = generated.driving_keypoints.value.float()
    displacement = to_displacement(generated.flows[-1].float())
    spread = {'diagnostics/keypoint_spread': value.std(dim=1, correction=0).mean()} if value.shape[1] > 1 else {}
    return {**spread, 'diagnostics/flow_magnitude_px': displacement.square().sum(1).sqrt().mean(),
            **generated.diagnostics}


def _means(parts):
    """The mean of each scalar over a list of dicts with the same names."""
    stacked = torch.stack([torch.stack(list(part.values())) for part in parts])
    return dict(zip(parts[0], stacked.mean(0).unbind()))
