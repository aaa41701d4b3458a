"""From frames to a table: scores per frame, their means per clip and over clips, and the report files.

Every protocol scores two things against the same target: what the model made, and a copy of the
source frame. A model that does not beat the copy has learnt nothing about motion.
"""

import csv
import importlib.metadata
import json
import math
import platform
from dataclasses import dataclass, field
from pathlib import Path

import torch

from metrics import image
from metrics.perceptual import Lpips, Unavailable
from visualizer import written_whole

GAIN = 'psnr_gain'
MEANS = ('mean: over the frames of a clip, then over clips, so that every clip counts the same; '
         'frame_weighted_mean: every frame counts the same')
GAIN_DEFINITION = ('PSNR of the model minus PSNR of the copied source, in dB, per frame, over the frames where both '
                   'are finite (that leaves out the source frame itself)')
HEADINGS = {'l1': 'L1', 'psnr': 'PSNR dB', 'ssim': 'SSIM', 'lpips': 'LPIPS'}
DECIMALS = {'l1': 4, 'psnr': 2, 'ssim': 4, 'lpips': 4}


class FrameMetrics:
    """All metrics that can be computed here, on batches of frames.

    definitions: by metric, in words
    skipped:     metrics that cannot be computed: what is missing, and how to get it
    """

    def __init__(self, device):
        self.device = device
        self.definitions, self.skipped = dict(image.DEFINITIONS), {}
        try:
            self.lpips = Lpips(device)
            self.definitions['lpips'] = self.lpips.definition
        except Unavailable as missing:
            self.skipped['lpips'] = str(missing)

    @torch.inference_mode()
    def __call__(self, prediction, target):
        """Frames (B, H, W, 3) uint8 -> {metric: (B,) on the CPU}."""
        prediction, target = (torch.from_numpy(frames).to(self.device).permute(0, 3, 1, 2).float() / 255
                              for frames in (prediction, target))
        scores = {'l1': image.l1(prediction, target),
                  'psnr': image.psnr(prediction, target),
                  'ssim': image.ssim(prediction, target)}
        if 'lpips' in self.definitions:
            scores['lpips'] = self.lpips(prediction * 2 - 1, target * 2 - 1)
        return {name: values.double().cpu() for name, values in scores.items()}


@dataclass
class Mean:
    """A running mean that counts infinite values apart."""
    total: float = 0.0
    count: int = 0
    infinite: int = 0

    def add(self, values):
        """values (B,)"""
        finite = values[~values.isinf()]
        self.total += finite.sum().item()
        self.count += len(finite)
        self.infinite += len(values) - len(finite)

    @property
    def value(self):
        """The mean of the finite values, None if there were none."""
        return self.total / self.count if self.count else None


@dataclass
class ClipScores:
    """Running scores of one clip: {metric: Mean} for the model and for the copied source."""
    clip: str
    frames: int = 0
    model: dict = field(default_factory=dict)
    copy: dict = field(default_factory=dict)
    gain: Mean = field(default_factory=Mean)

    def add(self, model, copy):
        """Scores of the same frames, {metric: (B,)}, as FrameMetrics returns them."""
        self.frames += len(model['psnr'])
        for means, scores in ((self.model, model), (self.copy, copy)):
            for name, values in scores.items():
                means.setdefault(name, Mean()).add(values)
        both = model['psnr'].isfinite() & copy['psnr'].isfinite()
        self.gain.add((model['psnr'] - copy['psnr'])[both])


def summarize(rows):
    """Means over clips.

    rows:    ClipScores of all clips, one at least
    returns: {'clips', 'frames', 'model': {metric: mean}, 'copy': {metric: mean}, 'psnr_gain',
             'frame_weighted_model', 'frame_weighted_copy'}; None where no finite value was seen
    """
    names = list(rows[0].model)
    return {
        'clips': len(rows),
        'frames': sum(row.frames for row in rows),
        'model': {name: _over_clips(row.model[name] for row in rows) for name in names},
        'copy': {name: _over_clips(row.copy[name] for row in rows) for name in names},
        GAIN: _over_clips(row.gain for row in rows),
        'frame_weighted_model': {name: _over_frames(row.model[name] for row in rows) for name in names},
        'frame_weighted_copy': {name: _over_frames(row.copy[name] for row in rows) for name in names},
    }


