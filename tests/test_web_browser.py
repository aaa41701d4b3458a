"""All four tabs of the page of `--mode web`, in a real browser where there is one."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from http.client import HTTPConnection
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

import run
from datasets.video import open_clip
from support.pages import PROJECT
from tests.support.tiny import ROOT, SHARED, save_model, tiny
from tests.support.video_files import write_video
from tests.support.web_jobs import SIZE, write_clip
from web.jobs import EXAMPLE_FRAMES
from web.limits import MOST_BYTES

FRAMES, LONG = 12, 300
PATIENCE = 120_000         # milliseconds; the machine may be busy
PORTRAITS = [SHARED / 'real' / 'source' / name for name in ('src04_man_smile.png', 'src02_glasses.png')]


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Two untrained models of 64 px, a portrait, clips, a text, and what the fake camera films."""
    folder = tmp_path_factory.mktemp('web')
    for seed, name in enumerate(('ours', 'rival')):
        save_model(folder / f'{name}.pt', tiny(f'model_params.image_size={SIZE}'), seed)
    write_clip(folder / 'driver.mp4', FRAMES)
    write_clip(folder / 'long.mp4', LONG)
    write_clip(folder / 'short.mp4', FRAMES // 2)
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
            env=os.environ | {'TMPDIR': str(files / 'tmp'), 'TORCH_HOME': str(files / 'torch')})
    while 'The page is at' not in (files / 'log.txt').read_text():
        assert process.poll() is None, (files / 'log.txt').read_text()
        time.sleep(0.2)
    yield f'http://127.0.0.1:{port}'
    process.send_signal(signal.SIGTERM)
    process.wait()
    assert not list((files / 'tmp').glob('talking-codebooks-*'))      # uploads and results went with it
    assert 'a job has failed' not in (files / 'log.txt').read_text()


@pytest.fixture(scope='module')
def flags(files):
    """A fake camera that films a clip."""
    return ['--use-fake-ui-for-media-stream', '--use-fake-device-for-media-stream',
            f'--use-file-for-fake-video-capture={files / "camera.mjpeg"}']


@pytest.fixture
def visit(browser, server):
    """A function that opens the page in a new context; it may request no other address."""
    pages = []

    def visited(tab='Animate'):
        context = browser.new_context(viewport={'width': 1400, 'height': 1000}, permissions=['camera'])
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.requests, page.troubles = [], []
        page.on('request', lambda request: page.requests.append(request.url))
        page.on('pageerror', lambda error: page.troubles.append(str(error)))
        page.goto(server)
        page.get_by_role('tab', name=tab).click()
        pages.append(page)
        return page
    yield visited
    for page in pages:
        assert {urlsplit(url).netloc for url in page.requests if url.startswith('http')} == {urlsplit(server).netloc}
        assert not page.troubles
        page.context.close()


def upload(page, selector, path):
    page.set_input_files(f'{selector} input[type=file]', path)
    arrived(page, selector)


def arrived(page, *selectors):
    """Waits for pictures and videos that the page has got."""
    for selector in selectors:
        page.wait_for_function("selector => document.querySelector(selector + ' :is(img, video)')?.src", arg=selector)


def upload_both(page, files, driver='driver.mp4'):
    upload(page, '#source', files / 'face.png')
    upload(page, '#driver', files / driver)


def status(page, text):
    """Waits for a status with this text."""
    return page.locator('#status .status', has_text=re.compile(text)).wait_for()


def option(page, label, choice):
    """Choose in the tab that is seen."""
    if not page.get_by_label('Smooth').locator('visible=true').count():
        page.locator('[role=tabpanel]:visible button', has_text='Options').click()
    page.locator(f'[role=tabpanel]:visible fieldset:has-text("{label}")').get_by_label(choice).check()


def command_of(page):
    """The options that the shown command line stands for."""
    words = page.locator('.command:visible .cm-content').inner_text().split()
    assert words[:2] == ['python', 'run.py']
    return run.parse(words[2:])[0]


def result_of(page, folder, selector='#result'):
    """The clip that the page shows as its result."""
    arrived(page, selector)
    reply = page.request.get(page.locator(f'{selector} video').get_attribute('src'))
    (folder / 'shown.mp4').write_bytes(reply.body())
    return open_clip(folder / 'shown.mp4')


def test_a_portrait_follows_a_clip(visit, files, tmp_path):
    page = visit()
    upload_both(page, files)
    page.evaluate("""() => { window.seen = []; new MutationObserver(() => seen.push(
        document.querySelector('#status').innerText)).observe(document.body, {subtree: true, childList: true}); }""")
    page.click('#animate')
    status(page, f'Done: {FRAMES} frames')
    assert len(result_of(page, tmp_path)) == FRAMES
    assert any('Working' in text or f'of {FRAMES} frames' in text for text in page.evaluate('seen'))
    options = command_of(page)
    assert (options.mode, options.checkpoint) == ('animate', str(files / 'ours.pt'))
    assert (options.source_image, options.driving_video) == ('face.png', 'driver.mp4')
    with page.expect_download() as download:
        page.locator('#saved a[download]').first.click()
    assert len(open_clip(shutil.copy(download.value.path(), tmp_path / 'saved.mp4'))) == FRAMES


