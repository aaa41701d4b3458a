"""Motion templates: the keypoints of a driving video in a file, without its face.

    smile.npz   format              1
                value               (T, K, 2) float32, as the detector found them
                jacobian            (T, K, 2, 2) float32, or none at all
                fps                 (2,) numerator and denominator
                anchor              the frame that relative motion starts from
                method              name of the model's class
                keypoint_detector   SHA-256 of the weights that found them: to another detector they mean nothing
"""

import zipfile
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from modules.talking_head import Keypoints, join
from support.errors import UserError
from support.files import written_whole
from support.weights import check_file, weights_hash

FORMAT = 1
MOST_BYTES = 2 ** 28       # unpacked: some 200 hours of 15 keypoints at 25 fps fit in, a zip bomb does not


@dataclass(frozen=True)
class MotionTemplate:
    """A driver's keypoints as a clip of which each frame is its Keypoints (1, K, 2).

    keypoints:   of all T frames, (T, K, 2), on the CPU
    fps:         Fraction
    anchor:      index of the frame that relative motion starts from
    fingerprint: of the model that found them, see `fingerprint`
    name:        for messages
    """
    keypoints: Keypoints
    fps: Fraction
    anchor: int
    fingerprint: tuple[str, str]
    name: str

    def __len__(self):
        return len(self.keypoints.value)

    def read(self, indices):
        return [self.keypoints.map(lambda part: part[i:i + 1]) for i in indices]

    def frames(self):
        return (frame for i in range(len(self)) for frame in self.read([i]))


def fingerprint(model):
    """(method, SHA-256 of its keypoint detector's weights)."""
    return type(model).__name__, weights_hash(model.keypoint_detector)


def record(renderer, driving, anchor=0):
    """The MotionTemplate of a clip; `renderer` finds its keypoints (T, K, 2), batch by batch. Raises UserError."""
    found, frames = [], driving.frames()
    while batch := list(islice(frames, renderer.batch_size)):
        found.append(renderer.keypoints(batch).map(lambda part: part.float().cpu()))
    return MotionTemplate(join(found), driving.fps, anchor, fingerprint(renderer.model), driving.name)


# ---------------------------------------------------------------------------- files

def save(template, path):
    """Write the template to `path`, whole or not at all; UserError where it cannot be written."""
    arrays = {name: part.numpy() for name, part in template.keypoints._asdict().items() if part is not None}
    method, detector = template.fingerprint
    with written_whole(path) as unfinished, open(unfinished, 'wb') as file:
        np.savez_compressed(file, **arrays, format=FORMAT, fps=template.fps.as_integer_ratio(), anchor=template.anchor,
                            method=method, keypoint_detector=detector)


def load(path, model):
    """The MotionTemplate at `path`; nothing in the file is executed.

    Raises UserError for a file that is none, or is damaged, and for a template of another model than `model`.
    """
    path, own = Path(path), fingerprint(model)
    check_file(path)
    try:
        template = _template(_arrays(path), path.stem)
    except Exception as error:      # a file that others have made breaks zipfile and NumPy in a dozen ways
        raise UserError(f'{path}: is no motion template, or is damaged ({_brief(error)}); '
                        'make one with --save_motion') from None
    if template.fingerprint != own:
        (method, detector), (own_method, own_detector) = template.fingerprint, own
        raise UserError(f'{path}: is of another model, {method} with keypoint detector {detector[:12]}; this one is '
                        f'{own_method} with {own_detector[:12]}; record the motion again with --save_motion')
    return template


def _arrays(path):
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > MOST_BYTES:
        raise ValueError(f'{unpacked:,} bytes unpacked')
    with np.load(path, allow_pickle=False) as archive:
        arrays = dict(archive)
    if not all(isinstance(part, np.ndarray) for part in arrays.values()):     # NumPy gives other members as bytes
        raise ValueError('not all of it are arrays')
    return arrays


def _template(arrays, name):
    """MotionTemplate of a file's arrays; ValueError, KeyError for what cannot be one."""
    if arrays['format'] != FORMAT:
        raise ValueError(f"format {str(arrays['format'])[:40]}, expected {FORMAT}")
    value, jacobian = arrays['value'], arrays.get('jacobian')
    num_frames, num_kp = value.shape[:2]
    parts = {(num_frames, num_kp, 2): value} | ({} if jacobian is None else {(num_frames, num_kp, 2, 2): jacobian})
    for shape, part in parts.items():
        if part.shape != shape or part.dtype != np.float32 or not num_frames or not np.isfinite(part).all():
            raise ValueError('its keypoints are no finite float32 numbers of the right shape')
    fps, anchor = Fraction(*map(int, arrays['fps'])), int(arrays['anchor'])
    if not 0 < fps <= 1000 or not 0 <= anchor < num_frames:
        raise ValueError(f'{fps} frames per second, from frame {anchor} of {num_frames}')
    keypoints = Keypoints(torch.from_numpy(value), None if jacobian is None else torch.from_numpy(jacobian))
    return MotionTemplate(keypoints, fps, anchor, (str(arrays['method'])[:64], str(arrays['keypoint_detector'])), name)


def _brief(error):
    if isinstance(error, KeyError):
        return f'{error} is missing'
    return str(error).partition('\n')[0] or type(error).__name__
