"""The catalogue of metrics; image metrics by hand and against skimage; LPIPS, FID, KID, AED and CSIM."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
import torchvision
from skimage.metrics import structural_similarity
from skimage.transform import resize

from benchmarks.parity.weights import recipe
from metrics import fid, identity, image
from metrics.base import Metric
from metrics.catalogue import CATALOGUE, build
from metrics.fid import FidDriving, KidDriving, KidSource, frechet_distance, kernel_distance
from metrics.identity import Aed, AedEuclidean, AedSource, Csim, CsimDriving
from metrics.openface import OpenFace
from metrics.perceptual import LpipsAlex, LpipsAlexUnscaled
from support.errors import UserError
from support.weights import checkpoint_path
from tests.support.random_weights import inception, save_antelope, save_random_weights
from tests.support.tiny import SHARED

ALEX = 'alexnet-owt-7be5be79.pth'


def test_l1_and_psnr_by_hand():
    target = torch.zeros(2, 3, 4, 4)
    prediction = torch.stack([torch.full((3, 4, 4), 0.1), torch.zeros(3, 4, 4)])
    prediction[1, 0] = 0.5                                              # one channel of three is off by a half
    assert image.l1(target, target).eq(0).all() and image.psnr(target, target).eq(math.inf).all()
    torch.testing.assert_close(image.l1(prediction, target), torch.tensor([0.1, 0.5 / 3]))
    torch.testing.assert_close(image.psnr(prediction, target), torch.tensor([20.0, 10 * math.log10(3 / 0.25)]))


@pytest.mark.parametrize('name, options', [
    ('ssim.gauss11', dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1)),
    ('ssim.uniform7_range2', dict(data_range=2))])                      # skimage's old defaults, as MCNet's
def test_ssim_is_that_of_skimage(name, options):
    generator = np.random.default_rng(0)
    target = generator.random((3, 24, 31, 3))
    target[1] *= 0.01                                                   # dark: here the constants decide
    prediction = (target + generator.normal(0, 0.1, target.shape)).clip(0, 1)
    expected = [structural_similarity(a, b, channel_axis=-1, **options) for a, b in zip(prediction, target)]
    ours = CATALOGUE[name]('cpu')(*(torch.from_numpy(x).permute(0, 3, 1, 2) for x in (prediction, target)))
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-9)


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
def test_frechet_distance_is_that_of_scipy(counts):
    (mean_a, a), (mean_b, b) = moments(counts[0], 24, seed=0), moments(counts[1], 24, seed=1, shift=0.3)
    assert abs(frechet_distance(mean_a, a, mean_a, a)) < 1e-9
    ours = frechet_distance(mean_a, a, mean_b, b)
    root = scipy.linalg.sqrtm(a.numpy() @ b.numpy()).real
    assert ours == pytest.approx(float((mean_a - mean_b).square().sum() + a.trace() + b.trace() - 2 * root.trace()),
                                 rel=1e-4)


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

def test_inception_loads_its_weights_from_the_place_it_names(torch_home):
    pytest.importorskip('pytorch_fid')
    save_random_weights(inception(), checkpoint_path(fid.INCEPTION_URL))
    metrics, skipped = build(['fid.source_vs_generated', 'kid.driving_vs_generated'], 'cpu')
    assert not skipped and metrics[0].features is metrics[1].features
    assert list(metrics[0].weights) == ['pt_inception-2015-12-05-6726825d.pth']
    features = metrics[1].features(torch.rand(2, 3, 64, 64))
    assert features.shape == (2, 2048) and features.isfinite().all() and (features[0] != features[1]).any()


FIXTURE = SHARED / 'facts' / 'reference' / 'openface_fixture_A.npz'


# OpenFace

@pytest.fixture
def openface(torch_home):
    """The fixture's weights, in the folder of downloaded weights."""
    state = {name: recipe(f'openface/{name}', value.shape) if value.is_floating_point() else value
             for name, value in OpenFace().state_dict().items()}
    assert len(state) == 261
    torch.save(state, checkpoint_path(identity.OPENFACE_URL))


@pytest.mark.skipif(not FIXTURE.is_file(), reason='no fixture')
def test_openface_is_the_published_network(openface):
    with np.load(FIXTURE) as fixture:
        image, embedding = (torch.from_numpy(fixture[name]) for name in ('image', 'embedding'))
    aed = Aed('cpu')
    ours = aed.features(image.flip(1))           # which turns the channels round, and leaves 96 x 96 as it is
    torch.testing.assert_close(ours, embedding, atol=1e-5, rtol=0)
    assert list(aed.weights) == ['openface.pth']


