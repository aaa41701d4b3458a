"""How fast training pairs come from disk, and how long a training step waits for them.

    python -m benchmarks.loader [--videos DIR] [--size 256] [--seconds 3]

The same clips are stored in every way and read by the loader of training, and by one that decodes the whole clip
with imageio's `mimread` and makes floats of it, as FOMM's does. Two figures for each, with one and two workers:

    pairs/s   while nothing else is done
    wait      seconds per step, where a step asks for a batch and then leaves the CPU alone, as one on a GPU does
"""

import argparse
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import imageio
import numpy as np
import torch
from skimage import img_as_float32
from torch.utils.data import DataLoader
from tqdm import tqdm

from config import schema
from datasets.frames import Augmentation, PairDataset, find_people
from datasets.manifest import CLIP_FPS
from datasets.prepare.job import StillWriter
from datasets.prepare.pack import pack
from datasets.synthetic.clips import synthetic_people
from datasets.video import open_clip
from datasets.video_writer import VideoWriter
from datasets.loader import training_loader, training_set

CLIPS, FRAMES = 4, 160     # of VoxCeleb's median length; how long a clip is decides what a whole one costs
BATCH, STEP = 4, 0.125     # pairs and seconds of a step: 32 pairs/s, as two steps a second of batch 16
STEPS = 8                  # over which waiting is measured
WORKERS = (1, 2)


# ---------------------------------------------------------------------------- clips on disk

def write_mp4(path, frames, gop):
    with VideoWriter(path, CLIP_FPS, gop=gop) as writer:
        for frame in frames:
            writer.write(frame)


def write_stills(path, frames, format):
    path.mkdir()
    write = StillWriter(path, format)
    for frame in frames:
        write(frame)


STORED = {
    'mp4, GOP 250': (write_mp4, 250),
    'mp4, GOP 10': (write_mp4, 10),
    'PNG': (write_stills, 'png'),
    'JPEG': (write_stills, 'jpeg'),
}
SHARDS = 'mp4, GOP 10, in a tar shard'
MIMREAD = 'mimread, GOP 250'


def clips_to_store(videos, size):
    """At most CLIPS clips at `size` px: of a folder, or of the embedded heads."""
    if videos is None:
        people = synthetic_people(CLIPS, 1, FRAMES, size, 0)
        return [clip for clips in people.values() for clip in clips]
    clips = [open_clip(path, size) for path in sorted(Path(videos).iterdir()) if not path.name.startswith('.')]
    return [clip for clip in clips if len(clip) >= FRAMES][:CLIPS]


def store(clips, root):
    """Writes the clips in every way: root/<way>/train."""
    for way in STORED:
        (root / way / 'train').mkdir(parents=True)
    for clip in tqdm(clips, desc='writing clips', unit='clip'):
        frames = clip.read(range(FRAMES))
        for way, (write, option) in STORED.items():
            write(root / way / 'train' / f'{clip.name.replace("#", "_")}#0.mp4', frames, option)
    pack(root / 'mp4, GOP 10', root / SHARDS, megabytes=1000)


# ---------------------------------------------------------------------------- loaders

class MimreadClip:
    """A video file that is decoded whole, and made floats whole, for any of its frames."""

    def __init__(self, clip):
        self.path, self.name, self.length = clip.path, clip.name, len(clip)

    def __len__(self):
        return self.length

    def read(self, indices):
        frames = img_as_float32(np.array(imageio.mimread(self.path, memtest=False)))
        return list((frames[indices] * 255).round().astype(np.uint8))


def loader_of(way, root, size, workers):
    folder = root / ('mp4, GOP 250' if way == MIMREAD else way)
    config = schema.load('config/vox-256.yaml', [
        f'dataset_params.root_dir={folder}', f'model_params.image_size={size}',
        f'train_params.batch_size={BATCH}', f'train_params.num_workers={workers}'])
    loader = training_loader(config, training_set(config), 0)
    if way != MIMREAD:
        return loader
    people = {person: [MimreadClip(clip) for clip in clips]
              for person, clips in find_people(folder, 'train', True, size).items()}
    dataset = PairDataset(people, 0, Augmentation(**vars(config.dataset_params.augmentation_params)))
    return DataLoader(dataset, batch_sampler=loader.batch_sampler, num_workers=workers,
                      prefetch_factor=loader.prefetch_factor, worker_init_fn=loader.worker_init_fn)


def measure(loader, seconds):
    """(pairs per second, seconds of waiting per step)"""
    batches = iter(loader)
    for _ in range(2):                       # processes start, files are opened for the first time
        next(batches)
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        next(batches)
        count += 1
    waited = 0.
    for _ in range(STEPS):                   # nothing has been loaded in advance by now
        asked = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - asked
        time.sleep(STEP)
    return count * BATCH / elapsed, waited / STEPS


# ---------------------------------------------------------------------------- table

def table(results, megabytes):
    headings = ' | '.join(f'{workers} worker(s): pairs/s | wait s | ratio' for workers in WORKERS)
    lines = [f'| clips as | MB | {headings} |', '|---' * (2 + 3 * len(WORKERS)) + '|']
    for way in (*STORED, SHARDS, MIMREAD):
        cells = []
        for workers in WORKERS:
            rate, wait = results[way, workers]
            cells.append(f'{rate:.1f} | {wait:.3f} | {rate / results[MIMREAD, workers][0]:.1f}')
        lines.append(f'| {way} | {megabytes[way]:.1f} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--videos', help='folder of clips to store and read; default: the embedded heads')
    parser.add_argument('--size', type=int, default=256, help='pixels')
    parser.add_argument('--seconds', type=float, default=3, help='for which pairs are counted')
    options = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        root, clips = Path(folder), clips_to_store(options.videos, options.size)
        store(clips, root)
        megabytes = {way: sum(path.stat().st_size for path in (root / way).rglob('*') if path.is_file()) / 2 ** 20
                     for way in (*STORED, SHARDS)}
        megabytes[MIMREAD] = megabytes['mp4, GOP 250']
        cases = [(way, workers) for workers in WORKERS for way in (*STORED, SHARDS, MIMREAD)]
        results = {case: measure(loader_of(case[0], root, options.size, case[1]), options.seconds)
                   for case in tqdm(cases, desc='reading pairs', unit='case')}
    print(f'{len(clips)} clips of {FRAMES} frames at {options.size} px; batches of {BATCH}, steps of {STEP} s; '
          f'{os.cpu_count()} CPU cores, load {os.getloadavg()[0]:.1f}; ratio: pairs/s over those of mimread\n')
    print(table(results, megabytes))


if __name__ == '__main__':
    main()
