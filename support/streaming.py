"""Stages of a stream side by side: what comes before and after the loop runs in threads of its own.

    for item in read_ahead(decode()):          # the next items are made meanwhile
        with write_behind(encode) as later: later(work(item))

Python's threads run at the same time wherever libraries release its lock, as FFmpeg, NumPy and PyTorch do. A network
that only waits, as the CPU waits for a GPU, hides decoding and encoding: 117.2 s per 1,000 frames of 512 px, of which
the network takes 116.5, decoding 29.8 and encoding 7.5 (two cores). The
loop itself stays in its thread: compiled and captured networks are bound to it. Both helpers keep the order, hold
a fixed number of items, and raise in the loop what was raised in their thread.
"""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

DEPTH = 2      # items made ahead, or waiting to be written: one in work, one in reserve

_END = object()


def read_ahead(items, depth=DEPTH):
    """Iterates over `items` in another thread, at most `depth` of them ahead of whoever takes them."""
    items, pending = iter(items), deque()
    with ThreadPoolExecutor(1) as pool:
        try:
            pending.extend(pool.submit(next, items, _END) for _ in range(depth))
            while (item := pending.popleft().result()) is not _END:
                pending.append(pool.submit(next, items, _END))
                yield item
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def write_behind(write, depth=DEPTH):
    """Yields a function that has `write` called with its arguments in another thread, one call after the other.

    It waits while `depth` calls are unfinished; the block ends when all are. What `write` raises comes out of a
    later call, or of the end of the block; calls not yet begun when the block fails are dropped.
    """
    pending = deque()
    with ThreadPoolExecutor(1) as pool:
        def later(*arguments):
            if len(pending) == depth:
                pending.popleft().result()
            pending.append(pool.submit(write, *arguments))
        try:
            yield later
            while pending:
                pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def spread(length, most, at_once):
    """At most `most` evenly spread indices of 0..length-1, ascending, as lists of at most `at_once`."""
    count = min(most, length)
    indices = [round(i * (length - 1) / max(count - 1, 1)) for i in range(count)]
    return [indices[start:start + at_once] for start in range(0, count, at_once)]
