"""The training loop: loads batches, takes training steps, logs, validates, saves.

All random numbers of step s are a function of (seed, s) and the sample, not of earlier steps. So a run that was killed
and resumed, or distributed over processes, computes the same as an uninterrupted one.

Trained is Eq. 6 of the paper (CVPR 2025, arXiv 2412.00719) with the settings of its Sec. A.1. Several processes:
https://docs.pytorch.org/docs/stable/elastic/run.html (torchrun).
"""

import logging

from torch import Tensor
from tqdm import tqdm

from datasets.loader import timed_batches, training_loader, training_set
from modules import memory
from modules.objective import needs_vgg
from modules.pairs import micro_batches
from modules.training_step import build_training_step
from resume import restore
from support import distributed, hardware, weights
from support.alarms import Alarms
from support.errors import UserError
from support.files import make_folder
from support.signals import StopSignal
from validation import Validation

log = logging.getLogger(__name__)


def train(config, run, device, checkpoint=None):
    """Train until train_params.num_iterations, resuming from the newest checkpoint of the RunFolder `run`.

    checkpoint: without one in the run folder, initialise from the weights of this file (fine-tuning)
    Raises UserError for missing data or weights, a checkpoint of another model, a batch too large for the memory, too
    many non-finite steps, and processes that differ in data, config or checkpoint.
    SIGTERM, SIGUSR1 and Ctrl-C finish the step, save, and return. Returns whether the last iteration is done.
    """
    params, dataset = config.train_params, training_set(config)
    vgg_state = weights.vgg19() if needs_vgg(params.objective_params) else None
    adapted, micro_batch = prepare(config, device)
    training_step = build_training_step(adapted, device, vgg_state)
    state = training_step.state
    start = restore(run, config, state, checkpoint)
    step = start.step
    if step >= params.num_iterations:
        log.info('already trained: %d of %d iterations in %s', step, params.num_iterations, run.path)
        return True
    if step < params.motion_iterations:
        log.info('until step %d only keypoints and coarse flow are trained, with losses on the warped source image',
                 params.motion_iterations)

    loader = training_loader(config, dataset, step)
    validation = Validation(adapted, run, device) if distributed.rank() == 0 else None
    run.save_config(config, start)
    means, skipped, stopping, alarms = Means(), SkippedSteps(run, params.max_nonfinite), StopSignal(), Alarms(run)
    progress = tqdm(total=params.num_iterations, initial=step, unit='it', desc=run.path.name,
                    dynamic_ncols=True, disable=distributed.rank() > 0)
    with stopping, progress, memory.explained(micro_batch), timed_batches(loader) as batches:
        for seconds, batch in batches:
            step += 1
            result = training_step(micro_batches(batch, params), step, stopping.requested)

            # Scalars stay on the device and are read once per log_every steps.
            if result.finite:
                means.add(result.losses | result.diagnostics | {'diagnostics/gradient_norm': result.gradient_norm})
            else:
                skipped.add(step, batch)
            means.add(seconds | {'data/skipped_clips': batch['skipped'].sum()})
            if step % params.log_every == 0:
                scalars = means.read()
                scalars |= {'data/wait_share': scalars['data/wait_s'] / scalars['data/step_s'],
                            'diagnostics/skipped_steps': skipped.count, 'learning_rate': state.learning_rate(step)}
                run.scalars(step, scalars)
                alarms(step, scalars)
                progress.set_postfix({name: f'{scalars[name]:.3g}' for name in ('total', 'l1', 'data/wait_s')
                                      if name in scalars}, refresh=False)
            progress.update()

            finished = step == params.num_iterations
            if validation is not None and not result.motion_only and (finished or step % params.val_every == 0):
                validation(state.ema, step)
            if finished or result.stop or step % params.save_every == 0:
                run.save(state.checkpoint(config, step), step, params.keep_checkpoints)
            if finished or result.stop:
                break
    distributed.wait()
    if result.stop:
        log.info('stopped at step %d; rerun the same command to resume', step)
    return not result.stop


def prepare(config, device):
    """Set up the machine; returns (the config with what `device` supports, pairs per micro-batch of this process).

    Raises UserError for a batch that cannot be split evenly or does not fit the memory.
    """
    params, world = config.train_params, distributed.world()
    if params.batch_size % (world * params.accumulate):
        raise UserError(f'train_params.batch_size={params.batch_size} cannot be split evenly over {world} processes x '
                        f'accumulate={params.accumulate}')
    config = hardware.adapted(config, device)
    hardware.prepare_cpu(params)
    micro_batch = params.batch_size // (world * params.accumulate)
    memory.check_batch(config, micro_batch, device)
    return config, micro_batch


class Means:
    """Running means of scalar tensors by name, summed on their device and read all at once."""

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


class SkippedSteps:
    """Counts non-finite steps; more than `limit` stop the run."""

    def __init__(self, run, limit):
        self.folder, self.limit, self.count = run.path / 'nonfinite', limit, 0

    def add(self, step, batch):
        """Count one. Raises UserError beyond the limit, and saves the batch for inspection."""
        self.count += 1
        log.warning('step %d: loss or gradient is not finite, skipped (%d so far)', step, self.count)
        if self.count > self.limit:
            name = f'step_{step:08d}_rank_{distributed.rank()}.pt'
            weights.save_tensors(make_folder(self.folder) / name, {'step': step} | batch)
            raise UserError(f'{self.count} steps were not finite; the last batch is in {self.folder}; '
                            'lower the learning rate, or set train_params.precision=fp32')
