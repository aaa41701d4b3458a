"""Frechet inception distance (Heusel et al., NeurIPS 2017, Eq. 6), from sums that clips and processes can add up."""

import math

import torch

from metrics.base import Remembered, SetMetric, optional, shared
from support.weights import checkpoint_path

INCEPTION_URL = ('https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/'
                 'pt_inception-2015-12-05-6726825d.pth')
FEATURES = 2048
# Features are rounded to this step. Then all products and sums are whole multiples of its square, float64 holds
# them exactly, and no order of frames, clips or processes can change a bit. The distance moves by less than 1e-5.
STEP = 2 ** -12


class _Fid(SetMetric):
    unit, decimals = '', 2

    def __init__(self, device):
        super().__init__(device)
        self.weight_files = (checkpoint_path(INCEPTION_URL),)
        with optional('pytorch-fid', [INCEPTION_URL]):
            self.features = _inception(str(device), checkpoint_path(INCEPTION_URL))
        self.start_clip()

    def start_clip(self, source=None):
        super().start_clip(source)
        self.of_source = self.features(source[None]) if self.needs_source and source is not None else None
        self.sums = {}

    def update(self, generated, driving):
        self._add('generated', self.features(generated))
        if not self.needs_source:
            self._add('reference', self.features(driving))
        elif self.of_source is not None:
            self._add('reference', self.of_source, times=len(generated))

    def state(self):
        return {name: value.cpu() for name, value in self.sums.items()}

    def _add(self, side, features, times=1):
        sums = {'count': torch.tensor(float(times * len(features)), dtype=torch.float64),
                'sum': times * features.sum(0), 'outer': times * (features.T @ features)}
        for name, value in sums.items():
            key = f'{side}.{name}'
            self.sums[key] = self.sums[key] + value if key in self.sums else value

    @staticmethod
    def compute(state):
        if any(state.get(f'{side}.count', 0) < 2 for side in ('generated', 'reference')):
            return math.nan
        return frechet_distance(*_moments(state, 'generated'), *_moments(state, 'reference'))


class FidSource(_Fid):
    id, column, needs_source = 'fid.source_vs_generated', 'FID', True
    definition = ('Frechet distance of pytorch-fid\'s 2048 Inception features: the generated frames against the source '
                  'images, each repeated once per frame made of it')
    source = 'the paper; https://github.com/mseitzer/pytorch-fid'


class FidDriving(_Fid):
    id, column = 'fid.driving_vs_generated', 'FID driving'
    definition = 'Frechet distance of pytorch-fid\'s 2048 Inception features: the generated against the driving frames'
    source = 'the usual one, by hand in MCNet; https://github.com/mseitzer/pytorch-fid'


def frechet_distance(mean_a, covariance_a, mean_b, covariance_b):
    """Of two Gaussians: |mean_a - mean_b|^2 + trace(A + B - 2 (A B)^(1/2)); a float.

    mean:       (D,) float64
    covariance: (D, D) float64; may be singular, as it is for fewer than D frames
    """
    # With A = F F' and B = G G', the trace of the root is the sum of the singular values of F' G.
    root = torch.linalg.svdvals(_factor(covariance_a).T @ _factor(covariance_b)).sum()
    distance = (mean_a - mean_b).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * root
    return distance.item()


def _factor(covariance):
    """F (D, rank) with F F' = covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, kept] * values[kept].sqrt()


def _moments(state, side):
    count, total, outer = (state[f'{side}.{name}'] for name in ('count', 'sum', 'outer'))
    mean = total / count
    return mean, (outer - total[:, None] * mean) / (count - 1)


@shared
def _inception(device, _path):
    """Frames (B, 3, H, W) in [0, 1] -> (B, 2048) float64, multiples of STEP."""
    from pytorch_fid.inception import InceptionV3  # optional
    network = InceptionV3([InceptionV3.BLOCK_INDEX_BY_DIM[FEATURES]]).eval().to(device)

    def features(frames):
        return (network(frames)[0].flatten(1).double() / STEP).round() * STEP
    return Remembered(features)
