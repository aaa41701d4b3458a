"""A still image, and whatever else a path may lead to, as a clip."""

from fractions import Fraction
from pathlib import Path

from datasets.video import STILL_SUFFIXES, open_clip, read_image


class Still:
    """A still image as a clip of one frame, read when needed; the interface of datasets/video.py."""

    fps = Fraction(1)

    def __init__(self, path, size=None):
        self.path, self.size, self.name = Path(path), size, Path(path).stem

    def __len__(self):
        return 1

    def read(self, indices):
        return [read_image(self.path, self.size) for _ in indices]

    def frames(self):
        return iter(self.read([0]))


def open_any(path, size=None, opener=open_clip):
    """The still at `path`, or what `opener` makes of it; UserError where neither can be."""
    return Still(path, size) if Path(path).suffix.lower() in STILL_SUFFIXES else opener(path, size)
