"""Detection of faces in frames by MediaPipe's Face Landmarker: boxes, landmarks and head pose.

https://ai.google.dev/edge/mediapipe/solutions/vision/face_landmarker
"""

import math
import os
import weakref
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from support.errors import UserError
from support.weights import checkpoint_path

MODEL_URL = ('https://storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/float16/1/'
             'face_landmarker.task')
SHIPPED_MODEL = Path(__file__).parents[1] / 'weights' / 'face_landmarker.task'     # the same file, in the repository


# Landmarks of the synthetic heads (datasets/synthetic/mesh.py) and the vertices of MediaPipe's face mesh next to them
VERTICES = {'left_eye_outer': 130, 'left_eye_inner': 173, 'right_eye_inner': 398, 'right_eye_outer': 359,
            'left_pupil': 468, 'right_pupil': 473, 'left_brow_outer': 63, 'left_brow_middle': 66,
            'left_brow_inner': 107, 'right_brow_inner': 336, 'right_brow_middle': 296, 'right_brow_outer': 293,
            'nose_bridge': 168, 'nose_tip': 4, 'nose_left': 115, 'nose_right': 344, 'nose_base': 2, 'mouth_left': 61,
            'mouth_right': 291, 'upper_lip_top': 0, 'upper_lip': 13, 'lower_lip': 14, 'lower_lip_bottom': 17,
            'chin': 152, 'forehead': 10, 'left_cheek': 50, 'right_cheek': 280, 'left_jaw': 135, 'right_jaw': 364,
            'left_lid_upper': 159, 'left_lid_lower': 145, 'right_lid_upper': 386, 'right_lid_lower': 374,
            'left_temple': 127, 'right_temple': 356, 'left_ear': 93, 'right_ear': 323, 'left_jaw_corner': 172,
            'right_jaw_corner': 397, 'upper_lip_left': 81, 'upper_lip_right': 311, 'lower_lip_left': 178,
            'lower_lip_right': 402, 'lower_lip_bottom_left': 84, 'lower_lip_bottom_right': 314}


def landmarker_path():
    """Path of the landmarker's weights: in $TORCH_HOME/hub/checkpoints where that file exists, else the shipped one."""
    own = checkpoint_path(MODEL_URL)
    return own if own.is_file() else SHIPPED_MODEL


@dataclass(frozen=True)
class Face:
    """One face in a frame; coordinates are (x, y) in pixels and may lie outside of the frame."""
    box: tuple[float, float, float, float]    # x0, y0, x1, y1 around the landmarks: chin to hairline
    landmarks: np.ndarray          # (478, 2); 0 and 1 are the edges of the first pixel; irises last (arXiv 2006.10962)
    matrix: np.ndarray | None      # (4, 4) from MediaPipe's canonical face, in cm, to a camera at the searched part
    blendshapes: np.ndarray | None = None     # (52,) in [0, 1], in MediaPipe's order, if the detector computes them

    @property
    def size(self):
        """The longer side of the box, pixels."""
        x0, y0, x1, y1 = self.box
        return max(x1 - x0, y1 - y0)


class FaceDetector(AbstractContextManager):
    """A detector of the faces in single frames; a context manager, for one thread, on the CPU.

    max_faces:   largest number of faces per frame
    blendshapes: compute them too
    Raises UserError if the package or its model file is missing; the message says how to get them.
    """

    def __init__(self, max_faces=5, blendshapes=False):
        self._landmarker, self._image = _open_landmarker(max_faces, blendshapes)

    def __exit__(self, *error):
        self.close()

    def close(self):
        self._landmarker.close()

    def detect(self, frame):
        """Frame uint8 (H, W, 3) RGB -> list of Face, largest first.

        The model reduces its input and misses faces below a ninth of the longer side. If it finds none, squares of the
        shorter side are searched one by one.
        """
        faces = self._search(frame) or _distinct(face for left, top, part in _squares(frame)
                                                 for face in self._search(part, left, top))
        return sorted(faces, key=lambda face: face.size, reverse=True)

    def _search(self, part, left=0, top=0):
        """The faces of a part of a frame whose corner is at (left, top), in the frame's pixels."""
        height, width, _ = part.shape
        found = self._landmarker.detect(self._image(np.ascontiguousarray(part)))
        matrices = found.facial_transformation_matrixes or [None] * len(found.face_landmarks)
        shapes = found.face_blendshapes or [None] * len(found.face_landmarks)
        faces = []
        for points, matrix, blendshapes in zip(found.face_landmarks, matrices, shapes, strict=True):
            landmarks = np.array([(left + point.x * width, top + point.y * height) for point in points])
            box = *landmarks.min(0).tolist(), *landmarks.max(0).tolist()
            faces.append(Face(box, landmarks, None if matrix is None else np.array(matrix),
                              blendshapes and np.array([shape.score for shape in blendshapes])))
        return faces


