"""FID: the distance by hand, against SciPy and torchmetrics; its sums in any order; the network with random weights."""

import math
from contextlib import nullcontext

import numpy as np
import pytest
import scipy.linalg
import torch

from metrics import fid
from metrics.base import Remembered
from metrics.catalogue import build
from metrics.fid import FidDriving, FidSource, frechet_distance
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
    ours = frechet_distance(mean_a, a, mean_b, b)
    root = scipy.linalg.sqrtm(a.numpy() @ b.numpy()).real
    assert ours == pytest.approx(float((mean_a - mean_b).square().sum() + a.trace() + b.trace() - 2 * root.trace()),
                                 rel=1e-4)
    reference = pytest.importorskip('torchmetrics.image.fid')._compute_fid(mean_a, a, mean_b, b)
    assert ours == pytest.approx(float(reference), rel=1e-4)


def test_equal_sets_have_no_distance_even_where_covariances_are_singular():
    mean, covariance = moments(10, 64, seed=0)
    assert abs(frechet_distance(mean, covariance, mean, covariance)) < 1e-9


@pytest.fixture
def colours(monkeypatch):
    """Stands in for Inception: mixtures of the mean colour, rounded as the features are."""
    mixture = torch.randn(3, 32, dtype=torch.float64)
    monkeypatch.setattr(fid, 'optional', lambda *_: nullcontext())
    monkeypatch.setattr(fid, '_inception', lambda *_: Remembered(
        lambda frames: ((frames.mean((2, 3)).double() @ mixture) / fid.STEP).round() * fid.STEP))


def summed(metric, clips):
    """The states of (source, generated, driving) clips, added."""
    total = {}
    for source, generated, driving in clips:
        metric.start_clip(source)
        for some in zip(generated.split(3), driving.split(3)):
            metric.update(*some)
        for name, value in metric.state().items():
            total[name] = total[name] + value if name in total else value
    return total


def make_clips(lengths):
    generator = torch.Generator().manual_seed(0)
    return [[torch.rand(*shape, 3, 4, 4, generator=generator) for shape in ((), (n,), (n,))] for n in lengths]


@pytest.mark.parametrize('metric', [FidSource, FidDriving])
def test_no_order_of_clips_frames_or_batches_changes_a_bit(colours, metric):
    clips = make_clips([4, 7, 2])
    expected = summed(metric('cpu'), clips)
    backwards = [[source, generated.flip(0), driving.flip(0)] for source, generated, driving in reversed(clips)]
    again = summed(metric('cpu'), backwards)
    assert expected['generated.count'] == expected['reference.count'] == 13
    assert all((expected[name] == again[name]).all() for name in expected)
    assert metric.compute(expected) == metric.compute(again) > 0


def test_the_reference_is_what_the_id_says(colours):
    (source, generated, driving), = clips = make_clips([5])
    repeated = source.expand_as(generated)
    ours, by_hand = summed(FidSource('cpu'), clips), summed(FidDriving('cpu'), [(None, generated, repeated)])
    assert all(torch.equal(ours[name], by_hand[name]) for name in ours)
    assert summed(FidDriving('cpu'), clips)['reference.sum'].ne(ours['reference.sum']).any()


def test_moments_are_those_of_numpy(colours):
    metric, clips = FidDriving('cpu'), make_clips([4, 7])
    state = summed(metric, clips)
    features = metric.features(torch.cat([driving for _, _, driving in clips])).numpy()
    mean, covariance = fid._moments(state, 'reference')
    np.testing.assert_allclose(mean, features.mean(0), atol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(features, rowvar=False), atol=1e-12)


def test_too_few_frames_have_no_distance(colours):
    assert math.isnan(FidDriving.compute({}))
    assert math.isnan(FidDriving.compute(summed(FidDriving('cpu'), make_clips([1]))))
    no_source = [(None, *clip[1:]) for clip in make_clips([4])]
    assert math.isnan(FidSource.compute(summed(FidSource('cpu'), no_source)))


# The true network

def test_inception_loads_its_weights_from_the_place_it_names(torch_home):  # noqa: F811
    pytest.importorskip('pytorch_fid')
    save_random_weights(inception(), checkpoint_path(fid.INCEPTION_URL))
    metrics, skipped = build(['fid.source_vs_generated', 'fid.driving_vs_generated'], 'cpu')
    assert not skipped and metrics[0].features is metrics[1].features
    assert list(metrics[0].weights) == ['pt_inception-2015-12-05-6726825d.pth']

    source, generated, driving = torch.rand(3, 64, 64), torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64) * 0.5
    by_source, by_driving = (summed(metric, [(source, generated, driving)]) for metric in metrics)
    assert torch.equal(by_source['generated.outer'], by_driving['generated.outer'])
    same = summed(metrics[1], [(None, generated, generated)])
    features = metrics[1].features(generated)
    assert features.shape == (2, 2048) and features.isfinite().all() and (features[0] != features[1]).any()

    def few(state):       # features: those of all 2048 take their time
        return {name: value[tuple(slice(64) for _ in value.shape)] for name, value in state.items()}
    distance = metrics[1].compute(few(by_driving))
    assert distance > 0 and abs(metrics[1].compute(few(same))) < 1e-6 * distance


def test_without_weights_fid_is_skipped_and_says_how_to_get_them(torch_home):  # noqa: F811
    metrics, skipped = build(['fid.source_vs_generated'], 'cpu')
    assert not metrics and fid.INCEPTION_URL in skipped['fid.source_vs_generated']
    assert str(checkpoint_path(fid.INCEPTION_URL)) in skipped['fid.source_vs_generated']
