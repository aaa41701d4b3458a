"""The training loop: data, the training step, log, validate, save.

Every random number of step s is a function of (seed, s) and the sample, never of what ran before, so
a run that was killed and restarted, or spread over processes, computes what an undisturbed one does.

What is learned: Eq. 6 of the paper (CVPR 2025, arXiv 2412.00719), with its settings in A.1. Many processes:
https://docs.pytorch.org/docs/stable/elastic/run.html (torchrun).
"""

import logging
import multiprocessing
import signal
import time
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from curves.alarms import Alarms
from datasets.build import training_people
from datasets.frames import Augmentation, PairDataset, Stream
from logger import beginning
from modules import ladder, training_memory
from modules.objective import needs_vgg
from modules.published.formats import ImportFault, flatten_checkpoint, import_tensors
from modules.training_step import build_training_step, micro_batches
from modules.warp import to_displacement
from support import distributed, hardware, weights
from support.errors import UserError
from support.files import make_folder
from validation import Validation

log = logging.getLogger(__name__)


def train(config, run, device, checkpoint=None):
    """Train until train_params.num_iterations, going on from the run folder's newest checkpoint if it has one.

    checkpoint: where it has none, begin with the weights of this file (fine-tuning)
    Raises UserError for data or weights that are missing, a checkpoint of another model, a batch too large
    for the memory, too many non-finite steps, processes that have not the same data, config or checkpoint.
    SIGTERM, SIGUSR1 and Ctrl-C finish the step, save, and return.
    """
    adapted, micro_batch = prepare(config, device)
    params = config.train_params
    training_step = build_training_step(adapted, device, _vgg_state(params))
    state = training_step.state
    start = begin(run, config, state, checkpoint)
    step = start.step
    if step >= params.num_iterations:
        log.info('already trained: %d of %d iterations in %s', step, params.num_iterations, run.path)
        return
    if step < params.motion_iterations:
        check_coarse_flow(config, state.model)

    # The position in the stream of samples is the step.
    loader = training_loader(config, training_set(config), step)
    validation = Validation(config, run, device) if distributed.rank() == 0 else None
    run.begin(config, start)
    means, skipped, stopping = Means(), SkippedSteps(run, params.max_nonfinite), StopSignal()
    alarms = Alarms(run)
    progress = tqdm(total=params.num_iterations, initial=step, unit='it', desc=run.path.name,
                    dynamic_ncols=True, disable=distributed.rank() > 0)
    with stopping, progress, training_memory.explained(adapted, micro_batch, device), loading_explained():
        for seconds, batch in timed(loader):
            step += 1
            taken = training_step(micro_batches(batch, params), step, stopping.requested)

            # Figures: kept on the device, read once per log_every steps.
            if taken.finite:
                means.add(taken.losses | diagnostics(taken.step.generated)
                          | {'diagnostics/gradient_norm': taken.gradient_norm})
            else:
                skipped.add(step, batch)
            means.add(seconds | {'data/skipped_clips': batch['skipped'].sum()})
            if step % params.log_every == 0:
                figures = means.read()
                figures |= {'data/wait_share': figures['data/wait_s'] / figures['data/step_s'],
                            'diagnostics/skipped_steps': skipped.count, 'learning_rate': state.learning_rate(step)}
                run.scalars(step, figures)
                alarms(step, figures)
                progress.set_postfix({name: f'{figures[name]:.3g}' for name in ('total', 'l1', 'data/wait_s')
                                      if name in figures})
            progress.update()

            finished = step == params.num_iterations
            if validation is not None and not taken.motion_only and (finished or step % params.val_every == 0):
                validation(state.ema, step)
            if finished or taken.stop or step % params.save_every == 0:
                run.save(state.checkpoint(config, step), step, params.keep_checkpoints)
            if finished or taken.stop:
                break
    distributed.wait()
    if taken.stop:
        log.info('stopped at step %d; the same command goes on from here', step)


def prepare(config, device):
    """(the config as this machine can run it, samples that go through the networks together); readies the machine.

    Raises UserError for a batch that cannot be split evenly, or that the memory cannot hold.
    """
    params, world = config.train_params, distributed.world()
    if params.batch_size % (world * params.accumulate):
        raise UserError(f'train_params.batch_size={params.batch_size} cannot be split evenly over {world} processes x '
                        f'accumulate={params.accumulate}')
    config = hardware.adapted(config, device)
    training_memory.arrange(params)
    hardware.flush_denormals()
    micro_batch = params.batch_size // (world * params.accumulate)
    training_memory.check_batch(config, micro_batch, device)
    return config, micro_batch


# ---------------------------------------------------------------------------- where it begins

def begin(run, config, state, checkpoint=None):
    """Fill the State with what training in the run folder begins with; returns the logger.Beginning.

    Raises UserError as logger.beginning does. The run folder stays as it is.
    """
    start = beginning(run, config, checkpoint)
    distributed.agree({'newest checkpoint': f'that of step {start.step}'})
    if start.state is None:
        for model in (state.model, state.ema):
            load_pretrained(model)
    elif start.borrowed:
        state.adopt(start.state if start.image_size is None else climbed(start, config, state), start.path)
        log.info('beginning with the weights of %s, step %d', start.path, start.origin['step'])
        if state.discriminator is not None and 'discriminator' not in start.state:
            log.info('it has no discriminator: that one begins untrained')
    else:
        state.load(start.state, start.path)
        log.info('resuming from %s', start.path)
        if start.changed:
            log.info('changed since then: %s', start.changed)
    return start


