"""The catalogue of metrics; image metrics by hand and against skimage; LPIPS with and without its weights."""

import math

import numpy as np
import pytest
import torch
import torchvision
from skimage.metrics import structural_similarity

from metrics import image
from metrics.base import Metric
from metrics.catalogue import CATALOGUE, build
from metrics.perceptual import LpipsAlex, LpipsAlexUnscaled
from support.errors import UserError
from support.weights import checkpoint_path
from tests.support.random_weights import save_random_weights

ALEX = 'alexnet-owt-7be5be79.pth'


def test_l1_and_psnr_by_hand():
    target = torch.zeros(2, 3, 4, 4)
    prediction = torch.stack([torch.full((3, 4, 4), 0.1), torch.zeros(3, 4, 4)])
    prediction[1, 0] = 0.5                                              # one channel of three is off by a half
    assert image.l1(target, target).eq(0).all() and image.psnr(target, target).eq(math.inf).all()
    torch.testing.assert_close(image.l1(prediction, target), torch.tensor([0.1, 0.5 / 3]))
    torch.testing.assert_close(image.psnr(prediction, target), torch.tensor([20.0, 10 * math.log10(3 / 0.25)]))


def test_ssim_is_that_of_skimage():
    generator = np.random.default_rng(0)
    target = generator.random((3, 24, 31, 3))
    target[1] *= 0.01                                                   # dark: here the constants decide
    prediction = (target + generator.normal(0, 0.1, target.shape)).clip(0, 1)
    expected = [structural_similarity(a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
                                      data_range=1, channel_axis=-1) for a, b in zip(prediction, target)]
    ours = image.ssim(*(torch.from_numpy(x).permute(0, 3, 1, 2) for x in (prediction, target)))
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-9)


def test_ssim_of_mcnet_is_that_of_skimage_with_its_old_defaults():
    generator = np.random.default_rng(1)
    target = generator.random((2, 20, 33, 3))
    prediction = (target + generator.normal(0, 0.2, target.shape)).clip(0, 1)
    expected = [structural_similarity(a, b, data_range=2, channel_axis=-1) for a, b in zip(prediction, target)]
    ours = CATALOGUE['ssim.uniform7_range2']('cpu')(*(torch.from_numpy(x).permute(0, 3, 1, 2)
                                                      for x in (prediction, target)))
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-9)
    assert (ours > image.ssim(*(torch.from_numpy(x).permute(0, 3, 1, 2) for x in (prediction, target)))).all()


# LPIPS

@pytest.mark.parametrize('name, files', [
    ('lpips.alex', [ALEX]), ('ard.mediapipe', ['face_landmarker.task']), ('aed.openface_sq', ['openface.pth']),
    ('csim.antelopev2', ['antelopev2/scrfd_10g_bnkps.onnx', 'antelopev2/glintr100.onnx'])])
def test_damaged_weights_are_skipped_and_named(torch_home, name, files):
    for package in {'ard': ['mediapipe'], 'csim': ['insightface']}.get(name.partition('.')[0], []):
        pytest.importorskip(package)
    for file in files:
        (torch_home / file).parent.mkdir(exist_ok=True)
        (torch_home / file).write_text('<html>not found</html>')
    metrics, skipped = build([name], 'cpu')
    assert not metrics and '\n' not in skipped[name] and str(torch_home / files[0].partition('/')[0]) in skipped[name]


def test_weights_that_hold_code_are_skipped_and_the_code_is_not_run(torch_home, tmp_path):
    class Code:
        def __reduce__(self):
            return (open, (str(tmp_path / 'was-run'), 'w'))
    with open(torch_home / ALEX, 'wb') as file:
        torch.save({'features.0.weight': Code()}, file)
    _, skipped = build(['lpips.alex'], 'cpu')
    assert 'damaged weights' in skipped['lpips.alex'] and not (tmp_path / 'was-run').exists()


def test_lpips_loads_its_weights_from_the_place_it_names(torch_home):
    assert checkpoint_path(f'https://download.pytorch.org/models/{ALEX}') == torch_home / ALEX
    save_random_weights(torchvision.models.alexnet(), torch_home / ALEX)
    scaled, unscaled = LpipsAlex('cpu'), LpipsAlexUnscaled('cpu')
    assert scaled.network is unscaled.network
    frames = torch.rand(2, 3, 64, 64)
    assert scaled(frames, frames).eq(0).all()
    others = torch.stack([frames[0], 1 - frames[1]])
    distances = scaled(frames, others)
    assert distances.shape == (2,) and distances[0] == 0 and distances[1] > 0
    torch.testing.assert_close(distances.float(), scaled.network(frames * 2 - 1, others * 2 - 1).flatten())
    torch.testing.assert_close(unscaled(frames, others).float(), scaled.network(frames, others).flatten())
    assert list(scaled.weights) == [ALEX] and len(scaled.weights[ALEX]) == 64


# The catalogue

def test_every_metric_says_what_it_is():
    for name, metric in CATALOGUE.items():
        assert issubclass(metric, Metric) and metric.id == name and '.' in name
        assert metric.column and metric.definition and metric.source and metric.direction in ('lower', 'higher')
    assert len({metric.column for metric in CATALOGUE.values()}) == len(CATALOGUE)
    assert len({metric.definition for metric in CATALOGUE.values()}) == len(CATALOGUE)
    assert {name for name, metric in CATALOGUE.items() if metric.needs_source} == {
        'fid.source_vs_generated', 'kid.source_vs_generated', 'aed.openface_sq_source', 'csim.antelopev2'}


@pytest.mark.parametrize('wrong, right', [('lpips.vg', 'lpips.vgg'), ('akd', 'akd.mean_abs_xy'),
                                          ('nonsense', 'known: l1.mean_abs')])
def test_an_unknown_metric_is_refused_with_the_nearest_one(wrong, right):
    with pytest.raises(UserError, match=f'no metric {wrong}.*{right}'):
        build(['l1.mean_abs', wrong], 'cpu')


def test_without_weights_the_rest_still_works_and_the_message_says_how_to_get_them(torch_home):
    metrics, skipped = build(CATALOGUE, 'cpu')
    assert [metric.id for metric in metrics] == ['l1.mean_abs', 'psnr.rgb', 'ssim.gauss11', 'ssim.uniform7_range2',
                                                 'jitter.pixels']
    assert set(skipped) == set(CATALOGUE) - {metric.id for metric in metrics}
    for why in skipped.values():
        assert 'https://' in why and str(torch_home) in why and '\n' not in why
    assert 'non-commercial' in skipped['csim.antelopev2']
    frames = torch.rand(3, 3, 16, 16)
    for metric in metrics:
        metric.start_clip(frames[0])
        scores = metric(frames, frames)
        assert scores.shape == (3,) and scores.dtype == torch.float64 and not metric.weights
