"""Disparity from one image: the network of Monodepth2 (Godard et al., ICCV 2019), frozen, as DaGAN uses it."""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import nn

from modules.layers import BatchNorm2d
from support.ranges import Range

MEAN, STD = 0.45, 0.225           # of images in [0, 1], as the network was trained


@dataclass(frozen=True)
class DepthParams:
    pretrained: str | None = None     # folder of encoder.pth and depth.pth, which training starts with
    num_layers: Annotated[int, Range(18, 50)] = 18  # of the ResNet, 18 (the published weights) or 50
    num_stages: Annotated[int, Range(1, 4)] = 4  # of the ResNet; the image is halved num_stages + 1 times
    block_expansion: Annotated[int, Range(4, 2 ** 16)] = 64  # channels of the ResNet's first layer

    def __post_init__(self):
        if self.num_layers not in RESNETS:
            raise ValueError(f'num_layers={self.num_layers}: expected one of {", ".join(map(str, RESNETS))}')


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a skip (He et al., CVPR 2016): (B, C, H, W) -> (B, C', H / stride, W / stride)."""

    expansion = 1

    def __init__(self, in_channels, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = BatchNorm2d(channels)
        self.downsample = shortcut(in_channels, channels, stride)

    def forward(self, x):
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + self.downsample(x))


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1, with a skip: (B, C, H, W) -> (B, 4 channels, H / stride, W / stride)."""

    expansion = 4

    def __init__(self, in_channels, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = BatchNorm2d(4 * channels)
        self.downsample = shortcut(in_channels, 4 * channels, stride)

    def forward(self, x):
        h = F.relu(self.bn1(self.conv1(x)))
        h = F.relu(self.bn2(self.conv2(h)))
        return F.relu(self.bn3(self.conv3(h)) + self.downsample(x))


RESNETS = {18: (BasicBlock, (2, 2, 2, 2)), 50: (Bottleneck, (3, 4, 6, 3))}


def shortcut(in_channels, out_channels, stride):
    """What a residual block's skip needs where it changes size or width."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), BatchNorm2d(out_channels))


class DepthEncoder(nn.Module):
    """A ResNet without its classifier; keeps the feature of every scale, finest first."""

    def __init__(self, params):
        super().__init__()
        block, counts = RESNETS[params.num_layers]
        width = params.block_expansion
        self.widths = [width]                                                             # finest first
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = BatchNorm2d(width)
        self.stages = nn.ModuleList()
        for stage, count in enumerate(counts[:params.num_stages]):
            channels = width * 2 ** stage
            strides = [2 if stage else 1] + [1] * (count - 1)
            widths = [self.widths[-1]] + [channels * block.expansion] * count
            self.stages.append(nn.Sequential(*(block(in_channels, channels, stride)
                                               for in_channels, stride in zip(widths, strides))))
            self.widths.append(widths[-1])

    def forward(self, image):
        """image (B, 3, H, W) in [0, 1] -> list of (B, C_i, H / 2^(i+1), W / 2^(i+1))."""
        features = [F.relu(self.bn1(self.conv1((image - MEAN) / STD)))]
        x = F.max_pool2d(features[0], 3, stride=2, padding=1)
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class ReflectConv(nn.Conv2d):
    """3x3 convolution that reflects the feature at its border."""

    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels, 3, padding=1, padding_mode='reflect')


class DepthDecoder(nn.Module):
    """Features of the encoder -> disparities, from coarse to fine with a skip connection at every scale."""

    def __init__(self, widths):
        """widths: of the encoder's features, finest first."""
        super().__init__()
        base = widths[0] // 4
        own = [base * 2 ** scale for scale in range(len(widths))][::-1]                   # coarsest first
        skips = [*widths[-2::-1], 0]
        incoming = [widths[-1], *own[:-1]]
        self.blocks = nn.ModuleList(
            nn.ModuleList([ReflectConv(before, channels), ReflectConv(channels + skip, channels)])
            for before, channels, skip in zip(incoming, own, skips))
        # Only the finest is used here; the others belong to the published network's training, and to its files.
        self.heads = nn.ModuleList(ReflectConv(channels, 1) for channels in own[:0:-1])   # finest first

    def forward(self, features):
        """What the encoder gave, finest first -> disparities in (0, 1), finest first, (B, 1, H / 2^i, W / 2^i)."""
        *skips, x = features
        found = []
        for enter, leave in self.blocks:
            x = F.interpolate(F.elu(enter(x)), scale_factor=2, mode='nearest')
            x = F.elu(leave(torch.cat([x, skips.pop()], dim=1) if skips else x))
            found.append(x)
        return [torch.sigmoid(head(x)) for head, x in zip(self.heads, reversed(found))]


class DepthNetwork(nn.Module):
    """Image -> disparity, larger where nearer, without scale. Frozen: never trained, always in eval mode."""

    def __init__(self, params):
        super().__init__()
        self.encoder = DepthEncoder(params)
        self.decoder = DepthDecoder(self.encoder.widths)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):      # without pretrained weights: what a feature holds shall arrive
                nn.init.kaiming_normal_(module.weight, nonlinearity='relu')
        self.requires_grad_(False)
        self.eval()

    def train(self, mode=True):
        return super().train(False)

    def forward(self, image):
        """image (B, 3, H, W) in [0, 1] -> disparity (B, 1, H, W) in (0, 1)."""
        return self.decoder(self.encoder(image))[0].float()
