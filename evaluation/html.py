"""report.html: the whole result in one file without scripts or external resources."""

import base64
import math
from functools import partial
from pathlib import Path

from evaluation.report import ranked
from evaluation.scores import mean
from evaluation.tables import heading, notes, number, table_cell, table_columns, table_rows
from metrics.catalogue import CATALOGUE
from support.files import written_whole
from support.pages import fill

SHOWN = 4                    # number of worst clips, and of best ones
WIDTH, HEIGHT = 300, 72      # of a plot, in units of its view box
BINS = 30
NAMED = 20                   # most clips that a block of a distribution names, with their values


def write_html(path, report, pictures):
    """Write the report to `path`, whole or not at all.

    report:   evaluation.report.Report
    pictures: {clip name: path of its picture}; missing ones are left out
    """
    measure, rows = ranked(report.rows, report.summary)
    count = min(SHOWN, max(len(rows) // 2, 1))
    text = fill(
        Path(__file__).with_name('report.html.j2'), heading=_heading, number=number, cell=partial(table_cell, report),
        CATALOGUE=CATALOGUE, report=report, columns=table_columns(report), lines=table_rows(report),
        notes=notes(report), measure=measure, bins=BINS,
        distributions=[_distribution(report.rows, name) for name in report.summary['counts']],
        clips=[('Worst clips', [_card(row, pictures) for row in rows[:count]]),
               ('Best clips', [_card(row, pictures) for row in rows[::-1][:count if len(rows) > 1 else 0]])])
    with written_whole(path) as unfinished:
        unfinished.write_text(text, encoding='utf-8')


def _heading(name):
    """`heading` with non-breaking spaces before the arrow and within ranges."""
    return '\N{NO-BREAK SPACE}'.join(heading(name).replace(', ', ',\N{NO-BREAK SPACE}').rsplit(' ', 1))


# ---------------------------------------------------------------------------- plots

def _distribution(rows, name):
    """A histogram over clips: {'name', 'low', 'high', 'mean', 'at', 'blocks': [(x, y, height, names of clips)]}."""
    values = {row.clip: mean(row.scores[name]) for row in rows if name in row.scores}
    values = {clip: value for clip, value in values.items() if value is not None}
    if not values:
        return {'name': name, 'blocks': []}
    low, high, middle = min(values.values()), max(values.values()), mean(values.values())
    spread, bins = (high - low) or 1, [[] for _ in range(BINS)]
    for clip, value in values.items():
        bins[min(int((value - low) / spread * BINS), BINS - 1)].append(f'{clip}: {number(name, value)}')
    tall = min(HEIGHT / max(map(len, bins)), 14)
    blocks = [(i * WIDTH / BINS, HEIGHT - len(clips) * tall, len(clips) * tall, ', '.join(clips[:NAMED]))
              for i, clips in enumerate(bins) if clips]
    return {'name': name, 'low': low, 'high': high, 'mean': middle, 'blocks': blocks,
            'at': min((middle - low) / spread, 1) * WIDTH}


def _card(row, pictures):
    """Data of one clip for the template."""
    picture = pictures.get(row.clip)
    data = base64.b64encode(picture.read_bytes()).decode() if picture is not None and picture.is_file() else None
    return {'clip': row.clip, 'frames': row.frames, 'picture': data,
            'curves': [_curve(row, name) for name in row.scores if mean(row.scores[name]) is not None]}


def _curve(row, name):
    """A metric over the frames of a clip, with gaps where it is undefined, and that of the copied source."""
    values, copied = row.scores[name], row.copied.get(name, [])
    finite = [value for value in values + copied if math.isfinite(value)]
    low, high = min(finite), max(finite)
    return {'name': name, 'mean': mean(values), 'low': low, 'high': high,
            'path': _path(values, low, high), 'copied': _path(copied, low, high)}


def _path(values, low, high):
    """SVG path through the finite values: time to the right, values upwards."""
    parts, pen = [], 'M'
    for i, value in enumerate(values):
        if not math.isfinite(value):
            pen = 'M'
            continue
        x = (i + 0.5) * WIDTH / len(values)
        y = HEIGHT - 4 - (value - low) / ((high - low) or 1) * (HEIGHT - 8)
        parts.append(f'{pen}{x:.1f} {y:.1f}')
        pen = 'L'
        if not any(map(math.isfinite, values[i + 1:i + 2])):
            parts.append('h.01')      # a lone frame is a dot
    return ''.join(parts)
