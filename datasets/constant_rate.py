"""Clips whose frames are shown for unequal times, as clips of a constant rate: in step with their sound."""

from fractions import Fraction

import numpy as np

from datasets.video import frames_at, indices_at, open_clip


class ConstantRateClip:
    """A clip at a constant rate: at every tick the frame that is on display then. The interface of a clip."""

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


def open_constant_rate(path, size=None):
    """As open_clip, but the rate is constant: of a file whose frames drift from that, the rate that most of them have.

    Raises UserError where the file cannot be read.
    """
    clip = open_clip(path, size)
    stamps, tick = clip.times
    early = np.asarray(stamps, dtype=np.float64) * float(tick * clip.fps) - np.arange(len(stamps))     # in frames
    if np.ptp(early) < 1:
        return clip
    steps = np.diff(stamps)
    usual = steps[np.abs(steps - np.median(steps)) <= np.median(steps) / 2].mean()
    return ConstantRateClip(clip, (1 / (Fraction(float(usual)) * tick)).limit_denominator(1001))
