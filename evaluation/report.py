"""Summary of an evaluation: means over clips and over frames, and the report files for programs."""

import csv
import hashlib
import io
import json
import math
import platform
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path

import torch

from evaluation.scores import PSNR, mean
from metrics.catalogue import CATALOGUE
from modules.codebook import perplexity
from support.files import write_text
from support.weights import weights_hash

GAIN = 'psnr_gain'
MEANS = ('mean: over the frames of a clip, then over clips, so that every clip counts the same; '
         'frame_weighted_mean: every frame counts the same')
COMPARED = 'psnr_compared'
GAIN_DEFINITION = ('PSNR of the result minus PSNR of the copied source image, in dB, over the frames where both are '
                   'finite: the source frame itself is left out. psnr_compared: the two means over these frames')
DESCRIBED = 'definition', 'unit', 'direction', 'source'      # of a metric, in the report
# The first of these that was computed ranks clips from worst to best.
RANKING = ('lpips.vgg', 'lpips.alex', 'psnr.rgb', 'csim.antelopev2', 'aed.openface_sq_source', 'ard.mediapipe')
PACKAGES = ('torch', 'torchvision', 'numpy', 'lpips', 'face-alignment', 'mediapipe', 'pytorch-fid', 'insightface',
            'onnxruntime')
# Folders that can change a result.
CODE = 'config', 'datasets', 'evaluation', 'metrics', 'modules', 'motion', 'support'


def subject_of(config, model):
    """{what: value} that tells a model's results from those of others; part of every report."""
    params = hashlib.sha256(repr(config.model_params).encode()).hexdigest()[:16]
    return {'method': config.method, 'weights': weights_hash(model), 'model params': params,
            'image size': config.model_params.image_size, 'precision': config.train_params.precision}


# ---------------------------------------------------------------------------- summary

def summarize(rows, distances=None):
    """Means over clips.

    rows:      ClipScores of all clips, at least one
    distances: {id: value} of the distribution metrics
    returns:   {'clips', 'frames', 'model': {metric id: mean}, 'copy': ..., 'frame_weighted_model',
               'frame_weighted_copy', 'psnr_gain', 'psnr_compared': {'model', 'copy'}, 'details': {metric id: {name:
               mean over clips}}, 'counts': {metric id: frames that are finite, infinite, undefined, and misses}};
               a value is None where no finite one exists
    """
    names, copied = (list(dict.fromkeys(name for row in rows for name in getattr(row, kind)))
                     for kind in ('scores', 'copied'))
    distances = {name: value if math.isfinite(value) else None for name, value in (distances or {}).items()}
    made, copy = (mean(mean(pair[side] for pair in row.compared) for row in rows) for side in (0, 1))
    return {
        'clips': len(rows),
        'frames': sum(row.frames for row in rows),
        'model': {name: mean(mean(row.scores.get(name, ())) for row in rows) for name in names} | distances,
        'copy': {name: mean(mean(row.copied.get(name, ())) for row in rows) for name in copied},
        GAIN: None if made is None else made - copy,
        COMPARED: {'model': made, 'copy': copy},
        'frame_weighted_model': {name: mean(_values(rows, 'scores', name)) for name in names} | distances,
        'frame_weighted_copy': {name: mean(_values(rows, 'copied', name)) for name in copied},
        'details': {name: _details(rows, name) for name in names if any(row.details.get(name) for row in rows)},
        'counts': {name: _counts(rows, name) for name in names},
    }


def _values(rows, kind, name):
    """The values of all frames; kind: 'scores' or 'copied'."""
    return [value for row in rows for value in getattr(row, kind).get(name, ())]


def _details(rows, name):
    """{detail: mean over the clips in which it is defined}."""
    keys = dict.fromkeys(key for row in rows for key in row.details.get(name, ()))
    return {key: mean(row.details.get(name, {}).get(key) for row in rows) for key in keys}


