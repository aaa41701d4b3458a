"""A model and clips for tests of what stands around the networks: small, quick, and of known motion."""

import weakref
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from evaluation.cases import RESULTS_OF
from inference import Renderer
from modules.talking_head import Generated, Keypoints, SourceState, TalkingHead
from modules.warp import identity_grid, warp
from motion.settings import Motion
from support.errors import UserError

SIZE = 32
NTSC = Fraction(30000, 1001)


class ToyHead(TalkingHead):
    """Shifts the source by the mean motion of keypoints, which are centres of mass of bright colours."""

    def __init__(self, num_kp=5):
        super().__init__()
        self.params = SimpleNamespace(image_size=SIZE)
        self.heat = nn.Conv2d(3, num_kp, 3, padding=1)
        nn.init.normal_(self.heat.weight, std=2)
        self.sources_encoded, self.largest_batch = 0, 0

    def keypoints(self, image):
        heat = self.heat(image).float().flatten(2).softmax(-1)                         # (B, K, H*W)
        return Keypoints(heat @ identity_grid(image.shape[-2:], image).flatten(0, 1))

    def encode_source(self, image):
        self.sources_encoded += 1
        return SourceState(self.keypoints(image), image)

    def render(self, source, driving):
        batch = driving.value.shape[0]
        self.largest_batch = max(self.largest_batch, batch)
        shift = (driving.value - source.keypoints.value).mean(1)                        # (B, 2)
        image = source.features.expand(batch, -1, -1, -1)
        flow = identity_grid(image.shape[-2:], image) - shift[:, None, None]            # (B, H, W, 2)
        return Generated(warp(image, flow), [flow], [torch.ones(batch, 1, 8, 8)])


class ToyClip:
    """A bright disc on a gradient, moving; frames are made when asked for, and counted while they live."""

    def __init__(self, name='clip', num_frames=12, fps=Fraction(25), seed=0):
        self.name, self.fps, self.num_frames, self.seed = name, fps, num_frames, seed
        self.alive, self.most_alive = 0, 0

    def __len__(self):
        return self.num_frames

    def frame(self, index):
        y, x = np.mgrid[:SIZE, :SIZE]
        centre = SIZE / 2 + 6 * np.array([np.sin(index / 5 + self.seed), np.cos(index / 7)])
        disc = np.hypot(x - centre[0], y - centre[1]) < 6
        frame = np.stack([disc * 200 + 20, x * 4 + self.seed * 10, y * 4], axis=-1).astype(np.uint8)
        self.alive += 1
        self.most_alive = max(self.most_alive, self.alive)
        weakref.finalize(frame, self.forget)
        return frame

    def forget(self):
        self.alive -= 1

    def read(self, indices):
        return [self.frame(i) for i in indices]

    def frames(self):
        return (self.frame(i) for i in range(self.num_frames))


class BrokenClip(ToyClip):
    def frames(self):
        yield from self.read(range(3))
        raise UserError(f'{self.name}: frame 3 does not decode')


def renderer(model, batch_size=4, precision='fp32'):
    return Renderer(model, 'cpu', batch_size, precision)


SCALED = Motion(adapt_scale=True)


def names_in(folder):
    """Without what tells whose results a folder has."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*')
                  if path.is_file() and path.name != RESULTS_OF)


def results_in(folder):
    """Without what is kept to go on from."""
    return [name for name in names_in(folder) if not name.startswith('clips/')]


class Mirror(TalkingHead):
    """Makes every frame the source, brighter by `tint`; of its driver it sees the mean colour only."""

    def __init__(self, tint=0.):
        super().__init__()
        self.params = SimpleNamespace(image_size=None)      # any
        self.tint = tint

    def keypoints(self, image):
        return Keypoints(image.mean((2, 3))[:, None, :2])

    def encode_source(self, image):
        return SourceState(self.keypoints(image), image)

    def render(self, source, driving):
        return Generated(source.features.expand(len(driving.value), -1, -1, -1) + self.tint, [], [])


def picture(height, width):
    """Smooth, coloured, different everywhere."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 / width, y * 255 / height, 128 + 100 * np.sin(x / 9) * np.sin(y / 7)], -1).astype(np.uint8)
