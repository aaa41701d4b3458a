"""Settings of all tests, made before anything is imported, and what several of them need."""

import os
import shutil

import pytest

# face-alignment would compile its small helpers for a quarter of a minute, for a few faces.
os.environ['NUMBA_DISABLE_JIT'] = '1'
# Networks this small would spend their time on waking threads.
os.environ.setdefault('OMP_NUM_THREADS', '1')


# Files that take longest, which begin first: with two files at a time, none is left to one process at the end.
LONGEST = ('methods', 'prepare', 'trust', 'parity', 'cluster', 'train', 'speed_equivalence', 'web', 'evaluate',
           'memory', 'doctor', 'fine_tune', 'export', 'resize_checkpoint', 'cost', 'host_waits')


def pytest_configure(config):
    config.option.loadscopereorder = False        # pytest-xdist's own order is that of the number of tests


def pytest_collection_modifyitems(items):
    places = {f'test_{name}': place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(scope='module')
def flags():
    """More flags of the browser."""
    return []


@pytest.fixture(scope='module')
def browser(flags):
    """Headless Chromium: the system's, or Playwright's. It ends with its module, as one process cannot have two."""
    playwright = pytest.importorskip('playwright.sync_api')
    path = shutil.which('chromium') or shutil.which('google-chrome')
    with playwright.sync_playwright() as started:
        try:
            browser = started.chromium.launch(executable_path=path, args=['--no-sandbox', *flags])
        except playwright.Error as error:
            pytest.skip(f'no Chromium: {str(error).splitlines()[0]}')
        yield browser
        browser.close()


@pytest.fixture(autouse=True)
def seeded():
    """PyTorch's random numbers are the same in every test."""
    import torch
    torch.manual_seed(0)


@pytest.fixture
def model():
    """A toy that is quick; modules that need another one have a fixture of this name."""
    from tests.support.toys import ToyHead
    return ToyHead()


@pytest.fixture
def landmarker(tmp_path_factory, monkeypatch):
    """MediaPipe with the shipped model."""
    pytest.importorskip('mediapipe')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path_factory.mktemp('torch')))


@pytest.fixture(scope='session')
def make(tmp_path_factory):
    """Path of a video of one of tests.support.video_files.KINDS; each is encoded once."""
    import av

    from tests.support.video_files import KINDS, encode
    folder, made = tmp_path_factory.mktemp('kinds'), {}

    def path_of(kind):
        options = dict(KINDS[kind])
        if options.get('codec', 'libx264') not in av.codecs_available:
            pytest.skip(f'no encoder {options["codec"]}')
        if kind not in made:
            made[kind] = encode(folder / kind, **options)
        return made[kind]
    return path_of


@pytest.fixture(scope='module')
def places(tmp_path_factory):
    """(a folder, {name: path} of files in it that commands of every mode can name)."""
    from tests.support.inputs import write_inputs
    folder = tmp_path_factory.mktemp('places')
    return folder, write_inputs(folder / 'inputs')


@pytest.fixture
def random_fan(torch_home):
    """face-alignment with random weights, in the folder of downloaded weights."""
    pytest.importorskip('face_alignment')
    from face_alignment.detection.sfd.net_s3fd import s3fd
    from face_alignment.models import FAN

    from metrics.face import FAN_URLS
    from support.weights import checkpoint_path
    from tests.support.random_weights import save_random_weights
    for network, url in zip((s3fd(), FAN(4)), FAN_URLS):
        save_random_weights(network, checkpoint_path(url))


@pytest.fixture
def torch_home(tmp_path_factory, monkeypatch):
    """An empty folder for downloaded weights; the shipped landmarker is hidden."""
    from datasets import face_tracker
    home = tmp_path_factory.mktemp('torch')
    checkpoints = home / 'hub' / 'checkpoints'
    checkpoints.mkdir(parents=True)
    monkeypatch.setattr(face_tracker, 'SHIPPED_MODEL', checkpoints / 'face_landmarker.task')
    monkeypatch.setenv('TORCH_HOME', str(home))
    return checkpoints


@pytest.fixture
def no_weights(torch_home):
    """No metric or detector finds weights: neither the machine's nor those in the repository."""
