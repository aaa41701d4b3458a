"""From frames to tables: scores per frame, their means per clip and over clips, and the report files.

`Scorer` is the one place where frames meet metrics, for a model's output and for videos made elsewhere.
Beside what was generated it can score a copy of the source frame: a model that does not beat the copy
has learnt nothing about motion.
"""

import csv
import hashlib
import importlib.metadata
import json
import math
import platform
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from evaluation.published import TABLES
from metrics.catalogue import CATALOGUE, SetMetric, build
from modules.codebook import perplexity
from support.files import written_whole

GAIN = 'psnr_gain'
MEANS = ('mean: over the frames of a clip, then over clips, so that every clip counts the same; '
         'frame_weighted_mean: every frame counts the same')
GAIN_DEFINITION = ('PSNR of what was generated minus PSNR of the copied source, in dB, per frame, over the frames '
                   'where both are finite (that leaves out the source frame itself)')
COPIED = ('l1.', 'psnr.', 'ssim.', 'lpips.')     # metrics that compare pictures; on a copy the others say nothing
PSNR = 'psnr.rgb'
# By which metric clips are ranked from worst to best: the first of these that was computed.
RANKING = ('lpips.vgg', 'lpips.alex', 'psnr.rgb', 'csim.antelopev2', 'aed.openface_sq_source', 'ard.mediapipe')
PACKAGES = ('torch', 'torchvision', 'numpy', 'lpips', 'face-alignment', 'mediapipe', 'pytorch-fid', 'insightface',
            'onnxruntime')
CODE = 'config', 'datasets', 'evaluation', 'metrics', 'modules', 'support'     # folders that a number may depend on


# ---------------------------------------------------------------------------- scores of a clip

@dataclass
class ClipScores:
    """What was measured on one clip.

    scores:  {metric id: value of every frame}; NaN where it is undefined or no face was found
    copied:  likewise, for the source frame repeated
    misses:  {metric id: {'generated' | 'driving' | 'source': frames without a face}}
    codes:   {codebook and scale: how often each code was chosen}
    """
    clip: str
    frames: int = 0
    scores: dict = field(default_factory=dict)
    copied: dict = field(default_factory=dict)
    misses: dict = field(default_factory=dict)
    codes: dict = field(default_factory=dict)

    def add(self, scores, copied):
        """Values of the next frames, {metric id: (B,)}."""
        for kept, new in ((self.scores, scores), (self.copied, copied)):
            for name, values in new.items():
                kept.setdefault(name, []).extend(values.tolist())

    @property
    def gain(self):
        """PSNR over that of the copy, on every frame where both are finite."""
        pairs = zip(self.scores.get(PSNR, ()), self.copied.get(PSNR, ()))
        return [made - copy for made, copy in pairs if math.isfinite(made - copy)]

    def as_json(self):
        return asdict(self) | {'scores': _encoded(self.scores), 'copied': _encoded(self.copied)}

    @classmethod
    def from_json(cls, stored):
        return cls(**stored | {'scores': _decoded(stored['scores']), 'copied': _decoded(stored['copied'])})


# JSON has neither NaN nor infinity.
def _encoded(scores):
    return {name: [value if math.isfinite(value) else str(value) for value in values]
            for name, values in scores.items()}


def _decoded(scores):
    return {name: [float(value) for value in values] for name, values in scores.items()}


def mean(values):
    """Of the finite values; None if there are none. Rounded once, so it does not depend on their order."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else None


class Scorer:
    """The metrics of some ids that can work here, on one clip after the other.

    copies:  also score the source frame repeated, by the metrics that compare pictures
    skipped: {metric id: why it cannot be computed, and how to get what it needs}
    raises:  UserError for an unknown id
    """

    def __init__(self, ids, device, copies):
        self.device = device
        self.metrics, self.skipped = build(ids, device)
        self.copied, _ = build([name for name in ids if copies and name.startswith(COPIED)], device)

    @property
    def sets(self):
        """Those of the metrics that give one value for all clips together."""
        return [metric for metric in self.metrics if isinstance(metric, SetMetric)]

    @torch.inference_mode()
    def score(self, name, source, batches):
        """Score one clip while its frames stream by; returns ClipScores.

        source:  (H, W, 3) uint8, the image that is animated, or None
        batches: iterator of (driving frames, generated frames), each B frames (H, W, 3) uint8
        """
        source = None if source is None else _unit([source], self.device)[0]
        copied = [] if source is None else self.copied
        for metric in self.metrics + copied:
            metric.start_clip(source)
        clip = ClipScores(name)
        for driving, generated in batches:
            # Metrics know frames that they have seen by their identity, so all get the same tensors.
            driving, generated = _unit(driving, self.device), _unit(generated, self.device)
            for metric in self.sets:
                metric.update(generated, driving)
            scores = {metric.id: metric(generated, driving) for metric in self.metrics if metric not in self.sets}
            repeated = source.expand_as(driving) if copied else None
            clip.add(scores, {metric.id: metric(repeated, driving) for metric in copied})
            clip.frames += len(driving)
        clip.misses = {metric.id: dict(metric.misses) for metric in self.metrics if metric.misses.total()}
        return clip

    def states(self):
        """Sums of the set metrics over the clip that was scored last: {metric id: {name: tensor}}."""
        return {metric.id: metric.state() for metric in self.sets}


def _unit(frames, device):
    """Frames (H, W, 3) uint8 -> (B, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.stack(frames)).to(device).permute(0, 3, 1, 2).float() / 255


