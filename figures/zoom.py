"""A region of a face that a comparison enlarges: given in pixels, or mouth or eyes, found by MediaPipe's landmarks."""

from dataclasses import dataclass

import numpy as np

from figures.choice import as_unit
from metrics.base import Unavailable
from metrics.face import mediapipe_faces
from support.errors import UserError

# Corners and edges in MediaPipe's face mesh of 478 landmarks (its face_mesh_connections.py), and the shape of the
# region: width over height.
LANDMARKS = {'mouth': ((61, 291, 0, 17), 2),
             'eyes': ((33, 133, 362, 263, 159, 145, 386, 374), 3)}
MARGIN = 0.25            # on each side, of what is between the landmarks
LEAST = 4                # sides of a region, pixels


@dataclass(frozen=True)
class Zoom:
    """what: (x, y, w, h) in pixels of the compared frames, or one of rules.PARTS. UserError where it cannot work."""
    what: tuple[int, int, int, int] | str

    def __post_init__(self):
        if self.what in LANDMARKS:
            try:
                mediapipe_faces()
            except Unavailable as reason:
                raise UserError(f'--zoom {self.what} needs landmarks, else give x y w h: {reason}') from reason

    def check(self, shape, name):
        """UserError for a region outside of frames of this shape (H, W, 3); name: of their clip."""
        if self.what in LANDMARKS:
            return
        x, y, w, h = self.what
        if min(x, y) < 0 or min(w, h) < LEAST or x + w > shape[1] or y + h > shape[0]:
            raise UserError(f'--zoom {x} {y} {w} {h}: must lie within {shape[1]}x{shape[0]} pixels ({name}), '
                            f'at least {LEAST} wide and high')

    def region(self, frames, name):
        """(x, y, w, h) for frames (H, W, 3) that are alike: of the first in which there is a face; UserError."""
        if self.what not in LANDMARKS:
            return self.what
        marks, aspect = LANDMARKS[self.what]
        for frame in frames:
            points = mediapipe_faces()(as_unit(frame)).landmarks[0, list(marks)].numpy()
            if np.isfinite(points).all():
                return around(points, aspect, frame.shape)
        raise UserError(f'{name}: no face is found, so no {self.what}; give --zoom x y w h')


def around(points, aspect, shape):
    """Region (x, y, w, h) around points (P, 2) of a frame (H, W, 3), `aspect` times as wide as high, inside of it."""
    low, high = points.min(0), points.max(0)
    width = max(*((high - low) * (1 + 2 * MARGIN) * (1, aspect)), LEAST * aspect)
    width = min(width, shape[1], shape[0] * aspect)
    sides = np.array([round(width), round(width / aspect)])
    corner = ((low + high - sides) / 2).round().clip(0, np.array(shape[1::-1]) - sides)
    return tuple(int(value) for value in (*corner, *sides))
