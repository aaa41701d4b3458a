"""Clips of constant frame rate from videos of variable frame rate, in sync with their sound."""

import math
from fractions import Fraction

import numpy as np

from datasets.still import WHITE
from datasets.video import open_clip
from support.errors import UserError


def indices_at(clip, fps, start=Fraction(0), count=None):
    """Indices of the frames that a player shows at start, start + 1/fps, ...: (count,) ascending, with repeats.

    By time stamps, as FFmpeg's fps filter does it: the last frame that begins before the middle of the tick.
    https://ffmpeg.org/ffmpeg-filters.html#fps-1
    start: seconds from the clip's first frame
    count: None for all up to the clip's end; UserError if the clip has fewer
    """
    stamps, tick = clip.times
    duration = stamps[-1] * tick + 1 / clip.fps
    available = int((duration - start) * fps + Fraction(1, 2))
    if count is None:
        count = available
    elif count > available:
        raise UserError(f'{clip.path}: lasts {float(duration):.2f} s, but frames up to '
                        f'{float(start + count / Fraction(fps)):.2f} s are asked for')
    middles = [math.ceil((start + Fraction(2 * n + 1, 2) / fps) / tick) for n in range(count)]
    return np.searchsorted(stamps, middles) - 1


def frames_at(clip, indices, threads=0):
    """Iterator over the frames at ascending `indices`, repeats allowed, one in memory at a time. Raises UserError."""
    indices, repeats = np.unique(indices, return_counts=True)
    for frame, count in zip(clip.frames(indices.tolist(), threads), repeats, strict=True):
        for _ in range(count):
            yield frame


class ConstantRateClip:
    """A VideoClip resampled to a constant `fps` (`indices_at`); the interface is that of datasets/video.py."""

    def __init__(self, clip, fps):
        self.clip, self.fps = clip, fps
        self.path, self.name = clip.path, clip.name
        self.indices = indices_at(clip, fps)

    def __len__(self):
        return len(self.indices)

    def read(self, indices):
        return self.clip.read([int(self.indices[i]) for i in indices])

    def frames(self):
        return frames_at(self.clip, self.indices)


def open_constant_rate(path, size=None, background=WHITE):
    """As open_clip; a file whose time stamps stray a frame from a constant rate is resampled to its most common rate.

    Raises UserError where the file cannot be read.
    """
    clip = open_clip(path, size, background)
    stamps, tick = clip.times
    early = np.asarray(stamps, dtype=np.float64) * float(tick * clip.fps) - np.arange(len(stamps))     # in frames
    if np.ptp(early) < 1:
        return clip
    steps = np.diff(stamps)
    usual = steps[np.abs(steps - np.median(steps)) <= np.median(steps) / 2].mean()
    return ConstantRateClip(clip, (1 / (Fraction(float(usual)) * tick)).limit_denominator(1001))
