"""A run beside a reference: for each scalar the band of the reference's seeds, and whether the run left it for long."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from curves.alarms import Watch
from curves.history import Curve, averaged, smoothed
from curves.rules import ABOVE, BELOW, MACHINE, RULES, reason_of

WINDOW = 15              # running means are over one point in so many
WIDENED = 3              # over one less than the seeds: by so many times their distance others may lie beyond them ...
TOLERANCE = 0.1          # ... and by so much of the way that a scalar goes over the whole reference
ROUNDING = 0.01          # ... and of its size
LONG, ENOUGH = 10, 5     # out of the band for one point in so many on end, and for so many (or all), is for long
FEWEST = 3               # points that can be judged


class Band(NamedTuple):
    """What is normal for a scalar, each (N,).

    steps:              rising
    low, median, high:  of the seeds
    floor, ceiling:     between which other seeds of the recipe stay; infinite where that is unknown
    """
    steps: np.ndarray
    low: np.ndarray
    median: np.ndarray
    high: np.ndarray
    floor: np.ndarray
    ceiling: np.ndarray


class Finding(NamedTuple):
    """What is not normal of a scalar: from which step to which, and the line that says so."""
    first: int
    last: int
    scalar: str
    text: str


@dataclass(frozen=True)
class Panel:
    """One scalar of a run beside a reference.

    curve:     the run's Curve as it was logged
    calm:      the same as running means on the band's steps (N,)
    band:      Band of the reference on the steps that both have
    reference: Band of all its own steps, to be drawn
    """
    scalar: str
    curve: Curve
    calm: np.ndarray
    band: Band
    reference: Band


def compare(run, reference, same_config=True):
    """{scalar: Curve} of a run and a Reference -> (Panels, in the run's order; Findings by scalar, the earliest first).

    A scalar has one Finding at most: that it breaks a hard rule, or left its band for long, or is not finite. Without
    the same config, bands do not apply.
    """
    panels = [make_panel(scalar, curve, [seed[scalar] for seed in reference.seeds.values() if scalar in seed],
                         same_config) for scalar, curve in run.items()]
    panels = [panel for panel in panels if panel is not None]
    found = {}
    for finding in [*map(out_of_band, panels), *hard_findings(run)]:
        if finding is not None:       # a hard rule has the last word, but the scalar may have left its band before
            before = found.get(finding.scalar, finding)
            found[finding.scalar] = finding._replace(first=min(finding.first, before.first))
    for scalar, curve in run.items():
        if scalar not in found and (finding := not_finite(scalar, curve)):
            found[scalar] = finding
    return panels, {finding.scalar: finding for finding in sorted(found.values())}


def make_panel(scalar, curve, seeds, banded=True):
    """The Panel of a run's Curve and the seeds', or None where they have no steps in common."""
    grid = common_steps(curve.finite(), seeds)
    if not len(grid):
        return None
    return Panel(scalar, curve, smoothed(averaged(curve, grid), window(seeds, grid)),
                 make_band(seeds, grid, banded), make_band(seeds, common_steps(seeds[0], seeds), banded))


def common_steps(curve, seeds):
    """Steps at which both sides have figures: of the side that logged less often."""
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
    margin = np.full(len(grid), np.inf)
    if banded and len(seeds) > 1:
        margin = (WIDENED / (len(seeds) - 1) * smoothed(high - low, 3 * width) + TOLERANCE * np.ptp(whole)
                  + ROUNDING * (1 if ratios else np.abs(whole).max()))
    band = low, median, high, low - margin, high + margin
    return Band(grid, *(map(np.exp, band) if ratios else band))


# ---------------------------------------------------------------------------- what is not normal

def out_of_band(panel):
    """The Finding that a run is out of the band for long, of the longest such stretch; or None."""
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
    return Finding(first, last, panel.scalar, f'{panel.scalar}: {side} the band from step {first} {until} '
                   f'({ours:.3g}, there {theirs:.3g}): {reason_of(panel.scalar, side)}')


def not_finite(scalar, curve):
    """The Finding that a Curve has points that are not finite, or None."""
    steps = curve.steps[~np.isfinite(curve.values)]
    if not len(steps):
        return None
    return Finding(int(steps[0]), int(steps[-1]), scalar, f'{scalar}: not finite at {len(steps)} of '
                   f'{len(curve.steps)} points, first at step {steps[0]}')


def hard_findings(run):
    """Findings of the scalars that break a rule with a limit, whatever a reference says."""
    found = []
    for rule in RULES:
        matching = [scalar for scalar in run if rule.matches(scalar)] if rule.limit is not None else []
        for group in [matching] if rule.together and matching else [[scalar] for scalar in matching]:
            found += broken_by(rule, {scalar: run[scalar] for scalar in group})
    return found


def broken_by(rule, curves):
    """Findings that {scalar: Curve} break a rule, as training would have found it, until it holds again."""
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
    return [Finding(raised.since, last, scalar, f'{scalar}: {value:.3g} at step {raised.step}, {rule.side} '
                    f'{rule.limit:g} since step {raised.since}: {rule.reason}')
            for scalar, value in raised.broken.items()]
