"""One stored value against ours, and how far apart the two may be."""

from typing import NamedTuple

import numpy as np

FLOW = (8e-5, 1e-5)            # ten times the fp32 rounding of the released code
FEATURE = (7e-3, 3e-4)
IMAGE = (7e-3, 3e-4)
UNIT = (7e-4, 3e-5)            # images in [0, 1], features of order 1; the paper's are ten times as large


class Comparison(NamedTuple):
    """`largest` and `mean` are the tolerated absolute differences."""
    name: str
    ours: np.ndarray
    theirs: np.ndarray
    largest: float
    mean: float

    def verdict(self):
        """(largest difference, mean difference, whether both are tolerated)."""
        if self.ours.shape != self.theirs.shape:
            return float('inf'), float('inf'), False
        difference = np.abs(self.ours.astype(np.float64) - self.theirs.astype(np.float64))
        largest, mean = float(difference.max()), float(difference.mean())
        return largest, mean, bool(largest <= self.largest and mean <= self.mean)


def numpy(tensor):
    return tensor.detach().cpu().numpy()


THINNED = ('_s4', '_sub', '_c8', '_lr_0')


def stored(fixture, name, ours, tolerance):
    """Comparison of a tensor with the fixture's value `name`; THINNED ones hold every n-th place of an axis alone."""
    theirs = fixture[name]
    if name.endswith(THINNED):
        ours = ours[tuple(slice(None, None, max(-(-own // kept), 1)) for own, kept in zip(ours.shape, theirs.shape))]
    return Comparison(name, numpy(ours), theirs, *tolerance)


def relative(name, ours, theirs, tolerance=1e-3, floor=1e-6):
    """Comparison of two scalars: relative tolerance `tolerance` of theirs, absolute tolerance `floor`."""
    ours, theirs = float(ours), float(theirs)
    limit = max(tolerance * abs(theirs), floor)
    return Comparison(name, np.array([ours]), np.array([theirs]), limit, limit)


def relative_array(name, ours, theirs, tolerance=1e-3):
    """Comparison of two arrays: `tolerance` is relative to the largest absolute value of theirs."""
    limit = tolerance * float(np.abs(theirs).max())
    return Comparison(name, numpy(ours), theirs, limit, limit)
