"""What decoding, network and encoding of an animation cost alone, one after the other, and side by side.

    python -m benchmarks.pipeline [--frames 64] [--repeats 3] [--threads 1] [--wait 10]

Three networks: the demo's at 64 px with random weights, a warp at 256 px, and one at 256 px that only waits, as
the CPU waits for a GPU. Side by side is `animate.animate`, as it is used; the rest is measured with its parts.
Nothing can be faster than the slowest stage, nor than the work of all of them on the cores there are.
"""

import argparse
import os
import time
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

from animate import write_animation
from config import schema
from datasets.manifest import CLIP_FPS
from datasets.synthetic.clips import synthetic_people
from datasets.video import open_clip
from datasets.video_writer import VideoWriter
from inference import Renderer
from modules.build import build_model
from modules.talking_head import Generated, Keypoints, SourceState, TalkingHead
from modules.warp import identity_grid, warp
from motion.settings import ABSOLUTE
from visualizer import to_tensor, to_uint8

BATCH = 8
STORED = 512       # side of the driving video, pixels
STAGES = ('decode', 'network', 'encode', 'in turn', 'side by side')


class Warp(TalkingHead):
    """Shifts the source by a keypoint, and then waits."""

    def __init__(self, wait=0.):
        super().__init__()
        self.wait = wait

    def keypoints(self, image):
        return Keypoints(image.mean((2, 3))[:, None, :2])

    def encode_source(self, image):
        return SourceState(self.keypoints(image), image)

    def render(self, source, driving):
        time.sleep(self.wait * len(driving.value))
        image = source.features.expand(len(driving.value), -1, -1, -1)
        flow = identity_grid(image.shape[-2:], image) + driving.value[:, None]
        return Generated(warp(image, flow), [flow], [])


def write_driving(path, num_frames):
    """A head that moves over noise, so that neither is free to code."""
    clip, = next(iter(synthetic_people(1, 1, 1, STORED // 2, seed=0).values()))
    head = np.asarray(Image.fromarray(clip.read([0])[0]).resize((STORED, STORED)))
    noise = np.random.default_rng(0).integers(0, 12, head.shape, dtype=np.uint8)
    with VideoWriter(path, CLIP_FPS) as video:
        for i in range(num_frames):
            video.write(np.roll(head // 2, round(20 * np.sin(i / 5)), 1) + np.roll(noise, 7 * i, 0))


def batches(frames):
    """Lists of BATCH frames, each with its tensor."""
    while batch := list(islice(frames, BATCH)):
        yield batch, to_tensor(batch)


def measure(model, driving, folder, repeats):
    """(seconds per 1,000 frames of every stage, busy cores side by side); medians."""
    source = driving.read([0])[0]
    renderer = Renderer(model, 'cpu', BATCH)
    driven = renderer.follow(source)
    frames = driving.read(list(range(BATCH)))
    images = to_tensor(frames)
    rendered = lambda frames, images: to_uint8(driven(frames, images)[-1].prediction)
    made = rendered(frames, images)
    rounds = range(len(driving) // BATCH)

    def encode():
        with VideoWriter(folder / 'encoded.mp4', driving.fps) as video:
            for _ in rounds:
                for frame in made:
                    video.write(frame)

    def in_turn():
        with VideoWriter(folder / 'in_turn.mp4', driving.fps) as video:
            for batch in batches(driving.frames()):
                for frame in rendered(*batch):
                    video.write(frame)

    def side_by_side():
        write_animation(renderer, source, driving, folder / 'side_by_side.mp4', ABSOLUTE)

    works = dict(zip(STAGES, (lambda: [None for _ in batches(driving.frames())],
                              lambda: [rendered(frames, images) for _ in rounds], encode, in_turn, side_by_side)))
    seconds, busy = {name: [] for name in works}, []
    for _ in range(repeats):
        for name, work in works.items():
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            seconds[name].append(wall * 1000 / len(driving))
        busy.append(cpu / wall)
    return {name: median(values) for name, values in seconds.items()}, median(busy)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--frames', type=int, default=64, help='of the driving video, a multiple of 8')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--threads', type=int, default=1, help='of the network; the codecs choose theirs')
    parser.add_argument('--wait', type=float, default=10, help='of the network that waits, ms per frame')
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = schema.load(Path(__file__).parents[1] / 'config' / 'demo-64.yaml')
    cases = {'demo-64, random weights': (config.model_params.image_size, build_model(config)),
             'warp, 256 px': (256, Warp()), f'waiting {options.wait:g} ms, 256 px': (256, Warp(options.wait / 1000))}
    with TemporaryDirectory() as folder:
        folder = Path(folder)
        write_driving(folder / 'driving.mp4', options.frames // BATCH * BATCH)
        print(f'seconds per 1,000 frames, median of {options.repeats}; {STORED} px H.264 in, batches of {BATCH}, '
              f'{os.cpu_count()} cores, {options.threads} thread(s) for the network\n')
        print(f'| network | {" | ".join(STAGES)} | gain | busy cores |\n{"|---" * (len(STAGES) + 3)}|')
        for name, (size, model) in cases.items():
            seconds, busy = measure(model, open_clip(folder / 'driving.mp4', size), folder, options.repeats)
            gain = seconds['in turn'] / seconds['side by side']
            columns = [name, *(f'{seconds[stage]:.1f}' for stage in STAGES), f'{gain:.2f}x', f'{busy:.2f}']
            print(f'| {" | ".join(columns)} |', flush=True)


if __name__ == '__main__':
    main()