def test_an_example_follows_its_driver(visit, tmp_path):
    """Examples change components, for which Gradio makes new ones: they must hand files on as those before did."""
    page = visit()
    assert page.title() == PROJECT
    page.locator('[role=tabpanel]:visible tbody tr').nth(1).click()
    arrived(page, '#source', '#driver')
    page.click('#animate')
    status(page, f'Done: {EXAMPLE_FRAMES} frames')
    assert len(result_of(page, tmp_path)) == EXAMPLE_FRAMES


def test_a_cancelled_animation_makes_room(visit, files, tmp_path):
    page = visit()
    upload_both(page, files, 'long.mp4')
    assert page.locator('#cancel').is_disabled()            # nothing runs
    page.click('#animate')
    status(page, f'of {LONG} frames, .* frames/s, .* s left')
    page.click('#cancel')
    status(page, 'Cancelled')
    page.locator('#cancel:disabled').wait_for()
    page.reload()
    upload_both(page, files)
    page.click('#animate')
    status(page, 'Done')
    assert len(result_of(page, tmp_path)) == FRAMES


def test_a_text_as_a_driver_is_one_line(visit, files):
    page = visit()
    upload(page, '#source', files / 'face.png')
    page.click('#animate')
    status(page, '^upload a driver first$')
    upload(page, '#driver', files / 'notes.mp4')
    page.click('#animate')
    status(page, r'^notes\.mp4: is not a readable video \(.*\)$')
    assert 'trouble' in page.get_attribute('#status .status', 'class')


def test_motion_is_saved_and_moves_a_video(visit, files, tmp_path):
    page = visit()
    upload_both(page, files)
    option(page, 'Motion', 'relative')      # opens the options
    page.get_by_label('Save motion').check()
    page.click('#animate')
    status(page, 'Done')
    with page.expect_download() as download:
        page.locator('#saved a[download$=".npz"]').click()
    template = shutil.copy(download.value.path(), tmp_path / 'motion.npz')
    assert command_of(page).save_motion == 'motion.npz'
    page.get_by_label('Save motion').uncheck()
    page.get_by_label('a motion template').check()
    page.locator('#template input[type=file]').set_input_files(template)
    page.locator('#template', has_text='.npz').wait_for()
    page.get_by_label('a video').first.check()
    upload(page, '#source-video', files / 'short.mp4')
    option(page, 'End of a source video', 'hold')
    page.click('#animate')
    status(page, f'Done: {FRAMES} frames')
    assert len(result_of(page, tmp_path)) == FRAMES
    options = command_of(page)
    assert (options.source_video, options.source_end, options.driving_motion) == ('short.mp4', 'hold', 'motion.npz')
    page.get_by_label('Model').locator('visible=true').first.click()
    page.get_by_role('option', name='rival').click()
    page.click('#animate')
    status(page, r'^motion\.npz: .*another')


@pytest.mark.skipif(not PORTRAITS[0].is_file(), reason='no faces')
def test_one_face_of_several_is_cut_out_and_pasted_back(visit, files, tmp_path):
    pytest.importorskip('mediapipe')
    group = np.concatenate([np.asarray(Image.open(path).convert('RGB').resize((256, 256))) for path in PORTRAITS], 1)
    Image.fromarray(group).save(tmp_path / 'group.png')
    write_video(tmp_path / 'face.mp4', [group[:, :256]] * FRAMES)
    page = visit()
    upload(page, '#source', tmp_path / 'group.png')
    upload(page, '#driver', tmp_path / 'face.mp4')
    page.get_by_role('button', name='Find faces').click()
    status(page, r'2 face\(s\) in the source, 1 in the driving video')
    arrived(page, '#faces')
    option(page, 'Crop', 'crop around')
    option(page, 'Show', 'pasted back')
    page.get_by_label('Source face').locator('visible=true').click()
    page.get_by_role('option', name='1').click()
    page.click('#animate')
    status(page, 'Done')
    frame = result_of(page, tmp_path).read([FRAMES - 1])[0].astype(int)
    changed = np.abs(frame - group).max(-1) > 60        # an untrained model paints noise
    halves = changed[:, :240].mean(), changed[:, 270:].mean()
    assert frame.shape == group.shape and max(halves) > 0.2 and min(halves) < 0.02
    options = command_of(page)
    assert options.face_index == [1, 0] and options.paste_back and options.crop == 'auto'