def _counts(rows, name):
    values = _values(rows, 'scores', name)
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
    means = {id(row): mean(row.scores.get(name, ())) for row in rows}
    for row in rows:      # the PSNR of a clip in which every frame equals its target
        if means[id(row)] is None and math.inf in row.scores.get(name, ()):
            means[id(row)] = math.inf
    known = [row for row in rows if means[id(row)] is not None]
    return name, sorted(known, key=lambda row: sign * means[id(row)])


# ---------------------------------------------------------------------------- files

@dataclass
class Report:
    """A result with everything that is needed to compare it."""
    rows: list                                          # ClipScores of all clips
    skipped: dict                                       # {metric id: reason}
    about: dict                                         # JSON values: protocol, list, coverage, subject
    distances: dict = field(default_factory=dict)       # {id: value} of the distribution metrics
    tables: tuple = ()                                  # names of the paper's tables that are shown with it
    weights: dict = field(default_factory=dict)         # {file name: SHA-256} of the metrics' networks
    folder: Path | None = None                          # where the report is on disk

    def __post_init__(self):
        self.summary = summarize(self.rows, self.distances)
        self.codebooks = codebook_usage(self.rows)

    def as_json(self):
        summary = self.summary
        return self.about | {
            'mean': {key: summary[key] for key in ('model', 'copy', GAIN, COMPARED, 'details')},
            'frame_weighted_mean': {'model': summary['frame_weighted_model'], 'copy': summary['frame_weighted_copy']},
            'num_clips': summary['clips'],
            'num_frames': summary['frames'],
            'metrics': {name: {key: getattr(CATALOGUE[name], key) for key in DESCRIBED}
                        | summary['counts'].get(name, {}) for name in summary['model']},
            'definitions': {GAIN: GAIN_DEFINITION, 'copy': 'the source image repeated', 'means': MEANS},
            'codebooks': self.codebooks,
            'skipped': self.skipped,
            'weights': self.weights,
            'versions': versions(),
            'clips': [_row_as_json(row) for row in self.rows],
        }


def _row_as_json(row):
    return {'clip': row.clip, 'frames': row.frames,
            'model': {name: mean(values) for name, values in row.scores.items()},
            'copy': {name: mean(values) for name, values in row.copied.items()},
            GAIN: mean(made - copy for made, copy in row.compared),
            'details': row.details,
            'equal_frames': {'model': sum(map(math.isinf, row.scores.get(PSNR, ()))),
                             'copy': sum(map(math.isinf, row.copied.get(PSNR, ())))},
            'misses': {name: counts for name, counts in row.misses.items() if counts}}


def code_hash(root):
    """Hash of the names and contents of all source files below `root` that can change a result."""
    files = [*root.glob('*.py'), *(path for folder in CODE for path in (root / folder).rglob('*.py'))]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f'{path.relative_to(root).as_posix()}\0'.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def versions():
    """Versions of Python, of this code and of the packages that can change a result; None where not installed."""
    packages = {name: next((found.version for found in distributions(name=name)), None) for name in PACKAGES}
    return {'python': platform.python_version(), 'code': code_hash(Path(__file__).parents[1])} | packages


def write_report(folder, report):
    """Write metrics.json and metrics.csv into `folder`, each whole or not at all.

    The CSV has a line per clip and one for the mean over clips; a cell is empty where no finite value exists.
    """
    content, file = report.as_json(), io.StringIO()
    write_text(Path(folder) / 'metrics.json',
               json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + '\n')
    means = content['mean']
    details = [(name, key) for name, found in means['details'].items() for key in found]
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(['clip', 'frames', *means['model'], *(f'copy_{name}' for name in means['copy']), GAIN,
                     *(f'{name}: {key}' for name, key in details)])
    for row in (*content['clips'], {'clip': 'mean', 'frames': content['num_frames'], **means}):
        writer.writerow([row['clip'], row['frames'], *(row['model'].get(name) for name in means['model']),
                         *(row['copy'].get(name) for name in means['copy']), row[GAIN],
                         *(row['details'].get(name, {}).get(key) for name, key in details)])
    write_text(Path(folder) / 'metrics.csv', file.getvalue())
