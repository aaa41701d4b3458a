"""Codebooks: allocation of codes to scales (Sec. 3.2.1), quantisation and its loss (Eq. 1, 3, 4, 5)."""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from support import distributed
from support.ranges import AtLeastZero, LayerCount, NotNegative, TensorSize

ALLOCATIONS = ('progressive', 'shared', 'equal')


@dataclass(frozen=True)
class CodebookParams:
    num_codes: TensorSize = 1024     # K (motion) or T (appearance)
    code_dim: TensorSize = 32        # d_m or d_a
    num_scales: AtLeastZero = 4      # the coarsest `num_scales` of the N scales are compensated; 0 builds no codebook
    allocation: str = 'progressive'  # progressive (the paper's) | shared | equal (Table 4)
    commitment: NotNegative = 0.25   # beta of Eq. 3 and 5
    revive_after: AtLeastZero = 0    # steps without use until a code is moved onto a feature; 0 never does
    num_layers: LayerCount = 2       # L_M or L_A, retrieval layers
    num_heads: TensorSize = 8        # attention heads of the retrieval layers
    identity_start: bool = False     # retrieval layers begin by passing their query; released: random projections
    whitened: bool = False           # quantise features that are centred and decorrelated, scale by scale
    feature_start: bool = False      # codes begin on features of the first step; released: uniform within 1/K

    def __post_init__(self):
        if self.allocation not in ALLOCATIONS:
            raise ValueError(f'allocation={self.allocation!r}: expected one of {", ".join(ALLOCATIONS)}')
        if self.num_scales and self.num_codes % self.num_scales:
            raise ValueError(f'num_codes={self.num_codes} cannot be split evenly over num_scales={self.num_scales}')
        if self.code_dim % self.num_heads:
            raise ValueError(f'code_dim={self.code_dim} is not a multiple of num_heads={self.num_heads}')
        if self.feature_start and not self.revive_after:
            raise ValueError('feature_start=true needs revive_after: it is a revival of all codes at the first step')


def take_turns(slices):
    """For each scale, the codes (list of int) that its features may revive: scales that share codes alternate."""
    readers = [[scale for scale, part in enumerate(slices) if part.start <= code < part.stop]
               for code in range(max((part.stop for part in slices), default=0))]
    turns = [scales[code % len(scales)] for code, scales in enumerate(readers)]
    return [[code for code, turn in enumerate(turns) if turn == scale] for scale in range(len(slices))]


def allocate(num_codes, num_scales, allocation):
    """The slice of codes that each scale may use, coarsest scale first (Sec. 3.2.1, Table 4).

    progressive: scale i of N uses the first i*K/N codes; shared: every scale uses all;
    equal: scale i uses its own i-th group of K/N codes.
    """
    share = num_codes // max(num_scales, 1)
    return [slice(i * share if allocation == 'equal' else 0, num_codes if allocation == 'shared' else (i + 1) * share)
            for i in range(num_scales)]


class Quantized(NamedTuple):
    """Result of quantisation.

    encoded: (B, D, H, W) the quantised feature, without gradient
    vectors: (B, D, H, W) nearest codes; their gradient passes straight through to the input
    indices: (B, H, W) into the codes of the scale
    loss:    scalar, ||sg[z] - z_q||^2 + beta ||z - sg[z_q]||^2 (the code terms of Eq. 3 and 5), mean over elements
    """
    encoded: Tensor
    vectors: Tensor
    indices: Tensor
    loss: Tensor


def join(parts):
    """The Quantized of several micro-batches, concatenated in order; without code vectors and loss."""
    if len(parts) == 1:
        return parts[0]
    encoded, indices = (torch.cat([getattr(part, name) for part in parts]) for name in ('encoded', 'indices'))
    return Quantized(encoded, None, indices, None)


@functools.lru_cache(maxsize=32)
def _spread(count, rank, world, features, device):
    """`count` features evenly spread over those of all processes: indices in this process, whether they are in it."""
    picks = torch.arange(count) * (world * features) // count - rank * features
    here = (0 <= picks) & (picks < features)
    return picks.clamp(0, features - 1).to(device), here[:, None].to(device)


class Whitening(nn.Module):
    """Centres and decorrelates features by running statistics of the global batch.

    Features of faces differ above all in brightness, those of different scales in mean and magnitude. Unwhitened, the
    features of a scale lie near a line, and few codes are ever the nearest.
    """

    MOMENTUM = 0.02        # of the running statistics, which start as plain averages
    FLOOR = 0.01           # of the mean variance, added to each variance: keeps nearly constant components small

    def __init__(self, dim):
        super().__init__()
        self.register_buffer('mean', torch.zeros(dim))
        self.register_buffer('covariance', torch.eye(dim))
        self.register_buffer('batches', torch.zeros((), dtype=torch.long))
        self._collected = None     # sums per micro-batch, for `update`; None: each forward pass in training updates

    def forward(self, z):
        """(B, D, H, W) -> same, of about zero mean and unit covariance; no gradient flows through the statistics."""
        vectors = z.permute(0, 2, 3, 1)
        if self.training:
            self._observe(vectors.detach().flatten(0, 2))
        floor = self.FLOOR * self.covariance.diagonal().mean()
        root, _ = torch.linalg.cholesky_ex(self.covariance + floor * torch.eye(len(self.mean), device=z.device))
        white = torch.linalg.solve_triangular(root, (vectors - self.mean).flatten(0, 2).t(), upper=False)
        return white.t().view_as(vectors).permute(0, 3, 1, 2)

    def collect(self):
        """Until `update`, forward passes in training only collect; then, until `release`, they leave statistics alone.

        So a step of several micro-batches uses the statistics of its whole batch.
        """
        self._collected, self._complete = [], False

    def update(self):
        """Update the running statistics by what has been collected."""
        self._update(self._collected)
        self._collected, self._complete = [], True

    def release(self):
        self._collected = None

    def _observe(self, vectors):
        """Collect the sums of this process's vectors (M, D), or update the running statistics by them."""
        if self._collected is not None and self._complete:
            return
        sums = len(vectors), torch.cat([vectors.sum(0)[None], vectors.t() @ vectors])
        if self._collected is None:
            self._update([sums])
        else:
            self._collected.append(sums)

    @torch.no_grad()
    def _update(self, parts):
        """Update the running statistics by (count, sums (1 + D, D)) of each micro-batch of this process."""
        count, sums = distributed.world() * sum(count for count, _ in parts), sum(sums for _, sums in parts)
        distributed.add_up(sums)
        mean, square = sums[0] / count, sums[1:] / count
        self.batches += 1
        weight = (1 / self.batches.float()).clamp(min=self.MOMENTUM)
        self.mean.lerp_(mean, weight)
        # Around the running mean: while that lags behind, its error counts as variance.
        self.covariance.lerp_(square - mean.outer(mean) + (mean - self.mean).outer(mean - self.mean), weight)