class LandmarkFinder:
    """Positions of named landmarks in images, for models whose keypoints they are.

    names: of VERTICES
    Raises UserError as FaceDetector.
    """

    def __init__(self, names):
        self._rows = [VERTICES[name] for name in names]
        self._detector = FaceDetector(max_faces=1)
        weakref.finalize(self, self._detector.close)     # at exit at the latest: later, MediaPipe cannot

    def __call__(self, images):
        """Images (B, 3, H, W) in [-1, 1] -> (B, K, 2), centres of corner pixels at -1 and 1; NaN without a face."""
        found = torch.full((len(images), len(self._rows), 2), torch.nan)
        last = torch.tensor(images.shape[:1:-1]) - 1                        # (x, y) of the last pixel
        for i, frame in enumerate(((images.float() + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()):
            for face in self._detector.detect(frame):
                found[i] = 2 * (torch.from_numpy(face.landmarks[self._rows]) - 0.5) / last - 1
        return found.to(images.device)


def overlap(a, b):
    """Intersection over union of two boxes (x0, y0, x1, y1): https://doi.org/10.1007/s11263-009-0275-4, Sec. 4.2."""
    def area(x0, y0, x1, y1):
        return max(0, x1 - x0) * max(0, y1 - y0)
    shared = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    return shared / max(area(*a) + area(*b) - shared, 1e-9)


def _squares(frame):
    """(left, top, part) for squares that cover a frame along its longer side, each half over the one before."""
    height, width, _ = frame.shape
    side, length = min(height, width), max(height, width)
    count = 1 + math.ceil((length - side) / (side / 2))
    for start in np.linspace(0, length - side, count).astype(int).tolist() if count > 1 else ():
        left, top = (start, 0) if width > height else (0, start)
        yield left, top, frame[top:top + side, left:left + side]


def _distinct(faces):
    """The faces without duplicates, which overlapping squares find twice."""
    kept = []
    for face in faces:
        if all(overlap(face.box, other.box) < 0.3 for other in kept):
            kept.append(face)
    return kept


def _open_landmarker(max_faces, blendshapes):
    """(MediaPipe's FaceLandmarker, a function from an array to its image)."""
    path = landmarker_path()
    if not path.is_file():
        raise UserError(f'{path}: no such file; download {MODEL_URL} to it')
    try:
        import mediapipe
        from mediapipe.tasks.python import BaseOptions, vision
    except ImportError as error:
        raise UserError(f'face detection needs MediaPipe ({error}): pip install mediapipe') from error
    options = vision.FaceLandmarkerOptions(
        base_options=BaseOptions(model_asset_buffer=path.read_bytes()), num_faces=max_faces,
        output_facial_transformation_matrixes=True, output_face_blendshapes=blendshapes)
    try:
        with _silenced():
            landmarker = vision.FaceLandmarker.create_from_options(options)
    except (RuntimeError, ValueError) as error:
        raise UserError(f'{path}: is not a face landmarker, or is damaged ({str(error).splitlines()[0]}); '
                        f'download {MODEL_URL} to it') from error
    return landmarker, lambda frame: mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=frame)


@contextmanager
def _silenced():
    """Drops what is written to standard error meanwhile, by C++ code too: MediaPipe greets with a page of log."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
