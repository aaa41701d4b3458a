"""How fast is the model, in a unit that travels?

    python -m benchmarks.speed [--device cpu|cuda] [--config config/vox-256.yaml] [--batch 2] [--ablate [NAME ...]]
                               [--json FILE]

The yardstick is torchvision's ResNet-50 in fp32: one forward pass of one 256 px image for an animated frame, one
training step of 8 images of 224 px (SGD) for a training step. Yardstick and model take turns, and the ratio is taken
in each turn, so that what else the machine does cancels. On a CPU, time is the process's CPU time (with one thread,
`--threads 1`, the time that it would take undisturbed); wall time stands beside it. Each part runs in a process of its
own, which tells its peak memory. `--ablate` replaces one optimisation at a time by the plain formula; all of them, or
those that are named.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from config import schema
from modules import dense_motion, layers, losses, retrieval
from modules.autoencoder import Encoder
from modules.build import build_model
from modules.codebook import Codebook, Quantized, nearest
from modules.losses import RandomTransform
from modules.objective import Objective, needs_vgg
from modules.perceptual import VGG19, PerceptualLoss
from modules.training_step import Pairs, State, TrainingStep, build_training_step
from support import hardware
from train import training_loader

# Ratios of the public codes on two CPU cores, fp32: (frame, training step at batch 2).
PUBLIC = {'synergy': (40.0, 23.0), 'fomm': (0.71 / 0.0794, 7.33 / 1.45), 'mcnet': (2.45 / 0.0794, 18.2 / 1.45)}


# ---------------------------------------------------------------------------- clocks

class Clock:
    """Seconds of work on the device, and of the wall."""

    def __init__(self, device):
        self.device = device

    def now(self):
        if self.device.type == 'cuda':
            torch.cuda.synchronize()
            return time.perf_counter(), time.perf_counter()
        return time.process_time(), time.perf_counter()

    def __call__(self, function):
        """(work, wall) of one call."""
        begin = self.now()
        function()
        return tuple(after - before for before, after in zip(begin, self.now()))


def in_turns(clock, yardstick, measured, repeats, unit=1):
    """Medians over `repeats` turns: seconds per unit of `measured`, and its ratio to the yardstick."""
    yardstick(), measured()                                                  # warm up
    turns = [(clock(yardstick), clock(measured)) for _ in range(repeats)]
    middle = statistics.median
    return {'seconds': middle(m[0] for _, m in turns) / unit, 'wall_seconds': middle(m[1] for _, m in turns) / unit,
            'yardstick_seconds': middle(y[0] for y, _ in turns), 'ratio': middle(m[0] / y[0] for y, m in turns) / unit,
            'wall_ratio': middle(m[1] / y[1] for y, m in turns) / unit}


class OperationCount(TorchDispatchMode):
    """PyTorch's FlopCounterMode without its module hooks, which refuse gradients taken at an image."""

    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        formula = flop_registry.get(function.overloadpacket)
        if formula is None:
            with self:                                   # inference mode leaves composite operations whole
                result = function.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = function(*args, **kwargs)
        if formula:
            self.total += formula(*args, **kwargs, out_val=result)
        return result


def flops(function):
    with OperationCount() as count:
        function()
    return count.total


