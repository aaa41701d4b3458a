"""The one process in which the page's models run, and the one queue before it.

    worker = Worker(load)                       # load(checkpoint) -> LoadedModel, called in the process
    task = worker.ask(session, functools.partial(web.jobs.animate, ...))
    for progress in task.progress(): ...        # while it waits and runs
    task.result()                               # or UserError, Cancelled

A job is a picklable function of a Bench. Uploads are decoded here and nowhere else: whatever a file does to a decoder,
the server goes on, and a new process takes the next job. Memory is that of one job, however many visitors there are.
"""

import logging
import multiprocessing
import os
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from support.errors import UserError

MOST_WAITING = 8           # jobs before the worker; the next visitor is asked to come again
GRACE = 1.0                # seconds in which a cancelled job may end by itself
REPORT_EVERY = 0.1         # seconds between two reports of progress

log = logging.getLogger(__name__)


class Cancelled(Exception):
    """The visitor does not want it any more."""


@dataclass(frozen=True)
class LoadedModel:
    """An inference.Renderer, and the config of its model."""
    renderer: Any
    config: Any

    @property
    def size(self):
        return self.config.model_params.image_size


@dataclass(frozen=True)
class Progress:
    """done of total frames at a rate in frames per second; or how many jobs are `before` this one."""
    done: int = 0
    total: int = 0
    rate: float = 0
    before: int = 0


# ---------------------------------------------------------------------------- in the server

class Task:
    """A job that was asked for."""

    def __init__(self, worker, session, job):
        self.worker, self.session, self.job = worker, session, job
        self.latest, self.cancelled_at = Progress(), None
        self.started, self.finished = threading.Event(), threading.Event()
        self._value = self._error = None

    def progress(self, every=0.2):
        """Yields Progress until the job has ended."""
        while not self.finished.wait(every):
            yield Progress(before=before) if (before := self.worker.before(self)) else self.latest

    def result(self):
        """What the job returned; raises UserError or Cancelled."""
        self.finished.wait()
        if self._error is not None:
            raise self._error
        return self._value

    def finish(self, value=None, error=None):
        self._value, self._error = value, error
        self.finished.set()

    def cancel(self):
        """Returns at once; the worker is free within GRACE seconds."""
        self.worker.cancel(self)


class Worker:
    """Runs one job after the other in a process of its own. Thread-safe."""

    def __init__(self, load):
        self._load, self._waiting, self._current = load, deque(), None
        self._change, self._closing = threading.Condition(), False
        self._start()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def ask(self, session, job):
        """The Task of a job; UserError where too many wait already."""
        task = Task(self, session, job)
        with self._change:
            if len(self._waiting) >= MOST_WAITING:
                raise UserError(f'{MOST_WAITING} visitors are waiting already; try again in a few minutes')
            self._waiting.append(task)
            self._change.notify_all()
        return task

    def idle(self):
        """Whether a job that is asked for now would begin at once."""
        with self._change:
            return self._current is None and not self._waiting

    def before(self, task):
        """How many jobs come before this one; 0 when it runs."""
        with self._change:
            return self._waiting.index(task) + (self._current is not None) if task in self._waiting else 0

    def cancel(self, task):
        with self._change:
            if task in self._waiting:
                self._waiting.remove(task)
                task.finish(error=Cancelled())
            elif task is self._current and task.cancelled_at is None:
                task.cancelled_at = time.monotonic()
                self._cancelled.set()

    def cancel_all(self, session):
        """Cancel whatever a visitor has asked for."""
        with self._change:
            tasks = [task for task in (*self._waiting, self._current) if task is not None and task.session == session]
        for task in tasks:
            self.cancel(task)

    def close(self):
        with self._change:
            self._closing = True
            self._change.notify_all()
        self._process.kill()
        self._thread.join()

    # The thread that speaks with the process

    def _start(self):
        context = multiprocessing.get_context('spawn')      # a fork of a process with threads may never wake up
        self._connection, theirs = context.Pipe()
        self._cancelled = context.Event()
        self._process = context.Process(target=serve, args=(theirs, self._cancelled, self._load), daemon=True)
        self._process.start()
        theirs.close()

    def _restart(self):
        self._process.kill()
        self._process.join()
        self._connection.close()
        if not self._closing:
            self._start()

    def _work(self):
        while True:
            with self._change:
                self._change.wait_for(lambda: self._waiting or self._closing)
                if self._closing:
                    return
                task = self._current = self._waiting.popleft()
                self._cancelled.clear()
                task.started.set()
            outcome = self._run(task)
            with self._change:
                self._current = None
            task.finish(**outcome)

    def _run(self, task):
        """What `Task.finish` takes."""
        try:
            self._connection.send(task.job)
            while True:
                if not self._connection.poll(0.05):
                    if task.cancelled_at and time.monotonic() > task.cancelled_at + GRACE:
                        self._restart()
                        return {'error': Cancelled()}
                    continue
                kind, value = self._connection.recv()
                if kind == 'progress':
                    task.latest = value
                else:
                    return {kind: value}
        except (EOFError, OSError):
            self._restart()
            return {'error': UserError('the worker has died, most likely for want of memory; it starts anew, '
                                       'try a smaller picture or a shorter clip')}


# ---------------------------------------------------------------------------- in the process

class Bench:
    """What jobs find in the worker's process: models that stay loaded, and a way to report.

    state: dict in which jobs may keep things from one to the next
    """

    def __init__(self, load, send, cancelled):
        self._load, self._send, self._cancelled = load, send, cancelled
        self._models, self.state = {}, {}

    def model(self, checkpoint):
        """The LoadedModel of a checkpoint; the first time takes a while."""
        if checkpoint not in self._models:
            self._models[checkpoint] = self._load(checkpoint)
        return self._models[checkpoint]

    def counter(self, total, before=0):
        """A function to be called once for every frame, of `total` of which `before` are done; it raises Cancelled."""
        started, reported, done = time.monotonic(), 0, before

        def count():
            nonlocal reported, done
            self.check()
            done, now = done + 1, time.monotonic()
            if now > reported + REPORT_EVERY or done == total:
                reported = now
                self._send(('progress', Progress(done, total, (done - before) / max(now - started, 1e-6))))
        return count

    def check(self):
        if self._cancelled.is_set():
            raise Cancelled


def serve(connection, cancelled, load):
    """The worker's process: one job after the other until the server hangs up."""
    os.environ['TQDM_DISABLE'] = '1'
    # Else threads wait for one another by turning round and round: where other programs want the cores too, a frame of
    # Live took 3 s in the place of 0.06 s.
    os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
    logging.basicConfig(level=logging.INFO, format='worker: %(message)s')
    bench = Bench(load, connection.send, cancelled)
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        connection.send(_outcome(job, bench))


def _outcome(job, bench):
    try:
        return 'value', job(bench)
    except (UserError, Cancelled) as error:
        return 'error', error
    except Exception:
        log.exception('a job has failed')
        return 'error', UserError('something went wrong on our side; the log of the server says what')