def add_states(total, new):
    """Add Scorer.states of another clip or process into `total`, in place."""
    for name, state in new.items():
        kept = total.setdefault(name, {})
        for key, value in state.items():
            kept[key] = kept[key] + value if key in kept else value


# ---------------------------------------------------------------------------- summary

def summarize(rows, states=None):
    """Means over clips.

    rows:    ClipScores of all clips, one at least
    states:  summed states of the set metrics
    returns: {'clips', 'frames', 'model': {metric id: mean}, 'copy': ..., 'psnr_gain', 'frame_weighted_model',
             'frame_weighted_copy', 'counts': {metric id: frames that are finite, infinite, undefined, and misses}};
             a value is None where no finite one was seen
    """
    names, copied = (list(dict.fromkeys(name for row in rows for name in getattr(row, kind)))
                     for kind in ('scores', 'copied'))
    sets = {name: _finite(CATALOGUE[name].compute(state)) for name, state in (states or {}).items()}
    return {
        'clips': len(rows),
        'frames': sum(row.frames for row in rows),
        'model': {name: mean(mean(row.scores[name]) for row in rows) for name in names} | sets,
        'copy': {name: mean(mean(row.copied[name]) for row in rows) for name in copied},
        GAIN: mean(mean(row.gain) for row in rows),
        'frame_weighted_model': {name: mean(value for row in rows for value in row.scores[name]) for name in names},
        'frame_weighted_copy': {name: mean(value for row in rows for value in row.copied[name]) for name in copied},
        'counts': {name: _counts(rows, name) for name in names},
    }


def _finite(value):
    return value if math.isfinite(value) else None


def _counts(rows, name):
    values = [value for row in rows for value in row.scores[name]]
    misses = sum((Counter(row.misses.get(name, {})) for row in rows), Counter())
    return {'finite': sum(map(math.isfinite, values)), 'infinite': sum(map(math.isinf, values)),
            'undefined': sum(map(math.isnan, values)), 'misses': dict(misses)}


def codebook_usage(rows):
    """{codebook and scale: {'codes', 'used', 'perplexity'}} over all clips; {} for models without codes."""
    totals = {}
    for row in rows:
        for name, counts in row.codes.items():
            totals[name] = totals.get(name, 0) + torch.tensor(counts, dtype=torch.float64)
    return {name: {'codes': len(total), 'used': int((total > 0).sum()), 'perplexity': perplexity(total)}
            for name, total in totals.items()}


def ranked(rows, summary):
    """(metric id, rows from worst to best by their mean): the first of RANKING that was computed, or any."""
    name = next((name for name in (*RANKING, *summary['model']) if summary['model'].get(name) is not None
                 and name in summary['counts']), None)
    if name is None:
        return None, []
    sign = -1 if CATALOGUE[name].direction == 'lower' else 1
    values = {id(row): _or_infinite(row.scores[name]) for row in rows}
    known = [row for row in rows if values[id(row)] is not None]
    return name, sorted(known, key=lambda row: sign * values[id(row)])


def _or_infinite(values):
    """The mean; of a clip whose every frame equals its target, infinite PSNR."""
    return math.inf if mean(values) is None and math.inf in values else mean(values)


# ---------------------------------------------------------------------------- files

