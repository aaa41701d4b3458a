"""Discriminators: VQGAN's patch discriminator, and FOMM's at several scales, optionally with keypoints.

Of patches: pix2pix (Isola et al., CVPR 2017, arXiv 1611.07004, Sec. 3.2.2), adopted by VQGAN (CVPR 2021, Sec. 3.1).
At several scales, with feature matching: pix2pixHD (Wang et al., CVPR 2018, arXiv 1711.11585, Sec. 3.2).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from modules.keypoint_detector import gaussian_heatmaps
from modules.layers import AntiAlias, BatchNorm2d, to_unit
from support.ranges import LayerCount, Positive, Scale, TensorSize


class DiscriminatorOutput(NamedTuple):
    """Output of a discriminator.

    logits:   one (B, 1, h, w) per scale, high for real
    features: (B, C, h, w) after each hidden layer, scale after scale; what feature matching compares
    """
    logits: list[Tensor]
    features: list[Tensor]


# ---------------------------------------------------------------------------- VQGAN's

@dataclass(frozen=True)
class PatchDiscriminatorParams:
    channels: TensorSize = 64   # width of the first layer
    num_layers: LayerCount = 4  # strided layers; with 4, patches lie 16 px apart: (B, 1, 14, 14) at 256 px


class PatchDiscriminator(nn.Module):
    """One logit per overlapping patch: five strided or plain 4x4 convolutions with batch norm."""

    def __init__(self, params):
        super().__init__()
        widths = [params.channels * min(2 ** level, 8) for level in range(params.num_layers + 1)]
        layers = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2, True)]
        for level in range(1, params.num_layers + 1):
            stride = 1 if level == params.num_layers else 2
            layers += [nn.Conv2d(widths[level - 1], widths[level], 4, stride=stride, padding=1, bias=False),
                       BatchNorm2d(widths[level]), nn.LeakyReLU(0.2, True)]
        layers.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        # PyTorch's default initialisers, as the released code has them; pix2pix and VQGAN draw N(0, 0.02).
        self.main = nn.Sequential(*layers)

    def forward(self, image, keypoints):
        """DiscriminatorOutput of image (B, 3, H, W) in [-1, 1]; `keypoints` are not used."""
        features, x = [], image
        for layer in self.main:
            x = layer(x)
            if isinstance(layer, nn.LeakyReLU):
                features.append(x)
        return DiscriminatorOutput([x.float()], features)


# ---------------------------------------------------------------------------- FOMM's

@dataclass(frozen=True)
class MultiScaleDiscriminatorParams:
    scales: tuple[Scale, ...] = (1,)  # of the image; one network each
    block_expansion: TensorSize = 32  # half the width of the first layer, which is doubled at each layer
    max_features: TensorSize = 512    # widest layer
    num_blocks: LayerCount = 4        # layers; all but the last halve the image
    spectral_norm: bool = False       # divides kernels by their largest singular value (Miyato, ICLR 2018)
    use_keypoints: bool = False       # heat maps of the driving keypoints are input channels
    kp_variance: Positive = 0.01      # of the Gaussian around each keypoint


class DiscriminatorBlock(nn.Module):
    """4x4 convolution without padding, instance norm if `norm`, leaky ReLU, and halving if `pool`.

    (B, C, H, W) -> (B, C', H - 3, W - 3), halved if `pool`.
    """

    def __init__(self, in_channels, out_channels, norm, pool, parametrize):
        super().__init__()
        self.conv = parametrize(nn.Conv2d(in_channels, out_channels, 4))
        self.norm = nn.InstanceNorm2d(out_channels, affine=True) if norm else nn.Identity()
        self.pool = nn.AvgPool2d(2) if pool else nn.Identity()

    def forward(self, x):
        return self.pool(F.leaky_relu(self.norm(self.conv(x)), 0.2))


class ScaleDiscriminator(nn.Module):
    """FOMM's discriminator at one scale; its code: modules/discriminator.py of the repository named in layers.py."""

    def __init__(self, params, in_channels):
        super().__init__()
        widths = [in_channels] + [min(params.max_features, params.block_expansion * 2 ** level)
                                  for level in range(1, params.num_blocks + 1)]
        parametrize = spectral_norm if params.spectral_norm else (lambda layer: layer)
        last = params.num_blocks - 1
        self.blocks = nn.ModuleList(DiscriminatorBlock(*pair, norm=level > 0, pool=level < last,
                                                       parametrize=parametrize)
                                    for level, pair in enumerate(zip(widths, widths[1:])))
        self.head = parametrize(nn.Conv2d(widths[-1], 1, 1))

    def forward(self, x):
        """(B, C, H, W) -> (logits (B, 1, h, w), feature after each block)."""
        features = []
        for block in self.blocks:
            x = block(x)
            features.append(x)
        return self.head(x).float(), features


class MultiScaleDiscriminator(nn.Module):
    """One ScaleDiscriminator per scale of the image; each may see where the driving keypoints should be."""

    def __init__(self, params, num_kp):
        """num_kp: keypoints of the model, needed with use_keypoints."""
        super().__init__()
        self.params = params
        in_channels = 3 + (num_kp if params.use_keypoints else 0)
        self.pyramid = nn.ModuleList(AntiAlias(3, scale) for scale in params.scales)
        self.scales = nn.ModuleList(ScaleDiscriminator(params, in_channels) for _ in params.scales)

    def forward(self, image, keypoints):
        """DiscriminatorOutput of image (B, 3, H, W) in [-1, 1]; the driving Keypoints should carry no gradient."""
        image = to_unit(image)
        logits, features = [], []
        for down, discriminator in zip(self.pyramid, self.scales):
            x = down(image)
            if self.params.use_keypoints:
                heatmaps = gaussian_heatmaps(keypoints.value, x.shape[-2:], self.params.kp_variance)
                x = torch.cat([x, heatmaps], dim=1)
            logit, found = discriminator(x)
            logits.append(logit)
            features += found
        return DiscriminatorOutput(logits, features)
