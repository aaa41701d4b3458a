"""ACC, appearance compensation by the appearance codebook (Sec. 3.2.3), and its losses (Sec. 3.2.2, Eq. 5)."""

from torch import nn

from modules.codebook import Codebook
from modules.layers import tokens, untokens
from modules.ops import TokenLinear
from modules.retrieval import Retrieval
from modules.warp import resize_flow


def partition_windows(x, grid):
    """Cut (B, C, H, W) into grid x grid windows of p x p pixels: (B, grid*grid, p*p*C)."""
    pixels = x.permute(0, 2, 3, 1).unflatten(2, (grid, -1)).unflatten(1, (grid, -1))         # (B, g, p, g, p, C)
    return pixels.transpose(2, 3).flatten(3).flatten(1, 2)


def reverse_windows(x, grid, channels):
    """(B, grid*grid, p*p*C) -> (B, C, H, W), channels last in memory; the inverse of `partition_windows`."""
    patch = round((x.shape[-1] // channels) ** 0.5)
    x = x.unflatten(2, (patch, patch, channels)).unflatten(1, (grid, grid))          # (B, g, g, p, p, C)
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


class WindowEmbedding(TokenLinear):
    """Embeds each window of a feature as one token."""

    def forward(self, feature, grid):
        """(B, C, H, W) -> (B, grid*grid, D)."""
        return super().forward(partition_windows(feature, grid))


class AppearanceCompensation(nn.Module):
    """Restores warped features from appearance codes; windows give every scale the same token grid."""

    def __init__(self, params, channels, grid, tied_windows=False, residual=False):
        """channels: feature widths, coarsest first; the feature of scale i has side grid * 2^i.

        residual:     add the change made by retrieval to the feature, instead of replacing the feature.
        tied_windows: initialise un-embedding as the transpose of the embedding, with orthonormal rows, so that features
                      pass as far as code_dim allows; the released code keeps PyTorch's defaults.
        """
        super().__init__()
        self.grid, self.residual = grid, residual
        self.codebook = Codebook(params)
        self.retrieval = Retrieval(params.code_dim, params.num_heads, params.num_layers, grid,
                                   params.identity_start)                                        # T_A
        widths = [width * 4 ** scale for scale, width in enumerate(channels[:params.num_scales])]
        self.embed = nn.ModuleList(WindowEmbedding(width, params.code_dim) for width in widths)
        # No bias with `residual`, so that a residual of 0 stays 0.
        self.unembed = nn.ModuleList(TokenLinear(params.code_dim, width, bias=not residual) for width in widths)
        if tied_windows:
            for embed, unembed in zip(self.embed, self.unembed):
                nn.init.orthogonal_(embed.weight)
                unembed.weight.data.copy_(embed.weight.data.t())

    def project_codes(self):
        """Keys and values of the appearance codes (T, d_a), a Projection per layer, for all samples and scales."""
        return self.retrieval.project(self.codebook.embedding)

    def encode(self, scale, feature):
        """Windows of a feature (B, C_i, H_i, W_i), projected to code dimension: (B, d_a, grid, grid)."""
        return untokens(self.embed[scale](feature, self.grid), self.retrieval.size)

    def forward(self, scale, warped, flow, projections):
        """Compensate F_w^i (B, C_i, H_i, W_i), warped by `flow` (B, h, w, 2), into F_c^i of the same shape.

        Paper and released code: F_c = U(T_A(E(F_w))), so that all of F_c passes through the code dimension.
        Residual form: F_c = F_w + U(T_A(E(F_w)) - E(F_w)), where the residual carries what code_dim cannot.
        """
        # Tokens that the flow reads from outside of the source image are empty.
        visible = resize_flow(flow, self.retrieval.size).abs().amax(-1).flatten(1) <= 1           # (B, grid*grid)
        visible = visible | ~visible.any(1, keepdim=True)                                         # not all of them
        embedded = self.encode(scale, warped)
        completed = self.retrieval(embedded, projections, self.codebook.slices[scale], visible)
        if self.residual:
            return warped + self._feature(scale, completed - embedded, warped.shape[1])
        return self._feature(scale, completed, warped.shape[1])

    def _feature(self, scale, encoded, channels):
        """Un-embed (B, d_a, grid, grid) into a feature (B, channels, H_i, W_i)."""
        return reverse_windows(self.unembed[scale](tokens(encoded)), self.grid, channels)

    def learn(self, scale, feature):
        """Eq. 5 for the driving feature F_d^i (B, C_i, H_i, W_i) -> Quantized."""
        return self.codebook.quantize(self.encode(scale, feature), scale)
