"""Square crops around a face, framed like the training data, and compositing of a crop into its source image."""

import logging
from dataclasses import dataclass
from statistics import median

import numpy as np

from datasets.still import cut, resized
from support.errors import UserError

# How crops like VoxCeleb's frame a face, whose box reaches from chin to hairline:
FACE_HEIGHT = 0.59     # height of the box, as a fraction of the crop's side
FACE_CENTRE = 0.57     # height of its middle, from the top: hair needs more room than the neck
MOST_HEIGHT = 0.75     # where the frame is too small for that; beyond, the frame's edge is repeated
MOST_MOVED = 0.9       # of the side, for all places of a moving face together

LEAST_SIDE = 0.5       # of the model's image size: a crop below is mostly invented by enlarging it
LEAST_STEADY = 0.45    # height of a face that moves a lot, below which the model sees too little of it
FADE = 0.1             # of the side: width of the soft edge of what is pasted back
MOST_SEARCHED = 32     # frames of a clip in which the face is searched: some 50 ms each
READ_AT_ONCE = 8       # of these, so that memory does not depend on the clip

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Square:
    """A square part of a frame, in integer pixels; beyond the frame the edge is repeated."""
    left: int
    top: int
    side: int

    def cut(self, frame, size):
        """The part of `frame` (H, W, 3) uint8 -> (size, size, 3) uint8."""
        return cut(frame, (self.left, self.top, self.left + self.side, self.top + self.side), size)

    def inside(self, shape):
        """Rows and columns of the frame that the square covers, and the same counted from the square's corner."""
        rows = slice(max(self.top, 0), min(self.top + self.side, shape[0]))
        columns = slice(max(self.left, 0), min(self.left + self.side, shape[1]))
        own = (slice(rows.start - self.top, rows.stop - self.top),
               slice(columns.start - self.left, columns.stop - self.left))
        return rows, columns, own


def square_around(boxes, shape):
    """The Square around all boxes of one face, scaled to the face's height and shifted into the frame.

    boxes: (x0, y0, x1, y1) of the face in one frame or several, pixels
    shape: of the frame (H, W, 3); where that is too small for the square, it reaches beyond
    """
    left, top = np.min(boxes, axis=0)[:2]
    right, bottom = np.max(boxes, axis=0)[2:]
    height = median(y1 - y0 for _, y0, _, y1 in boxes)
    moved = max(right - left, bottom - top) / MOST_MOVED
    side = max(height / FACE_HEIGHT, moved)
    side = round(max(min(side, *shape[:2]), height / MOST_HEIGHT, moved))
    return Square(_within((left + right) / 2 - side / 2, side, shape[1]),
                  _within((top + bottom) / 2 - side * FACE_CENTRE, side, shape[0]), side)


def _within(start, side, length):
    """`start`, shifted so that start..start + side lies in 0..length, or covers it."""
    return round(min(max(start, min(0, length - side)), max(0, length - side)))


# ---------------------------------------------------------------------------- finding the face

@dataclass(frozen=True)
class FaceCrop:
    """The face of an image or clip."""
    square: Square       # the crop
    height: float        # median height of the face, pixels
    frame: np.ndarray    # (H, W, 3) uint8, the first frame with the face
    boxes: list          # (x0, y0, x1, y1) of all faces in that frame, the largest first


def find_crop(detector, frames, name, which=0):
    """The fixed square that holds a face through a clip; a fixed crop keeps the head's motion.

    detector: datasets.face_tracker.FaceDetector
    frames:   uint8 (H, W, 3) in order; of a still, one frame
    name:     of the file, for messages
    which:    index of the face, by size from 0, in the first frame with so many faces; it is followed from there
    returns:  FaceCrop
    raises:   UserError, with the file's name, if the face is in no frame
    """
    boxes, most, shown = [], 0, None
    for frame in frames:
        faces = [face.box for face in detector.detect(frame)]
        most = max(most, len(faces))
        if boxes and faces:
            boxes.append(min(faces, key=lambda box: np.abs(np.subtract(box, boxes[-1])).sum()))
        elif len(faces) > which:
            boxes.append(faces[which])
            shown = frame, faces
    if not boxes:
        raise UserError(f'{name}: no face {which} was found, only {most}, counted from 0; choose another --face_index'
                        if most else f'{name}: no face was found; crop it to the face yourself and leave out --crop')
    frame, faces = shown
    return FaceCrop(square_around(boxes, frame.shape), median(y1 - y0 for _, y0, _, y1 in boxes), frame, faces)


def warn_of_small_faces(crop, name, size):
    if crop.square.side < LEAST_SIDE * size:
        log.warning('%s: the face is only %.0f px high and gets enlarged to %.0f; expect a blurred result, '
                    'use a larger picture', name, crop.height, crop.height * size / crop.square.side)
    elif crop.height < LEAST_STEADY * crop.square.side:
        log.warning('%s: the face moves so far that it fills only %.0f %% of the height of its crop; expect a poor '
                    'result, cut out a part where it stays in its place', name, 100 * crop.height / crop.square.side)


# ---------------------------------------------------------------------------- clips and pasting

class CroppedClip:
    """A clip, cut to a Square of its frames; (size, size, 3)."""

    def __init__(self, clip, square, size):
        self.clip, self.square, self.size = clip, square, size
        self.name, self.fps = clip.name, clip.fps

    def __len__(self):
        return len(self.clip)

    def read(self, indices):
        return [self.square.cut(frame, self.size) for frame in self.clip.read(indices)]

    def frames(self):
        return (self.square.cut(frame, self.size) for frame in self.clip.frames())


class PasteBack:
    """Composites a generated crop into the image that it was cut from, with a soft edge.

    The operator "over" of Porter and Duff, SIGGRAPH 1984.

    image:  (H, W, 3) uint8
    square: where the crop was
    """

    def __init__(self, image, square):
        self.square = square
        self.rows, self.columns, self.own = square.inside(image.shape)
        opacity = np.outer(_ramp(square.top, square.side, image.shape[0]),
                           _ramp(square.left, square.side, image.shape[1]))
        self.opacity = opacity[self.own][..., None]
        self.image = image
        self.around = image[self.rows, self.columns] * (1 - self.opacity)

    def __call__(self, made):
        """Frame of the crop (size, size, 3) uint8 -> (H, W, 3) uint8."""
        made = resized(made, self.square.side)[self.own]
        frame = self.image.copy()
        frame[self.rows, self.columns] = np.rint(self.around + made * self.opacity)
        return frame


def _ramp(first, side, length):
    """(side,) in [0, 1]: opacity along one axis, soft at the ends unless they are the image's border."""
    middle = (np.arange(side, dtype=np.float32) + 0.5) / side
    before = middle if first > 0 else np.ones_like(middle)
    after = 1 - middle if first + side < length else np.ones_like(middle)
    share = (np.minimum(before, after) / FADE).clip(0, 1)
    return share ** 2 * (3 - 2 * share)
