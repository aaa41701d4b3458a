"""MRFA's released keypoint detector, `prior_model: mtia`: keypoints and Jacobians from learned tokens.

HRNet's feature is cut into patches; in a transformer each keypoint and each Jacobian has a token of its own, which
attends to them (TokenPose: Li et al., ICCV 2021, arXiv 2104.03516; MTIA: Tao et al., ECCV 2022, arXiv 2209.14024).
As released in https://github.com/JialeTao/MRFA.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from modules.hrnet import HRNet
from modules.layers import AntiAlias, check_halvings, shrunk
from modules.talking_head import Keypoints
from support.ranges import LayerCount, Scale, TensorSize


@dataclass(frozen=True)
class TokenPoseParams:
    scale_factor: Scale = 1.0      # the detector sees the image at this scale
    width: TensorSize = 32         # channels of HRNet's finest branch, at a quarter of that size
    stem_width: TensorSize = 64    # channels of HRNet's stem
    num_modules: LayerCount = 4    # fusion modules of HRNet's third stage
    patch_size: TensorSize = 4     # side of a patch, in pixels of HRNet's feature
    dim: TensorSize = 192          # of a token
    num_heads: TensorSize = 8      # of attention
    num_layers: LayerCount = 12    # of the transformer

    def __post_init__(self):
        if self.dim % self.num_heads or self.dim % 4:
            raise ValueError(f'dim={self.dim}: expected a multiple of 4 and of num_heads={self.num_heads}')

    def patches_across(self, image_size):
        """Patches along a side of the image; ValueError if HRNet or the patches do not divide it."""
        size = shrunk(image_size, self.scale_factor)
        check_halvings(image_size, 'token_pose_params', size, 4)
        if size // 4 % self.patch_size:
            raise ValueError(f'image_size={image_size} gives a feature of {size // 4} px, which patch_size='
                             f'{self.patch_size} does not divide')
        return size // 4 // self.patch_size


class TokenLayer(nn.Module):
    """Transformer layer, norm first: attention of all tokens to all, then an MLP: (B, M, D) -> same."""

    def __init__(self, dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=False)
        self.project = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 3 * dim), nn.GELU(), nn.Linear(3 * dim, dim))

    def forward(self, x):
        attended = F.scaled_dot_product_attention(*self._heads(x))                 # (B, heads, M, D / heads)
        x = x + self.project(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))

    def attention_weights(self, x, rows):
        """Attention of tokens `rows` (R,) of this layer's input x (B, M, D) over all tokens: (B, heads, R, M)."""
        query, key, _ = self._heads(x)
        return (query[:, :, rows] @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)

    def _heads(self, x):
        """Queries, keys and values of x (B, M, D): (3, B, heads, M, D / heads)."""
        return self.query_key_value(self.norm1(x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)


class TokenKeypointDetector(nn.Module):
    """Image -> keypoints and Jacobians, read from one learned token each; there are no heat maps."""

    def __init__(self, params, num_kp, image_size):
        super().__init__()
        self.num_kp, self.patch_size = num_kp, params.patch_size
        self.patches_across = params.patches_across(image_size)
        self.down = AntiAlias(3, params.scale_factor)
        self.backbone = HRNet(params.width, params.stem_width, params.num_modules)
        self.embed = nn.Linear(params.width * params.patch_size ** 2, params.dim)
        self.tokens = nn.Parameter(torch.empty(1, 2 * num_kp, params.dim))         # keypoints, then Jacobians
        # Published files hold it and it is read from them, but nothing trains it.
        self.register_buffer('position', sine_position(self.patches_across, params.dim))
        self.layers = nn.ModuleList(TokenLayer(params.dim, params.num_heads) for _ in range(params.num_layers))
        self.value_head = nn.Sequential(nn.LayerNorm(params.dim), nn.Linear(params.dim, 2))
        self.jacobian_head = nn.Sequential(nn.LayerNorm(params.dim), nn.Linear(params.dim, 4))
        self._initialise()

    @torch.no_grad()
    def _initialise(self):
        """As released: tokens and linear layers N(0, 0.02), every Jacobian the identity, HRNet as PyTorch has it."""
        nn.init.normal_(self.tokens, std=0.02)
        for linear in (module for module in self.modules() if isinstance(module, nn.Linear)):
            nn.init.normal_(linear.weight, std=0.02)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        nn.init.zeros_(self.jacobian_head[1].weight)
        self.jacobian_head[1].bias.copy_(torch.tensor([1., 0., 0., 1.]))

    def forward(self, image):
        """Keypoints of image (B, 3, H, W) in [0, 1]."""
        # All in fp32, as FOMM's detector: where keypoints move, everything moves.
        with torch.autocast(image.device.type, enabled=False):
            patches = self.embed(self._patches(self.backbone(self.down(image.float()))))           # (B, P, D)
            x = torch.cat([self.tokens.expand(patches.shape[0], -1, -1), patches], dim=1)              # (B, 2K + P, D)
            # The released code adds the position of the patches before every layer, to the tokens themselves.
            position = F.pad(self.position, (0, 0, 2 * self.num_kp, 0))
            for layer in self.layers:
                x = layer(x + position)
            values, jacobians = x[:, :self.num_kp], x[:, self.num_kp:2 * self.num_kp]
            return Keypoints(2 * torch.sigmoid(self.value_head(values)) - 1,
                             self.jacobian_head(jacobians).unflatten(-1, (2, 2)))

    def _patches(self, feature):
        """(B, C, H, W) -> (B, P, p * p * C): patches row by row, pixels row by row within, channels fastest."""
        p, n = self.patch_size, self.patches_across
        return feature.unflatten(3, (n, p)).unflatten(2, (n, p)).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def sine_position(count, dim):
    """Position encoding of count x count patches, row by row: (1, count^2, dim), first half for y, second for x.

    Sines and cosines alternate (Vaswani et al., NeurIPS 2017, Sec. 3.5; in two dimensions, DETR, ECCV 2020), over one
    turn from the first patch, which is 1, to the last.
    """
    angle = 2 * math.pi * torch.arange(1, count + 1, dtype=torch.float64) / (count + 1e-6)         # (n,)
    entry = torch.arange(dim // 2, dtype=torch.float64)
    phase = angle[:, None] * 10000 ** (-2 * (entry // 2) / (dim // 2))                             # (n, dim / 2)
    line = torch.where(entry % 2 == 0, phase.sin(), phase.cos()).float()
    return torch.cat([line.repeat_interleave(count, 0), line.repeat(count, 1)], dim=1)[None]
