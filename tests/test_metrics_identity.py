"""AED and CSIM: OpenFace against its frozen embedding through the true loader; insightface through made-up networks."""

import numpy as np
import pytest
import torch
from skimage.transform import resize

from benchmarks.parity.weights import recipe
from metrics import identity
from metrics.catalogue import build
from metrics.identity import Aed, AedEuclidean, AedSource, Csim, CsimDriving
from metrics.openface import OpenFace
from support.weights import checkpoint_path
from tests.support.random_weights import save_antelope
from tests.support.tiny import SHARED

FIXTURE = SHARED / 'facts' / 'reference' / 'openface_fixture_A.npz'


# OpenFace

@pytest.fixture
def openface(torch_home):  # noqa: F811
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
def antelope(torch_home, request):  # noqa: F811
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
