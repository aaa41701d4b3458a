"""The page of `--mode web` without a browser: its worker, its files, its guard, its command line."""

import functools
import io
import os
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
from PIL import Image

from modes.web import address_of, newest_run
from support.errors import UserError
from tests.support.command_line import refused
from tests.support.web_jobs import (
    ask_for, broken, count, die, fail, hang, loads, process, render, unpicklable, unreadable, variable,
    write_clip)
from web import worker as web_worker
from web.files import Files
from web.guard import ROUTES, cut_off
from web.limits import check_clip, check_picture
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
    with pytest.raises(UserError, match='notes.mp4: is not a readable video'):
        check_clip(text)
    with pytest.raises(UserError, match='is not a video; expected'):
        check_clip(picture)
    with pytest.raises(UserError, match='6000x5000 pixels'):
        check_picture(picture)
    with pytest.raises(UserError, match='is not a readable picture'):
        check_picture(text)
    assert len(check_clip(clip)) == 5
    monkeypatch.setattr('web.limits.MOST_FRAMES', 4)
    with pytest.raises(UserError, match='has 5 frames; this page takes 4'):
        check_clip(clip)


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


@pytest.mark.parametrize('host', ['127.0.0.1', '0.0.0.0'])
def test_a_password_over_plain_http_is_said_to_be_plain(host, caplog):
    assert address_of(Namespace(host=host, port=7860, auth='me:secret')) == (host, 7860, ('me', 'secret'))
    assert 'unencrypted' in caplog.text and 'secret' not in caplog.text


def test_the_newest_run_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for age, name in ((10, 'new'), (1000, 'old')):
        path = Path('log', name, 'checkpoints', '00000001.pt')
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    assert newest_run() == str(Path('log', 'new'))
