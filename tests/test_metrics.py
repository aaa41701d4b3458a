"""Metrics against values worked out by hand and against skimage; LPIPS with and without its weights; the report."""

import csv
import json
import math

import numpy as np
import pytest
import torch
import torchvision
from skimage.metrics import structural_similarity

from metrics import image
from metrics.perceptual import Lpips, Unavailable
from metrics.report import ClipScores, FrameMetrics, format_table, summarize, write_report
from weights import checkpoint_path

ALEX = 'alexnet-owt-7be5be79.pth'


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    """An empty place for downloaded weights."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    checkpoints = tmp_path / 'hub' / 'checkpoints'
    checkpoints.mkdir(parents=True)
    return checkpoints


def save_random_weights(network, path):
    """Random weights of the right names and shapes in a small file: all tensors are views of one short buffer."""
    buffer = torch.randn(100_000) * 0.02
    torch.save({name: buffer.as_strided(value.shape, [1] * value.dim()) if value.is_floating_point() else value
                for name, value in network.state_dict().items()}, path)


def test_l1_and_psnr_by_hand():
    target = torch.zeros(2, 3, 4, 4)
    prediction = torch.stack([torch.full((3, 4, 4), 0.1), torch.zeros(3, 4, 4)])
    prediction[1, 0] = 0.5                                              # one channel of three is off by a half
    torch.testing.assert_close(image.l1(prediction, target), torch.tensor([0.1, 0.5 / 3]))
    torch.testing.assert_close(image.psnr(prediction, target), torch.tensor([20.0, 10 * math.log10(3 / 0.25)]))


def test_equal_frames():
    frames = torch.rand(2, 3, 16, 16)
    assert image.l1(frames, frames).eq(0).all()
    assert image.psnr(frames, frames).eq(math.inf).all()
    torch.testing.assert_close(image.ssim(frames, frames), torch.ones(2, dtype=torch.float64))


def test_ssim_is_that_of_skimage():
    generator = np.random.default_rng(0)
    target = generator.random((3, 24, 31, 3))
    target[1] *= 0.01                                                   # dark: here the constants decide
    prediction = (target + generator.normal(0, 0.1, target.shape)).clip(0, 1)
    expected = [structural_similarity(a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
                                      data_range=1, channel_axis=-1) for a, b in zip(prediction, target)]
    ours = image.ssim(*(torch.from_numpy(x).permute(0, 3, 1, 2) for x in (prediction, target)))
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-9)


def test_lpips_without_weights_is_skipped_and_says_how_to_get_them(torch_home):
    metrics = FrameMetrics('cpu')
    frames = np.zeros((1, 16, 16, 3), np.uint8)
    assert set(metrics(frames, frames)) == {'l1', 'psnr', 'ssim'} and 'lpips' not in metrics.definitions
    why = metrics.skipped['lpips']
    assert 'https://download.pytorch.org/models/vgg16-397923af.pth' in why
    assert str(torch_home / 'vgg16-397923af.pth') in why and '\n' not in why


def test_lpips_with_damaged_weights_is_skipped(torch_home):
    (torch_home / ALEX).write_text('<html>not found</html>')
    with pytest.raises(Unavailable, match='damaged weights .*alexnet'):
        Lpips('cpu', backbone='alex')


def test_lpips_loads_its_weights_from_the_place_it_names(torch_home):
    assert checkpoint_path(f'https://download.pytorch.org/models/{ALEX}') == torch_home / ALEX
    save_random_weights(torchvision.models.alexnet(), torch_home / ALEX)
    lpips = Lpips('cpu', backbone='alex')
    frames = torch.rand(2, 3, 64, 64) * 2 - 1
    assert lpips(frames, frames).eq(0).all()
    distances = lpips(frames, torch.stack([frames[0], -frames[1]]))
    assert distances.shape == (2,) and distances[0] == 0 and distances[1] > 0


def scores(psnr):
    psnr = torch.tensor(psnr, dtype=torch.float64)
    return {'l1': psnr / 100, 'psnr': psnr}


def two_clips():
    """A clip of three frames, whose first is the source, in two batches; and one of one frame."""
    long, short = ClipScores('long'), ClipScores('short')
    long.add(scores([40., 20.]), scores([math.inf, 14.]))
    long.add(scores([24.]), scores([16.]))
    short.add(scores([31.]), scores([32.]))
    return [long, short]


def test_means_over_clips_and_over_frames_differ_as_defined():
    summary = summarize(two_clips())
    assert summary['clips'] == 2 and summary['frames'] == 4
    assert summary['model']['psnr'] == pytest.approx((28 + 31) / 2)
    assert summary['frame_weighted_model']['psnr'] == pytest.approx((84 + 31) / 4)
    assert summary['copy']['psnr'] == pytest.approx((15 + 32) / 2)        # the infinite one is left out
    assert summary['psnr_gain'] == pytest.approx(((6 + 8) / 2 - 1) / 2)   # only frames where both are finite


def test_a_clip_that_never_moves_has_no_finite_psnr_to_average():
    still = ClipScores('still')
    still.add(scores([30., 30.]), scores([math.inf, math.inf]))
    assert summarize([still])['copy']['psnr'] is None
    assert summarize([still])['psnr_gain'] is None
    assert summarize([still, two_clips()[1]])['copy']['psnr'] == 32
    assert 'inf' in format_table(summarize([still]), {})


def test_report_files(tmp_path):
    rows = two_clips()
    summary = write_report(tmp_path, rows, {'psnr': 'in dB'}, {'lpips': 'get it there'})
    assert sorted(path.name for path in tmp_path.iterdir()) == ['metrics.csv', 'metrics.json']

    report = json.loads((tmp_path / 'metrics.json').read_text())
    assert report['mean']['model'] == summary['model'] and report['num_frames'] == 4
    assert report['clips'][0]['equal_frames'] == {'model': 0, 'copy': 1}
    assert report['skipped'] == {'lpips': 'get it there'} and report['definitions']['psnr'] == 'in dB'
    assert torch.__version__.startswith(report['versions']['torch'])

    lines = list(csv.DictReader((tmp_path / 'metrics.csv').open()))
    assert [line['clip'] for line in lines] == ['long', 'short', 'mean']
    assert float(lines[0]['copy_psnr']) == 15 and float(lines[2]['psnr']) == pytest.approx(29.5)


def test_table_names_the_copy_and_what_was_skipped():
    table = format_table(summarize(two_clips()), {'lpips': 'get it there'})
    assert 'copy of the source' in table and '29.50' in table and 'LPIPS skipped: get it there' in table
    assert '3.00 dB better' in table
