"""Scores of one clip, computed while its frames are generated or read.

The source image repeated is scored too, as a baseline: a model that is no better has learnt nothing about motion.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field

import torch

from metrics.base import DistributionMetric
from metrics.catalogue import build
from visualizer import to_unit_range

COPIED = ('l1.', 'psnr.', 'ssim.', 'lpips.', 'akd.mediapipe', 'expression.')     # metrics of the baseline
PSNR = 'psnr.rgb'


@dataclass
class ClipScores:
    """Scores of one clip."""
    clip: str
    frames: int = 0
    size: tuple = ()                                    # (height, width) of its frames, pixels
    scores: dict = field(default_factory=dict)          # {metric id: value of every frame}; NaN: undefined, or no face
    copied: dict = field(default_factory=dict)          # likewise, for the source image repeated
    misses: dict = field(default_factory=dict)          # {id: {generated | driving | source: frames without a face}}
    details: dict = field(default_factory=dict)         # {metric id: {name: value or None}}, see Metric.details
    codes: dict = field(default_factory=dict)           # {codebook and scale: how often each code was chosen}
    features: dict = field(default_factory=dict)        # {'network.side': (T, D)} of distribution metrics; not in JSON

    def add(self, scores, copied):
        """Append the values of the next frames, {metric id: (B,)}."""
        for kept, new in ((self.scores, scores), (self.copied, copied)):
            for name, values in new.items():
                kept.setdefault(name, []).extend(values.tolist())

    @property
    def compared(self):
        """(PSNR of the result, PSNR of the copied source) of every frame where both are finite."""
        pairs = zip(self.scores.get(PSNR, ()), self.copied.get(PSNR, ()))
        return [pair for pair in pairs if all(map(math.isfinite, pair))]

    def of(self, ids):
        """The ClipScores of these metrics alone, in their order."""
        kept = {name: {id_: getattr(self, name)[id_] for id_ in ids if id_ in getattr(self, name)}
                for name in ('scores', 'copied', 'misses', 'details')}
        return ClipScores(**vars(self) | kept)

    def with_older(self, older):
        """These scores, and those of an earlier evaluation of the same clip for all other metrics."""
        kept = {name: getattr(older, name) | getattr(self, name)
                for name in ('scores', 'copied', 'misses', 'details', 'features')}
        return ClipScores(**vars(self) | kept)

    def as_json(self):
        stored = asdict(self) | {'scores': _encoded(self.scores), 'copied': _encoded(self.copied)}
        del stored['features']
        return stored

    @classmethod
    def from_json(cls, stored):
        return cls(**stored | {'scores': _decoded(stored['scores']), 'copied': _decoded(stored['copied']),
                               'size': tuple(stored['size'])})


# JSON has neither NaN nor infinity.
def _encoded(scores):
    return {name: [value if math.isfinite(value) else str(value) for value in values]
            for name, values in scores.items()}


def _decoded(scores):
    return {name: [float(value) for value in values] for name, values in scores.items()}


def mean(values):
    """Mean of the finite values, None without one; rounded once, so it does not depend on their order."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else None


def parts_of(metric):
    """Names under which a metric's results are stored: its id, or the features that it shares with others."""
    if isinstance(metric, DistributionMetric):
        return [f'{metric.network}.{side}' for side in metric.sides()]
    return [metric.id]


class Scorer:
    """The metrics of some ids that can be computed here, applied to one clip after the other.

    copies:  also score the source image repeated, by the metrics that are COPIED
    skipped: {metric id: why it cannot be computed, and what to install}
    raises:  UserError for an unknown id
    """

    def __init__(self, ids, device, copies):
        self.device = device
        self.metrics, self.skipped = build(ids, device)
        self.copied, _ = build([name for name in ids if copies and name.startswith(COPIED)], device)

    @property
    def weights(self):
        """{file name: SHA-256} of the metrics' networks."""
        return {file: sha for metric in self.metrics for file, sha in metric.weights.items()}

    @property
    def parts(self):
        """{part: hash of its definition and weights} of all that the metrics store, see `parts_of`."""
        def digest(metric):
            definition = metric.network if isinstance(metric, DistributionMetric) else metric.definition
            return hashlib.sha256(json.dumps([definition, metric.weights]).encode()).hexdigest()[:16]
        return {part: digest(metric) for metric in self.metrics for part in parts_of(metric)}

    @torch.inference_mode()
    def score(self, name, source, batches, parts=None):
        """The ClipScores of a clip.

        source:  (H, W, 3) uint8, the source image, or None
        batches: iterator of (driving frames, generated frames), each B frames (H, W, 3) uint8
        parts:   compute the metrics of these parts only; None computes all
        """
        metrics = [metric for metric in self.metrics if parts is None or not parts.isdisjoint(parts_of(metric))]
        distributions = [metric for metric in metrics if isinstance(metric, DistributionMetric)]
        metrics = [metric for metric in metrics if metric not in distributions]
        copied = [metric for metric in self.copied if source is not None and metric.id in {m.id for m in metrics}]
        source = None if source is None else to_unit_range([source], self.device)
        for metric in metrics + copied:
            metric.start_clip(None if source is None else source[0])
        clip, features = ClipScores(name), {}
        for driving, generated in batches:
            # Features are cached by the identity of their batch, so all metrics get the same tensors.
            driving, generated = to_unit_range(driving, self.device), to_unit_range(generated, self.device)
            clip.add({metric.id: metric(generated, driving) for metric in metrics},
                     {metric.id: metric(source, driving) for metric in copied})
            _add_features(features, distributions, generated=generated, driving=driving)
            clip.frames += len(driving)
            clip.size = tuple(generated.shape[2:])
        _add_features(features, distributions, source=source)
        clip.features = {part: torch.cat(some) for part, some in features.items()}
        clip.misses = {metric.id: dict(+metric.misses) for metric in metrics}
        clip.details = {metric.id: metric.details() for metric in metrics}
        return clip


def _add_features(features, metrics, **frames):
    """Append the features of frames (B, 3, H, W), by side, to {part: [(B, D)]}; none of a source that is None."""
    functions = {part: metric.features for metric in metrics for part in parts_of(metric)}
    for part, function in functions.items():
        side = part.rpartition('.')[2]
        if side in frames:
            known = frames[side] is not None
            new = function(frames[side]).cpu() if known else features[part.replace(side, 'generated')][0][:0]
            features.setdefault(part, []).append(new)
