"""How fast is the model, in a unit that travels?

    python -m benchmarks.speed [--device cpu|cuda] [--config config/vox-256.yaml] [--batch 2] [--ablate [NAME ...]]
                               [--json FILE]

The yardstick is torchvision's ResNet-50 in fp32: one forward pass of one 256 px image for an animated frame, one
training step of 8 images of 224 px (SGD) for a training step. It runs in a process of its own, without any setting of
ours and with as many threads (benchmarks/speed/yardstick.py), in turns with the model, and the ratio is taken in each
turn, so that what else the machine does cancels. On a CPU, time is the process's CPU time (with one thread,
`--threads 1`, the time that it would take undisturbed); wall time stands beside it. Each part runs in a process of its
own, which tells its peak memory. `--ablate` replaces one optimisation at a time by the plain formula; all of them, or
those that are named.
"""

import argparse
import json
from pathlib import Path

import torch

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
    threads = options.threads or torch.get_num_threads()
    frame, step = public_ratios(config.method, threads, options)

    def run(part, batch):
        return in_process(part, Job(config, device, batch, options.threads, options.turns, options.ablate))
    figures = {'config': options.config, 'set': options.set, 'device': str(device), 'threads': threads,
               'precision': config.train_params.precision, 'checkpointing': config.train_params.checkpointing,
               'compile': config.train_params.compile, 'optimisations': list(OPTIMISATIONS),
               'public_ratios': [frame, step]}
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
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


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