def peak_flops(clock, dtype):
    """Operations per second of a large matrix product and a large convolution, whichever is faster."""
    device = clock.device
    a = torch.randn(2048, 2048, device=device, dtype=dtype)
    x = torch.randn(4, 128, 64, 64, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    w = torch.randn(128, 128, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    works = [lambda: a @ a, lambda: F.conv2d(x, w, padding=1)]
    return max(flops(work) / min(clock(work)[0] for _ in range(4)) for work in works)


# ---------------------------------------------------------------------------- what is measured

def resnet50():
    from torchvision.models import resnet50  # here, as it would count in the peak memory of what is measured before
    return resnet50()


def resnet_frame(device):
    network, image = resnet50().to(device).eval(), torch.rand(1, 3, 256, 256, device=device)
    return torch.inference_mode()(lambda: network(image))


def resnet_step(device):
    network, images = resnet50().to(device), torch.rand(8, 3, 224, 224, device=device)
    optimizer, labels = torch.optim.SGD(network.parameters(), 1e-3), torch.arange(8, device=device)

    def step():
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return step


class Training:
    """One iteration of train.py on random images, once everything takes part."""

    def __init__(self, config, batch, device):
        vgg = VGG19().state_dict() if needs_vgg(config.train_params.objective_params) else None
        self.step = build_training_step(config, device, vgg)
        size = config.model_params.image_size
        images = [torch.rand(batch, 3, size, size, device=device) * 2 - 1 for _ in range(2)]
        self.pairs = Pairs(*images, RandomTransform.draw(batch, torch.Generator().manual_seed(0)))

    def __call__(self):
        taken = self.step([self.pairs], self.step.whole)
        assert taken.finite, 'an iteration that is skipped costs less'

    def stages(self, clock):
        """Work seconds of one iteration by stage."""
        found = {}
        parts = [('networks forward', type(self.step.state.model), 'forward'),
                 ('keypoint losses', Objective, '_keypoint_losses'), ('loss network', Objective, '_reconstruction'),
                 ('discriminator in the generator step', Objective, '_adversarial'),
                 ('adaptive weight', Objective, '_last_layer_norms'), ('backward', TrainingStep, 'backward'),
                 ('discriminator step', TrainingStep, 'discriminate'),
                 ('clipping, optimisers, EMA', State, 'clip_gradients'),
                 ('clipping, optimisers, EMA', TrainingStep, 'update')]
        with ExitStack() as stack:
            for stage, owner, name in parts:
                stack.enter_context(patch.object(owner, name, timed(getattr(owner, name), stage, found, clock)))
            self()
        return found


def timed(function, stage, found, clock):
    def wrapper(*args, **kwargs):
        begin = clock.now()
        result = function(*args, **kwargs)
        found[stage] = found.get(stage, 0) + clock.now()[0] - begin[0]
        return result
    return wrapper


class Animation:
    """A batch of frames of one source."""

    def __init__(self, config, batch, device):
        torch.manual_seed(0)
        size = config.model_params.image_size
        self.model = build_model(config).to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
        self.source, self.driving = (torch.rand(count, 3, size, size, device=device) * 2 - 1 for count in (1, batch))
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.train_params.precision == 'bf16')
        self.encode()

    @torch.inference_mode()
    def encode(self):
        with self.autocast:
            self.state = self.model.encode_source(self.source)

    @torch.inference_mode()
    def __call__(self):
        with self.autocast:
            return self.model.render(self.state, self.model.keypoints(self.driving)).prediction


# ---------------------------------------------------------------------------- optimisations, switched off

@contextmanager
def plain_layout(work):
    network = work.step.objective if isinstance(work, Training) else work.model
    network.to(memory_format=torch.contiguous_format)
    yield
    network.to(memory_format=torch.channels_last)


@contextmanager
def freed_memory(work):
    hardware._allocate(2 ** 17, 2 ** 17)             # glibc's defaults
    yield
    hardware.keep_freed_memory()


@contextmanager
def one_by_one(work):
    """The update parameter by parameter."""
    group, = work.step.state.optimizer.param_groups
    together = {name: group[name] for name in ('fused', 'foreach')}
    with patch.object(torch, '_foreach_lerp_', lambda old, new, share: [a.lerp_(b, share) for a, b in zip(old, new)]):
        group |= dict.fromkeys(together, False)
        yield
        group |= together


def plain(*substitutes):
    """A context that puts plain formulas in the place of (owner, name)."""
    @contextmanager
    def switched(work):
        with ExitStack() as stack:
            for owner, name, substitute in substitutes:
                stack.enter_context(patch.object(owner, name, substitute))
            yield
    return switched


def attention_with_weights(query, key, value, attn_mask=None):
    weights = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if attn_mask is not None:
        weights = weights.masked_fill(~attn_mask, float('-inf'))
    return weights.softmax(-1) @ value


def one_hot_quantize(self, z, scale):
    codes, vectors = self.codes(scale), z.float().permute(0, 2, 3, 1)
    indices = nearest(vectors.detach().flatten(0, 2), codes.detach())
    z_q = (F.one_hot(indices, len(codes)).float() @ codes).view_as(vectors)
    loss = F.mse_loss(z_q, vectors.detach()) + self.commitment * F.mse_loss(vectors, z_q.detach())
    return Quantized(z.detach(), (vectors + (z_q - vectors).detach()).permute(0, 3, 1, 2),
                     indices.view(vectors.shape[:3]), loss)


def project_per_sample(self, query, codes, part, visible=None):
    """Keys and values projected again for every scale and every sample of the batch."""
    again = [rows[None, part].expand(query.shape[0], -1, -1) for rows in codes]
    projected = [layer.cross_attention.context(rows, rows) for layer, rows in zip(self.layers, again)]
    return plain_retrieval(self, query, projected, slice(None), visible)


def passes_apart(self, image):
    halves = [plain_tapped(self, half) for half in image.chunk(2)]
    return [torch.cat(pair) for pair in zip(*(pyramid for pyramid, _ in halves))], torch.cat([tap for _, tap in halves])


def predictions_apart(self, predictions, target):
    found = [plain_perceptual(self, [prediction], target) for prediction in predictions]
    return torch.cat([terms for terms, _ in found]), [gradient for _, (gradient,) in found]


plain_retrieval, plain_tapped = retrieval.Retrieval.forward, Encoder.tapped
plain_perceptual = PerceptualLoss.value_and_gradient

OPTIMISATIONS = {
    'channels last': plain_layout,
    'freed memory kept': freed_memory,
    'residual blocks remember their inputs alone': plain(
        (layers, 'norm_silu_conv', lambda x, norm, conv: conv(F.silu(norm(x))))),
    'scaled_dot_product_attention': plain((F, 'scaled_dot_product_attention', attention_with_weights)),
    'codes projected once for all samples': plain(
        (retrieval.Retrieval, 'project', lambda self, codes: [codes] * len(self.layers)),
        (retrieval.Retrieval, 'forward', project_per_sample)),
    'closed-form 2x2 inverse': plain((dense_motion, 'invert_2x2', torch.linalg.inv),
                                     (losses, 'invert_2x2', torch.linalg.inv)),
    'look-up quantisation': plain((Codebook, 'quantize', one_hot_quantize)),
    'one encoder pass for source and driving': plain((Encoder, 'tapped', passes_apart)),
    'target features once, predictions together': plain((PerceptualLoss, 'value_and_gradient', predictions_apart)),
    'fused Adam, foreach EMA': one_by_one,
}
TRAINING_ONLY = list(OPTIMISATIONS)[-4:]
ANIMATION_ONLY = ['freed memory kept']


def ablation(clock, work, repeats, names):
    """What each optimisation is worth, by name.

    time:   of `work` without it over time with it, mean of turns; in each turn with, without, without, with, so that a
            machine that becomes faster or slower meanwhile favours neither
    error:  standard error of that mean; nan for a single turn
    memory: GiB by which the peak is higher without it, median of turns
    """
    again = getattr(work, 'encode', lambda: None)      # what an animation has computed of its source
    unused = TRAINING_ONLY if isinstance(work, Animation) else ANIMATION_ONLY
    work()
    worth = {}
    for name in names or OPTIMISATIONS:
        if name in unused:
            continue
        times, memory = [], []
        for _ in range(repeats):
            with_it = [clock(work)[0]]
            lean = peak_memory(clock.device, work)
            with OPTIMISATIONS[name](work):
                again(), work()
                without = [clock(work)[0] for _ in range(2)]
                memory.append(peak_memory(clock.device, work) - lean)
            again(), work()
            with_it.append(clock(work)[0])
            times.append(sum(without) / sum(with_it))
        error = statistics.stdev(times) / repeats ** 0.5 if repeats > 1 else float('nan')
        worth[name] = {'time': statistics.mean(times), 'error': error, 'memory': statistics.median(memory)}
    return worth


# ---------------------------------------------------------------------------- parts, each in its own process

def peak_memory(device, function):
    """GiB at the height of `function`, with what was there before: of the process (Linux) or the GPU's allocator."""
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        function()
        return torch.cuda.max_memory_allocated(device) / 2 ** 30
    hardware.trim_freed_memory()
    process = Path('/proc/self')
    (process / 'clear_refs').write_text('5')           # the peak starts again from what is resident
    function()
    return int(process.joinpath('status').read_text().split('VmHWM:')[1].split()[0]) / 2 ** 20


def animation_part(options, config, device, batch):
    clock = Clock(device)
    work = Animation(config, batch, device)
    operations = flops(work) / batch
    memory = peak_memory(device, work)
    found = in_turns(clock, resnet_frame(device), work, options.repeats, batch)
    found |= {'gflop': operations / 1e9, 'gflops_per_second': operations / found['seconds'] / 1e9,
              'share_of_peak': operations / found['seconds'] / peak_flops(clock, _dtype(config)),
              'encode_once_seconds': statistics.median(clock(work.encode)[0] for _ in range(options.repeats)),
              'peak_memory_gib': memory}
    if options.ablate is not None:
        found['worth'] = ablation(clock, work, options.repeats, options.ablate)
    return found


def training_part(options, config, device, batch):
    clock = Clock(device)
    work = Training(config, batch, device)
    operations = flops(work)
    memory = peak_memory(device, work)                # before the yardstick takes any
    found = in_turns(clock, resnet_step(device), work, options.repeats)
    stages = [work.stages(clock) for _ in range(options.repeats)]
    found |= {'gflop': operations / 1e9, 'gflops_per_second': operations / found['seconds'] / 1e9,
              'share_of_peak': operations / found['seconds'] / peak_flops(clock, _dtype(config)),
              'stages': {name: statistics.median(stage[name] for stage in stages) for name in stages[0]},
              'peak_memory_gib': memory}
    if options.ablate is not None:
        found['worth'] = ablation(clock, work, options.repeats, options.ablate)
    return found


def loader_part(options, config, device, batch):
    """Batches per second that the loader gives when nothing else runs."""
    sets = [f'train_params.batch_size={batch}', 'dataset_params.root_dir=null', 'train_params.num_workers=1']
    config = schema.override(config, sets)
    loader = iter(training_loader(config, 0))
    next(loader)
    begin, count = time.perf_counter(), 10
    for _ in range(count):
        next(loader)
    seconds = (time.perf_counter() - begin) / count
    return {'seconds_per_batch': seconds, 'samples_per_second': batch / seconds, 'data': 'embedded heads, one worker'}


def _dtype(config):
    return torch.bfloat16 if config.train_params.precision == 'bf16' else torch.float32


def in_process(part, *arguments):
    """What `part` returns, run in a fresh process."""
    spawn = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(1, spawn, _prepare, (arguments[0].threads, part)) as pool:      # it may have children
        return pool.submit(part, *arguments).result()


def _prepare(threads, part):
    if threads:
        torch.set_num_threads(threads)
    hardware.return_freed_memory() if part is training_part else hardware.keep_freed_memory()
    hardware.flush_denormals()


# ---------------------------------------------------------------------------- command line

def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--config', default='config/vox-256.yaml')
    parser.add_argument('--set', nargs='+', default=[], metavar='key=value', help='override config values')
    parser.add_argument('--batch', type=int, default=2, help='of the training step')
    parser.add_argument('--frames', type=int, nargs='+',
                        help='batches of animated frames; default 1 8, on a GPU also 32')
    parser.add_argument('--parts', nargs='+', choices=('animation', 'training', 'loader'),
                        default=['animation', 'training', 'loader'])
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--threads', type=int, default=0, help='of a CPU; default: as many as PyTorch takes')
    parser.add_argument('--ablate', nargs='*', choices=OPTIMISATIONS, metavar='NAME',
                        help='what each optimisation is worth')
    parser.add_argument('--json', type=Path, help='also write the figures there')
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    config = hardware.adapted(schema.load(options.config, options.set), device)
    frame, step = PUBLIC[config.method]

    figures = {'config': options.config, 'set': options.set, 'device': str(device), 'threads': options.threads,
               'precision': config.train_params.precision, 'checkpointing': config.train_params.checkpointing,
               'compile': config.train_params.compile, 'optimisations': list(OPTIMISATIONS),
               'public_ratios': [frame, step]}
    if 'animation' in options.parts:
        for batch in options.frames or ([1, 8, 32] if device.type == 'cuda' else [1, 8]):
            figures[f'animation, batch {batch}'] = found = in_process(animation_part, options, config, device, batch)
            report(f'one frame, batch {batch}', found, frame)
    if 'training' in options.parts:
        found = figures[f'training, batch {options.batch}'] = in_process(training_part, options, config, device,
                                                                         options.batch)
        report(f'training step, batch {options.batch}', found, step)
    if 'loader' in options.parts:
        found = figures['loader'] = in_process(loader_part, options, config, device, options.batch)
        print(f'loader: {found["samples_per_second"]:.1f} samples/s from {found["data"]}')
        if 'training' in options.parts:
            step = figures[f'training, batch {options.batch}']['wall_seconds']
            found['wait_seconds_per_step'] = max(0.0, found['seconds_per_batch'] - step)
            print(f'  a step waits {found["wait_seconds_per_step"]:.2f} s for data')
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


def report(title, found, public):
    print(f'{title}: {found["seconds"]:.3f} s ({found["wall_seconds"]:.3f} s wall), {found["ratio"]:.1f} yardsticks '
          f'({found["wall_ratio"]:.1f} by wall; public code {public:.1f}); {found["gflop"]:.0f} GFLOP, '
          f'{found["gflops_per_second"]:.0f} GFLOP/s, {100 * found["share_of_peak"]:.0f} % of peak; '
          f'peak memory {found["peak_memory_gib"]:.2f} GiB', flush=True)
    if 'encode_once_seconds' in found:
        print(f'  source, once per video: {found["encode_once_seconds"]:.3f} s')
    for name, seconds in found.get('stages', {}).items():
        print(f'  stage {name}: {seconds:.3f} s')
    for name, worth in found.get('worth', {}).items():
        print(f'  without {name}: {worth["time"]:.3f} +- {worth["error"]:.3f} x the time, {worth["memory"]:+.2f} GiB')


if __name__ == '__main__':
    main()
