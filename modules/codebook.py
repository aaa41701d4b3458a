"""Codebooks: allocation of codes to scales (Sec. 3.2.1), quantisation and its loss (Eq. 1, 3, 4, 5)."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

ALLOCATIONS = ('progressive', 'shared', 'equal')


@dataclass(frozen=True)
class CodebookParams:
    num_codes: int = 1024            # K (motion) or T (appearance)
    code_dim: int = 32               # d_m or d_a
    num_scales: int = 4              # the coarsest `num_scales` of the N scales are compensated; 0 builds no codebook
    allocation: str = 'progressive'  # progressive (the paper's) | shared | equal (Table 4)
    commitment: float = 0.25         # beta of Eq. 3 and 5
    revive_after: int = 0            # steps without use until a code is moved onto a feature; 0 never does
    num_layers: int = 2              # L_M or L_A, retrieval layers
    num_heads: int = 8               # attention heads of the retrieval layers

    def __post_init__(self):
        if self.allocation not in ALLOCATIONS:
            raise ValueError(f'allocation={self.allocation!r}: expected one of {", ".join(ALLOCATIONS)}')
        if self.num_scales and self.num_codes % self.num_scales:
            raise ValueError(f'num_codes={self.num_codes} cannot be split evenly over num_scales={self.num_scales}')
        if self.code_dim % self.num_heads:
            raise ValueError(f'code_dim={self.code_dim} is not a multiple of num_heads={self.num_heads}')


def allocate(num_codes, num_scales, allocation):
    """The slice of codes that each scale may use, coarsest scale first (Sec. 3.2.1, Table 4).

    progressive: scale i of N uses the first i*K/N codes; shared: every scale uses all;
    equal: scale i uses its own i-th group of K/N codes.
    """
    share = num_codes // max(num_scales, 1)
    starts = {'progressive': lambda i: 0, 'shared': lambda i: 0, 'equal': lambda i: i * share}[allocation]
    stops = {'progressive': lambda i: (i + 1) * share, 'shared': lambda i: num_codes,
             'equal': lambda i: (i + 1) * share}[allocation]
    return [slice(starts(i), stops(i)) for i in range(num_scales)]


class Quantized(NamedTuple):
    """What quantisation gives.

    encoded: (B, D, H, W) what was quantised, without gradient
    vectors: (B, D, H, W) nearest codes; their gradient passes straight through to the input
    indices: (B, H, W) into the codes of the scale
    loss:    scalar, ||sg[z] - z_q||^2 + beta ||z - sg[z_q]||^2 (the code terms of Eq. 3 and 5), mean over elements
    """
    encoded: Tensor
    vectors: Tensor
    indices: Tensor
    loss: Tensor


class Codebook(nn.Module):
    """K codes of D dimensions, allotted to scales; quantises features and keeps count of the codes in use."""

    def __init__(self, params):
        super().__init__()
        self.commitment = params.commitment
        self.revive_after = params.revive_after
        self.slices = allocate(params.num_codes, params.num_scales, params.allocation)
        bound = 1 / params.num_codes
        self.embedding = nn.Parameter(torch.empty(params.num_codes, params.code_dim).uniform_(-bound, bound))
        # Steps since each code was last chosen; part of the checkpoint, so a resumed run revives the same codes.
        self.register_buffer('idle', torch.zeros(params.num_codes, dtype=torch.long))

    def codes(self, scale):
        """The codes that scale 0 (coarsest) .. N-1 (finest) may use: (K_i, D)."""
        return self.embedding[self.slices[scale]]

    def quantize(self, z, scale):
        """Replace every vector of z (B, D, H, W) by the nearest code of the scale; Eq. 1 and 4."""
        codes = self.codes(scale)
        with torch.autocast(z.device.type, enabled=False):
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

        quantized: per scale, coarsest first, the step's Quantized
        """
        if not self.revive_after:
            return
        distributed = dist.is_available() and dist.is_initialized()
        rank, world = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
        used = torch.zeros_like(self.idle)
        offers = torch.zeros_like(self.embedding)
        for part, found in zip(self.slices, quantized):
            used[part][found.indices.flatten()] = 1
            # Evenly spread over the global batch; a code of several scales is offered a feature of the finest.
            features = found.encoded.permute(0, 2, 3, 1).flatten(0, 2).to(offers.dtype)
            count = part.stop - part.start
            picks = torch.arange(count, device=offers.device) * (world * len(features)) // count - rank * len(features)
            here = (0 <= picks) & (picks < len(features))
            offers[part] = torch.where(here[:, None], features[picks.clamp(0, len(features) - 1)], 0)
        if world > 1:    # each process offers what it has; all revive the same codes alike
            dist.all_reduce(used, dist.ReduceOp.MAX)
            dist.all_reduce(offers)
        self.idle.add_(1).masked_fill_(used.bool(), 0)
        dead = self.idle >= self.revive_after
        self.embedding.copy_(torch.where(dead[:, None], offers, self.embedding))
        self.idle.masked_fill_(dead, 0)


def nearest(vectors, codes):
    """Index of the nearest code for each vector: (M, D), (K, D) -> (M,); ties go to the lower index."""
    # |z|^2 is the same for all codes, so it does not decide.
    return torch.addmm(codes.square().sum(1), vectors, codes.t(), alpha=-2).argmin(1)


@torch.no_grad()
def usage(indices, num_codes):
    """How a batch uses its codes: (share of codes in use in (0, 1], perplexity in [1, K])."""
    # Not bincount: it would make a GPU wait.
    chosen = torch.full((indices.numel(),), 1 / indices.numel(), device=indices.device)
    probability = torch.zeros(num_codes, device=indices.device).index_add_(0, indices.flatten(), chosen)
    entropy = -torch.special.xlogy(probability, probability).sum()
    return (probability > 0).float().mean(), entropy.exp()
