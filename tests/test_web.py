"""The page of `--mode web`: worker, files, guard, command line; all four tabs in a browser where there is one."""

import functools
import io
import os
import re
import shutil
import sys
import time
from argparse import Namespace
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

import run
from datasets.video import open_clip
from modes.web import address_of, newest_run
from support.errors import UserError
from support.pages import PROJECT
from tests.support.alone import alone
from tests.support.command_line import refused
from tests.support.tiny import SHARED, save_model, tiny
from tests.support.video_files import write_video
from tests.support.web_jobs import (SIZE, ask_for, broken, count, die, fail, hang, loads, process, render, unpicklable,
    unreadable, variable, web_page, write_clip)
from web import worker as web_worker
from web.files import Files
from web.guard import ROUTES, cut_off
from web.jobs import EXAMPLE_FRAMES
from web.limits import MOST_BYTES, check_clip, check_picture
from web.worker import MOST_WAITING, Cancelled, Worker


# ---------------------------------------------------------------------------- the worker

@pytest.fixture(scope='module')
def worker():
    worker = Worker(loads)
    yield worker
    worker.close()


def test_jobs_find_their_model_and_return_or_are_refused(worker):
    assert worker.ask('a', functools.partial(ask_for, checkpoint='x')).result() == 'X'
    for error, message in ((UserError('not so'), '^not so$'), (ZeroDivisionError(), 'internal error')):
        with pytest.raises(UserError, match=message):           # of a bug, the visitor sees no stack trace
            worker.ask('a', functools.partial(fail, error=error)).result()
    # OpenMP's default, in which waiting threads keep their cores, makes Live fifty times slower on a busy machine.
    assert worker.ask('a', functools.partial(variable, name='OMP_WAIT_POLICY')).result().lower() == 'passive'


def test_progress_is_reported_in_one_queue(worker):
    first, second = (worker.ask(session, functools.partial(count, total=30)) for session in 'ab')
    seen = list(second.progress(0.01))
    assert any(progress.before for progress in seen) and seen[-1].total == 30 and seen[-1].rate > 0
    assert first.finished.is_set() and first.result() == second.result() == 30


@pytest.mark.parametrize('job', [functools.partial(count, total=10_000), hang])
def test_cancelling_frees_the_worker_whatever_it_does(worker, job, monkeypatch):
    monkeypatch.setattr(web_worker, 'GRACE', 1)
    task, after = worker.ask('a', job), worker.ask('b', functools.partial(ask_for, checkpoint='y'))
    task.started.wait()
    worker.cancel_all('a')
    with pytest.raises(Cancelled):
        task.result()
    assert after.result() == 'Y'


def test_cancelling_in_the_middle_of_a_batch_keeps_the_process_and_its_models(worker):
    worker.ask('a', functools.partial(ask_for, checkpoint='layers')).result()
    before = worker.ask('a', process).result()
    task = worker.ask('a', render)                  # takes ten seconds
    task.started.wait()
    time.sleep(0.5)
    worker.cancel_all('a')
    with pytest.raises(Cancelled):
        task.result()
    assert worker.ask('b', process).result() == before


@pytest.mark.parametrize('job, message', [
    (unpicklable, 'internal error'), (unreadable, 'internal error'), (lambda worker: 1, 'internal error'),
    (broken, 'ab'), (die, 'the worker has died')])
def test_a_job_ends_even_if_its_answer_cannot_travel_or_its_process_dies(worker, job, message):
    task = worker.ask('a', job)
    assert task.finished.wait(60)
    with pytest.raises(UserError, match=message):
        task.result()
    assert worker.ask('a', functools.partial(ask_for, checkpoint='w')).result() == 'W'


