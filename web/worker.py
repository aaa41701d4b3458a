"""The process in which the models of the page run, and its queue.

    worker = Worker(load)                       # load(checkpoint) -> LoadedModel, called in the process
    task = worker.ask(session, functools.partial(web.jobs.animate, ...))
    for progress in task.progress(): ...        # while it waits and runs
    task.result()                               # or UserError, Cancelled

A job is a picklable function of a WorkerState. Uploads are decoded in this process alone: if a file crashes a decoder,
the server keeps running and a new process takes the next job. Memory is that of one job, whatever the number of
visitors. Every job ends, with a value or an error.
"""

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

from support.errors import UserError

MOST_WAITING = 8           # queued jobs; further ones are refused
GRACE = 5.0                # seconds after which a cancelled job that has not ended is killed with the process
REPORT_EVERY = 0.1         # seconds between reports of progress
FAILED = 'internal error; see the log of the server'

log = logging.getLogger(__name__)


class Cancelled(Exception):
    """The visitor has cancelled the job."""


class LoadedModel(NamedTuple):
    """An inference.Renderer, and the name of its method."""
    renderer: Any
    method: str


@dataclass(frozen=True)
class Progress:
    """done of total frames at a rate in frames per second; or how many jobs are `before` this one."""
    done: int = 0
    total: int = 0
    rate: float = 0
    before: int = 0


# ---------------------------------------------------------------------------- in the server

class Task:
    def __init__(self, worker, session, job):
        self.worker, self.session, self.job = worker, session, job
        self.latest, self.cancelled_at = Progress(), None
        self.started, self.finished = threading.Event(), threading.Event()
        self._value = self._error = None

    def progress(self, every=0.2):
        """Yields Progress every `every` seconds until the job has ended."""
        while not self.finished.wait(every):
            yield Progress(before=before) if (before := self.worker.before(self)) else self.latest

    def result(self):
        """What the job returned; raises UserError or Cancelled."""
        self.finished.wait()
        if self._error is not None:
            raise self._error
        return self._value

    def finish(self, value=None, error=None):
        """End with a value or an error; without effect after the first call."""
        if not self.finished.is_set():
            self._value, self._error = value, error
            self.finished.set()


class Worker:
    """Runs jobs one after another in its own process. Thread-safe."""

    def __init__(self, load):
        self._load, self._waiting, self._current = load, deque(), None
        self._change, self._closing = threading.Condition(), False
        self._start()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def ask(self, session, job, limited=True):
        """The Task of a job; if `limited`, raises UserError when the queue is full."""
        task = Task(self, session, job)
        with self._change:
            if limited and len(self._waiting) >= MOST_WAITING:
                raise UserError(f'{MOST_WAITING} jobs are waiting already; try again in a few minutes')
            self._waiting.append(task)
            self._change.notify_all()
        return task

    def idle(self):
        """Whether a new job would begin at once."""
        with self._change:
            return self._current is None and not self._waiting

    def tasks(self, session):
        """The visitor's unfinished tasks."""
        with self._change:
            return [task for task in (*self._waiting, self._current)
                    if task is not None and task.session == session and not task.finished.is_set()]

    def before(self, task):
        """Number of jobs before this one; 0 when it runs."""
        with self._change:
            return self._waiting.index(task) + (self._current is not None) if task in self._waiting else 0

    def cancel_all(self, session):
        """End the visitor's tasks at once; the worker is free within GRACE seconds."""
        with self._change:
            for task in self.tasks(session):
                if task in self._waiting:
                    self._waiting.remove(task)
                else:
                    task.cancelled_at = time.monotonic()
                    self._cancelled.set()
                task.finish(error=Cancelled())

    def close(self):
        with self._change:
            self._closing = True
            self._change.notify_all()
        self._process.kill()
        self._thread.join()

    # The thread that talks to the process

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
                    for task in self._waiting:
                        task.finish(error=Cancelled())
                    return
                task = self._current = self._waiting.popleft()
                self._cancelled.clear()
                task.started.set()
            outcome = {'error': UserError(FAILED)}
            try:
                outcome = self._run(task)
            except Exception:      # an answer that cannot be unpickled, a process that cannot be started
                log.exception('a job has failed')
            with self._change:
                self._current = None
            task.finish(**outcome)

    def _run(self, task):
        """Run the job in the worker's process; returns the arguments of `Task.finish`."""
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
            return {'error': UserError('the worker has died, most likely out of memory, and restarts; '
                                       'try a smaller picture or a shorter clip')}


# ---------------------------------------------------------------------------- in the process

class WorkerState:
    """Loaded models, progress and cancellation, for jobs in the worker's process.

    state: dict that jobs may keep things in for later jobs
    """

    def __init__(self, load, send, cancelled):
        self._load, self._send, self._cancelled = load, send, cancelled
        self._models, self.state = {}, {}

    def model(self, checkpoint):
        """The LoadedModel of a checkpoint, loaded once; its networks raise Cancelled between layers."""
        if checkpoint not in self._models:
            loaded = self._models[checkpoint] = self._load(checkpoint)
            # A batch of frames takes seconds on a CPU: between frames would be too late to keep the process alive.
            for module in loaded.renderer.model.modules():
                module.register_forward_pre_hook(lambda *_: self.check())
        return self._models[checkpoint]

    def counter(self, total):
        """A function to call once per frame of `total`; it reports progress and raises Cancelled."""
        started, reported, done = time.monotonic(), 0, 0

        def count():
            nonlocal reported, done
            self.check()
            done, now = done + 1, time.monotonic()
            if now > reported + REPORT_EVERY or done == total:
                reported = now
                self._send(('progress', Progress(done, total, done / max(now - started, 1e-6))))
        return count

    def check(self):
        if self._cancelled.is_set():
            raise Cancelled


def serve(connection, cancelled, load):
    """Main function of the worker's process: runs jobs until the server closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)      # Ctrl-C reaches the whole group; the server ends this process
    os.environ['TQDM_DISABLE'] = '1'
    # OpenMP's threads otherwise spin while they wait: with other programs on the cores, a frame of Live took 3 s
    # instead of 0.06 s.
    os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
    logging.basicConfig(level=logging.INFO, format='worker: %(message)s')
    worker = WorkerState(load, connection.send, cancelled)
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        try:
            connection.send(('value', job(worker)))
        except Cancelled:
            connection.send(('error', Cancelled()))
        except UserError as error:
            connection.send(('error', UserError(str(error))))
        except Exception:          # of the job, or an answer that cannot be pickled
            log.exception('a job has failed')
            connection.send(('error', UserError(FAILED)))
