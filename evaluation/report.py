"""From scores to a result: means per clip and over clips, and the report files for programs."""

import csv
import hashlib
import importlib.metadata
import json
import math
import platform
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch

from evaluation.scores import PSNR, mean
from metrics.catalogue import CATALOGUE
from modules.codebook import perplexity
from support.files import written_whole
from support.weights import weights_hash

GAIN = 'psnr_gain'
MEANS = ('mean: over the frames of a clip, then over clips, so that every clip counts the same; '
         'frame_weighted_mean: every frame counts the same')
GAIN_DEFINITION = ('PSNR of what was generated minus PSNR of the copied source, in dB, per frame, over the frames '
                   'where both are finite (that leaves out the source frame itself)')
# By which metric clips are ranked from worst to best: the first of these that was computed.
RANKING = ('lpips.vgg', 'lpips.alex', 'psnr.rgb', 'csim.antelopev2', 'aed.openface_sq_source', 'ard.mediapipe')
PACKAGES = ('torch', 'torchvision', 'numpy', 'lpips', 'face-alignment', 'mediapipe', 'pytorch-fid', 'insightface',
            'onnxruntime')
# Folders that a number may depend on:
CODE = 'config', 'datasets', 'evaluation', 'metrics', 'modules', 'motion', 'support'


def subject_of(config, model):
    """{what: value} that tells a model's results from those of others; part of every report."""
    params = hashlib.sha256(repr(config.model_params).encode()).hexdigest()[:16]
    return {'method': config.method, 'weights': weights_hash(model), 'model params': params,
            'image size': config.model_params.image_size, 'precision': config.train_params.precision}


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
