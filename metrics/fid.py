"""Distances between distributions of Inception features: FID and KID.

FID: Heusel et al., NeurIPS 2017, Eq. 6. KID: Binkowski et al., ICLR 2018, https://arxiv.org/abs/1801.01401.
"""

import math

import torch

from metrics.base import Cached, DistributionMetric, optional, shared
from support.weights import checkpoint_path

INCEPTION_URL = ('https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/'
                 'pt_inception-2015-12-05-6726825d.pth')
FEATURES = 2048
SUBSETS, SUBSET_SIZE = 100, 1000       # of KID, the defaults of torch-fidelity
PYTORCH_FID = 'https://github.com/mseitzer/pytorch-fid'


class _InceptionMetric(DistributionMetric):
    network = 'inception'

    def __init__(self, device):
        super().__init__(device)
        self.weight_files = (checkpoint_path(INCEPTION_URL),)
        with optional('pytorch-fid', [INCEPTION_URL]):
            self.features = _inception(str(device), checkpoint_path(INCEPTION_URL))


class FidSource(_InceptionMetric):
    id, column, decimals, needs_source = 'fid.source_vs_generated', 'FID', 2, True
    definition = ('Frechet distance of pytorch-fid\'s 2048 Inception features: the generated frames against the source '
                  'images, each repeated once per frame generated from it')
    source = f'the paper; {PYTORCH_FID}'

    @staticmethod
    def compute(clips):
        generated, reference = _Moments(), _Moments()
        for made, wanted in clips:
            generated.add(made)
            reference.add(wanted)
        if min(generated.count, reference.count) < 2:
            return math.nan
        return frechet_distance(*generated.moments(), *reference.moments())


class FidDriving(FidSource):
    id, column, needs_source = 'fid.driving_vs_generated', 'FID driving', False
    definition = 'Frechet distance of pytorch-fid\'s 2048 Inception features: the generated against the driving frames'
    source = f'the usual one, by hand in MCNet; {PYTORCH_FID}'


class KidDriving(_InceptionMetric):
    id, column = 'kid.driving_vs_generated', 'KID driving'
    definition = ('kernel distance of pytorch-fid\'s 2048 Inception features: the generated against the driving '
                  'frames; unbiased squared maximum mean discrepancy with the kernel (x y / 2048 + 1)^3, mean over '
                  f'{SUBSETS} random subsets of {SUBSET_SIZE} frames, or over all frames where there are fewer')
    source = 'https://arxiv.org/abs/1801.01401'

    @staticmethod
    def compute(clips):
        generated, reference = (torch.cat(side).double() for side in zip(*clips))
        size = min(len(generated), len(reference), SUBSET_SIZE)
        if size < 2:
            return math.nan
        if size < SUBSET_SIZE:
            return kernel_distance(generated, reference)
        draw = torch.Generator().manual_seed(0)
        return sum(kernel_distance(*(side[torch.randperm(len(side), generator=draw)[:size]]
                                     for side in (generated, reference))) for _ in range(SUBSETS)) / SUBSETS


class KidSource(KidDriving):
    id, column, needs_source = 'kid.source_vs_generated', 'KID', True
    definition = KidDriving.definition.replace(
        'driving frames', 'source images, each repeated once per frame generated from it')


def frechet_distance(mean_a, covariance_a, mean_b, covariance_b):
    """Fréchet distance of two Gaussians: |mean_a - mean_b|^2 + trace(A + B - 2 (A B)^(1/2)); a float.

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


class _Moments:
    """Mean and covariance of features that are added clip by clip, in float64."""

    def __init__(self):
        self.count, self.sum, self.outer = 0, 0, 0

    def add(self, features):
        features = features.double()
        self.count += len(features)
        self.sum = self.sum + features.sum(0)
        self.outer = self.outer + features.T @ features

    def moments(self):
        mean = self.sum / self.count
        return mean, (self.outer - self.sum[:, None] * mean) / (self.count - 1)


def kernel_distance(a, b):
    """Unbiased squared maximum mean discrepancy of features (N, D) and (M, D) with a cubic kernel; a float."""
    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3
    within = sum((k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in (kernel(a, a), kernel(b, b)))
    return (within - 2 * kernel(a, b).mean()).item()


@shared
def _inception(device, _path):
    """Frames (B, 3, H, W) in [0, 1] -> (B, 2048)."""
    from pytorch_fid.inception import InceptionV3  # optional
    network = InceptionV3([InceptionV3.BLOCK_INDEX_BY_DIM[FEATURES]]).eval().to(device)
    return Cached(lambda frames: network(frames)[0].flatten(1))
