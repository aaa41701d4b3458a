"""Start, logging and end of data loading processes."""

import logging
import multiprocessing
import os
import signal
import threading
from functools import partial
from multiprocessing import forkserver, resource_tracker

import torch

PRELOADED = ['torch.utils.data', 'av', 'PIL.Image']     # imported once for all processes; it takes seconds


def loading_context(ignored=()):
    """The multiprocessing context of data loading processes, which fork from a server without threads.

    A training process has threads of OpenMP and TensorBoard; its fork may inherit a lock that is never released.
    https://docs.python.org/3/library/multiprocessing.html#contexts-and-start-methods

    ignored: signals that the server and its processes ignore from the start
    """
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(PRELOADED)
    resource_tracker.ensure_running()       # up to Python 3.12 its start unblocks signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ignored)
    try:
        forkserver.ensure_running()         # inherits the blocked signals, and so do its processes
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def worker_start(ignored=()):
    """A `worker_init_fn` for DataLoader: one thread, logs to this process's files, `ignored` signals, ends with it."""
    root = logging.getLogger()
    files = [(handler.baseFilename, handler.formatter) for handler in root.handlers
             if isinstance(handler, logging.FileHandler)]
    return partial(_start, level=root.level, files=files, ignored=ignored)


def _start(_, level, files, ignored):
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ignored)
    torch.set_num_threads(1)
    logging.basicConfig(level=level, format='%(message)s')
    for path, formatter in files:
        handler = logging.FileHandler(path, encoding='utf-8')
        handler.setFormatter(formatter)
        logging.getLogger().addHandler(handler)
    end_with_parent()            # PyTorch itself watches the server, from which this process was forked


def end_with_parent():
    """Exit, from a thread, as soon as the process that started this one has ended."""
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()
