"""The training loop: data, generator step, discriminator step, EMA, log, validate, save.

Every random number of step s is a function of (seed, s) and the sample, never of what ran before, so
a run that was killed and restarted, or spread over processes, computes what an undisturbed one does.
"""

import copy
import itertools
import logging
import signal
import time
from contextlib import ExitStack, nullcontext

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from datasets.build import training_people
from datasets.frames import Augmentation, PairDataset, Stream
from logger import check_same_model
from modules import training_memory
from modules.build import build_discriminator, build_model, build_objective
from modules.losses import RandomTransform
from modules.objective import DiscriminatorObjective, needs_discriminator, needs_vgg
from modules.published.formats import ImportFault, flatten_checkpoint, import_tensors
from modules.warp import to_displacement
from support import distributed, hardware, weights
from support.errors import UserError
from support.names import did_you_mean_or_known
from validation import Validation

log = logging.getLogger(__name__)


def train(config, run, device):
    """Train until train_params.num_iterations, going on from the run folder's newest checkpoint if it has one.

    Raises UserError for data or weights that are missing, a checkpoint of another model, a batch too large
    for the memory, too many non-finite steps. SIGTERM and Ctrl-C finish the step, save, and return.
    """
    params = config.train_params
    world, rank = distributed.world(), distributed.rank()
    if params.batch_size % (world * params.accumulate):
        raise UserError(f'train_params.batch_size={params.batch_size} cannot be split evenly over {world} processes x '
                        f'accumulate={params.accumulate}')

    config = hardware.adapted(config, device)
    params = config.train_params
    hardware.return_freed_memory()
    hardware.flush_denormals()
    micro_batch = params.batch_size // (world * params.accumulate)
    training_memory.check_batch(config, micro_batch, device)

    # Networks: built from the seed alone, so that all processes start alike.
    torch.manual_seed(params.seed)
    model = build_model(config).to(device)
    # Channels last is the faster layout for convolutions on GPUs and, by about a sixth, on CPUs.
    objective = build_objective(config, model, _vgg_state(params)).to(device, memory_format=torch.channels_last)
    discriminator = build_discriminator(config).to(device) if needs_discriminator(params.objective_params) else None
    state = State(params, model, discriminator)
    step = resume(run, config, state)
    if step >= params.num_iterations:
        log.info('already trained: %d of %d iterations in %s', step, params.num_iterations, run.path)
        return
    if step < params.motion_iterations:
        check_coarse_flow(config, model)
    if params.checkpointing:
        model.recompute_blocks()
    if params.compile:
        for block in model.outer_blocks():
            block.compile()
    generator_step, discriminator_step = objective, None
    if discriminator is not None:
        discriminator_step = DiscriminatorObjective(discriminator, params.objective_params)
    if world > 1:
        # Every buffer (batch norm, code usage) is a function of the global batch: alike everywhere without being sent.
        generator_step = DistributedDataParallel(objective, broadcast_buffers=False,
                                                 find_unused_parameters=params.motion_iterations > 0)
        if discriminator is not None:
            discriminator_step = DistributedDataParallel(discriminator_step, broadcast_buffers=False)

    # Data: the position in the stream is the step.
    loader = training_loader(config, step)
    validation = Validation(config, run, device) if rank == 0 else None
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=params.precision == 'bf16')
    skipped, means, stopping = 0, Means(), StopSignal()

    progress = tqdm(total=params.num_iterations, initial=step, unit='it', desc=run.path.name,
                    dynamic_ncols=True, disable=rank > 0)
    with stopping, progress, training_memory.explained(config, micro_batch, device):
        waiting = time.perf_counter()
        for batch in loader:
            waited = time.perf_counter() - waiting
            step += 1
            state.set_learning_rate(step)
            torch.manual_seed(hash_seed(params.seed, step, rank))
            motion_only = step <= params.motion_iterations
            adversarial = discriminator is not None and step > max(params.objective_params.adversarial_start,
                                                                   params.motion_iterations)
            undo = state.remember_buffers()

            # Generator and discriminator gradients, micro-batch by micro-batch.
            for micro, part in enumerate(split(batch, params.accumulate)):
                last = micro == params.accumulate - 1
                source, driving = (part[name].to(device, non_blocking=True) for name in ('source', 'driving'))
                transform = draw_transform(params.seed, part['index'].tolist()).to(device)
                with ExitStack() as context:
                    for wrapped in (generator_step, discriminator_step):
                        if world > 1 and not last and wrapped is not None:
                            context.enter_context(wrapped.no_sync())
                    with frozen(discriminator) if adversarial else nullcontext(), autocast:
                        result = generator_step(source, driving, transform, discriminator if adversarial else None,
                                                motion_only)
                    (result.total / params.accumulate).backward()
                    losses = {'total': result.total.detach(), **result.losses}
                    if adversarial:
                        with autocast:
                            total, found = discriminator_step(driving, result.generated)
                        (total / params.accumulate).backward()
                        losses |= found

            # The update, or none: all processes skip a step that is not finite in any of them.
            norm = state.clip_gradients()
            broken, stop = distributed.any_rank(~torch.isfinite(norm + losses['total']), stopping.requested,
                                                device=device)
            if broken:
                skipped += 1
                undo()
                state.zero_grad()
                log.warning('step %d: loss or gradient is not finite, skipped (%d so far)', step, skipped)
                if skipped > params.max_nonfinite:
                    save_broken(run, batch, step)
                    raise UserError(f'{skipped} steps were not finite; the last batch is in {run.path}/nonfinite; '
                                    'lower the learning rate, or set train_params.precision=fp32')
            else:
                state.update(adversarial, None if motion_only else result.generated)

            # Figures: kept on the device, read once per log_every steps.
            if not broken:
                means.add(losses | diagnostics(result.generated) | {'diagnostics/gradient_norm': norm})
            means.add({'data/wait_s': torch.tensor(waited), 'data/skipped_clips': batch['skipped'].sum()})
            if step % params.log_every == 0:
                figures = means.read()
                run.scalars(step, figures | {'diagnostics/skipped_steps': skipped,
                                             'learning_rate': state.learning_rate(step)})
                progress.set_postfix({name: f'{figures[name]:.3g}' for name in ('total', 'l1', 'data/wait_s')
                                      if name in figures})
            progress.update()
            last = step == params.num_iterations or stop
            due = step % params.val_every == 0 or step == params.num_iterations
            if validation is not None and not motion_only and due:
                validation(state.ema, step)
            if step % params.save_every == 0 or last:
                run.save(state.checkpoint(config, step), step, params.keep_checkpoints)
            if last:
                break
            waiting = time.perf_counter()
    distributed.wait()
    if stop:
        log.info('stopped at step %d; the same command goes on from here', step)


