"""How fast is each metric, and how much memory does it take?

    python -m benchmarks.metrics CLIP [--device cpu|cuda] [--batch 8] [--frames 16] [--metrics ID ...]

Scores the frames of a clip that shows a face against the same frames with noise. Each metric runs in a process of its
own, so without the networks and answers that metrics share. A metric whose weights are not there runs with random ones,
which take as long; AKD is then told where the face is, after looking for it. One batch is scored before the clock
starts; memory is what the process took at most, and how far that grew after the first two batches. On a CPU, time is
the process's CPU time: with one thread, what it would take undisturbed.
"""

import argparse
import multiprocessing
import os
import resource
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch

from datasets.video import open_clip
from metrics import face
from metrics.catalogue import CATALOGUE, SetMetric, build
from tests.support.random_weights import save_all


def pairs(path, size, batch, count, device):
    """Yields (generated, driving), (B, 3, size, size) in [0, 1], of `count` batches."""
    frames = cycle(open_clip(path, size).read(range(batch)))
    for _ in range(count):
        driving = torch.from_numpy(np.stack(list(islice(frames, batch)))).to(device).permute(0, 3, 1, 2).float()
        yield (driving + 4 * torch.randn_like(driving)).clamp(0, 255).round() / 255, driving / 255


def make_weights(torch_home):
    os.environ['TORCH_HOME'] = torch_home
    save_all()


def measure(name, options, torch_home):
    """(frames per second, most memory in MiB, its growth, whether the weights are random), or why there are none."""
    torch.set_num_threads(options.threads)
    metrics, skipped = build([name], options.device)
    random = bool(skipped)
    if random:
        os.environ['TORCH_HOME'] = torch_home
        metrics, skipped = build([name], options.device)
        if skipped:
            return skipped[name]
        if name.startswith('akd'):
            box = np.array([0.15, 0.15, 0.85, 0.85, 0.9]) * ([options.size] * 4 + [1])
            face.face_alignment_network(options.device).face_detector._filter_bboxes = lambda boxes: [box]
    metric, = metrics
    score = metric.update if isinstance(metric, SetMetric) else metric
    clock = time.process_time if options.device == 'cpu' else time.perf_counter

    count, seconds = options.frames // options.batch + 1, 0.0
    for i, (generated, driving) in enumerate(pairs(options.clip, options.size, options.batch, count, options.device)):
        if i == 0:
            metric.start_clip(driving[0])
        begin = clock()
        score(generated, driving)
        if options.device != 'cpu':
            torch.cuda.synchronize()
        seconds += clock() - begin if i else 0      # the first batch warms up
        if i == 1:
            before = peak()
    return (count - 1) * options.batch / seconds, peak(), peak() - before, random


def peak():
    """The most memory that this process has taken, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('clip', type=Path)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--size', type=int, default=256, help='of the frames, pixels')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--frames', type=int, default=32, help='timed; at least two batches')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--metrics', nargs='+', default=list(CATALOGUE), metavar='ID')
    options = parser.parse_args(arguments)

    print('| metric | frames/s | ms/frame | memory | grows by | |\n|---|---|---|---|---|---|')
    context = multiprocessing.get_context('spawn')
    with tempfile.TemporaryDirectory() as torch_home:
        with context.Pool(1) as process:
            process.apply(make_weights, [torch_home])
        for name in options.metrics:
            with context.Pool(1) as process:
                result = process.apply(measure, [name, options, torch_home])
            if isinstance(result, str):
                print(f'| {name} | skipped: {result} | | | | |', flush=True)
                continue
            speed, memory, growth, random = result
            print(f'| {name} | {speed:.4g} | {1000 / speed:.3g} | {memory:,.0f} MiB | {growth:.0f} MiB '
                  f'| {"random weights" if random else ""} |', flush=True)


if __name__ == '__main__':
    main()
