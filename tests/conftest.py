"""Settings of all tests, made before anything is imported, and what several of them need."""

import os
import shutil

import pytest

# face-alignment would compile its small helpers for a quarter of a minute, for a few faces.
os.environ['NUMBA_DISABLE_JIT'] = '1'
# Networks this small would spend their time on waking threads.
os.environ.setdefault('OMP_NUM_THREADS', '1')


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


@pytest.fixture
def model():
    """A toy that is quick; modules that need another one have a fixture of this name."""
    import torch

    from tests.support.toys import ToyHead
    torch.manual_seed(0)
    return ToyHead()


@pytest.fixture
def no_weights(tmp_path_factory, monkeypatch):
    """No metric or detector finds weights: neither the machine's nor those in the repository."""
    from datasets import face_tracker
    folder = tmp_path_factory.mktemp('torch')
    monkeypatch.setenv('TORCH_HOME', str(folder))
    monkeypatch.setattr(face_tracker, 'SHIPPED_MODEL', folder / 'face_landmarker.task')


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


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    """An empty folder for downloaded weights; the shipped landmarker is hidden."""
    from datasets import face_tracker
    monkeypatch.setattr(face_tracker, 'SHIPPED_MODEL', tmp_path / 'hub' / 'checkpoints' / 'face_landmarker.task')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    checkpoints = tmp_path / 'hub' / 'checkpoints'
    checkpoints.mkdir(parents=True)
    return checkpoints
