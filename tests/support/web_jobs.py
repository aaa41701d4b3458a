"""Jobs for a worker whose process imports nothing slow, and a clip for the page."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

from support.errors import UserError

SIZE = 64
ROOT = Path(__file__).parents[2]


@contextmanager
def web_page(folder, port, variables, *checkpoints):
    """The address of --mode web in a process of its own, which prints to folder/'log.txt'."""
    with open(folder / 'log.txt', 'w') as log:
        process = subprocess.Popen(
            [sys.executable, 'run.py', '--mode', 'web', '--device', 'cpu', '--port', str(port), '--checkpoint',
             *map(str, checkpoints)], cwd=ROOT, stdout=log, stderr=log, env=os.environ | variables)
    try:
        while 'The page is at' not in (folder / 'log.txt').read_text():
            assert process.poll() is None, (folder / 'log.txt').read_text()
            time.sleep(0.2)
        yield f'http://127.0.0.1:{port}'
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def loads(checkpoint):
    """A stand-in for a LoadedModel; that of 'layers' has a network whose frame takes 200 layers of 50 ms."""
    model = SimpleNamespace(modules=tuple)
    if checkpoint == 'layers':
        from torch import nn

        class Slow(nn.Module):
            def forward(self, x):
                time.sleep(0.05)
                return x
        model = nn.Sequential(*(Slow() for _ in range(200)))
    return SimpleNamespace(name=checkpoint.upper(), renderer=SimpleNamespace(model=model))


def ask_for(worker, checkpoint):
    return worker.model(checkpoint).name


def render(worker):
    return worker.model('layers').renderer.model(0)


def process(worker):
    return os.getpid()


def unpicklable(worker):
    return lambda: None


class Broken(UserError):
    """Pickles, but does not unpickle."""

    def __init__(self, one, other):
        super().__init__(f'{one}{other}')


def broken(worker):
    raise Broken('a', 'b')


class Unreadable:
    def __reduce__(self):
        return fail, (None, ValueError())


def unreadable(worker):
    return Unreadable()


def fail(worker, error):
    raise error


def die(worker):
    os._exit(1)


def count(worker, total):
    counter = worker.counter(total)
    for _ in range(total):
        counter()
        time.sleep(0.02)
    return total


def variable(worker, name):
    return os.environ.get(name)


def hang(worker):
    time.sleep(1000)


def write_clip(path, frames, size=SIZE):
    """A bright square that moves over a gradient."""
    import numpy as np

    from tests.support.video_files import write_video
    base = np.stack(np.meshgrid(*[np.arange(size)] * 2), -1) * 3 % 256
    clip = np.concatenate([base, base[..., :1]], -1).astype(np.uint8)[None].repeat(frames, 0)
    for i, frame in enumerate(clip):
        frame[size // 3:size // 2, i * 3 % size:][:, :size // 4] = 255
    write_video(path, clip)
