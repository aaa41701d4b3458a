"""Choice of the frames of a comparison by a named rule, and of the region to enlarge.

Modules that are slow to import wait for a call: the command line checks its words here.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import NamedTuple

from support.errors import UserError

RULES = ('largest_pose', 'worst', 'best')
BY_SCORE = RULES[1:]                 # need the truth, and every frame
# Corners and edges in MediaPipe's face mesh of 478 landmarks (its face_mesh_connections.py), and width over height of
# the region.
LANDMARKS = {'mouth': ((61, 291, 0, 17), 2),
             'eyes': ((33, 133, 362, 263, 159, 145, 386, 374), 3)}
MARGIN = 0.25                        # on each side of the landmarks, as a share of their extent
LEAST = 4                            # side of a region, pixels


# ---------------------------------------------------------------------------- frames

class Time(NamedTuple):
    """A time from the beginning of the driving video."""
    seconds: Fraction


def parse_frames(words):
    """One of RULES, or a tuple of frame numbers and Times. UserError."""
    if len(words) == 1 and words[0] in RULES:
        return words[0]
    if not words or not all(re.fullmatch(r'[0-9]+|[0-9]+(\.[0-9]+)?s', word) for word in words):
        raise UserError(f'--frames {" ".join(words)}: expected {", ".join(RULES)}, or frame numbers from 0, or times '
                        'such as 1.5s')
    frames = (Time(Fraction(word[:-1])) if word.endswith('s') else int(word) for word in words)
    return tuple(dict.fromkeys(frames))


def indices_of(frames, fps):
    """Frame numbers of frame numbers and Times; at a Time, the number of the frame on display."""
    return [int(frame.seconds * fps) if isinstance(frame, Time) else frame for frame in frames]


def rule_text(rule, methods, rendered):
    """How frames were chosen, as a sentence.

    rule:              as `parse_frames` returns it
    methods, rendered: names of all methods, and of those rendered here
    """
    if rule in BY_SCORE:
        return f'Shown: the frame with the {"lowest" if rule == "worst" else "highest"} PSNR of {methods[0]}.'
    if rule == 'largest_pose':
        what = ('largest keypoint displacement from frame 0 (keypoints of {})'.format(rendered[0]) if rendered else
                'largest pixel difference from frame 0')
        return f'Shown: the driving frame with the {what}.'
    times = [f'at {float(frame.seconds):g} s' for frame in rule if isinstance(frame, Time)]
    numbers = [str(frame) for frame in rule if not isinstance(frame, Time)]
    return (f'Frame{"s" * (len(rule) > 1)} {", ".join(numbers + times)} of each driving video'
            f'{", counted from 0" * bool(numbers)}.')


def select(frames, rule, indices):
    """The ClipFrames to show: those at `indices`, in that order, or the first method's 'worst' or 'best' by PSNR."""
    if rule in BY_SCORE:
        from metrics.image import psnr
        sign = -1 if rule == 'worst' else 1
        return [max(frames, key=lambda frame: sign * float(psnr(as_unit(frame.made[0]), as_unit(frame.driving))))]
    kept = {frame.index: frame for frame in frames if frame.index in indices}
    return [kept[index] for index in indices]


def largest_pose(driving, renderer=None):
    """Index of the frame of a clip that differs most from its first; the earliest of several.

    renderer: measures the mean distance of its model's keypoints; without one, the mean absolute difference of pixels
    """
    import torch
    frames, distances, first = driving.frames(), [], None
    while batch := list(islice(frames, renderer.batch_size if renderer else 1)):
        # Pixels are points of one coordinate.
        points = (renderer.keypoints(batch).value.float() if renderer else
                  torch.cat(list(map(as_unit, batch))).flatten(1)[..., None])                # (B, K, 2)
        first = points[:1] if first is None else first
        distances += (points - first).norm(dim=-1).mean(1).tolist()
    return distances.index(max(distances))


def as_unit(frame):
    """(H, W, 3) uint8 -> (1, 3, H, W) in [0, 1]."""
    import numpy as np
    import torch
    return torch.from_numpy(np.array(frame)).permute(2, 0, 1)[None].float() / 255


# ---------------------------------------------------------------------------- a region

def parse_zoom(words):
    """A region (x, y, w, h), a key of LANDMARKS, or None. UserError."""
    if len(words) == 4 and all(word.isdecimal() for word in words):
        return tuple(map(int, words))
    if not words or len(words) == 1 and words[0] in LANDMARKS:
        return words[0] if words else None
    raise UserError(f'--zoom {" ".join(words)}: expected x y w h in pixels, mouth, or eyes')


@dataclass(frozen=True)
class Zoom:
    """A region to enlarge: (x, y, w, h) in pixels of the compared frames, or a key of LANDMARKS, found by MediaPipe.

    Raises UserError where MediaPipe is needed and missing.
    """
    what: tuple[int, int, int, int] | str

    def __post_init__(self):
        if self.what in LANDMARKS:
            from metrics.base import Unavailable
            from metrics.face import mediapipe_faces
            try:
                mediapipe_faces()
            except Unavailable as reason:
                raise UserError(f'--zoom {self.what} needs landmarks; otherwise give x y w h: {reason}') from reason

    def check(self, shape, name):
        """UserError for a region outside of frames of this shape (H, W, 3) of the clip `name`."""
        if self.what in LANDMARKS:
            return
        x, y, w, h = self.what
        if min(x, y) < 0 or min(w, h) < LEAST or x + w > shape[1] or y + h > shape[0]:
            raise UserError(f'--zoom {x} {y} {w} {h}: must lie within {shape[1]}x{shape[0]} pixels ({name}), '
                            f'at least {LEAST} wide and high')

    def region(self, frames, name):
        """(x, y, w, h) for alike frames (H, W, 3), found in the first that shows a face. UserError without one."""
        if self.what not in LANDMARKS:
            return self.what
        from metrics.face import mediapipe_faces
        marks, aspect = LANDMARKS[self.what]
        for frame in frames:
            points = mediapipe_faces()(as_unit(frame)).landmarks[0, list(marks)]
            if points.isfinite().all():
                return around(points.numpy(), aspect, frame.shape)
        raise UserError(f'{name}: no face is found, so no {self.what}; give --zoom x y w h')


def around(points, aspect, shape):
    """Region (x, y, w, h) around points (P, 2) inside of a frame (H, W, 3), `aspect` times as wide as high."""
    low, high = points.min(0), points.max(0)
    width = max(*((high - low) * (1 + 2 * MARGIN) * (1, aspect)), LEAST * aspect)
    width = min(width, shape[1], shape[0] * aspect)
    sides = round(width), round(width / aspect)
    corner = ((low + high - sides) / 2).round()
    return tuple(int(min(max(place, 0), side - length)) for place, side, length in
                 zip(corner, shape[1::-1], sides)) + sides
