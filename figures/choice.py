"""Which frames a comparison shows: by a rule that it names, never by hand unless it says so."""

from itertools import islice

import numpy as np
import torch

from metrics.image import psnr


class Wanted:
    """Keeps the shots of given indices."""

    def __init__(self, indices):
        self.indices, self.kept = indices, {}

    def offer(self, shot):
        if shot.index in self.indices:
            self.kept[shot.index] = shot

    def shots(self):
        return [self.kept[index] for index in self.indices]


class Extreme:
    """Keeps the shot at which the first method is 'worst' or 'best', by PSNR; the first of equals."""

    def __init__(self, rule):
        self.sign, self.kept, self.score = (-1 if rule == 'worst' else 1), None, None

    def offer(self, shot):
        score = self.sign * float(psnr(as_unit(shot.made[0]), as_unit(shot.driving)))
        if self.kept is None or score > self.score:
            self.kept, self.score = shot, score

    def shots(self):
        return [self.kept]


def as_unit(frame):
    """(H, W, 3) uint8 -> (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(frame)).permute(2, 0, 1)[None].float() / 255


def largest_pose(driving, renderer=None):
    """Index of the frame of a clip that is farthest from its first: by mean distance of the model's keypoints, by mean
    absolute difference of pixels without a renderer; the first of equals."""
    frames, distances, first = driving.frames(), [], None
    while batch := list(islice(frames, renderer.batch_size if renderer else 1)):
        # Pixels are points of one coordinate.
        points = (renderer.keypoints(batch).value.float() if renderer else
                  torch.cat(list(map(as_unit, batch))).flatten(1)[..., None])                # (B, K, 2)
        first = points[:1] if first is None else first
        distances += (points - first).norm(dim=-1).mean(1).tolist()
    return int(np.argmax(distances))
