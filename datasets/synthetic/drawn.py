"""A cache of rendered frames, limited in bytes; the least recently used goes first.

A head's mesh, textures and backdrop take 0.8 MiB at 64 px, 6 at 256 and 19 at 512: a number of heads would be no bound.
"""

from collections import OrderedDict
from functools import wraps
from threading import Lock

import numpy as np

LIMIT = 256 * 2 ** 20          # of each process; at 64 px the 256 people that the demo trains on


class Drawn:
    """Least-recently-used cache of functions' results: at most `limit` bytes of arrays, or the last result alone."""

    def __init__(self, limit):
        self.limit, self.bytes, self._results, self._lock = limit, 0, OrderedDict(), Lock()

    def __call__(self, function):
        """Decorator: the function, of hashable arguments, with its results cached."""
        @wraps(function)
        def kept(*arguments):
            key = function, arguments
            with self._lock:
                if key in self._results:
                    self._results.move_to_end(key)
                    return self._results[key]
            result = function(*arguments)
            with self._lock:
                if key not in self._results:     # else another thread has drawn it meanwhile
                    self._results[key] = result
                    self.bytes += array_bytes(result)
                while self.bytes > self.limit and len(self._results) > 1:
                    self.bytes -= array_bytes(self._results.popitem(last=False)[1])
            return result
        return kept


def array_bytes(value):
    """Bytes of an array, or of all arrays in a tuple or an object."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    parts = value if isinstance(value, tuple) else vars(value).values()
    return sum(array_bytes(part) for part in parts)


drawn_once = Drawn(LIMIT)