@pytest.mark.parametrize('size', [(256, 256), (128, 300), (64, 96)])
def test_frames_are_resized_as_the_papers_do(openface, monkeypatch, size):
    given = []
    monkeypatch.setattr(OpenFace, 'forward', lambda self, image: given.append(image) or image.flatten(1)[:, :128])
    frames = torch.rand(2, 3, *size)
    Aed('cpu').features(frames)
    for ours, frame in zip(given[0], frames):
        expected = resize(frame.permute(1, 2, 0).numpy()[..., ::-1], (96, 96), anti_aliasing=size[0] > 96)
        np.testing.assert_allclose(ours.permute(1, 2, 0), expected, atol=1e-5)


def test_aed_is_the_squared_distance_on_the_sphere(openface):
    generated, driving, source = torch.rand(3, 3, 96, 96), torch.rand(3, 3, 96, 96), torch.rand(3, 96, 96)
    squared, plain, to_source = Aed('cpu'), AedEuclidean('cpu'), AedSource('cpu')
    a, b, c = (squared.features(frames) for frames in (generated, driving, source[None]))
    torch.testing.assert_close(a.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(squared(generated, driving), (2 - 2 * (a * b).sum(1)).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(plain(generated, driving), squared(generated, driving).sqrt())
    assert squared(driving, driving).eq(0).all()

    assert to_source(generated, driving).isnan().all()
    to_source.start_clip(source)
    torch.testing.assert_close(to_source(generated, driving), (a - c).double().square().sum(1), atol=1e-6, rtol=0)


@pytest.mark.parametrize('damage', [lambda data: data[:len(data) // 2], lambda data: b'\x80\x02}q' + data[:64],
                                    lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]])
def test_openface_damaged_is_skipped_and_named(openface, damage):
    path = checkpoint_path(identity.OPENFACE_URL)
    path.write_bytes(damage(path.read_bytes()))
    _, skipped = build(['aed.openface_sq'], 'cpu')
    assert 'damaged weights: ' in skipped['aed.openface_sq'] and str(path) in skipped['aed.openface_sq']


# insightface

@pytest.fixture(params=['antelopev2', 'antelopev2/antelopev2'])
def antelope(torch_home, request):
    """Made-up networks in the folder of downloaded weights, in both of the archive's layouts."""
    pytest.importorskip('insightface')
    pytest.importorskip('onnx')
    folder = torch_home / request.param
    folder.mkdir(parents=True)
    save_antelope(folder)
    return folder


def test_csim_is_the_cosine_of_the_first_faces(antelope):
    from insightface.app import FaceAnalysis
    source, (a, b, dark) = torch.randint(0, 256, (3, 256, 256)) / 255, torch.randint(0, 256, (3, 3, 256, 256)) / 255
    dark = torch.zeros_like(dark)
    generated, driving = torch.stack([source, a, dark]), torch.stack([b, b, b])
    to_source, to_driving = Csim('cpu'), CsimDriving('cpu')
    assert to_source.features is to_driving.features
    assert sorted(to_source.weights) == ['glintr100.onnx', 'scrfd_10g_bnkps.onnx']

    reference = FaceAnalysis(name=str(antelope))
    reference.prepare(ctx_id=-1, det_size=(256, 256))

    def embedding(frame):
        image = (frame * 255).round().byte().permute(1, 2, 0).numpy()[..., ::-1]
        faces = reference.get(np.ascontiguousarray(image))
        assert len(faces) == 2
        return faces[0]['embedding'] / np.linalg.norm(faces[0]['embedding'])

    to_source.start_clip(source)
    scores = to_source(generated, driving)
    assert scores[:2].tolist() == pytest.approx([1, embedding(source) @ embedding(a)], abs=1e-5) and scores[1] < 0.999
    assert scores[2].isnan() and to_source.misses == {'generated': 1, 'source': 0}
    to_driving.start_clip(source)
    assert to_driving(generated, driving)[1] == pytest.approx(embedding(a) @ embedding(b), abs=1e-5)

    to_source.start_clip(dark)
    assert to_source(generated, driving).isnan().all() and to_source.misses == {'generated': 1, 'source': 1}
    to_source.start_clip()
    assert to_source(generated, driving).isnan().all()
