"""Scores per frame: where frames meet metrics, for a model's output and for videos made elsewhere.

Beside what was generated it can score a copy of the source frame: a model that does not beat the copy
has learnt nothing about motion.
"""

import math
from dataclasses import asdict, dataclass, field

import numpy as np
import torch

from metrics.catalogue import SetMetric, build

COPIED = ('l1.', 'psnr.', 'ssim.', 'lpips.')     # metrics that compare pictures; on a copy the others say nothing
PSNR = 'psnr.rgb'


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

    @property
    def weights(self):
        """{file name: SHA-256} of the metrics' networks."""
        return {file: sha for metric in self.metrics for file, sha in metric.weights.items()}

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
