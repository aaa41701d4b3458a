"""Jobs for a worker whose process imports nothing slow, and a clip for the page."""

import os
import time

SIZE = 64


def loads(checkpoint):
    return checkpoint.upper()


def ask_for(bench, checkpoint):
    return bench.model(checkpoint)


def fail(bench, error):
    raise error


def die(bench):
    os._exit(1)


def count(bench, total):
    counter = bench.counter(total)
    for _ in range(total):
        counter()
        time.sleep(0.02)
    return total


def variable(bench, name):
    return os.environ.get(name)


def hang(bench):
    time.sleep(1000)


def write_clip(path, frames, size=SIZE):
    """A bright square that moves over a gradient."""
    import numpy as np

    from datasets.video_writer import VideoWriter
    base = np.stack(np.meshgrid(*[np.arange(size)] * 2), -1) * 3 % 256
    with VideoWriter(path, 25) as video:
        for i in range(frames):
            frame = np.concatenate([base, base[..., :1]], -1).astype(np.uint8)
            frame[size // 3:size // 2, i * 3 % size:][:, :size // 4] = 255
            video.write(frame)
