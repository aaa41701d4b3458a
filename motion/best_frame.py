"""The initial frame of relative motion closest to the pose of the source (FOMM, Sec. 3.4)."""

import functools
import logging
import warnings
from itertools import islice

import torch
from tqdm import tqdm

from metrics.base import Unavailable
from metrics.face import face_alignment_network
from modules.talking_head import Keypoints
from motion.template import MotionTemplate
from motion.transfer import best_frame_by_keypoints, hull_area, pose_distance
from support.streaming import spread

MOST_CANDIDATES = 128      # frames that are searched for landmarks: about a second each on a CPU

log = logging.getLogger(__name__)


def find_best_frame(renderer, source, driving, landmarks=True):
    """Index of the driving frame whose pose is nearest to the source's, the first of equals.

    With `landmarks`, poses are compared by face landmarks as in FOMM, over at most MOST_CANDIDATES evenly spread
    frames. Keypoints of the model replace them where the face-alignment package, its weights or a face is missing,
    with a warning. Without `landmarks`, keypoints of all frames are compared.

    renderer: inference.Renderer
    source:   (H, W, 3) uint8
    driving:  clip as in datasets/video.py, or a MotionTemplate, which has no pictures to find landmarks in
    """
    if not landmarks:
        return _best_by_keypoints(renderer, source, driving, len(driving))
    try:
        best, by = _best_by_landmarks(source, driving, renderer), 'face landmarks'
    except Unavailable as reason:
        _warn_once(f'no face landmarks for the best frame, so keypoints of the model are used: {reason}')
        best, by = _best_by_keypoints(renderer, source, driving, MOST_CANDIDATES), 'keypoints'
    log.info('best frame of %s: %d, by %s', driving.name, best, by)
    return best


@functools.cache
def _warn_once(message):
    log.warning(message)


def _candidates(driving, most, at_once):
    """Yields (indices, frames) of at most `most` evenly spread frames, `at_once` at a time."""
    # One pass over all frames is cheaper than many jumps, and gives the same ones.
    stream = driving.frames() if len(driving) <= most else None
    for indices in tqdm(spread(len(driving), most, at_once), desc='best frame', leave=False, dynamic_ncols=True):
        yield indices, driving.read(indices) if stream is None else list(islice(stream, len(indices)))


def _best_by_landmarks(source, driving, renderer):
    """The nearest of the frames with a face; raises Unavailable without landmarks."""
    if isinstance(driving, MotionTemplate):
        raise Unavailable(f'{driving.name} is a motion template and has no pictures')
    detector = face_alignment_network(renderer.device)
    wanted = _landmarks(detector, source)
    if wanted is None:
        raise Unavailable(f'no face was found in the source for {driving.name}')
    distances = {}
    for indices, frames in _candidates(driving, MOST_CANDIDATES, renderer.batch_size):
        for index, frame in zip(indices, frames):
            landmarks = _landmarks(detector, frame)
            if landmarks is not None:
                distances[index] = pose_distance(wanted, landmarks)
    if not distances:
        raise Unavailable(f'no face was found in {driving.name}')
    return min(distances, key=distances.get)


def _landmarks(detector, image):
    """Landmarks (68, 2) of the largest face, in pixels; None if there is no face."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='No faces were detected')
        faces = detector.get_landmarks_from_image(image)
    return max(faces, key=hull_area) if faces else None


def _best_by_keypoints(renderer, source, driving, most):
    renderer = renderer.in_fp32()         # near poses differ by less than bf16 resolves
    wanted = renderer.keypoints([source])
    indices, values = [], []
    for some, frames in _candidates(driving, most, renderer.batch_size):
        indices += some
        values.append(renderer.keypoints(frames).value)
    return indices[best_frame_by_keypoints(wanted, Keypoints(torch.cat(values)))]
