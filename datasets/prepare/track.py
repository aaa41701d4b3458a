"""Detection of clips of one head in a video without metadata: scene cuts, and faces that stay in one place.

The rule is that of VoxCeleb's clips (https://github.com/AliaksandrSiarohin/video-preprocessing, crop_vox.py): a face is
followed while it overlaps its first box, and a fixed crop covers all its boxes. Of several faces the largest is
followed until it disappears.
"""

from collections import Counter, deque
from statistics import median
from typing import NamedTuple

import numpy as np
from PIL import Image

from datasets.constant_rate import frames_at, indices_at
from datasets.face_crop import Square, square_around
from datasets.face_tracker import FaceDetector, overlap
from datasets.manifest import CLIP_FPS
from datasets.prepare.metadata import NoClip

MIN_FRAMES, MAX_FRAMES = 64, 1024    # of a clip, as in VoxCeleb
STAYS = 0.25                         # least overlap of a face with its first place, as in VoxCeleb
SEARCH_EVERY = 5                     # frames between searches for the face
MAX_MISSES = 2                       # searches in a row that may miss the face


class Head(NamedTuple):
    """A head in frames start .. stop - 1 at 25 fps: its square, and the shape (H, W, 3) of the frames."""
    start: int
    stop: int
    square: Square
    shape: tuple


def find_heads(video, min_side):
    """List of the Heads in a clip of datasets/video.py.

    min_side: heads in smaller squares are skipped, pixels
    Raises NoClip, UserError.
    """
    cuts, track = SceneCuts(), Track(min_side)
    indices = indices_at(video, CLIP_FPS)
    next_search = 0
    with FaceDetector() as detector:
        for n, frame in enumerate(frames_at(video, indices, threads=1)):
            if cuts.between(frame) or track.is_full(n):
                track.end(n)
                next_search = n
            if n >= next_search:
                track.follow(n, detector.detect(frame), frame.shape)
                next_search = n + SEARCH_EVERY
    track.end(len(indices))
    if not track.heads:
        raise NoClip(track.why_none())
    return track.heads


class SceneCuts:
    """Detector of hard cuts: a change of brightness that is large in itself and relative to the frames before."""

    LARGE, TIMES = 10, 5             # of 255; of the median step
    HISTORY = 12

    def __init__(self):
        self._last, self._steps = None, deque(maxlen=self.HISTORY)

    def between(self, frame):
        """Whether a cut lies between the last frame given and this one, uint8 (H, W, 3)."""
        height, width, _ = frame.shape
        coarse = Image.fromarray(np.ascontiguousarray(frame[::max(height // 144, 1), ::max(width // 144, 1)]))
        thumbnail = np.asarray(coarse.convert('L').resize((32, 32), Image.Resampling.BOX), np.float32)
        last, self._last = self._last, thumbnail
        if last is None:
            return False
        step = float(np.abs(thumbnail - last).mean())
        usual = median(self._steps) if self._steps else 0
        self._steps.append(step)
        return step > max(self.LARGE, self.TIMES * usual)


class Track:
    """The followed face and the heads found before; frames are numbered at 25 fps."""

    def __init__(self, min_side):
        self.min_side, self.heads, self.passed_over = min_side, [], Counter()
        self.searched = self.found = 0
        self._places = []            # (frame, box) of every search that found the face
        self._misses = 0
        self._shape = None

    def is_full(self, n):
        return bool(self._places) and n - self._places[0][0] >= MAX_FRAMES

    def follow(self, n, faces, shape):
        """Continue with the followed face, or start with the largest of `faces`."""
        self.searched, self.found, self._shape = self.searched + 1, self.found + bool(faces), shape
        if self._places:
            first = self._places[0][1]
            nearest = max(faces, key=lambda face: overlap(face.box, first), default=None)
            if nearest is not None and overlap(nearest.box, first) >= STAYS:
                self._places.append((n, nearest.box))
                self._misses = 0
                return
            self._misses += 1
            if not faces and self._misses <= MAX_MISSES:
                return
            self.end(n)
        if faces:
            self._places = [(n, faces[0].box)]

    def end(self, n):
        """End the followed face before frame n: it becomes a Head, or is skipped as too short or too small."""
        places, misses, self._places, self._misses = self._places, self._misses, [], 0
        if not places:
            return
        start, stop = places[0][0], places[-1][0] + 1 if misses else n
        square = square_around([box for _, box in places], self._shape)
        if stop - start < MIN_FRAMES:
            self.passed_over[f'shorter than {MIN_FRAMES} frames at {CLIP_FPS} fps'] += 1
        elif square.side < self.min_side:
            self.passed_over[f'less than {self.min_side:g} pixels large'] += 1
        else:
            self.heads.append(Head(start, stop, square, self._shape))

    def why_none(self):
        if not self.found:
            return f'no face in the {self.searched} frames searched'
        return 'heads only ' + ', '.join(f'{what} ({count})' for what, count in sorted(self.passed_over.items()))