@dataclass
class Report:
    """A result and all that one must know to compare it.

    about:   {what: in words or figures}: protocol, list, coverage, what was evaluated; goes into the JSON as it is
    tables:  of the paper whose rows stand beside it
    weights: {file name: SHA-256} of the metrics' networks
    """
    rows: list
    skipped: dict
    about: dict
    states: dict = field(default_factory=dict)
    tables: tuple = ()
    weights: dict = field(default_factory=dict)

    def __post_init__(self):
        self.summary = summarize(self.rows, self.states)
        self.codebooks = codebook_usage(self.rows)

    def lines(self):
        """The rows of the table: [(label, {metric id: value})], ours first, then the paper's."""
        ours = [('this result', self.summary['model'])]
        if self.summary['copy']:
            ours.append(('copy of the source', self.summary['copy']))
        return ours, [(table, list(TABLES[table].items())) for table in self.tables]

    def cell(self, name, values):
        """What the table shows of {metric id: value}: a number, a dash where there was nothing finite, or a reason."""
        if name in values:
            return number(name, values[name])
        return 'skipped' if name in self.skipped and values is self.summary['model'] else ''

    def columns(self):
        """Metric ids of the table: the paper's, then those that only we have."""
        published = [name for table in self.tables for row in TABLES[table].values() for name in row]
        return list(dict.fromkeys([*published, *self.summary['model'], *self.skipped]))

    def as_json(self):
        summary = self.summary
        return self.about | {
            'mean': {key: summary[key] for key in ('model', 'copy', GAIN)},
            'frame_weighted_mean': {'model': summary['frame_weighted_model'], 'copy': summary['frame_weighted_copy']},
            'num_clips': summary['clips'],
            'num_frames': summary['frames'],
            'metrics': {name: _described(name) | summary['counts'].get(name, {}) for name in summary['model']},
            'definitions': {GAIN: GAIN_DEFINITION, 'copy': 'the source frame repeated', 'means': MEANS},
            'codebooks': self.codebooks,
            'skipped': self.skipped,
            'weights': self.weights,
            'versions': versions(),
            'clips': [_row_as_json(row) for row in self.rows],
        }


def _described(name):
    metric = CATALOGUE[name]
    return {key: getattr(metric, key) for key in ('definition', 'unit', 'direction', 'source')}


def _row_as_json(row):
    return {'clip': row.clip, 'frames': row.frames,
            'model': {name: mean(values) for name, values in row.scores.items()},
            'copy': {name: mean(values) for name, values in row.copied.items()},
            GAIN: mean(row.gain),
            'equal_frames': {'model': sum(map(math.isinf, row.scores.get(PSNR, ()))),
                             'copy': sum(map(math.isinf, row.copied.get(PSNR, ())))},
            'misses': row.misses}


def code_hash(root):
    """Hash of every source file below `root` that a number may depend on, names included."""
    files = [*root.glob('*.py'), *(path for folder in CODE for path in (root / folder).rglob('*.py'))]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f'{path.relative_to(root).as_posix()}\0'.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def versions():
    """Of Python, of this code, and of all packages that a number may depend on; None where one is not installed."""
    found = {'python': platform.python_version(), 'code': code_hash(Path(__file__).parents[1])}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def write_report(folder, report):
    """Write metrics.json and metrics.csv (one line per clip) into `folder`, each whole or not at all."""
    with written_whole(Path(folder) / 'metrics.json') as path:
        path.write_text(json.dumps(report.as_json(), indent=2, allow_nan=False, ensure_ascii=False) + '\n',
                        encoding='utf-8')
    with written_whole(Path(folder) / 'metrics.csv') as path, open(path, 'w', encoding='utf-8', newline='') as file:
        _write_csv(file, report)


def _write_csv(file, report):
    """One line per clip and one for the mean over clips; an empty cell where there is no finite value."""
    summary = report.summary
    names, copied = list(summary['model']), list(summary['copy'])
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(['clip', 'frames', *names, *(f'copy_{name}' for name in copied), GAIN])
    for row in report.rows:
        writer.writerow([row.clip, row.frames, *(mean(row.scores.get(name, ())) for name in names),
                         *(mean(row.copied[name]) for name in copied), mean(row.gain)])
    writer.writerow(['mean', summary['frames'], *summary['model'].values(), *summary['copy'].values(), summary[GAIN]])


# ---------------------------------------------------------------------------- tables for people

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
    for label, values in report.lines()[0]:
        cells = (report.cell(name, values) for name in names)
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
    names, (ours, published) = report.columns(), report.lines()

    def row(label, values):
        return f'| {label} | ' + ' | '.join(report.cell(name, values) for name in names) + ' |'

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
