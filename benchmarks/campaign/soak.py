"""Long runs: resident memory, open files, threads, temporary files and shared memory do not grow.

Figures are taken inside of the process as it goes on, and compared between a tenth of the way (of what
fills a cache: once that is full) and its end.
"""

import json
import os
import shutil
from fractions import Fraction

from benchmarks.campaign import material
from benchmarks.campaign.fuzz import VOX
from benchmarks.campaign.kill import fresh, inputs
from benchmarks.campaign.processes import Run
from benchmarks.campaign.runner import Failure, Kind, resident
from datasets.video_writer import VideoWriter
from support.files import UNFINISHED

SCALE = 1.0                    # of all lengths
GROWTH = 1.02                  # of resident memory, at most


class Gauge:
    """Wraps `owner.name`, called once per unit of work, and takes figures after every hundredth of `length` units."""

    def __init__(self, folder, length, units=lambda *arguments: 1):
        self.folder, self.every, self.units = folder, max(length // 100, 1), units
        self.done = self.taken = 0

    def wrap(self, owner, name):
        original = getattr(owner, name)

        def measured(*arguments, **options):
            result = original(*arguments, **options)
            self.done += self.units(*arguments)
            if self.done // self.every > self.taken:
                self.taken = self.done // self.every
                self.take()
            return result
        setattr(owner, name, measured)

    def take(self):
        shared = os.statvfs('/dev/shm')
        figures = {'done': self.done, 'rss': resident(), 'files': len(os.listdir('/proc/self/fd')),
                   'threads': len(os.listdir('/proc/self/task')),
                   'unfinished': sum(UNFINISHED in name for _, _, names in os.walk(self.folder) for name in names),
                   'shm': (shared.f_blocks - shared.f_bfree) * shared.f_frsize}
        with open(self.folder / 'gauge.jsonl', 'a') as file:
            file.write(json.dumps(figures) + '\n')


def check_flat(folder, length, begin=0.1):
    """Failure where the last figure is above that after the share `begin` of the way; what was measured, in words."""
    figures = [json.loads(line) for line in (folder / 'gauge.jsonl').read_text().splitlines()]
    first = next(row for row in figures if row['done'] >= begin * length)
    last = figures[-1]
    if last['done'] < 0.95 * length:
        raise Failure(f'only {last["done"]} of {length} were done')
    # A file is open, or unfinished, at one moment and not at another: the most of the first part is the measure.
    for name in ('files', 'threads', 'unfinished'):
        most = max(row[name] for row in figures if row['done'] <= first['done'])
        if last[name] > most:
            raise Failure(f'{name}: {most} after {first["done"]}, {last[name]} after {last["done"]}')
    if last['rss'] > GROWTH * first['rss']:
        raise Failure(f'resident memory: {first["rss"] / 2 ** 20:.1f} MiB after {first["done"]}, '
                      f'{last["rss"] / 2 ** 20:.1f} MiB after {last["done"]}')
    return (f'of {first["done"]} -> {last["done"]}: {first["rss"] / 2 ** 20:.1f} -> {last["rss"] / 2 ** 20:.1f} MiB, '
            f'{first["files"]} -> {last["files"]} files, {first["threads"]} -> {last["threads"]} threads, '
            f'shm {first["shm"]} -> {last["shm"]} bytes')


def soak(arguments, folder, length, gauge, owner_and_name, begin=0.1):
    """Run the command with a Gauge on it, and look at what it measured."""
    run = Run(arguments, folder, seconds=float('inf'), prepare=lambda rank: gauge.wrap(*owner_and_name()))
    if run.start().wait():
        raise Failure(f'ended with {run.code}: {run.output()[-300:]}')
    return check_flat(folder, length, begin)


def of(length):
    return max(int(length * SCALE), 20)


# ---------------------------------------------------------------------------- what goes on for long

def animate(number, rng, work, length=10_000):
    """Frames of one long video."""
    length, folder = of(length), fresh(work)
    frames = material.frames(50, (32, 32))
    with VideoWriter(folder / 'long.mp4', Fraction(25), gop=10) as writer:
        for n in range(length):
            writer.write(frames[n % 50])
    arguments = ['--mode', 'animate', '--checkpoint', inputs(work)['checkpoint'], '--device', 'cpu', '--source_image',
                 inputs(work)['source'], '--driving_video', folder / 'long.mp4', '--result_video', folder / 'made.mp4']
    return soak(arguments, folder, length, Gauge(folder, length), lambda: (VideoWriter, 'write'))


def train(number, rng, work, length=20_000):
    """Steps with validation and saving, all the time."""
    length, folder = of(length), fresh(work)

    def scalars():
        from logger import RunFolder
        return RunFolder, 'scalars'
    gauge = Gauge(folder, length, lambda run, step, values: 10 * ('learning_rate' in values))
    arguments = ['--mode', 'train', '--config', inputs(work)['config'], '--device', 'cpu', '--log_dir', folder, '--set',
                 f'train_params.num_iterations={length}', 'train_params.log_every=10',
                 f'train_params.save_every={max(length // 100, 1)}', f'train_params.val_every={max(length // 100, 1)}',
                 'train_params.keep_checkpoints=2', 'train_params.num_workers=1', 'train_params.batch_size=1',
                 'model_params.motion_codebook_params.revive_after=20']
    return soak(arguments, folder, length, gauge, scalars)


def evaluate(number, rng, work, length=1_000):
    """Videos on disk, of 4 frames each."""
    length, folder = of(length), fresh(work)
    (folder / 'videos').mkdir()
    video = material.video(count=4)
    for n in range(length):
        (folder / 'videos' / f'id{n}#video{n:06d}.mp4').write_bytes(video)
    return soak([*_evaluate(work, folder), '--path_map', folder / 'videos'], folder, length, Gauge(folder, length),
                _store)


def evaluate_heads(number, rng, work, length=1_500):
    """Clips of the embedded heads, a person each: measured once what is kept of drawn heads has reached its bound.

    Until then memory grows by what one head takes; `drawn.LIMIT` holds about 400 of 16 px.
    """
    length, folder = of(length), fresh(work)
    arguments = [*_evaluate(work, folder), '--set',
                 f'dataset_params.synthetic_params={{test_people: {length}, frames: 4}}']
    return soak(arguments, folder, length, Gauge(folder, length), _store, begin=0.4)


def _evaluate(work, folder):
    return ['--mode', 'evaluate', '--checkpoint', inputs(work)['checkpoint'], '--device', 'cpu', '--log_dir', folder,
            '--metrics', 'psnr.rgb', 'l1.mean_abs', 'ssim.gauss11']


def _store():
    from evaluation.store import Store
    return Store, 'write'


def prepare(number, rng, work, length=500):
    """Videos, a clip of each."""
    length, folder = of(length), fresh(work)
    (folder / 'videos').mkdir()
    rows = []
    for n in range(length):
        name = f'video{n:06d}'
        shutil.copy(inputs(work)['driving'], folder / 'videos' / f'{name}.mp4')
        left, top, start = n % 8, n // 8 % 8, n // 64 % 8
        rows.append(f'{name},{start},{start + 4},{left}-{top}-{left + 16}-{top + 16},25,32,24,train,id{n}\n')
    (folder / 'metadata.csv').write_text(VOX + ''.join(rows))

    def append():
        from datasets.prepare import job
        return job, 'append'
    arguments = ['--mode', 'prepare', '--dataset', 'voxceleb1', '--videos', folder / 'videos', '--metadata',
                 folder / 'metadata.csv', '--out', folder / 'set', '--size', '64']
    return soak(arguments, folder, length, Gauge(folder, length), append)


KINDS = {function.__name__: Kind(1, function) for function in (animate, train, evaluate, evaluate_heads, prepare)}