def test_waiting_jobs_are_cancelled_or_end_with_the_page_and_are_limited(monkeypatch):
    monkeypatch.setattr(web_worker, 'GRACE', 1)
    worker = Worker(loads)
    running = worker.ask('a', hang)
    running.started.wait()
    waiting = [worker.ask('b', hang) for _ in range(MOST_WAITING)]
    with pytest.raises(UserError, match='jobs are waiting'):
        worker.ask('c', hang)
    worker.cancel_all('a')
    with pytest.raises(Cancelled):
        running.result()
    worker.close()
    assert all(task.finished.wait(10) for task in waiting)


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
            with pytest.raises(UserError, match='no longer exists'):
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
    assert len(check_clip(clip)) == 5
    monkeypatch.setattr('web.limits.MOST_FRAMES', 4)
    for check, path, message in ((check_clip, text, 'notes.mp4: is not a readable video'),
                                 (check_clip, picture, 'is not a video; expected'),
                                 (check_clip, clip, 'has 5 frames; this page takes 4'),
                                 (check_picture, picture, '6000x5000 pixels'),
                                 (check_picture, text, 'is not a readable picture')):
        with pytest.raises(UserError, match=message):
            check(path)


def test_equal_uploads_of_two_visitors_are_two_files():
    upload = pytest.importorskip('gradio.route_utils').GradioUploadFile
    cut_off()
    assert len({upload(io.BytesIO(b'same')).sha.hexdigest() for _ in range(2)}) == 2


# ---------------------------------------------------------------------------- the command line

def test_mistakes_are_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert 'add --auth USER:PASSWORD' in refused(capsys, '--mode', 'web', '--host', '0.0.0.0')
    assert 'expected USER:PASSWORD' in refused(capsys, '--mode', 'web', '--auth', 'me')
    assert '--port 0' in refused(capsys, '--mode', 'web', '--port', '0')
    monkeypatch.setitem(sys.modules, 'gradio', None)
    assert 'pip install -r requirements-extra.txt' in refused(capsys, '--mode', 'web', '--checkpoint', 'x.pt')


def test_a_password_over_plain_http_is_said_to_be_plain(caplog):
    address = address_of(Namespace(host='0.0.0.0', port=7860, auth='me:secret'))
    assert address == ('0.0.0.0', 7860, ('me', 'secret'))
    assert 'unencrypted' in caplog.text and 'secret' not in caplog.text


def test_the_newest_run_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for age, name in ((10, 'new'), (1000, 'old')):
        path = Path('log', name, 'checkpoints', '00000001.pt')
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    assert newest_run() == str(Path('log', 'new'))


# ---------------------------------------------------------------------------- in a browser

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
    """The address of a page with both models; it reaches for nothing beyond this machine, whatever is asked of it."""
    pytest.importorskip('gradio')
    (files / 'tmp').mkdir()
    variables, reached = alone(files)
    variables |= {'TMPDIR': str(files / 'tmp'), 'TORCH_HOME': str(files / 'torch')}
    with web_page(files, 7800 + os.getpid() % 100, variables, files / 'ours.pt', files / 'rival.pt') as address:
        yield address
    assert not reached.exists(), reached.read_text()
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


def animated(page, folder, frames=FRAMES):
    """The clip that the page makes and shows of what it was given."""
    page.click('#animate')
    status(page, f'Done: {frames} frames')
    clip = result_of(page, folder)
    assert len(clip) == frames
    return clip


def test_a_portrait_follows_a_clip(visit, files, tmp_path):
    page = visit()
    upload_both(page, files)
    page.evaluate("""() => { window.seen = []; new MutationObserver(() => seen.push(
        document.querySelector('#status').innerText)).observe(document.body, {subtree: true, childList: true}); }""")
    animated(page, tmp_path)
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
    animated(page, tmp_path, EXAMPLE_FRAMES)


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
    animated(page, tmp_path)


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
    animated(page, tmp_path)
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
    frame = animated(page, tmp_path).read([FRAMES - 1])[0].astype(int)
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
    with urlopen(server) as page:
        assert b'<html' in page.read()
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