def _over_clips(means):
    values = [mean.value for mean in means if mean.count]
    return math.fsum(values) / len(values) if values else None


def _over_frames(means):
    means = list(means)
    count = sum(mean.count for mean in means)
    return math.fsum(mean.total for mean in means) / count if count else None


def write_report(folder, rows, definitions, skipped):
    """Write metrics.json and metrics.csv into `folder`, each whole or not at all; returns summarize(rows).

    rows:        ClipScores of all clips, one at least
    definitions: {what: in words}, the metrics' and the protocol's
    skipped:     {metric: why, and how to get it}
    """
    summary = summarize(rows)
    report = {
        'mean': {key: summary[key] for key in ('model', 'copy', GAIN)},
        'frame_weighted_mean': {'model': summary['frame_weighted_model'], 'copy': summary['frame_weighted_copy']},
        'num_clips': summary['clips'],
        'num_frames': summary['frames'],
        'definitions': {**definitions, GAIN: GAIN_DEFINITION, 'copy': 'the source frame repeated', 'means': MEANS},
        'skipped': skipped,
        'versions': _versions(),
        'clips': [_as_json(row) for row in rows],
    }
    with written_whole(Path(folder) / 'metrics.json') as path:
        path.write_text(json.dumps(report, indent=2, allow_nan=False, ensure_ascii=False) + '\n', encoding='utf-8')
    with written_whole(Path(folder) / 'metrics.csv') as path, open(path, 'w', encoding='utf-8', newline='') as file:
        _write_table(file, rows, summary)
    return summary


def _as_json(row):
    return {'clip': row.clip, 'frames': row.frames,
            'model': {name: mean.value for name, mean in row.model.items()},
            'copy': {name: mean.value for name, mean in row.copy.items()},
            GAIN: row.gain.value,
            'equal_frames': {'model': row.model['psnr'].infinite, 'copy': row.copy['psnr'].infinite}}


def _versions():
    versions = {'python': platform.python_version()}
    for package in ('torch', 'torchvision', 'numpy', 'lpips'):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _write_table(file, rows, summary):
    """One line per clip and one for the mean over clips; an empty cell where there is no finite value."""
    names = list(summary['model'])
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(['clip', 'frames', *names, *(f'copy_{name}' for name in names), GAIN])
    for row in rows:
        writer.writerow([row.clip, row.frames, *(row.model[name].value for name in names),
                         *(row.copy[name].value for name in names), row.gain.value])
    writer.writerow(['mean', summary['frames'], *summary['model'].values(), *summary['copy'].values(), summary[GAIN]])


def format_table(summary, skipped):
    """The summary as plain text for a terminal: the model, the copied source, and what was skipped."""
    names = list(summary['model'])
    gain = summary[GAIN]
    lines = [_line('', [HEADINGS[name] for name in names]),
             _line('model', [_number(name, summary['model'][name]) for name in names]),
             _line('copy of the source', [_number(name, summary['copy'][name]) for name in names]),
             f'means over {summary["clips"]} clips, {summary["frames"]} frames']
    if gain is not None:
        lines.append(f'the model is {abs(gain):.2f} dB {"better" if gain >= 0 else "WORSE"} than copying the source')
    lines += [f'{HEADINGS[name]} skipped: {why}' for name, why in skipped.items()]
    return '\n'.join(lines)


def _line(label, cells):
    return f'{label:<20}' + ''.join(f'{cell:>10}' for cell in cells)


def _number(name, value):
    return 'inf' if value is None else f'{value:.{DECIMALS[name]}f}'     # only PSNR is ever infinite
