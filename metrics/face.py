"""Landmarks and head pose of generated faces, compared with the driving frames': AKD and ARD."""

import warnings
import weakref
from typing import NamedTuple

import torch

from datasets.face_tracker import FaceDetector, landmarker_path
from metrics.base import Cached, FeatureMetric, Unavailable, optional, shared
from support.errors import UserError
from support.weights import checkpoint_path

FAN_URLS = ('https://www.adrianbulat.com/downloads/python-fan/s3fd-619a316812.pth',
            'https://www.adrianbulat.com/downloads/python-fan/2DFAN4-11f355bf06.pth.tar')
POSE_EVALUATION = 'https://github.com/AliaksandrSiarohin/pose-evaluation'


# The networks

def face_alignment_network(device):
    """face-alignment's detector with 2D landmarks (Bulat and Tzimiropoulos, ICCV 2017); raises Unavailable."""
    with optional('face-alignment', FAN_URLS):
        return _face_alignment(str(device), *map(checkpoint_path, FAN_URLS))


@shared
def _face_alignment(device, *_paths):
    import face_alignment  # slow to import, and optional

    # compile=True, the package's default, takes minutes to start and is slower on a CPU.
    return face_alignment.FaceAlignment(face_alignment.LandmarksType.TWO_D, device=device, flip_input=False,
                                        compile=False)


def fan_landmarks(device):
    """FAN: frames (B, 3, H, W) in [0, 1] -> (B, 68, 2) in pixels, of the most confident face; NaN without a face."""
    return _fan_landmarks(face_alignment_network(device))


@shared
def _fan_landmarks(network):
    def landmarks(frames):
        frames = (frames * 255).round()
        found = torch.full((len(frames), 68, 2), torch.nan, dtype=torch.float64)
        # The faces of a frame are sorted by certainty; landmarks of the first suffice.
        faces = [faces[:1] for faces in network.face_detector.detect_from_batch(frames)]
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='No faces were detected')
            for row, points in zip(found, network.get_landmarks_from_batch(frames.byte(), detected_faces=faces)):
                if len(points):
                    row.copy_(torch.from_numpy(points[:68]))
        return found
    return Cached(landmarks)


class Faces(NamedTuple):
    """The largest face of each frame; NaN for frames without a face."""
    landmarks: torch.Tensor        # (B, 478, 2) in pixels
    angles: torch.Tensor           # (B, 3) of the head about the camera's axes x, y, z (pitch, yaw, roll), degrees
    blendshapes: torch.Tensor      # (B, 52) in [0, 1], in MediaPipe's order


def mediapipe_faces():
    """MediaPipe's Face Landmarker, on the CPU: frames (B, 3, H, W) in [0, 1] -> Faces; raises Unavailable."""
    try:
        return _mediapipe_faces(landmarker_path())
    except UserError as missing:
        raise Unavailable(str(missing)) from missing


@shared
def _mediapipe_faces(_path):
    detector = FaceDetector(max_faces=1, blendshapes=True)

    def faces(frames):
        found = Faces(*(torch.full((len(frames), *shape), torch.nan, dtype=torch.float64)
                        for shape in ((478, 2), (3,), (52,))))
        images = (frames * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        for i, image in enumerate(images):
            for face in detector.detect(image)[:1]:
                found.landmarks[i] = torch.from_numpy(face.landmarks)
                found.blendshapes[i] = torch.from_numpy(face.blendshapes)
                if face.matrix is not None:
                    found.angles[i] = torch.from_numpy(euler_angles(face.matrix))
        return found
    cached = Cached(faces)
    weakref.finalize(cached, detector.close)      # at exit at the latest: later, MediaPipe cannot
    return cached


def euler_angles(matrix):
    """Rotation (3, 3) or more, up to scale -> degrees (3,) about the fixed axes x, then y, then z."""
    from scipy.spatial.transform import Rotation  # slow to import
    return Rotation.from_matrix(matrix[:3, :3]).as_euler('xyz', degrees=True)


# The metrics

class MediapipeMetric(FeatureMetric):
    """Compares one part of Faces: 'landmarks', 'angles' or 'blendshapes'."""

    part = ''
    weight_files = property(lambda self: [landmarker_path()])

    def load(self, device):
        faces = mediapipe_faces()
        return lambda frames: getattr(faces(frames), self.part)


class Akd(FeatureMetric):
    id, column, unit = 'akd.mean_abs_xy', 'AKD', 'px'
    definition = ('mean absolute difference of the x and y coordinates of 68 landmarks (face-alignment, 2D, the most '
                  'certain face) to those of the driving frame, in pixels of the frames as they are, 256 x 256 in the '
                  'papers; per frame')
    source = f'FOMM, MRFA, MCNet and the paper; {POSE_EVALUATION}'
    weight_files = property(lambda self: map(checkpoint_path, FAN_URLS))

    def load(self, device):
        return fan_landmarks(device)

    def compare(self, generated, target):
        return (generated - target).abs().mean((1, 2))


class AkdEuclidean(Akd):
    id, column = 'akd.euclidean', 'AKD Euclid.'
    definition = ('mean Euclidean distance of 68 landmarks (face-alignment, 2D, the most certain face) to those of the '
                  'driving frame, in pixels of the frames as they are; per frame')
    source = 'as the papers describe AKD; their released code computes akd.mean_abs_xy'

    def compare(self, generated, target):
        return (generated - target).norm(dim=2).mean(1)


class Ard(MediapipeMetric):
    id, column, unit, part = 'ard.mediapipe', 'ARD', 'degrees', 'angles'
    definition = ('mean absolute difference of the three Euler angles (fixed axes x, y, z) of the head, from the '
                  'matrix of MediaPipe\'s Face Landmarker, to those in the driving frame; no wrap-around; '
                  'per frame')
    source = 'the paper, https://github.com/ShaelynZ/synergize-motion-appearance'

    def compare(self, generated, target):
        return (generated - target).abs().mean(1)
