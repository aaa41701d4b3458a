"""report.html: the whole result in one file without scripts or external resources."""

import base64
from functools import partial
from pathlib import Path

from evaluation.report import ranked
from evaluation.scores import mean
from evaluation.tables import heading, notes, number, table_cell, table_columns, table_rows
from metrics.catalogue import CATALOGUE
from support.files import write_text
from support.pages import fill

SHOWN = 4                    # number of worst clips, and of best ones


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
        notes=notes(report), measure=measure,
        clips=[('Worst clips', [_card(row, pictures) for row in rows[:count]]),
               ('Best clips', [_card(row, pictures) for row in rows[::-1][:count if len(rows) > 1 else 0]])])
    write_text(path, text)


def _heading(name):
    """`heading` with non-breaking spaces before the arrow and within ranges."""
    return '\N{NO-BREAK SPACE}'.join(heading(name).replace(', ', ',\N{NO-BREAK SPACE}').rsplit(' ', 1))


def _card(row, pictures):
    picture = pictures.get(row.clip)
    data = base64.b64encode(picture.read_bytes()).decode() if picture is not None and picture.is_file() else None
    means = {name: mean(values) for name, values in row.scores.items()}
    return {'clip': row.clip, 'frames': row.frames, 'picture': data,
            'means': {name: value for name, value in means.items() if value is not None}}