# ---------------------------------------------------------------------------- state

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

    def load(self, state):
        self.model.load_state_dict(state['model'])
        self.ema.load_state_dict(state['ema'])
        if self.discriminator is not None and 'discriminator' in state:
            self.discriminator.load_state_dict(state['discriminator'])
        # Imported weights have no optimiser yet: training starts from them.
        for name in ('optimizer', 'discriminator_optimizer'):
            if getattr(self, name) is not None and name in state:
                getattr(self, name).load_state_dict(state[name])


def resume(run, config, state):
    """Load the run folder's newest whole checkpoint into `state`; returns its step, 0 if there is none."""
    found = run.newest()
    if found is None:
        for model in (state.model, state.ema):
            load_pretrained(model)
        return 0
    path, checkpoint = found
    check_same_model(config, checkpoint, path)
    state.load(checkpoint)
    run.rewind(checkpoint['step'])
    log.info('resuming from %s', path)
    return checkpoint['step']


def load_pretrained(model):
    """Fill the parts of a TalkingHead that others have trained; UserError if their files are missing or do not fit."""
    for layout, (part, folder) in model.pretrained_parts().items():
        try:
            import_tensors(layout, flatten_checkpoint(layout, weights.pretrained(layout, folder)), part)
        except ImportFault as fault:
            raise UserError(f'{folder}: {fault}') from None


