"""The retrieval transformer T_M and T_A: feature tokens query a codebook (Sec. 3.2.3)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from modules.layers import tokens, untokens
from modules.ops import TokenLinear, attention


class Projection(NamedTuple):
    """Keys and values of some codes, (1, heads, K, D/heads) each; one copy serves the whole batch."""
    keys: Tensor
    values: Tensor


class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani et al., NeurIPS 2017) on (B, M, D) tokens.

    Queries, keys and values have separate layers, so that a context that is the same for all samples and scales is
    projected once.
    """

    def __init__(self, dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.query = TokenLinear(dim, dim)
        self.key = TokenLinear(dim, dim)
        self.value = TokenLinear(dim, dim)
        self.project = TokenLinear(dim, dim)
        # Initialised as torch.nn.MultiheadAttention, the released code's layer: Xavier for the stacked 3D x D
        # projection, zero biases.
        bound = (6 / (4 * dim)) ** 0.5
        for layer in (self.query, self.key, self.value):
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.project.bias)

    def heads(self, x):
        """(B, M, D) -> (B, heads, M, D/heads)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def context(self, keys, values):
        """Project a context (B, M, D) once."""
        return Projection(self.heads(self.key(keys)), self.heads(self.value(values)))

    def weights(self, x, context):
        """Attention weights of tokens x (B, M, D) over a Projection's keys: (B, heads, M, K), rows sum to 1."""
        query = self.heads(self.query(x))
        return (query @ context.keys.transpose(2, 3) / query.shape[-1] ** 0.5).float().softmax(-1)

    def forward(self, x, context, mask=None):
        """x (B, M, D) attends to a Projection; mask (B, 1, 1, K) is True where a key may be read."""
        query = self.heads(self.query(x))
        keys, values = (part.expand(x.shape[0], -1, -1, -1) for part in context)
        attended = attention(query, keys, values, mask)
        return self.project(attended.transpose(1, 2).flatten(2))


class RetrievalLayer(nn.Module):
    """Self-attention, cross-attention to codes, convolutional feed-forward; pre-norm, each with a skip."""

    def __init__(self, dim, num_heads, identity_start=False):
        """identity_start: initialise the last layer of each branch with 0, so that the layer starts as the identity."""
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.self_attention = MultiHeadAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.cross_attention = MultiHeadAttention(dim, num_heads)
        self.norm3 = nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(nn.Conv2d(dim, 2 * dim, 3, padding=1), nn.GELU(),
                                          nn.Conv2d(2 * dim, dim, 3, padding=1))
        if identity_start:
            for output in (self.self_attention.project, self.cross_attention.project, self.feed_forward[-1]):
                nn.init.zeros_(output.weight)
                nn.init.zeros_(output.bias)

    def forward(self, x, position, projection, size, mask=None):
        """x (B, M, D), position (M, D), Projection of the codes, size (H, W) with H*W = M -> (B, M, D)."""
        h = self.norm1(x)
        placed = h + position
        x = x + self.self_attention(placed, self.self_attention.context(placed, h), mask)
        x = x + self.cross_attention(self.norm2(x) + position, projection)
        return x + tokens(self.feed_forward(untokens(self.norm3(x), size)))


class Retrieval(nn.Module):
    """`num_layers` retrieval layers with a learnable position embedding, shared by all scales."""

    def __init__(self, dim, num_heads, num_layers, grid, identity_start=False):
        super().__init__()
        self.size = (grid, grid)
        self.position = nn.Parameter(torch.zeros(grid * grid, dim))
        self.layers = nn.ModuleList(RetrievalLayer(dim, num_heads, identity_start) for _ in range(num_layers))

    def project(self, codes):
        """Keys and values of the whole codebook (K, D), one Projection per layer."""
        return [layer.cross_attention.context(codes[None], codes[None]) for layer in self.layers]

    def forward(self, query, projections, part, visible=None):
        """Complete the query from the codes.

        query:       (B, D, h, w) features on the token grid
        projections: result of `project`
        part:        slice of the codes that this scale may read (Sec. 3.2.1)
        visible:     (B, h*w) bool, tokens that the first layer's self-attention may read; None for all
        returns:     (B, D, h, w)
        """
        mask = None if visible is None else visible[:, None, None]
        x = tokens(query)
        for layer, (keys, values) in zip(self.layers, projections):
            x = layer(x, self.position, Projection(keys[:, :, part], values[:, :, part]), self.size, mask)
            mask = None    # released code: only the first layer is masked
        return untokens(x, self.size)
