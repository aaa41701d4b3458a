"""A Report for people: as plain text, as Markdown, and the sentences that belong under any table of it."""

from evaluation.published import TABLES
from evaluation.report import GAIN
from metrics.catalogue import CATALOGUE


def table_rows(report):
    """The rows of the table: ours, [(label, {metric id: value})], and the paper's, [(table, rows like ours)]."""
    ours = [('this result', report.summary['model'])]
    if report.summary['copy']:
        ours.append(('copy of the source', report.summary['copy']))
    return ours, [(table, list(TABLES[table].items())) for table in report.tables]


def table_columns(report):
    """Metric ids of the table: the paper's, then those that only we have."""
    published = [name for table in report.tables for row in TABLES[table].values() for name in row]
    return list(dict.fromkeys([*published, *report.summary['model'], *report.skipped]))


def table_cell(report, name, values):
    """What the table shows of {metric id: value}: a number, a dash where there was nothing finite, or a reason."""
    if name in values:
        return number(name, values[name])
    return 'skipped' if name in report.skipped and values is report.summary['model'] else ''


def heading(name):
    """'PSNR dB ↑' for a metric id."""
    metric = CATALOGUE[name]
    return ' '.join(filter(None, (metric.column, metric.unit, '↓' if metric.direction == 'lower' else '↑')))


def number(name, value):
    """The value as a table shows it; a dash where there is none."""
    return '–' if value is None else f'{value:.{CATALOGUE[name].decimals}f}'


def verdict(summary):
    """In one sentence, whether the model beats the copy; '' where that was not measured."""
    gain = summary[GAIN]
    if gain is None:
        return ''
    return f'{abs(gain):.2f} dB {"better" if gain >= 0 else "WORSE"} than copying the source'


def misses(summary):
    """Sentences about frames in which no face was found."""
    return [f'{name}: no face in ' + ', '.join(f'{count} {side} frame(s)' for side, count in counts['misses'].items())
            for name, counts in summary['counts'].items() if counts['misses']]


def format_table(report):
    """The result as plain text for a terminal."""
    summary, names = report.summary, list(report.summary['model'])
    width = {name: max(len(heading(name)), 9) for name in names}
    lines = [' ' * 20 + '  '.join(heading(name).rjust(width[name]) for name in names)]
    for label, values in table_rows(report)[0]:
        cells = (table_cell(report, name, values) for name in names)
        lines.append(f'{label:<20}' + '  '.join(cell.rjust(width[name]) for name, cell in zip(names, cells)))
    coverage = report.about.get('coverage')
    listed = f' of {coverage["listed"]} listed' if coverage else ''
    lines.append(f'means over {summary["clips"]} clips{listed}, {summary["frames"]} frames')
    if verdict(summary):
        lines.append(f'the result is {verdict(summary)}')
    lines += [f'codes of {name}: {use["used"]} of {use["codes"]} in use, perplexity {use["perplexity"]:.1f}'
              for name, use in report.codebooks.items()]
    lines += misses(summary)
    lines += [f'{name} skipped: {why}' for name, why in report.skipped.items()]
    return '\n'.join(lines)


def as_markdown(report):
    """The table, ours and the paper's, with what it takes to read it."""
    names, (ours, published) = table_columns(report), table_rows(report)

    def row(label, values):
        return f'| {label} | ' + ' | '.join(table_cell(report, name, values) for name in names) + ' |'

    lines = ['| | ' + ' | '.join(heading(name) for name in names) + ' |', '|---' * (len(names) + 1) + '|',
             *(row(f'**{label}**', values) for label, values in ours)]
    for table, rows in published:
        lines += [row(f'*{table}*', {}), *(row(label, values) for label, values in rows)]
    lines += ['', *(f'- {sentence}' for sentence in notes(report)), '']
    described = (CATALOGUE[name] for name in report.summary['model'])
    lines += [f'- `{metric.id}`: {metric.definition} ({metric.source})' for metric in described]
    return '\n'.join(lines) + '\n'


def notes(report):
    """Sentences that belong under the table: what was done, on how much of the list, what is missing."""
    summary, about = report.summary, report.about
    coverage = about.get('coverage', {})
    sentences = [f'{about["protocol"]["name"]}: {about["protocol"]["text"]}',
                 f'means over {summary["clips"]} clips, {summary["frames"]} frames']
    if coverage:
        sentences.append(f'list {about["list"]["name"]} ({about["list"]["sha256"][:12]}): '
                         f'{coverage["found"]} of {coverage["listed"]} clips found')
        sentences += [f'{what}: {_some(coverage[what])}' for what in ('missing', 'extra') if coverage[what]]
        sentences += [f'not scored: {name}: {why}' for name, why in coverage['problems'].items()]
    if verdict(summary):
        sentences.append(f'this result is {verdict(summary)}')
    if report.tables:
        sentences.append('published rows: arXiv 2412.00719, at 256 px; the paper does not name its clips, so its last '
                         'digits mean little beside these')
    sentences += misses(summary)
    sentences += [f'{name} skipped: {why}' for name, why in report.skipped.items()]
    return sentences


def _some(names, most=5):
    return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '')
