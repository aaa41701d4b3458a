"""Plots of a run over its reference, one panel per scalar."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter

COLUMNS, PANEL, HEAD = 6, (2.8, 1.85), 0.75    # of panels; inches
DECADES = 20                             # ratio of largest to smallest from which an axis is logarithmic
RUN, MEDIAN, SEEDS, NORMAL = '#0b6e75', '#555555', '#b4b4b4', '#e2e2e2'
OUTSIDE, OUTSIDE_TEXT = '#e0912f', '#a85f00'
ORDER = ('', 'validation', 'diagnostics', 'codes_used', 'perplexity', 'data', 'copying_source')


def draw(panels, anomalies, title, names):
    """A matplotlib Figure of ScalarComparisons; scalars with an anomaly are highlighted.

    title: of the figure; names: (the run's, the reference's with its number of seeds), for the legend
    """
    panels = sorted(panels, key=lambda panel: place(panel.scalar))
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    width, height = columns * PANEL[0], rows * PANEL[1] + HEAD
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(left=0.5 / width, right=1 - 0.15 / width, bottom=0.5 / height,
                           top=1 - (HEAD + 0.25) / height, wspace=0.24, hspace=0.38)
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False).flatten()
    for i, (axes, panel) in enumerate(zip(grid, panels)):
        draw_panel(axes, panel, anomalies.get(panel.scalar))
        if i >= len(panels) - columns:       # the lowest of its column
            axes.tick_params(labelbottom=True)
            axes.set_xlabel('step', fontsize=9)
    for axes in grid[len(panels):]:
        axes.remove()
    figure.text(0.5, 1 - 0.22 / height, title, fontsize=14, ha='center', va='center')
    banded = bool(np.isfinite(panels[0].band.ceiling).all())
    figure.legend(handles=legend(*names, banded), loc='center', bbox_to_anchor=(0.5, 1 - 0.55 / height), ncols=5,
                  frameon=False, fontsize=10)
    return figure


def place(scalar):
    """Groups one after another, losses first; within a group the log's order."""
    group = scalar.rpartition('/')[0]
    return ORDER.index(group) if group in ORDER else len(ORDER)


def draw_panel(axes, panel, anomaly):
    whole, (steps, values) = panel.reference, panel.curve.finite()
    for low, high, colour in ((whole.floor, whole.ceiling, NORMAL), (whole.low, whole.high, SEEDS)):
        axes.fill_between(whole.steps, low, high, where=np.isfinite(high), color=colour, linewidth=0)
    axes.plot(whole.steps, whole.median, color=MEDIAN, linewidth=1)
    axes.plot(steps, values, color=RUN, linewidth=0.6, alpha=0.35)
    axes.plot(panel.band.steps, panel.calm, color=RUN, linewidth=1.6)
    scale(axes, np.concatenate([values, whole.low, whole.high]))
    broken = panel.curve.steps[~np.isfinite(panel.curve.values)]
    axes.plot(broken, np.zeros(len(broken)), 'x', color=OUTSIDE, transform=axes.get_xaxis_transform(), clip_on=False)
    if anomaly:
        axes.axvspan(anomaly.first, anomaly.last, color=OUTSIDE, alpha=0.18, linewidth=0)
    axes.set_title(panel.scalar, fontsize=9, color=OUTSIDE_TEXT if anomaly else 'black',
                   fontweight='bold' if anomaly else 'normal')
    axes.tick_params(labelsize=7.5)
    axes.spines[['top', 'right']].set_visible(False)


def scale(axes, values):
    """Logarithmic where values span decades; limits by the lines, which the band's widening shall not dwarf."""
    values = values[np.isfinite(values)]
    low, high = values.min(), values.max()
    if low > 0 and high / low > DECADES:
        axes.set_yscale('log')
        axes.set_ylim(low / 1.5, high * 1.5)
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        air = 0.12 * (high - low) or 0.1 * abs(high) or 1
        axes.set_ylim(low - air, high + air)
        axes.ticklabel_format(axis='y', scilimits=(-2, 4))
        axes.yaxis.offsetText.set_fontsize(7.5)


def legend(run, reference, banded):
    """Handles; without those of bands where the reference is one seed."""
    bands = [Patch(color=SEEDS, label='its range'), Patch(color=NORMAL, label='judged as normal')] if banded else []
    return [Line2D([], [], color=RUN, linewidth=1.6, label=f'{run}, running mean'),
            Line2D([], [], color=MEDIAN, linewidth=1, label=f'{reference}: {"median" if banded else "running mean"}'),
            *bands, Patch(color=OUTSIDE, alpha=0.4, label='not normal: see the printed line')]
