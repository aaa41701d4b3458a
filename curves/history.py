"""The logged scalars of a run."""

from typing import NamedTuple

import numpy as np

from logger import RunFolder
from support.errors import UserError, did_you_mean


class Curve(NamedTuple):
    """A scalar over training: steps (N,), rising; values (N,), which may be NaN or infinite."""
    steps: np.ndarray
    values: np.ndarray

    def finite(self):
        keep = np.isfinite(self.values)
        return Curve(self.steps[keep], self.values[keep])


def read_run(folder):
    """{scalar: Curve} of the run in a folder (Path), in the order of its log.

    Raises UserError if nothing is logged.
    """
    points = {}
    for line in RunFolder(folder, writes=False).figures():
        step = line['step']
        for name, value in line.items():
            if name == 'step' or not isinstance(value, (int, float)):
                continue
            steps, values = points.setdefault(name, ([], []))
            while steps and steps[-1] >= step:      # a run resumed from an earlier step: the later line counts
                steps.pop(), values.pop()
            steps.append(step), values.append(value)
    if not points:
        logs = sorted(str(path.parent) for path in folder.parent.glob('*/log.jsonl'))
        raise UserError(f'{folder}: log.jsonl holds no values; give the folder of a run that has trained with --run'
                        f'{did_you_mean(folder, logs)}')
    return {name: Curve(np.array(steps), np.array(values, float)) for name, (steps, values) in points.items()}
