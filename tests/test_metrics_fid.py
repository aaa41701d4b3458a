"""FID and KID: by hand, against SciPy, torchmetrics and torch-fidelity's formula; the network with random weights."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from metrics import fid
from metrics.catalogue import build
from metrics.fid import FidDriving, KidDriving, KidSource, frechet_distance, kernel_distance
from support.weights import checkpoint_path
from tests.support.random_weights import inception, save_random_weights


def moments(count, size, seed, shift=0.0):
    data = np.random.default_rng(seed).normal(shift, 1, (count, size)) @ np.diag(np.linspace(0.1, 2, size))
    return torch.from_numpy(data.mean(0)), torch.from_numpy(np.cov(data, rowvar=False))


def test_distance_of_plain_gaussians_by_hand():
    means = torch.zeros(2, dtype=torch.float64), torch.tensor([3., 4], dtype=torch.float64)
    variances = [torch.tensor(values, dtype=torch.float64).diag() for values in ([4., 1], [1., 9])]
    # |(3, 4)|^2 + (2 - 1)^2 + (1 - 3)^2
    assert frechet_distance(means[0], variances[0], means[1], variances[1]) == pytest.approx(30)
    assert frechet_distance(means[0], variances[0] * 0, means[1], variances[1]) == pytest.approx(25 + 1 + 9)


@pytest.mark.parametrize('counts', [(200, 300), (10, 200), (10, 12)])     # of 24 features: full rank, and less
def test_distance_is_that_of_scipy_and_torchmetrics(counts):
    (mean_a, a), (mean_b, b) = moments(counts[0], 24, seed=0), moments(counts[1], 24, seed=1, shift=0.3)
    assert abs(frechet_distance(mean_a, a, mean_a, a)) < 1e-9
    ours = frechet_distance(mean_a, a, mean_b, b)
    root = scipy.linalg.sqrtm(a.numpy() @ b.numpy()).real
    assert ours == pytest.approx(float((mean_a - mean_b).square().sum() + a.trace() + b.trace() - 2 * root.trace()),
                                 rel=1e-4)
    reference = pytest.importorskip('torchmetrics.image.fid')._compute_fid(mean_a, a, mean_b, b)
    assert ours == pytest.approx(float(reference), rel=1e-4)


def clips_of(lengths, shift=0.0, size=24):
    """Features of generated and reference frames, clip by clip."""
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(count, size, generator=generator) + shift, torch.randn(count, size, generator=generator))
            for count in lengths]


@pytest.mark.parametrize('metric', [FidDriving, KidDriving])
def test_clips_count_by_their_frames(metric):
    clips = clips_of([40, 70, 20], shift=0.3)
    together = [tuple(torch.cat(side) for side in zip(*clips))]
    assert metric.compute(clips) == pytest.approx(metric.compute(together), rel=1e-9)
    assert metric.compute(clips) > metric.compute(clips_of([40, 70, 20]))


def test_kid_by_hand():
    a, b = torch.tensor([[1., 0], [0, 2]]), torch.tensor([[0., 0], [2, 2]])
    # k(x, y) = (x y / 2 + 1)^3: within a 1, within b 1, between 1, 8, 1, 27
    assert kernel_distance(a, b) == pytest.approx(1 + 1 - 2 * (1 + 8 + 1 + 27) / 4)


def test_kid_of_many_frames_is_the_mean_over_random_subsets(monkeypatch):
    monkeypatch.setattr(fid, 'SUBSET_SIZE', 30)
    clips = clips_of([200, 100], shift=0.5)
    whole = kernel_distance(*(torch.cat(side).double() for side in zip(*clips)))
    value = KidSource.compute(clips)
    assert value == KidSource.compute(clips) != whole and value == pytest.approx(whole, rel=0.1)


def test_too_few_frames_have_no_distance():
    for metric in (FidDriving, KidDriving):
        assert math.isnan(metric.compute(clips_of([1])))
        assert math.isnan(metric.compute([(torch.rand(9, 24), torch.rand(0, 24))]))        # no source image


# The true network

def test_inception_loads_its_weights_from_the_place_it_names(torch_home):  # noqa: F811
    pytest.importorskip('pytorch_fid')
    save_random_weights(inception(), checkpoint_path(fid.INCEPTION_URL))
    metrics, skipped = build(['fid.source_vs_generated', 'kid.driving_vs_generated'], 'cpu')
    assert not skipped and metrics[0].features is metrics[1].features
    assert list(metrics[0].weights) == ['pt_inception-2015-12-05-6726825d.pth']
    features = metrics[1].features(torch.rand(2, 3, 64, 64))
    assert features.shape == (2, 2048) and features.isfinite().all() and (features[0] != features[1]).any()
