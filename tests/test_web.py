"""The page: its worker and its guard by themselves, and all four tabs in a browser where there is one."""

import functools
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

import run
from datasets.video import open_clip
from datasets.video_writer import VideoWriter
from logger import write_checkpoint
from modes.web import newest_run
from modules.build import build_model
from support.errors import UserError
from tests.test_command_line import refused
from tests.tiny import ROOT, tiny
from tests.web_jobs import ask_for, count, die, fail, hang, loads
from web.files import Files
from web.guard import ROUTES
from web.jobs import EXAMPLE_FRAMES
from web.limits import MOST_FRAMES, check_clip, check_picture
from web.worker import MOST_WAITING, Cancelled, Worker

SIZE, FRAMES, LONG = 64, 12, 300
PATIENCE = 120_000         # milliseconds; the machine may be busy


# ---------------------------------------------------------------------------- the worker

@pytest.fixture(scope='module')
def worker():
    worker = Worker(loads)
    yield worker
    worker.close()


def test_jobs_find_their_model_and_return_or_are_refused(worker, capfd):
    assert worker.ask('a', functools.partial(ask_for, checkpoint='x')).result() == 'X'
    with pytest.raises(UserError, match='^not so$'):
        worker.ask('a', functools.partial(fail, error=UserError('not so'))).result()
    with pytest.raises(UserError, match='went wrong on our side'):      # a bug: the visitor sees no stack trace
        worker.ask('a', functools.partial(fail, error=ZeroDivisionError())).result()


def test_progress_is_told_and_a_queue_is_one(worker):
    first, second = (worker.ask(session, functools.partial(count, total=30)) for session in 'ab')
    seen = list(second.progress(0.01))
    assert any(progress.before for progress in seen) and seen[-1].total == 30 and seen[-1].rate > 0
    assert first.finished.is_set() and first.result() == second.result() == 30


@pytest.mark.parametrize('job', [functools.partial(count, total=10_000), hang])
def test_cancelling_frees_the_worker_whatever_it_does(worker, job):
    task, after = worker.ask('a', job), worker.ask('b', functools.partial(ask_for, checkpoint='y'))
    task.started.wait()
    worker.cancel_all('a')
    with pytest.raises(Cancelled):
        task.result()
    assert after.result() == 'Y'


def test_what_waits_is_cancelled_too_and_the_line_is_not_endless(worker):
    running = worker.ask('a', hang)
    running.started.wait()
    waiting = [worker.ask('b', hang) for _ in range(MOST_WAITING)]
    with pytest.raises(UserError, match='visitors are waiting'):
        worker.ask('c', hang)
    for session in 'ab':
        worker.cancel_all(session)
    for task in (running, *waiting):
        with pytest.raises(Cancelled):
            task.result()


def test_a_worker_that_dies_is_replaced(worker):
    with pytest.raises(UserError, match='the worker has died'):
        worker.ask('a', die).result()
    assert worker.ask('a', functools.partial(ask_for, checkpoint='z')).result() == 'Z'


# ---------------------------------------------------------------------------- files and routes

def test_a_visitors_files_go_and_others_stay():
    with Files() as files:
        mine, shared, outside = files.root / 'a' / 'x.png', files.root / 'b' / 'y.png', files.root / 'c.png'
        for path in (mine, shared, outside):
            path.parent.mkdir(exist_ok=True)
            path.touch()
        made = files.new('me')
        assert files.take('me', str(mine)) == str(mine) and files.take('me', None) is None
        files.take('me', shared), files.take('you', shared)
        files.forget('me')
        assert not mine.exists() and not made.exists() and shared.exists() and outside.exists()
        for path in ('/etc/passwd', str(files.root / '..' / '..' / 'etc' / 'passwd'), str(files.root), str(mine)):
            with pytest.raises(UserError, match='not there any more'):
                files.take('me', path)
        assert files.shown(f'{shared}: is bad', shared) == 'y.png: is bad'
    assert not files.root.exists()


@pytest.mark.parametrize('path, passes', [
    ('/', True), ('/config', True), ('/assets/index.js', True), ('/gradio_api/upload', True),
    ('/gradio_api/file=/tmp/x/a.png', True), ('/gradio_api/queue/join', True), ('/gradio_api/stream/0a1b', True),
    ('/gradio_api/file=http://10.0.0.1/', False), ('/gradio_api/file=file:///etc/passwd', False),
    ('/gradio_api/proxy=http://10.0.0.1/', False), ('/gradio_api/vibe-edit', False), ('/monitoring', False),
    ('/gradio_api/run-history/connect', False), ('/gradio_api/process_recording', False), ('/docs', False)])