class Codebook(nn.Module):
    """K codes of D dimensions, allocated to scales; quantises features and tracks which codes are in use."""

    def __init__(self, params):
        super().__init__()
        self.commitment = params.commitment
        self.revive_after = params.revive_after
        self.slices = allocate(params.num_codes, params.num_scales, params.allocation)
        self.whiten = nn.ModuleList(Whitening(params.code_dim) for _ in self.slices if params.whitened)
        bound = 1 / params.num_codes
        self.embedding = nn.Parameter(torch.empty(params.num_codes, params.code_dim).uniform_(-bound, bound))
        # Steps since each code was last chosen; in the checkpoint, so that a resumed run revives the same codes.
        self.register_buffer('idle', torch.zeros(params.num_codes, dtype=torch.long))
        if params.feature_start:
            self.idle.fill_(params.revive_after)
        # The codes that each scale revives.
        for scale, codes in enumerate(take_turns(self.slices)):
            self.register_buffer(f'turn{scale}', torch.tensor(codes, dtype=torch.long), persistent=False)

    def codes(self, scale):
        """The codes that scale 0 (coarsest) .. N-1 (finest) may use: (K_i, D)."""
        return self.embedding[self.slices[scale]]

    def quantize(self, z, scale):
        """Replace every vector of z (B, D, H, W) by the nearest code of the scale; Eq. 1 and 4."""
        codes = self.codes(scale)
        with torch.autocast(z.device.type, enabled=False):
            z = self.whiten[scale](z.float()) if self.whiten else z
            vectors = z.float().permute(0, 2, 3, 1)                                  # (B, H, W, D)
            indices = nearest(vectors.detach().flatten(0, 2), codes.detach())        # (B*H*W,)
            # A row look-up; its backward is one scatter-add, not a product with a one-hot matrix.
            z_q = F.embedding(indices, codes).view_as(vectors)
            loss = F.mse_loss(z_q, vectors.detach()) + self.commitment * F.mse_loss(vectors, z_q.detach())
            straight = vectors + (z_q - vectors).detach()
        return Quantized(z.detach(), straight.permute(0, 3, 1, 2), indices.view(vectors.shape[:3]), loss)

    @torch.no_grad()
    def revive(self, quantized):
        """Move codes that were idle for `revive_after` steps onto features of this step.

        quantized: per scale, coarsest first, the Quantized of the step's whole batch in this process; features
                   (B, D, H, W) of all processes take part
        """
        if not self.revive_after:
            return
        rank, world = distributed.rank(), distributed.world()
        used = torch.zeros_like(self.idle)
        offers = torch.zeros_like(self.embedding)
        for scale, (part, found) in enumerate(zip(self.slices, quantized)):
            codes = getattr(self, f'turn{scale}')
            used[part].index_fill_(0, found.indices.flatten(), 1)
            features = found.encoded.permute(0, 2, 3, 1).flatten(0, 2).to(offers.dtype)
            picks, here = _spread(len(codes), rank, world, len(features), offers.device)
            offers[codes] = torch.where(here, features[picks], 0)
        # Each process offers what it has; all revive the same codes alike.
        distributed.take_maximum(used)
        distributed.add_up(offers)
        self.idle.add_(1).masked_fill_(used.bool(), 0)
        dead = self.idle >= self.revive_after
        self.embedding.copy_(torch.where(dead[:, None], offers, self.embedding))
        self.idle.masked_fill_(dead, 0)


def nearest(vectors, codes):
    """Index of the nearest code for each vector: (M, D), (K, D) -> (M,); ties go to the lower index."""
    # |z|^2 is the same for all codes, so it is left out.
    return torch.addmm(codes.square().sum(1), vectors, codes.t(), alpha=-2).argmin(1)


@torch.no_grad()
def usage(indices, num_codes):
    """Use of the codes by a batch: (share of codes in use in (0, 1], perplexity in [1, K])."""
    # Not bincount, which synchronises the GPU.
    chosen = torch.full((indices.numel(),), 1 / indices.numel(), device=indices.device)
    probability = torch.zeros(num_codes, device=indices.device).index_add_(0, indices.flatten(), chosen)
    entropy = -torch.special.xlogy(probability, probability).sum()
    return (probability > 0).float().mean(), entropy.exp()


def perplexity(counts):
    """Effective number of codes in use: exp of the entropy of counts or shares (K,); a float in [1, K]."""
    share = counts.double() / counts.sum()
    return float((-torch.special.xlogy(share, share).sum()).exp())
