"""Anomalies of a complete run: scalars that cross a limit of curves/rules.yaml for long, or are not finite."""

from typing import NamedTuple

import numpy as np

from curves.alarms import Watch
from curves.rules import RULES


class Anomaly(NamedTuple):
    """An anomaly of a scalar: its first and last step, and its line of text."""
    first: int
    last: int
    scalar: str
    text: str


def find_anomalies(run):
    """{scalar: Curve} of a run -> {scalar: Anomaly}, the earliest first; of a crossed limit, else of missing values."""
    found = {}
    for rule in RULES:
        matching = [scalar for scalar in run if rule.matches(scalar)]
        for group in [matching] if rule.together and matching else [[scalar] for scalar in matching]:
            for anomaly in broken_by(rule, {scalar: run[scalar] for scalar in group}):
                found[anomaly.scalar] = anomaly
    for scalar, curve in run.items():
        steps = curve.steps[~np.isfinite(curve.values)]
        if len(steps):
            found.setdefault(scalar, Anomaly(
                int(steps[0]), int(steps[-1]), scalar,
                f'{scalar}: not finite at {len(steps)} of {len(curve.steps)} points, first at step {steps[0]}'))
    return {anomaly.scalar: anomaly for anomaly in sorted(found.values())}


def broken_by(rule, curves):
    """Anomalies of {scalar: Curve} by a rule, applied as in training: from its first alarm until the rule holds again.
    """
    watch, lines, raised, last = Watch([rule]), {}, None, None
    for scalar, curve in curves.items():
        for step, value in zip(*curve):
            lines.setdefault(int(step), {})[scalar] = value
    for last in sorted(lines):
        new, over = watch({'step': last} | lines[last])
        raised = raised or (new[0] if new else None)
        if over:
            break
    if raised is None:
        return []
    return [Anomaly(raised.since, last, scalar, f'{scalar}: {value:.3g} at step {raised.step}, {rule.side} '
                    f'{rule.limit:g} since step {raised.since}: {rule.reason}')
            for scalar, value in raised.broken.items()]