def test_only_routes_that_the_page_needs_are_there(path, passes):
    assert bool(ROUTES.fullmatch(path)) == passes


def test_what_is_too_much_is_refused(tmp_path, monkeypatch):
    text, picture, clip = tmp_path / 'notes.mp4', tmp_path / 'wide.png', tmp_path / 'clip.mp4'
    text.write_text('not a video')
    Image.new('1', (6000, 5000)).save(picture)
    write_clip(clip, 5)
    with pytest.raises(UserError, match='notes.mp4: is no video that can be read'):
        check_clip(text)
    with pytest.raises(UserError, match='is no video; expected'):
        check_clip(picture)
    with pytest.raises(UserError, match='6000x5000 pixels'):
        check_picture(picture)
    with pytest.raises(UserError, match='is no picture'):
        check_picture(text)
    assert len(check_clip(clip)) == 5
    monkeypatch.setattr('web.limits.MOST_FRAMES', 4)
    with pytest.raises(UserError, match='has 5 frames; this page takes 4'):
        check_clip(clip)
    assert MOST_FRAMES >= 1500


# ---------------------------------------------------------------------------- the command line

def test_mistakes_are_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert 'python run.py --mode demo' in refused(capsys, '--mode', 'web')
    assert '--auth USER:PASSWORD too' in refused(capsys, '--mode', 'web', '--host', '0.0.0.0')
    assert 'expected USER:PASSWORD' in refused(capsys, '--mode', 'web', '--auth', 'me')
    assert '--port 0' in refused(capsys, '--mode', 'web', '--port', '0')
    assert 'invalid choice' in refused(capsys, '--mode', 'web', '--share', 'always')
    monkeypatch.setitem(sys.modules, 'gradio', None)
    assert 'pip install -r requirements-extra.txt' in refused(capsys, '--mode', 'web', '--checkpoint', 'x.pt')


def test_the_newest_run_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for age, name in ((10, 'new'), (1000, 'old')):
        path = Path('log', name, 'checkpoints', '00000001.pt')
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    assert newest_run() == str(Path('log', 'new'))


# ---------------------------------------------------------------------------- in a browser

