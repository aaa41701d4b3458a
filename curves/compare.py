"""Comparison of a run with a reference: the band of the seeds per scalar, and steps at which the run leaves it."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from curves.alarms import Watch
from curves.history import Curve, averaged, smoothed
from curves.rules import ABOVE, BELOW, MACHINE, RULES, reason_of

WINDOW = 15              # running means are over one point in so many
WIDENED = 3              # margin of a band = 3 / (number of seeds - 1) times the range of the seeds ...
TOLERANCE = 0.1          # ... plus this share of the range of the scalar over the complete reference
ROUNDING = 0.01          # ... and of its size
LONG, ENOUGH = 10, 5     # out of the band for one point in so many on end, and for so many (or all), is for long
FEWEST = 3               # points to compare


class Band(NamedTuple):
    """The normal range of a scalar, each (N,).

    steps:              rising
    low, median, high:  of the seeds
    floor, ceiling:     the range of other seeds of the recipe; infinite where that is unknown
    """
    steps: np.ndarray
    low: np.ndarray
    median: np.ndarray
    high: np.ndarray
    floor: np.ndarray
    ceiling: np.ndarray


class Anomaly(NamedTuple):
    """An anomaly of a scalar: its first and last step, and its line of text."""
    first: int
    last: int
    scalar: str
    text: str


@dataclass(frozen=True)
class ScalarComparison:
    """One scalar of a run and of a reference.

    curve:     the run's Curve as logged
    calm:      its running means on the band's steps (N,)
    band:      Band of the reference on the common steps
    reference: Band on all steps of the reference, for drawing
    """
    scalar: str
    curve: Curve
    calm: np.ndarray
    band: Band
    reference: Band


def compare(run, reference, same_config=True):
    """{scalar: Curve} of a run, Reference -> (list of ScalarComparison, {scalar: Anomaly}, the earliest first).

    A scalar has one Anomaly at most: it breaks a hard rule, leaves its band for long, or is not finite. Bands apply to
    the same config only.
    """
    panels = [make_panel(scalar, curve, [seed[scalar] for seed in reference.seeds.values() if scalar in seed],
                         same_config) for scalar, curve in run.items()]
    panels = [panel for panel in panels if panel is not None]
    found = {}
    for anomaly in [*map(out_of_band, panels), *hard_anomalies(run)]:
        if anomaly is not None:       # a hard rule decides, but the scalar may have left its band before
            before = found.get(anomaly.scalar, anomaly)
            found[anomaly.scalar] = anomaly._replace(first=min(anomaly.first, before.first))
    for scalar, curve in run.items():
        if scalar not in found and (anomaly := not_finite(scalar, curve)):
            found[scalar] = anomaly
    return panels, {anomaly.scalar: anomaly for anomaly in sorted(found.values())}


def make_panel(scalar, curve, seeds, banded=True):
    """The ScalarComparison of a run's Curve and the seeds', or None where they have no steps in common."""
    grid = common_steps(curve.finite(), seeds)
    if not len(grid):
        return None
    return ScalarComparison(scalar, curve, smoothed(averaged(curve, grid), window(seeds, grid)),
                            make_band(seeds, grid, banded), make_band(seeds, common_steps(seeds[0], seeds), banded))


def common_steps(curve, seeds):
    """The steps of the side that logged less often, within the range of both."""
    if not seeds or not len(curve.steps):
        return np.array([], int)
    first, last = (end(*(side.steps[i] for side in (curve, *seeds))) for end, i in ((max, 0), (min, -1)))
    return min((side.steps[(side.steps >= first) & (side.steps <= last)] for side in (curve, *seeds)), key=len)


def window(seeds, grid):
    """Width of running means on steps `grid`: over a WINDOW-th of what the reference has, on the grid or beyond it."""
    steps = seeds[0].steps
    each = max(1, np.count_nonzero((steps >= grid[0]) & (steps <= grid[-1]))) / len(grid)
    return max(1, round(len(steps) / WINDOW / each))


def make_band(seeds, grid, banded=True):
    """The Band of several Curves on steps `grid`; widened by ratios where all values are above 0.

    Its floor and ceiling are infinite for one seed, and if not `banded`.
    """
    width = window(seeds, grid)
    values = np.stack([smoothed(averaged(seed, grid), width) for seed in seeds])
    whole = np.concatenate([smoothed(seed.values, window([seed], seed.steps)) for seed in seeds])
    ratios = (whole > 0).all()
    if ratios:
        values, whole = np.log(values), np.log(whole)
    low, median, high = values.min(0), np.median(values, 0), values.max(0)
    margin = np.full(len(grid), np.inf)      # one seed has no range
    if banded and len(seeds) > 1:
        margin = (WIDENED / (len(seeds) - 1) * smoothed(high - low, 3 * width) + TOLERANCE * np.ptp(whole)
                  + ROUNDING * (1 if ratios else np.abs(whole).max()))
    band = low, median, high, low - margin, high + margin
    return Band(grid, *(map(np.exp, band) if ratios else band))


# ---------------------------------------------------------------------------- what is not normal

def out_of_band(panel):
    """The Anomaly that a run is out of the band for long, of the longest such stretch; or None."""
    if panel.scalar in MACHINE:
        return None
    band, calm, stretches = panel.band, panel.calm, []
    for side, out in ((BELOW, calm < band.floor), (ABOVE, calm > band.ceiling)):
        turns = np.flatnonzero(np.diff(np.concatenate([[0], out, [0]])))
        stretches += [(stop - start, start, stop, side) for start, stop in zip(turns[::2], turns[1::2])]
    length, start, stop, side = max(stretches, default=(0, 0, 0, None))
    if len(calm) < FEWEST or length < max(len(calm) / LONG, min(len(calm), ENOUGH)):
        return None
    first, last = int(band.steps[start]), int(band.steps[stop - 1])
    ours, theirs = np.median(calm[start:stop]), np.median(band.median[start:stop])
    until = 'on' if stop == len(calm) else f'to {last}'
    return Anomaly(first, last, panel.scalar, f'{panel.scalar}: {side} the band from step {first} {until} '
                   f'({ours:.3g}, there {theirs:.3g}): {reason_of(panel.scalar, side)}')


def not_finite(scalar, curve):
    """The Anomaly that a Curve has points that are not finite, or None."""
    steps = curve.steps[~np.isfinite(curve.values)]
    if not len(steps):
        return None
    return Anomaly(int(steps[0]), int(steps[-1]), scalar, f'{scalar}: not finite at {len(steps)} of '
                   f'{len(curve.steps)} points, first at step {steps[0]}')


def hard_anomalies(run):
    """Anomalies of the scalars that break a rule with a limit, independent of a reference."""
    found = []
    for rule in RULES:
        matching = [scalar for scalar in run if rule.matches(scalar)] if rule.limit is not None else []
        for group in [matching] if rule.together and matching else [[scalar] for scalar in matching]:
            found += broken_by(rule, {scalar: run[scalar] for scalar in group})
    return found


def broken_by(rule, curves):
    """Anomalies by which {scalar: Curve} break a rule, as in training, each until the rule holds again."""
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
