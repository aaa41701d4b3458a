"""Facial expression and dense landmarks by MediaPipe's Face Landmarker, compared with the driving frames'.

Blendshapes: Grishchenko et al., arXiv 2309.05782; landmarks: Grishchenko et al., arXiv 2006.10962.
"""

import torch

from metrics.base import Unavailable
from metrics.face import MediapipeMetric, mediapipe_faces

# Indices of blendshapes; a movement is their mean.
MOVEMENTS = {'jaw opening': (25,),          # jawOpen
             'blinks': (9, 10),             # eyeBlinkLeft, eyeBlinkRight
             'smile': (44, 45),             # mouthSmileLeft, mouthSmileRight
             'brows': (3, 4, 5)}            # browInnerUp, browOuterUpLeft, browOuterUpRight
STILL = 0.02         # standard deviation of a movement, below which a driving clip does not show it


def expression_distance(generated, target):
    """Mean absolute difference of blendshapes (B, 52) -> (B,)."""
    return (generated - target).abs().mean(1)


def landmark_distance(generated, target):
    """Mean Euclidean distance of landmarks (B, K, 2) -> (B,)."""
    return (generated - target).norm(dim=2).mean(1)


def landmarks_at_256(faces, frames):
    """Landmarks (B, 478, 2) of frames (B, 3, H, W), in pixels of frames whose longer side is 256."""
    return faces(frames).landmarks * (256 / max(frames.shape[2:]))


def face_scores(generated, target):
    """{'expression': (B,), 'landmarks': (B,), pixels at 256} of frames (B, 3, H, W) in [0, 1]; NaN without both faces.

    The distances of Expression and DenseAkd; {} where MediaPipe is not available.
    """
    try:
        faces = mediapipe_faces()
    except Unavailable:
        return {}
    sides = generated, target
    return {'expression': expression_distance(*(faces(frames).blendshapes for frames in sides)),
            'landmarks': landmark_distance(*(landmarks_at_256(faces, frames) for frames in sides))}


class Expression(MediapipeMetric):
    id, column, part = 'expression.mediapipe', 'expression', 'blendshapes'
    definition = ('mean absolute difference of the 52 blendshapes (MediaPipe\'s Face Landmarker) of the generated and '
                  'the driving face; per frame. Details, within each clip, for jaw opening, blinks, smile and brows: '
                  'correlation with the driver\'s over time, and amplitude, the ratio of the standard deviations; '
                  f'undefined for clips in which the driver\'s standard deviation is below {STILL}')
    source = 'this project'

    def start_clip(self, source=None):
        super().start_clip(source)
        self.clip = []

    def compare(self, generated, target):
        self.clip.append(torch.stack(torch.broadcast_tensors(generated, target)))
        return expression_distance(generated, target)

    def details(self):
        both = torch.cat(self.clip, dim=1)                                          # (2, T, 52)
        both = both[:, both.isfinite().all(2).all(0)]
        details = {}
        for name, shapes in MOVEMENTS.items():
            details |= {f'{name}, {what}': value for what, value in _follows(*both[..., shapes].mean(2)).items()}
        return details


def _follows(generated, driving):
    """Correlation and amplitude of a movement (T,) over a clip, against the driver's."""
    if len(driving) < 2 or (spread := driving.std(correction=0)) < STILL:
        return {'correlation': None, 'amplitude': None}
    amplitude = generated.std(correction=0) / spread
    covariance = ((generated - generated.mean()) * (driving - driving.mean())).mean()
    # A movement that the generated face does not make at all follows nothing.
    correlation = covariance / (spread * spread * amplitude) if amplitude > 0 else amplitude
    return {'correlation': float(correlation), 'amplitude': float(amplitude)}


class DenseAkd(MediapipeMetric):
    id, column, unit, decimals = 'akd.mediapipe', 'AKD 478', 'px', 3
    definition = ('mean Euclidean distance of 478 landmarks (MediaPipe\'s Face Landmarker) to those of the driving '
                  'frame, in pixels of frames whose longer side is 256; per frame')
    source = 'this project'

    def load(self, device):
        faces = mediapipe_faces()
        return lambda frames: landmarks_at_256(faces, frames)

    def compare(self, generated, target):
        return landmark_distance(generated, target)
