"""Training pairs on their way to the networks: micro-batches, equivariance transforms, and their random numbers."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from modules.losses import RandomTransform


class Pairs(NamedTuple):
    """A micro-batch of training pairs.

    source, driving: (B, 3, H, W) in [-1, 1]
    transform:       the equivariance transform of each pair
    landmarks:       (B, 2, K, 2) of both images in [-1, 1], for data with landmarks
    """
    source: Tensor
    driving: Tensor
    transform: RandomTransform
    landmarks: Tensor | None = None

    def to(self, device):
        source, driving, landmarks = (tensor if tensor is None else tensor.to(device, non_blocking=True)
                                      for tensor in (self.source, self.driving, self.landmarks))
        return Pairs(source, driving, self.transform.to(device), landmarks)


def micro_batches(batch, params):
    """`accumulate` equal Pairs of a batch of the loader.

    batch: dict(source, driving (B, 3, H, W) in [-1, 1], index (B,), landmarks (B, 2, K, 2) where there are any, ...)
    """
    pieces = [batch[name].chunk(params.accumulate) for name in ('source', 'driving', 'index')]
    landmarks = batch['landmarks'].chunk(params.accumulate) if 'landmarks' in batch else [None] * params.accumulate
    return [Pairs(source, driving, draw_transform(params.seed, index.tolist()), places)
            for source, driving, index, places in zip(*pieces, landmarks, strict=True)]


def draw_transform(seed, indices):
    """The equivariance transform of each sample, a function of the seed and the sample's index."""
    drawn = [RandomTransform.draw(1, torch.Generator().manual_seed(hash_seed(seed, index, 2))) for index in indices]
    return RandomTransform(torch.cat([t.theta for t in drawn]), torch.cat([t.control for t in drawn]))


def hash_seed(*numbers):
    """A 63-bit seed from small integers; nearby ones give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
