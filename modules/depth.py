"""Depth network of DaGAN: Monodepth2 (Godard et al., ICCV 2019), frozen; disparity of one image."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import nn

from modules.layers import BatchNorm2d
from support.ranges import Range

MEAN, STD = 0.45, 0.225           # of images in [0, 1], as the network was trained


@dataclass(frozen=True)
class DepthParams:
    pretrained: str | None = None     # folder of encoder.pth and depth.pth, to initialise training from
    num_layers: Annotated[int, Range(18, 50)] = 18  # of the ResNet, 18 (the published weights) or 50
    num_stages: Annotated[int, Range(1, 4)] = 4  # of the ResNet; the image is halved num_stages + 1 times
    block_expansion: Annotated[int, Range(4, 2 ** 16)] = 64  # channels of the ResNet's first layer

    def __post_init__(self):
        if self.num_layers not in RESNETS:
            raise ValueError(f'num_layers={self.num_layers}: expected one of {", ".join(map(str, RESNETS))}')


# Layers -> (block of torchvision.models.resnet, blocks per stage): He et al., CVPR 2016, Table 1.
RESNETS = {18: ('BasicBlock', (2, 2, 2, 2)), 50: ('Bottleneck', (3, 4, 6, 3))}


def shortcut(in_channels, out_channels, stride):
    """Projection of a residual block's skip where its size or width changes, else None."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), BatchNorm2d(out_channels))


class DepthEncoder(nn.Module):
    """A ResNet without its classifier, of torchvision's blocks; returns the features of all scales, finest first."""

    def __init__(self, params):
        super().__init__()
        from torchvision.models import resnet  # slow to import
        name, counts = RESNETS[params.num_layers]
        block = getattr(resnet, name)
        width = params.block_expansion
        self.widths = [width]                                                             # finest first
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = BatchNorm2d(width)
        self.stages = nn.ModuleList()
        for stage, count in enumerate(counts[:params.num_stages]):
            channels = width * 2 ** stage
            strides = [2 if stage else 1] + [1] * (count - 1)
            widths = [self.widths[-1]] + [channels * block.expansion] * count
            self.stages.append(nn.Sequential(*(
                block(in_channels, channels, stride, shortcut(in_channels, channels * block.expansion, stride),
                      norm_layer=BatchNorm2d) for in_channels, stride in zip(widths, strides))))
            self.widths.append(widths[-1])

    def forward(self, image):
        """image (B, 3, H, W) in [0, 1] -> list of (B, C_i, H / 2^(i+1), W / 2^(i+1))."""
        features = [F.relu(self.bn1(self.conv1((image - MEAN) / STD)))]
        x = F.max_pool2d(features[0], 3, stride=2, padding=1)
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


reflect_conv = partial(nn.Conv2d, kernel_size=3, padding=1, padding_mode='reflect')


class DepthDecoder(nn.Module):
    """Features of the encoder to disparities, from coarse to fine, with a skip connection at every scale."""

    def __init__(self, widths):
        """widths: of the encoder's features, finest first."""
        super().__init__()
        base = widths[0] // 4
        own = [base * 2 ** scale for scale in range(len(widths))][::-1]                   # coarsest first
        skips = [*widths[-2::-1], 0]
        incoming = [widths[-1], *own[:-1]]
        self.blocks = nn.ModuleList(
            nn.ModuleList([reflect_conv(before, channels), reflect_conv(channels + skip, channels)])
            for before, channels, skip in zip(incoming, own, skips))
        # Only the finest is used; the published files contain the others, which its training used.
        self.heads = nn.ModuleList(reflect_conv(channels, 1) for channels in own[:0:-1])   # finest first

    def forward(self, features):
        """The encoder's features, finest first -> disparities in (0, 1), finest first, (B, 1, H / 2^i, W / 2^i)."""
        *skips, x = features
        found = []
        for enter, leave in self.blocks:
            x = F.interpolate(F.elu(enter(x)), scale_factor=2, mode='nearest')
            x = F.elu(leave(torch.cat([x, skips.pop()], dim=1) if skips else x))
            found.append(x)
        return [torch.sigmoid(head(x)) for head, x in zip(self.heads, reversed(found))]


class DepthNetwork(nn.Module):
    """Image to disparity, larger for nearer points, of unknown scale; never trained, always in eval mode."""

    def __init__(self, params):
        super().__init__()
        self.encoder = DepthEncoder(params)
        self.decoder = DepthDecoder(self.encoder.widths)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):      # without pretrained weights, features keep their variance
                nn.init.kaiming_normal_(module.weight, nonlinearity='relu')
        self.requires_grad_(False)
        self.eval()

    def train(self, mode=True):
        return super().train(False)

    def forward(self, image):
        """image (B, 3, H, W) in [0, 1] -> disparity (B, 1, H, W) in (0, 1)."""
        # In fp32: keypoints are detected in the disparity, and bf16 would move them by several pixels of 256.
        with torch.autocast(image.device.type, enabled=False):
            return self.decoder(self.encoder(image.float()))[0]
