"""A Report for people: plain text, Markdown, and report.html without scripts or external resources."""

import base64
from functools import partial
from pathlib import Path

from evaluation.published import TABLES
from evaluation.report import COMPARED, GAIN, ranked
from evaluation.scores import mean
from metrics.catalogue import CATALOGUE
from support.pages import fill

SHOWN = 4                    # number of worst clips, and of best ones, in report.html


def table_rows(report):
    """The rows of the table: (this result's [(label, {metric id: value})], the paper's [(heading, rows likewise)])."""
    summary = report.summary
    ours = [('mean over clips', summary['model']), ('mean over frames', summary['frame_weighted_model'])]
    if summary[GAIN] is not None:
        ours.append(('mean over clips without the source frame', {'psnr.rgb': summary[COMPARED]['model']}))
    if summary['copy']:
        ours.append(('source copied, without the source frame', summary['copy']))
    return ours, [(f'{table}, as published: mean over frames', list(TABLES[table].items())) for table in report.tables]


def table_columns(report):
    """Metric ids of the table: the paper's columns first."""
    published = [name for table in report.tables for row in TABLES[table].values() for name in row]
    return list(dict.fromkeys([*published, *report.summary['model'], *report.skipped]))


def table_cell(report, name, values):
    """Text of a cell for {metric id: value}: a number, a dash where none is finite, 'skipped', or nothing."""
    if name in values:
        return number(name, values[name])
    return 'skipped' if name in report.skipped and values is report.summary['model'] else ''


def heading(name):
    """Heading of a metric's column, such as 'PSNR dB ↑'."""
    metric = CATALOGUE[name]
    return ' '.join(filter(None, (metric.column, metric.unit, '↓' if metric.direction == 'lower' else '↑')))


def number(name, value):
    """The value with the metric's decimals; a dash for None."""
    return '–' if value is None else f'{value:.{CATALOGUE[name].decimals}f}'


def _remarks(report):
    """Sentences: the gain, movements within clips, frames without a face, too few frames for FID, what is skipped."""
    summary, frames, remarks = report.summary, report.summary['frames'], []
    if summary[GAIN] is not None:
        made, copy = (round(summary[COMPARED][side], 2) for side in ('model', 'copy'))
        remarks.append(f'PSNR without the source frame: {abs(made - copy):.2f} dB '
                       f'{"better" if made >= copy else "worse"} than the copied source')
    for name, found in summary['details'].items():
        values = (f'{key} {"–" if value is None else f"{value:.2f}"}' for key, value in found.items())
        remarks.append(f'{name}, within clips: ' + '; '.join(values))
    for name, counts in summary['counts'].items():
        if counts['misses']:
            sides = (f'{count} {side} frame(s)' for side, count in counts['misses'].items())
            remarks.append(f'{name}: no face in ' + ', '.join(sides))
    fid = [name for name in report.distances if name.startswith('fid.')]
    if fid and frames < 2048:
        remarks.append(f'{", ".join(fid)}: {frames} frames are fewer than 2048 features, which biases it; compare it '
                       'with results on the same frames only')
    return remarks + [f'{name} skipped: {why}' for name, why in report.skipped.items()]


def format_table(report):
    summary, names = report.summary, list(report.summary['model'])
    rows = table_rows(report)[0]
    first, width = max(len(label) for label, _ in rows) + 2, {name: max(len(heading(name)), 9) for name in names}
    lines = [' ' * first + '  '.join(heading(name).rjust(width[name]) for name in names)]
    for label, values in rows:
        cells = (table_cell(report, name, values) for name in names)
        lines.append(label.ljust(first) + '  '.join(cell.rjust(width[name]) for name, cell in zip(names, cells)))
    coverage = report.about.get('coverage')
    listed = f' of {coverage["listed"]} listed' if coverage else ''
    lines.append(f'{summary["clips"]} clips{listed}, {summary["frames"]} frames')
    lines += [f'codes of {name}: {use["used"]} of {use["codes"]} in use, perplexity {use["perplexity"]:.1f}'
              for name, use in report.codebooks.items()]
    return '\n'.join(lines + _remarks(report))


def as_markdown(report):
    """The table of the result and the paper's, with notes and definitions."""
    ours, published = table_rows(report)
    return fill(Path(__file__).with_name('metrics.md.j2'), columns=table_columns(report), heading=heading,
                cell=partial(table_cell, report), ours=ours, published=published, notes=notes(report),
                metrics=[CATALOGUE[name] for name in report.summary['model']])


def as_html(report, pictures):
    """report.html: the whole result in one file. pictures: {clip: path of its picture}; missing ones are left out."""
    def column(name):
        """`heading` with non-breaking spaces before the arrow and within ranges."""
        return '\N{NO-BREAK SPACE}'.join(heading(name).replace(', ', ',\N{NO-BREAK SPACE}').rsplit(' ', 1))

    def card(row):
        picture = pictures.get(row.clip)
        data = base64.b64encode(picture.read_bytes()).decode() if picture is not None and picture.is_file() else None
        means = {name: mean(values) for name, values in row.scores.items()}
        return {'clip': row.clip, 'frames': row.frames, 'picture': data,
                'means': {name: value for name, value in means.items() if value is not None}}

    measure, rows = ranked(report.rows, report.summary)
    count = min(SHOWN, max(len(rows) // 2, 1))
    clips = [('Worst clips', [card(row) for row in rows[:count]]),
             ('Best clips', [card(row) for row in rows[::-1][:count if len(rows) > 1 else 0]])]
    return fill(Path(__file__).with_name('report.html.j2'), heading=column, number=number, report=report,
                cell=partial(table_cell, report), CATALOGUE=CATALOGUE, columns=table_columns(report),
                lines=table_rows(report), notes=notes(report), measure=measure, clips=clips)


def notes(report):
    """Sentences below the table: protocol, coverage of the list, missing clips, remarks."""
    summary, about = report.summary, report.about
    coverage = about.get('coverage', {})
    sentences = [f'{about["protocol"]["name"]}: {about["protocol"]["text"]}',
                 f'{summary["clips"]} clips, {summary["frames"]} frames']
    if coverage:
        sentences.append(f'list {about["list"]["name"]} ({about["list"]["sha256"][:12]}): '
                         f'{coverage["found"]} of {coverage["listed"]} clips found')
        sentences += [f'{what}: {_some(coverage[what])}' for what in ('missing', 'extra') if coverage[what]]
        sentences += [f'not scored: {name}: {why}' for name, why in coverage['problems'].items()]
    if report.tables:
        sentences.append('published rows: arXiv 2412.00719, for orientation only: 50 other clips of the dataset, which '
                         'the paper does not list')
    return sentences + _remarks(report)


def _some(names, most=5):
    return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '')