def write_clip(path, frames, size=SIZE):
    """A bright square that moves over a gradient."""
    base = np.stack(np.meshgrid(*[np.arange(size)] * 2), -1) * 3 % 256
    with VideoWriter(path, 25) as video:
        for i in range(frames):
            frame = np.concatenate([base, base[..., :1]], -1).astype(np.uint8)
            frame[size // 3:size // 2, i * 3 % size:][:, :size // 4] = 255
            video.write(frame)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Two untrained models of 64 px, a portrait, clips, a text, and what the fake camera films."""
    folder = tmp_path_factory.mktemp('web')
    for seed, name in enumerate(('ours', 'rival')):
        torch.manual_seed(seed)
        config = tiny(f'model_params.image_size={SIZE}')
        state = build_model(config).state_dict()
        write_checkpoint(folder / f'{name}.pt', {'model': state, 'ema': state, 'config': config.as_dict(), 'step': 1})
    write_clip(folder / 'driver.mp4', FRAMES)
    write_clip(folder / 'long.mp4', LONG)
    Image.fromarray(open_clip(folder / 'driver.mp4').read([0])[0]).save(folder / 'face.png')
    (folder / 'notes.mp4').write_text('not a video')
    with open(folder / 'camera.mjpeg', 'wb') as film:
        for frame in open_clip(folder / 'driver.mp4').frames():
            jpeg = io.BytesIO()
            Image.fromarray(frame).resize((320, 240)).save(jpeg, format='JPEG')
            film.write(jpeg.getvalue())
    return folder


@pytest.fixture(scope='module')
def server(files):
    """The address of a page with both models."""
    pytest.importorskip('gradio')
    pytest.importorskip('playwright.sync_api')
    (files / 'tmp').mkdir()
    port = 7800 + os.getpid() % 100
    with open(files / 'log.txt', 'w') as log:
        process = subprocess.Popen(
            [sys.executable, 'run.py', '--mode', 'web', '--device', 'cpu', '--port', str(port), '--checkpoint',
             str(files / 'ours.pt'), str(files / 'rival.pt')], cwd=ROOT, stdout=log, stderr=log,
            env=os.environ | {'TMPDIR': str(files / 'tmp')})
    while 'The page is at' not in (files / 'log.txt').read_text():
        assert process.poll() is None, (files / 'log.txt').read_text()
        time.sleep(0.2)
    yield f'http://127.0.0.1:{port}'
    process.send_signal(signal.SIGTERM)
    process.wait()
    assert not list((files / 'tmp').glob('talking-heads-*'))      # uploads and results went with it
    assert 'a job has failed' not in (files / 'log.txt').read_text()


@pytest.fixture(scope='module')
def browser(files):
    """Headless Chromium with a fake camera: the system's, or Playwright's."""
    playwright = pytest.importorskip('playwright.sync_api')
    path = shutil.which('chromium') or shutil.which('google-chrome')
    with playwright.sync_playwright() as started:
        try:
            browser = started.chromium.launch(executable_path=path, args=[
                '--no-sandbox', '--use-fake-ui-for-media-stream', '--use-fake-device-for-media-stream',
                f'--use-file-for-fake-video-capture={files / "camera.mjpeg"}'])
        except playwright.Error as error:
            pytest.skip(f'no Chromium: {str(error).splitlines()[0]}')
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, server):
    """A function that opens the page anew; at the end nothing was asked of any other address."""
    pages = []

    def visited(tab='Animate'):
        context = browser.new_context(viewport={'width': 1400, 'height': 1000}, permissions=['camera'])
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.asked, page.troubles = [], []
        page.on('request', lambda request: page.asked.append(request.url))
        page.on('pageerror', lambda error: page.troubles.append(str(error)))
        page.goto(server)
        page.get_by_role('tab', name=tab).click()
        pages.append(page)
        return page
    yield visited
    for page in pages:
        assert {urlsplit(url).netloc for url in page.asked if url.startswith('http')} == {urlsplit(server).netloc}
        assert not page.troubles
        page.context.close()


def bring(page, selector, path):
    page.set_input_files(f'{selector} input[type=file]', path)
    page.wait_for_function("selector => document.querySelector(selector + ' :is(img, video)')?.src", arg=selector)


def bring_both(page, files, driver='driver.mp4'):
    bring(page, '#source', files / 'face.png')
    bring(page, '#driver', files / driver)


def status(page, text):
    """Waits for a status with this text."""
    return page.locator('#status .status', has_text=re.compile(text)).wait_for()


def result_of(page, folder):
    """The clip that the page shows as its result."""
    page.wait_for_function("document.querySelector('#result video')?.src")
    reply = page.request.get(page.locator('#result video').get_attribute('src'))
    (folder / 'shown.mp4').write_bytes(reply.body())
    return open_clip(folder / 'shown.mp4')


def test_a_portrait_follows_a_clip(visit, files, tmp_path):
    page = visit()
    bring_both(page, files)
    page.evaluate("""() => { window.seen = []; new MutationObserver(() => seen.push(
        document.querySelector('#status').innerText)).observe(document.body, {subtree: true, childList: true}); }""")
    page.click('#animate')
    status(page, f'Done: {FRAMES} frames')
    assert len(result_of(page, tmp_path)) == FRAMES
    assert any('At work' in text or f'of {FRAMES} frames' in text for text in page.evaluate('seen'))
    words = page.inner_text('#command .cm-content').split()
    assert words[:4] == ['python', 'run.py', '--mode', 'animate'] and str(files / 'ours.pt') in words
    options, _ = run.parse(words[2:])
    assert (options.source_image, options.driving_video) == ('face.png', 'driver.mp4')
    with page.expect_download() as download:
        page.locator('#saved a[download]').first.click()
    assert len(open_clip(shutil.copy(download.value.path(), tmp_path / 'saved.mp4'))) == FRAMES


def test_an_example_follows_its_driver(visit, tmp_path):
    """Examples change components, for which Gradio makes new ones: they must hand files on as those before did."""
    page = visit()
    page.locator('[role=tabpanel]:visible tbody tr').nth(1).click()
    page.wait_for_function("document.querySelector('#source img')?.src && document.querySelector('#driver video')?.src")
    page.click('#animate')
    status(page, f'Done: {EXAMPLE_FRAMES} frames')
    assert len(result_of(page, tmp_path)) == EXAMPLE_FRAMES
    block, buttons = (page.locator(f'#driver{part}').bounding_box() for part in ('', ' .source-selection'))
    assert buttons['y'] + buttons['height'] <= block['y'] + block['height']       # not cut off


def test_a_cancelled_animation_makes_room(visit, files, tmp_path):
    page = visit()
    bring_both(page, files, 'long.mp4')
    page.click('#animate')
    status(page, f'of {LONG} frames, .* frames/s, .* s left')
    page.click('#cancel')
    status(page, 'Cancelled')
    page.reload()
    bring_both(page, files)
    page.click('#animate')
    status(page, 'Done')
    assert len(result_of(page, tmp_path)) == FRAMES


def test_a_text_as_a_driver_is_one_line(visit, files):
    page = visit()
    bring(page, '#source', files / 'face.png')
    page.click('#animate')
    status(page, '^bring a driver first$')
    bring(page, '#driver', files / 'notes.mp4')
    page.click('#animate')
    status(page, r'^notes\.mp4: is no video that can be read \(.*\)$')
    assert 'trouble' in page.get_attribute('#status .status', 'class')


def test_two_visitors_at_once(visit, files, tmp_path):
    pages = [visit(), visit()]
    for page in pages:
        bring_both(page, files)
    for page in pages:
        page.click('#animate')
    for page in pages:
        status(page, 'Done')
        assert len(result_of(page, tmp_path)) == FRAMES


def test_figures_and_all_models(visit, files):
    page = visit('Inspect')
    bring(page, '#inspect-source', files / 'face.png')
    bring(page, '#inspect-driver', files / 'driver.mp4')
    page.locator('#frame img').click(position={'x': 40, 'y': 40})
    page.locator('#inspect-status', has_text='Place').wait_for()
    page.click('#draw')
    page.locator('#inspect-status', has_text='pictures').wait_for()
    assert page.locator('#figures img').count() > 3
    page.get_by_role('tab', name='Compare').click()
    bring(page, '#compare-source', files / 'face.png')
    bring(page, '#compare-driver', files / 'driver.mp4')
    page.click('#compare')
    page.locator('#compare-status', has_text=f'Done: {FRAMES} frames each').wait_for()
    assert page.locator('.compared video').count() == 2


def test_the_camera_drives_a_portrait(visit, files):
    page = visit('Live')
    bring(page, '#live-source', files / 'face.png')
    page.locator('#camera button', has_text=re.compile('access|Click')).first.click()
    page.locator('#camera button', has_text='Record').first.click()
    page.locator('#live-status', has_text=re.compile(r'frames/s, \d+ ms')).wait_for()
    first = page.get_attribute('#live img', 'src')
    page.click('#reference')
    page.wait_for_function("first => document.querySelector('#live img').src != first", arg=first)
    assert first.startswith('data:image/jpeg;base64,')


def test_no_file_of_the_machine_can_be_read(visit, server, files):
    page = visit()
    outside = files / 'ours.pt'
    for path in ('/etc/passwd', outside, '/gradio_api/../../../etc/passwd', 'http://127.0.0.1:9/x', 'file:///etc/passwd'):
        assert page.request.get(f'{server}/gradio_api/file={path}').status in (403, 404)
    assert page.request.get(server, headers={'Host': 'evil.example'}).status == 404
    config = page.request.get(f'{server}/config').json()
    fn = next(entry for entry in config['dependencies'] if entry['targets'] and entry['targets'][0][1] == 'click')
    meta = {'_type': 'gradio.FileData'}
    sent = {'session_hash': 'thief', 'fn_index': fn['id'], 'data': [
        {'path': str(outside), 'meta': meta} for _ in fn['inputs']]}
    assert page.request.post(f'{server}/gradio_api/queue/join', data=sent).ok
    told = page.request.get(f'{server}/gradio_api/queue/data?session_hash=thief').text()
    assert '"success":false' in told.replace(' ', '') and 'gradio_api/file=' not in told


def test_a_visitors_files_are_deleted_when_they_leave(visit, files):
    page = visit()
    bring_both(page, files)
    page.click('#animate')
    status(page, 'Done')
    page.context.close()
    root, = (files / 'tmp').glob('talking-heads-*')
    kept = lambda: [path for path in root.rglob('*') if path.name in ('face.png', 'animation.mp4', 'driver.mp4')]
    ends = time.monotonic() + PATIENCE / 1000
    while kept() and time.monotonic() < ends:
        time.sleep(0.2)
    assert not kept()
