"""How fast is the model, in a unit that travels?

    python -m benchmarks.speed [--device cpu|cuda] [--config config/vox-256.yaml] [--batch 2] [--ablate [NAME ...]]
                               [--json FILE]

The yardstick is torchvision's ResNet-50 in fp32: one forward pass of one 256 px image for an animated frame, one
training step of 8 images of 224 px (SGD) for a training step. It runs in a process of its own, without any setting of
ours and with as many threads (benchmarks/speed/yardstick.py), in turns with the model, and the ratio is taken in each
turn, so that what else the machine does cancels. On a CPU, time is the process's CPU time (with one thread,
`--threads 1`, the time that it would take undisturbed); wall time stands beside it. Each part runs in a process of its
own, which tells its peak memory. `--ablate` replaces one optimisation at a time by the plain formula; all of them, or
those that are named. On a GPU that is asked always, and more (benchmarks/speed/gpu.py): batches to the memory's end,
precisions, whole videos, a captured frame.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import torch

from benchmarks.speed import gpu
from benchmarks.speed.optimisations import OPTIMISATIONS
from benchmarks.speed.parts import Job, animation, in_process, loader, training
from config import schema
from support import hardware

# Yardsticks that the public codes take on x86 cores in fp32: {method: {threads: (frame, training step of 2)}}. Their
# own inference and training functions, driven with random weights and images at 256 px, beside a ResNet-50 in a process
# of its own; a step of this paper's has its discriminator, FOMM's and MCNet's have none. With two threads yardsticks
# took 0.0794 s and 1.45 s, FOMM 0.71 s and 7.33 s, MCNet 2.45 s and 18.2 s, a step of this paper 33.4 s; with one
# thread this paper took 5.66 s and 75.3 s of CPU time. A frame's ratio depends on their number: compare like with like.
PUBLIC = {'synergy': {1: (31.7, 23.3), 2: (40.0, 23.0)},
          'fomm': {2: (0.71 / 0.0794, 7.33 / 1.45)},
          'mcnet': {2: (2.45 / 0.0794, 18.2 / 1.45)}}
TURNS = 5          # fewer say too little about the spread to be published


def main(arguments=None):
    options = parse(arguments)
    device = torch.device(options.device)
    config = hardware.adapted(schema.load(options.config, options.set), device)
    if device.type == 'cuda' and options.ablate is None:
        options.ablate = []
    threads = options.threads or torch.get_num_threads()
    frame, step = public_ratios(config.method, threads, options)

    def run(part, batch):
        return in_process(part, Job(config, device, batch, options.threads, options.turns, options.ablate))
    figures = {'config': options.config, 'set': options.set, 'device': str(device), 'threads': threads,
               'precision': config.train_params.precision, 'checkpointing': config.train_params.checkpointing,
               'compile': config.train_params.compile, 'optimisations': list(OPTIMISATIONS),
               'public_ratios': [frame, step]}
    try:
        measure(figures, run, options, device, (frame, step))
    finally:                             # what was measured before something went wrong is kept
        if options.json:
            options.json.write_text(json.dumps(figures, indent=1))


def measure(figures, run, options, device, public):
    """All parts that are asked for, added to the figures and printed."""
    frame, step = public
    if 'animation' in options.parts:
        for batch in options.frames or ([1, 8, 32] if device.type == 'cuda' else [1, 8]):
            figures[f'animation, batch {batch}'] = found = run(animation, batch)
            report(f'one frame, batch {batch}', found, frame)
    if 'training' in options.parts:
        found = figures[f'training, batch {options.batch}'] = run(training, options.batch)
        report(f'training step, batch {options.batch}', found, step)
    if 'loader' in options.parts:
        found = figures['loader'] = run(loader, options.batch)
        print(f'loader: {found["samples_per_second"]:.1f} samples/s from {found["data"]}')
        if 'training' in options.parts:
            step = figures[f'training, batch {options.batch}']['wall_seconds']
            found['wait_seconds_per_step'] = max(0.0, found['seconds_per_batch'] - step)
            print(f'  a step waits {found["wait_seconds_per_step"]:.2f} s for data')
    if device.type == 'cuda' or options.gpu_parts:
        gpu_only(figures, run, options)


def gpu_only(figures, run, options):
    """The parts of benchmarks/speed/gpu.py, added to the figures and printed."""
    figures['gpu'] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    for precision in ('fp32', 'bf16'):
        figures[f'scaling, {precision}'] = found = run(partial(gpu.scaling, precision=precision), options.batch)
        for row in found['batches']:
            print(f'training in {precision}, batch {row["batch"]}: {row["samples_per_second"]:.1f} samples/s, '
                  f'{row["peak_gib"]:.1f} GiB, {100 * row["share_of_peak"]:.0f} % of peak', flush=True)
        print(f'  {found.get("mib_per_sample", float("nan")):.0f} MiB a sample more; ended: {found["ended"]}')
    figures['choices'] = found = run(gpu.choices, options.batch)
    plain = found['fp32'].get('seconds')
    for name, row in found.items():
        ratio = f'{plain / row["seconds"]:.2f} x as fast as fp32, {row["peak_gib"]:.1f} GiB' if row else 'no time left'
        print(f'  {name}: {ratio}', flush=True)
    for batch in options.frames or [1, 32]:
        figures[f'video, batch {batch}'] = found = run(gpu.video, batch)
        print(f'animation, batch {batch}, frames/s: '
              + ', '.join(f'{name} {rate:.1f}' for name, rate in found.items()), flush=True)
    figures['one frame'] = found = run(gpu.graph, 1)
    for name, value in found.items():
        print(f'  {name}: {value:.3g}')


def public_ratios(method, threads, options):
    """(frame, training step) of PUBLIC under the same conditions; None where there is none."""
    alike = options.device == 'cpu' and options.batch == 2 and not options.set
    return PUBLIC.get(method, {}).get(threads, (None, None)) if alike else (None, None)


def parse(arguments):
    parser = argparse.ArgumentParser(prog='python -m benchmarks.speed', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--config', default='config/vox-256.yaml')
    parser.add_argument('--set', nargs='+', default=[], metavar='key=value', help='override config values')
    parser.add_argument('--batch', type=int, default=2, help='of the training step')
    parser.add_argument('--frames', type=int, nargs='+',
                        help='batches of animated frames; default 1 8, on a GPU also 32')
    parser.add_argument('--parts', nargs='+', choices=('animation', 'training', 'loader'),
                        default=['animation', 'training', 'loader'])
    parser.add_argument('--turns', type=int, default=TURNS, help=f'of yardstick and model; default {TURNS}')
    parser.add_argument('--threads', type=int, default=0, help='of a CPU; default: as many as PyTorch takes')
    parser.add_argument('--ablate', nargs='*', choices=OPTIMISATIONS, metavar='NAME',
                        help='what each optimisation is worth')
    parser.add_argument('--gpu_parts', action='store_true',
                        help='also on a CPU: the parts that only a GPU is asked (benchmarks/speed/gpu.py)')
    parser.add_argument('--json', type=Path, help='also write the figures there')
    return parser.parse_args(arguments)


def report(title, found, public):
    """Print one part's figures; public: yardsticks of the public code, None where they are not known."""
    spread, wall = (f'{min(found[name]):.1f} to {max(found[name]):.1f}' for name in ('ratios', 'wall_ratios'))
    known = f'; public code {public:.1f}' if public else ''
    few = '' if found['turns'] >= TURNS else f' (of {found["turns"]} turns: too few to publish)'
    print(f'{title}: {found["seconds"]:.3f} s ({found["wall_seconds"]:.3f} s wall), {found["ratio"]:.1f} yardsticks, '
          f'{spread}{few} (by wall {found["wall_ratio"]:.1f}, {wall}{known}); {found["gflop"]:.0f} GFLOP, '
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
