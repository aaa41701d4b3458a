"""Long runs: resident memory, open files, threads, temporary files and shared memory do not grow.

Numbers are taken inside of the process while it runs, and compared between a tenth of the way and its end.
"""

import json
import os
import shutil
from fractions import Fraction
from pkgutil import resolve_name

import pytest

from datasets.video_writer import VideoWriter
from support.files import UNFINISHED
from tests.campaign import SHARE
from tests.campaign.processes import Run, used
from tests.support import inputs

pytestmark = pytest.mark.campaign
GROWTH = 1.02                  # of resident memory, at most


def gauge(place, folder, length, units=lambda *arguments: 1):
    """Make the function `place`, (class or module, name), note numbers after each hundredth of `length` units."""
    owner, name = resolve_name(place[0]), place[1]
    original, every, done, taken = getattr(owner, name), max(length // 100, 1), 0, 0

    def measured(*arguments, **options):
        nonlocal done, taken
        result = original(*arguments, **options)
        done += units(*arguments)
        if done // every > taken:
            taken, shared = done // every, os.statvfs('/dev/shm')
            numbers = {'done': done, 'rss': used()[1], 'files': len(os.listdir('/proc/self/fd')),
                       'threads': len(os.listdir('/proc/self/task')), 'shm': shared.f_blocks - shared.f_bfree,
                       'unfinished': sum(UNFINISHED in file for *_, files in os.walk(folder) for file in files)}
            with open(folder / 'gauge.jsonl', 'a') as file:
                file.write(json.dumps(numbers) + '\n')
        return result
    setattr(owner, name, measured)


def check_flat(folder, length, begin):
    """The last numbers are not above those after the share `begin` of the way."""
    rows = [json.loads(line) for line in (folder / 'gauge.jsonl').read_text().splitlines()]
    first, last = next(row for row in rows if row['done'] >= begin * length), rows[-1]
    print(f'{first} -> {last}')
    assert last['done'] >= 0.95 * length
    # A file is open, or unfinished, at one moment and not at another: the most of the first part is the measure.
    for name in ('files', 'threads', 'unfinished'):
        assert last[name] <= max(row[name] for row in rows if row['done'] <= first['done']), name
    assert last['rss'] <= GROWTH * first['rss']


def long_video(files, folder, length):
    frames = inputs.frames(50, (32, 32))
    with VideoWriter(folder / 'long.mp4', Fraction(25), gop=10) as writer:
        for n in range(length):
            writer.write(frames[n % 50])
    return ['--mode', 'animate', '--checkpoint', files['checkpoint'], '--device', 'cpu', '--source_image',
            files['source'], '--driving_video', folder / 'long.mp4', '--result_video', folder / 'made.mp4']


def training(files, folder, length):
    """Steps with validation and saving at every hundredth."""
    often = max(length // 100, 1)
    return ['--mode', 'train', '--config', files['config'], '--device', 'cpu', '--log_dir', folder, '--set',
            f'train_params.num_iterations={length}', 'train_params.log_every=10', f'train_params.save_every={often}',
            f'train_params.val_every={often}', 'train_params.keep_checkpoints=2', 'train_params.num_workers=1',
            'train_params.batch_size=1', 'model_params.motion_codebook_params.revive_after=20']


def evaluation(files, folder):
    return ['--mode', 'evaluate', '--checkpoint', files['checkpoint'], '--device', 'cpu', '--log_dir', folder,
            '--metrics', 'psnr.rgb', 'l1.mean_abs', 'ssim.gauss11']


def short_videos(files, folder, length):
    (folder / 'videos').mkdir()
    video = inputs.video(count=4)
    for n in range(length):
        (folder / 'videos' / f'id{n}#video{n:06d}.mp4').write_bytes(video)
    return [*evaluation(files, folder), '--path_map', folder / 'videos']


def synthetic_heads(files, folder, length):
    return [*evaluation(files, folder), '--set',
            f'dataset_params.synthetic_params={{test_people: {length}, frames: 4}}']


def dataset(files, folder, length):
    (folder / 'videos').mkdir()
    rows = []
    for n in range(length):
        shutil.copy(files['driving'], folder / 'videos' / f'video{n:06d}.mp4')
        left, top, start = n % 8, n // 8 % 8, n // 64 % 8
        rows.append(f'video{n:06d},{start},{start + 4},{left}-{top}-{left + 16}-{top + 16},25,32,24,train,id{n}\n')
    (folder / 'metadata.csv').write_text(inputs.VOX + ''.join(rows))
    return ['--mode', 'prepare', '--dataset', 'voxceleb1', '--videos', folder / 'videos', '--metadata',
            folder / 'metadata.csv', '--out', folder / 'set', '--size', '64']


@pytest.mark.parametrize('command, length, place, units, begin', [
    (long_video, 10_000, ('datasets.video_writer:VideoWriter', 'write'), None, 0.1),
    (training, 20_000, ('logger:RunFolder', 'scalars'), lambda run, step, new: 10 * ('learning_rate' in new), 0.1),
    (short_videos, 1_000, ('evaluation.store:Store', 'write'), None, 0.1),
    # About 400 heads of 16 px fill the memory in which heads are kept (datasets/drawn.py).
    (synthetic_heads, 1_500, ('evaluation.store:Store', 'write'), None, 0.4),
    (dataset, 500, ('datasets.prepare.job', 'append'), None, 0.1)])
def test_a_long_run_does_not_grow(command, length, place, units, begin, scenarios):
    length, folder = max(int(length * SHARE), 20), scenarios.fresh()
    run = Run(command(scenarios.inputs, folder, length), folder, seconds=float('inf'),
              prepare=lambda rank: gauge(place, folder, length, **{'units': units} if units else {})).end()
    assert run.code == 0, run.text()[-300:]
    check_flat(folder, length, begin)