def climbed(start, config, state):
    """The Beginning's checkpoint as one of this image size: modules/ladder.py. Says what of it was taken."""
    networks = {'ema': state.model}
    if state.discriminator is not None and 'discriminator' in start.state:
        networks['discriminator'] = state.discriminator
    carried = {name: ladder.carry(start.state[name], network) for name, network in networks.items()}
    for name, found in carried.items():
        log.info('from %d to %d px, %s: %s', start.image_size, config.model_params.image_size,
                 'model' if name == 'ema' else name, found)
    return start.state | {name: found.tensors for name, found in carried.items()}


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


def _vgg_state(params):
    return weights.vgg19() if needs_vgg(params.objective_params) else None


# ---------------------------------------------------------------------------- data

def training_set(config):
    """The PairDataset of a config; UserError where there is none, or where processes differ in config or clips."""
    data = config.dataset_params
    augmentation = Augmentation(**vars(data.augmentation_params))
    people = training_people(data, config.model_params.image_size)
    dataset = PairDataset(people, config.train_params.seed, augmentation, data.max_broken)
    distributed.agree({'config': distributed.digest([str(config)]),
                       'training clips': distributed.digest(dataset.names())})
    return dataset


def training_loader(config, dataset, step):
    """Batches from step `step` on: dict(source, driving (B, 3, H, W) in [-1, 1], index (B,), skipped (B,))."""
    params = config.train_params
    stream = Stream(params.batch_size // distributed.world(), distributed.rank(), distributed.world(), step,
                    params.num_iterations)
    check_queues(params.num_workers)
    return DataLoader(dataset, batch_sampler=stream, num_workers=params.num_workers,
                      pin_memory=torch.cuda.is_available(), persistent_workers=False,
                      prefetch_factor=4 if params.num_workers else None,
                      worker_init_fn=_quiet_worker)


def check_queues(workers):
    """UserError where there is no room for the queues of data loading processes: DataLoader would stumble over that."""
    try:
        _ = [multiprocessing.Queue() for _ in range(workers and workers + 2)]
    except OSError as error:
        raise UserError(f'shared memory (/dev/shm) has no room for data loading processes ({error.strerror}): make '
                        'some, or load in the training process: --set train_params.num_workers=0') from None


def _quiet_worker(_):
    for number in StopSignal.NUMBERS:               # they reach the whole group; the main process decides
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)


@contextmanager
def loading_explained():
    """Within it, the end of a data loading process, which PyTorch may report at any line, is a UserError."""
    try:
        yield
    except RuntimeError as error:
        if 'DataLoader worker' not in str(error):
            raise
        raise UserError('a data loading process was ended from outside, most often for want of memory or of shared '
                        'memory (/dev/shm); the same command goes on, with fewer train_params.num_workers if it '
                        'happens again') from None


def timed(loader):
    """Every batch with its seconds by name, as tensors: how long it was waited for, and how long ago the last came."""
    last = begin = time.perf_counter()
    for batch in loader:
        now = time.perf_counter()
        yield {'data/wait_s': torch.tensor(now - begin), 'data/step_s': torch.tensor(now - last)}, batch
        last, begin = now, time.perf_counter()


# ---------------------------------------------------------------------------- the loop's helpers

class StopSignal:
    """Within it, the signals of those who want a process to end only set `requested`; a second Ctrl-C ends it.

    Clusters send SIGTERM or SIGUSR1 before they take a machine back, to launchers and processes alike, and launchers
    send it on: the same signal may come several times.
    """

    NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    AT_ONCE = 1                      # seconds within which a second Ctrl-C is the first one, sent on

    def __init__(self):
        self.requested, self._since = False, None

    def __enter__(self):
        self._before = {number: signal.signal(number, self._request) for number in self.NUMBERS}
        return self

    def __exit__(self, *error):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number, frame):
        now = time.monotonic()
        if number == signal.SIGINT and self.requested and now - self._since > self.AT_ONCE:
            raise KeyboardInterrupt
        if not self.requested:
            self.requested, self._since = True, now


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


class SkippedSteps:
    """Counts steps that were not finite; more than `limit` of them stop the run."""

    def __init__(self, run, limit):
        self.folder, self.limit, self.count = run.path / 'nonfinite', limit, 0

    def add(self, step, batch):
        """Note one. Raises UserError where it is one too many, with the batch kept for inspection."""
        self.count += 1
        log.warning('step %d: loss or gradient is not finite, skipped (%d so far)', step, self.count)
        if self.count > self.limit:
            name = f'step_{step:08d}_rank_{distributed.rank()}.pt'
            weights.save_tensors(make_folder(self.folder) / name, {'step': step} | batch)
            raise UserError(f'{self.count} steps were not finite; the last batch is in {self.folder}; '
                            'lower the learning rate, or set train_params.precision=fp32')
