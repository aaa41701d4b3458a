"""Shaking and flicker over time, of pixels and of landmarks."""

import torch

from metrics.base import FeatureMetric
from metrics.face import MediapipeMetric


class PixelJitter(FeatureMetric):
    """Second differences in time: sensitive to shaking and flicker, not to a constant or slowly drifting error."""

    id, column, decimals = 'jitter.pixels', 'jitter', 4
    definition = ('mean absolute difference of the second differences in time, x[t] - 2 x[t-1] + x[t-2], of the '
                  'generated and of the driving frames, over pixels and RGB values in [0, 1]; per frame from the '
                  'third; for consecutive frames of the same person')
    source = 'this project'

    def load(self, device):
        return lambda frames: frames

    def start_clip(self, source=None):
        super().start_clip(source)
        self.last_errors = None

    def compare(self, generated, target):
        errors = generated - target
        if self.last_errors is None:
            self.last_errors = torch.full_like(errors[:1], torch.nan).expand(2, *errors.shape[1:])
        errors = torch.cat([self.last_errors, errors])
        self.last_errors = errors[-2:].clone()     # a copy, so that the batch is freed
        return errors.diff(n=2, dim=0).abs().flatten(1).mean(1)


class LandmarkJitter(MediapipeMetric, PixelJitter):
    id, column, unit, part = 'jitter.mediapipe', 'lm. jitter', 'px', 'landmarks'
    definition = ('mean absolute difference of the second differences in time, x[t] - 2 x[t-1] + x[t-2], of 478 '
                  'landmarks (MediaPipe\'s Face Landmarker) in the generated and in the driving frames, x and y in '
                  'pixels of the frames as they are; per frame from the third; for consecutive frames')