def test_figures_of_a_frame(visit, files):
    page = visit('Inspect')
    upload(page, '#inspect-source', files / 'face.png')
    upload(page, '#inspect-driver', files / 'driver.mp4')
    page.locator('#frame img').click(position={'x': 40, 'y': 40})
    page.locator('#inspect-status', has_text='is chosen').wait_for()
    page.click('#draw')
    page.locator('#inspect-status', has_text='pictures').wait_for()
    assert page.locator('#figures img').count() > 3


def test_all_models_side_by_side(visit, files, tmp_path):
    page = visit('Compare')
    upload(page, '#compare-source', files / 'face.png')
    upload(page, '#compare-driver', files / 'driver.mp4')
    option(page, 'Motion', 'absolute')
    page.click('#compare')
    page.locator('#compare-status', has_text=f'Done: {FRAMES} frames each. Shown: the driving frame').wait_for()
    clip = result_of(page, tmp_path, '#compared')
    assert len(clip) == FRAMES and clip.read([0])[0].shape[1] == 4 * 256
    arrived(page, '#comparison')
    options = command_of(page)
    assert (options.mode, options.relative) == ('compare', False)
    assert options.checkpoints == [f'{name}={files / name}.pt' for name in ('ours', 'rival')]


def test_the_camera_drives_a_portrait(visit, files):
    page = visit('Live')
    upload(page, '#live-source', files / 'face.png')
    page.locator('#camera button', has_text=re.compile('access|Click')).first.click()
    page.locator('#camera button', has_text='Record').first.click()
    page.locator('#live-status', has_text=re.compile(r'frames/s, latency \d+ ms')).wait_for()
    first = page.get_attribute('#live img', 'src')
    page.click('#reference')
    page.wait_for_function("first => document.querySelector('#live img').src != first", arg=first)
    assert first.startswith('data:image/jpeg;base64,')


def test_what_is_too_large_is_not_taken(server, files):
    root, = (files / 'tmp').glob('talking-codebooks-*')
    connection, before = HTTPConnection(urlsplit(server).netloc), set(root.rglob('*'))
    head, tail = (b'--x\r\nContent-Disposition: form-data; name="files"; filename="x.mp4"\r\n\r\n', b'\r\n--x--\r\n')
    connection.request('POST', '/gradio_api/upload', head + bytes(MOST_BYTES + 1) + tail,
                       {'Content-Type': 'multipart/form-data; boundary=x'})
    assert connection.getresponse().status == 413
    assert set(root.rglob('*')) <= before


def test_no_file_of_the_machine_can_be_read(visit, server, files):
    page = visit()
    outside = files / 'ours.pt'
    for path in ('/etc/passwd', outside, '/gradio_api/../../../etc/passwd', 'http://127.0.0.1:9/x', 'file:///etc/passwd'):
        assert page.request.get(f'{server}/gradio_api/file={path}').status in (403, 404)
    for path in ('static/../../../etc/passwd', 'assets/%2e%2e/%2e%2e/%2e%2e/etc/passwd',
                 'svelte/..%2f..%2f..%2fetc/passwd', f'gradio_api/file=x/../../../../../..{outside}'):
        connection = HTTPConnection(urlsplit(server).netloc)          # sends the path as it is
        connection.request('GET', f'/{path}')
        assert connection.getresponse().status in (403, 404)
    assert page.request.get(server, headers={'Host': 'evil.example'}).status == 404
    config = page.request.get(f'{server}/config').json()
    fn = next(entry for entry in config['dependencies'] if len(entry['inputs']) > 5)
    meta = {'_type': 'gradio.FileData'}
    sent = {'session_hash': 'thief', 'fn_index': fn['id'], 'data': [
        {'path': str(outside), 'meta': meta} for _ in fn['inputs']]}
    assert page.request.post(f'{server}/gradio_api/queue/join', data=sent).ok
    answer = page.request.get(f'{server}/gradio_api/queue/data?session_hash=thief').text()
    assert '"success":false' in answer.replace(' ', '') and 'gradio_api/file=' not in answer


def test_of_two_visitors_at_once_the_files_of_the_one_who_leaves_are_deleted(visit, files, tmp_path):
    """Both uploads are equal."""
    root, = (files / 'tmp').glob('talking-codebooks-*')
    page, other = visit(), visit()
    upload_both(other, files)
    theirs = set(root.rglob('*'))
    upload_both(page, files)
    for each in (page, other):
        each.click('#animate')
    for each in (page, other):
        status(each, 'Done')
        assert len(result_of(each, tmp_path)) == FRAMES
    results = {path for path in root.rglob('*.mp4') if path not in theirs}
    page.context.close()
    ends = time.monotonic() + PATIENCE / 1000
    while len(left := [path for path in root.rglob('*') if path.is_file() and path not in theirs]) > 1:
        assert time.monotonic() < ends, left
        time.sleep(0.2)
    assert set(left) < results and {'face.png', 'driver.mp4'} <= {path.name for path in theirs if path.exists()}
