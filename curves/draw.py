"""Plots of a run over the seeds of a reference, one panel per scalar."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter

from curves.reference import thinned

COLUMNS, PANEL, HEAD = 6, (2.8, 1.85), 0.75    # of panels; inches
DECADES = 20                             # ratio of largest to smallest from which an axis is logarithmic
RUN, SEED, OUTSIDE, OUTSIDE_TEXT = '#0b6e75', '#999999', '#e0912f', '#a85f00'
ORDER = ('', 'validation', 'diagnostics', 'codes_used', 'perplexity', 'data', 'copying_source')


def draw(run, reference, anomalies, name):
    """A matplotlib Figure of the run `name`, {scalar: Curve}, over a Reference; {scalar: Anomaly} are highlighted."""
    scalars = sorted(run, key=place)
    columns = min(COLUMNS, len(scalars))
    rows = -(-len(scalars) // columns)
    width, height = columns * PANEL[0], rows * PANEL[1] + HEAD
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(left=0.5 / width, right=1 - 0.15 / width, bottom=0.5 / height,
                           top=1 - (HEAD + 0.25) / height, wspace=0.24, hspace=0.38)
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False).flatten()
    for i, (axes, scalar) in enumerate(zip(grid, scalars)):
        seeds = [seed[scalar] for seed in reference.seeds.values() if scalar in seed]
        draw_panel(axes, run[scalar], seeds, anomalies.get(scalar))
        axes.set_title(scalar, fontsize=9, color=OUTSIDE_TEXT if scalar in anomalies else 'black',
                       fontweight='bold' if scalar in anomalies else 'normal')
        if i >= len(scalars) - columns:       # the lowest of its column
            axes.tick_params(labelbottom=True)
            axes.set_xlabel('step', fontsize=9)
    for axes in grid[len(scalars):]:
        axes.remove()
    figure.text(0.5, 1 - 0.22 / height, f'{name} compared with {reference.name}', fontsize=14, ha='center', va='center')
    figure.legend(handles=[Line2D([], [], color=RUN, linewidth=1.6, label=name),
                           Line2D([], [], color=SEED, linewidth=1, label=f'{reference.name}, {reference.counted}'),
                           Patch(color=OUTSIDE, alpha=0.4, label='anomaly: see the printed line')],
                  loc='center', bbox_to_anchor=(0.5, 1 - 0.55 / height), ncols=3, frameon=False, fontsize=10)
    return figure


def place(scalar):
    """Sort key of a scalar: the index of its group in ORDER; within a group the log's order stays."""
    group = scalar.rpartition('/')[0]
    return ORDER.index(group) if group in ORDER else len(ORDER)


def draw_panel(axes, curve, seeds, anomaly):
    """The Curve of a run over those of the seeds; crosses where it is not finite."""
    steps, values = curve.finite()
    for seed in seeds:
        axes.plot(*seed, color=SEED, linewidth=1)
    axes.plot(steps, values, color=RUN, linewidth=0.6, alpha=0.35)
    axes.plot(*thinned(curve.finite()), color=RUN, linewidth=1.6)
    scale(axes, np.concatenate([values, *(seed.values for seed in seeds)]))
    broken = curve.steps[~np.isfinite(curve.values)]
    axes.plot(broken, np.zeros(len(broken)), 'x', color=OUTSIDE, transform=axes.get_xaxis_transform(), clip_on=False)
    if anomaly:
        axes.axvspan(anomaly.first, anomaly.last, color=OUTSIDE, alpha=0.18, linewidth=0)
    axes.tick_params(labelsize=7.5)
    axes.spines[['top', 'right']].set_visible(False)


def scale(axes, values):
    """Make the y axis logarithmic if all values are positive and span more than a factor of DECADES."""
    if len(values) and values.min() > 0 and values.max() / values.min() > DECADES:
        axes.set_yscale('log')
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.ticklabel_format(axis='y', scilimits=(-2, 4))
        axes.yaxis.offsetText.set_fontsize(7.5)
