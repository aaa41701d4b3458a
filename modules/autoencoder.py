"""The VQGAN-style image encoder E_I and decoder D_I, with taps at every scale (Sec. 3.1, A.1)."""

from dataclasses import dataclass

import torch
from torch import nn

from modules.layers import AttentionBlock, Downsample, ResBlock, Upsample, group_norm
from support.ranges import LayerCount, TensorSize


@dataclass(frozen=True)
class AutoencoderParams:
    channels: tuple[TensorSize, ...] = (256, 128, 128, 64)  # per scale, coarsest first; N scales
    res_blocks: LayerCount = 2                              # per scale
    norm_groups: TensorSize = 32                            # of every group normalisation

    def __post_init__(self):
        if not self.channels:
            raise ValueError('channels=[]: expected the width of at least one scale')
        for width in self.channels:
            if width % min(self.norm_groups, width):
                raise ValueError(f'channels={list(self.channels)}: {width} is not a multiple of '
                                 f'norm_groups={self.norm_groups}')


class Level(nn.Module):
    """Residual blocks of one scale, each followed by self-attention if `attention`: (B, C, H, W) -> (B, C', H, W)."""

    def __init__(self, in_channels, out_channels, params, attention):
        super().__init__()
        widths = [in_channels] + [out_channels] * params.res_blocks
        self.blocks = nn.ModuleList()
        for pair in zip(widths, widths[1:]):
            block = [ResBlock(*pair, params.norm_groups)]
            if attention:
                block.append(AttentionBlock(out_channels, params.norm_groups))
            self.blocks.append(nn.Sequential(*block))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def bottleneck(channels, groups):
    """Residual block, self-attention, residual block at the coarsest scale: (B, C, h, w) -> same."""
    return nn.Sequential(ResBlock(channels, channels, groups), AttentionBlock(channels, groups),
                         ResBlock(channels, channels, groups))


class EncoderLevel(Level):
    """One scale of the encoder; gradient checkpointing recomputes it as a whole."""


class Encoder(nn.Module):
    """Image (B, 3, H, W) -> features at N scales, coarsest first."""

    def __init__(self, params):
        super().__init__()
        fine_to_coarse = params.channels[::-1]
        self.stem = nn.Conv2d(3, fine_to_coarse[0], 3, padding=1)
        self.levels, self.downs = nn.ModuleList(), nn.ModuleList()
        width = fine_to_coarse[0]
        for depth, channels in enumerate(fine_to_coarse):
            coarsest = depth == len(fine_to_coarse) - 1
            kind = Level if coarsest else EncoderLevel      # `tapped` reads inside the coarsest
            self.levels.append(kind(width, channels, params, attention=coarsest))
            self.downs.append(nn.Identity() if coarsest else Downsample(channels))
            width = channels
        self.middle = bottleneck(width, params.norm_groups)
        # No activation between norm and convolution, as in the published weights.
        self.head = nn.Sequential(group_norm(width, params.norm_groups), nn.Conv2d(width, width, 3, padding=1))

    def forward(self, image):
        """Features of image (B, 3, H, W): a list, coarsest first, of (B, C_i, H_i, W_i).

        The coarsest is the encoder's output; finer ones are the outputs of their scale's residual blocks.
        """
        return self.tapped(image)[0]

    def tapped(self, image):
        """`forward`, and the feature (B, C_1, h, w) after the first block of the coarsest level.

        The released code trains the appearance codes of the coarsest scale on that feature, not on the encoder's
        output, which it compensates with them; published codes depend on it.
        """
        x = self.stem(image)
        taps = []
        for level, down in zip(self.levels[:-1], self.downs):
            x = level(x)
            taps.append(x)
            x = down(x)
        first, *rest = self.levels[-1].blocks
        middle_tap = x = first(x)
        for block in rest:
            x = block(x)
        return [self.head(self.middle(x)), *reversed(taps)], middle_tap


class Decoder(nn.Module):
    """Feature of the coarsest scale -> image, one scale per call, so that callers can fuse features in between."""

    def __init__(self, params):
        super().__init__()
        width = params.channels[0]
        self.stem = nn.Conv2d(width, width, 3, padding=1)
        self.middle = bottleneck(width, params.norm_groups)
        self.levels, self.ups = nn.ModuleList(), nn.ModuleList()
        for scale, channels in enumerate(params.channels):
            self.ups.append(Upsample(width) if scale else nn.Identity())
            self.levels.append(Level(width, channels, params, attention=scale == 0))
            width = channels
        self.head = nn.Sequential(group_norm(width, params.norm_groups), nn.Conv2d(width, 3, 3, padding=1))

    def start(self, feature):
        """F_c^1 (B, C_1, h, w) -> decoder state of the coarsest scale, same shape."""
        return self.levels[0](self.middle(self.stem(feature)))

    def up(self, x, scale, fuse=None):
        """Decoder state (B, C_{i-1}, h, w) of scale - 1 -> (B, C_i, 2h, 2w) of `scale`.

        fuse: applied after the level's first block, (B, C_i, 2h, 2w) -> same; None for nothing
        """
        first, *rest = self.levels[scale].blocks
        x = first(self.ups[scale](x))
        if fuse is not None:
            x = fuse(x)
        for block in rest:
            x = block(x)
        return x

    @property
    def last_weight(self):
        """Weight of the last convolution: where the adaptive adversarial weight compares gradients."""
        return self.head[-1].weight


class Fusion(nn.Module):
    """Fuses a compensated feature into the decoder state: spatial feature transform, then addition (Sec. 3.3)."""

    def __init__(self, channels, groups):
        super().__init__()
        self.encode = ResBlock(2 * channels, channels, groups)
        self.scale = self._head(channels)
        self.shift = self._head(channels)
        self.add = nn.Conv2d(channels, channels, 3, padding=1)

    @staticmethod
    def _head(channels):
        return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.LeakyReLU(0.2, True),
                             nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x, feature):
        """Decoder state x and feature, both (B, C, H, W) -> (B, C, H, W)."""
        h = self.encode(torch.cat([feature, x], dim=1))
        return x + x * self.scale(h) + self.shift(h) + self.add(feature)