def check_coarse_flow(config, model):
    """That `model` has what motion_iterations train; says that they come first."""
    count = config.train_params.motion_iterations
    if not model.has_coarse_flow:
        raise UserError(f'train_params.motion_iterations={count}: method {config.method} has no coarse flow to train '
                        'alone; set it to 0')
    log.info('until step %d keypoints and coarse flow are trained alone; losses are of the moved source image', count)


# ---------------------------------------------------------------------------- data

def training_loader(config, step):
    """Batches from step `step` on: dict(source, driving (B, 3, H, W) in [-1, 1], index (B,), skipped (B,))."""
    params, data = config.train_params, config.dataset_params
    size = config.model_params.image_size
    augmentation = Augmentation(**vars(data.augmentation_params))
    dataset = PairDataset(training_people(data, size), params.seed, augmentation, data.max_broken)
    stream = Stream(params.batch_size // distributed.world(), distributed.rank(), distributed.world(), step,
                    params.num_iterations)
    return DataLoader(dataset, batch_sampler=stream, num_workers=params.num_workers,
                      pin_memory=torch.cuda.is_available(), persistent_workers=False,
                      prefetch_factor=4 if params.num_workers else None,
                      worker_init_fn=_quiet_worker)


def _quiet_worker(_):
    signal.signal(signal.SIGINT, signal.SIG_IGN)    # Ctrl-C reaches the whole group; the main process decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)


def split(batch, parts):
    """A batch as `parts` equal micro-batches."""
    chunks = {name: value.chunk(parts) for name, value in batch.items()}
    return [{name: pieces[i] for name, pieces in chunks.items()} for i in range(parts)]


def hash_seed(*numbers):
    """A 63-bit seed from small integers; nearby ones give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def draw_transform(seed, indices):
    """The equivariance transform of each sample, a function of the seed and the sample's index."""
    drawn = [RandomTransform.draw(1, torch.Generator().manual_seed(hash_seed(seed, index, 2))) for index in indices]
    return RandomTransform(torch.cat([t.theta for t in drawn]), torch.cat([t.control for t in drawn]))


def _vgg_state(params):
    return weights.vgg19() if needs_vgg(params.objective_params) else None


# ---------------------------------------------------------------------------- the step's helpers

class frozen:
    """Within it, the network's parameters take no gradient."""

    def __init__(self, network):
        self.network = network

    def __enter__(self):
        self.network.requires_grad_(False)

    def __exit__(self, *error):
        self.network.requires_grad_(True)


class StopSignal:
    """Within it, SIGTERM and the first Ctrl-C only set `requested`."""

    def __init__(self):
        self.requested = False

    def __enter__(self):
        self._before = {number: signal.signal(number, self._request) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number, frame):
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


class Means:
    """Running means of scalars by name, summed where they are and read all at once."""

    def __init__(self):
        self.sums, self.counts = {}, {}

    def add(self, values: dict[str, Tensor]):
        for name, value in values.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def read(self):
        """Means over all processes since the last call, as floats."""
        device = next(iter(self.sums.values())).device
        means = distributed.mean({name: (total / self.counts[name]).to(device) for name, total in self.sums.items()})
        self.sums, self.counts = {}, {}
        return means


@torch.no_grad()
def diagnostics(generated):
    """Scalars that show a collapse before the losses do."""
    value = generated.driving_keypoints.value.float()
    motion = to_displacement(generated.flows[-1].float())
    return {'diagnostics/keypoint_spread': value.std(dim=1, correction=0).mean(),
            'diagnostics/flow_magnitude_px': motion.square().sum(1).sqrt().mean(),
            **generated.diagnostics}


def save_broken(run, batch, step):
    """Keep a batch that gave a non-finite loss, for inspection."""
    folder = run.path / 'nonfinite'
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({'step': step} | batch, folder / f'step_{step:08d}_rank_{distributed.rank()}.pt')
