"""Data loading processes: how they are started, what they log, and what ends them."""

import logging
import multiprocessing
import os
import signal
import threading
from functools import partial
from multiprocessing import forkserver, resource_tracker

import torch

PRELOADED = ['torch.utils.data', 'av', 'PIL.Image']     # imported once for all of them, which takes seconds


def loading_context(ignored=()):
    """The multiprocessing context of data loading processes: they fork from a server without threads.

    A training process has many threads, of OpenMP and TensorBoard; its fork may inherit a lock that nobody releases.
    https://docs.python.org/3/library/multiprocessing.html#contexts-and-start-methods

    ignored: signals that the server and its processes ignore, from their start on
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
    """`worker_init_fn` of a DataLoader: one thread, the log of this process, its `ignored` signals, and its end."""
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
        handler = logging.FileHandler(path)
        handler.setFormatter(formatter)
        logging.getLogger().addHandler(handler)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    """PyTorch's own watch is on the parent by process id, which is the server here."""
    multiprocessing.parent_process().join()
    os._exit(1)
