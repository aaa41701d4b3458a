"""A folder of images as a clip."""

import logging
import os
import re
from functools import cached_property
from pathlib import Path

import numpy as np

from datasets.manifest import CLIP_FPS
from datasets.still import STILL_SUFFIXES, WHITE, read_image, resized
from support.errors import UserError

log = logging.getLogger(__name__)


class FrameFolder:
    """A folder of PNG or JPEG stills, one per frame in natural order of their names, as a clip at 25 fps.

    The folder's name may end in `.mp4`, as in FOMM's VoxCeleb; `name` is without it. A gap in the numbering is logged
    once. Stills of different sizes are rejected by name, even if `size` is given.
    """

    fps = CLIP_FPS      # stills do not carry a rate

    def __init__(self, path, size=None, background=WHITE):
        self.path, self.size, self.background = Path(path), size, background
        self.name = self.path.name.removesuffix('.mp4')

    def __len__(self):
        return self._names.count('/') + 1

    def read(self, indices):
        """Frames at `indices` (any order, repeats allowed). Raises UserError, IndexError."""
        check_indices(self, indices)
        names = self._names.split('/')
        return [self._frame(names[i]) for i in indices]

    def frames(self, indices=None, threads=1):
        """All frames in order, or those at `indices`, one in memory at a time; `threads` is for videos. UserError."""
        names = self._names.split('/')
        return (self._frame(names[i]) for i in (range(len(names)) if indices is None else indices))

    @property
    def times(self):
        return np.arange(len(self)), 1 / self.fps

    @cached_property
    def _names(self):
        # One string: 4 million frame names must fit in every worker, which they do not as str objects.
        names = sorted(_still_names(self.path), key=natural_order)
        if not names:
            raise UserError(f'{self.path}: no PNG or JPEG frames in this folder')
        stems = [Path(name).stem for name in names]
        twice = next((b for a, b in zip(stems, stems[1:]) if a == b), None)
        if twice is not None:
            raise UserError(f'{self.path}: frame {twice} exists twice, with different suffixes; remove one')
        _report_gap(self.path, stems)
        return '/'.join(names)

    @cached_property
    def _stored_shape(self):
        """(H, W, 3) of the first still; all others must have it too."""
        return read_image(self.path / self._names.split('/', 1)[0]).shape

    def _frame(self, name):
        image = read_image(self.path / name, background=self.background)
        if image.shape != self._stored_shape:
            raise UserError('{}: is {}x{} but the first frame of the folder is {}x{}; all must have one size'.format(
                self.path / name, *image.shape[1::-1], *self._stored_shape[1::-1]))
        return resized(image, self.size)


def has_stills(path):
    """Whether the folder holds at least one PNG or JPEG still; stops at the first."""
    return any(True for _ in _still_names(path))


def _still_names(path):
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.lower().endswith(STILL_SUFFIXES) and not entry.name.startswith('.'):
                    yield entry.name
    except OSError as error:
        raise UserError(f'{path}: cannot be read as a folder of frames ({error.strerror})') from error


def natural_order(name):
    """The key that sorts names of files with numbers: frame 10 after frame 9."""
    # The name itself breaks the tie of 1.png and 01.png, so the order never depends on the listing.
    return [int(part) if part.isdecimal() else part for part in re.split(r'(\d+)', Path(name).stem)], name


def _report_gap(path, stems):
    """Log gaps in the frame numbers; a constant step (every 5th frame) is no gap."""
    endings = [re.search(r'\d+$', stem) for stem in stems]
    if len(stems) < 3 or not all(endings):
        return
    numbers = [int(ending.group()) for ending in endings]
    steps = [b - a for a, b in zip(numbers, numbers[1:])]
    jumps = [number for number, step in zip(numbers, steps) if step != min(steps)]
    if jumps:
        log.warning('%s: %d gap(s) in the frame numbers, the first after %d; the clip continues across it',
                    path, len(jumps), jumps[0])


def check_indices(clip, indices):
    """IndexError for an index that the clip does not have."""
    wrong = [i for i in indices if not 0 <= i < len(clip)]
    if wrong:
        raise IndexError(f'{clip.path}: has no frame {wrong[0]}, only 0 to {len(clip) - 1}')
