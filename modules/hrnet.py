"""HRNet without its fourth stage: features at a quarter of the image's resolution.

Sun et al., CVPR 2019, arXiv 1902.09212; https://github.com/leoxiaobin/deep-high-resolution-net.pytorch. The sizes are
those of MRFA's `prior_model: mtia` (https://github.com/JialeTao/MRFA).
"""

import torch.nn.functional as F
from torch import nn

from modules.layers import BatchNorm2d

NUM_BLOCKS = 4         # residual blocks of a branch, and bottlenecks behind the stem


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, ReLU if `relu`: (B, C, H, W) -> (B, C', H / stride, W / stride)."""

    def __init__(self, in_channels, out_channels, kernel_size=3, stride=1, relu=True):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
        self.norm = BatchNorm2d(out_channels)
        self.relu = relu

    def forward(self, x):
        x = self.norm(self.conv(x))
        return F.relu(x, inplace=True) if self.relu else x


class Bottleneck(nn.Module):
    """ResNet's bottleneck (He et al., CVPR 2016): (B, C, H, W) -> (B, 4 * width, H, W)."""

    def __init__(self, in_channels, width):
        super().__init__()
        self.reduce = ConvNorm(in_channels, width, 1)
        self.filter = ConvNorm(width, width)
        self.expand = ConvNorm(width, 4 * width, 1, relu=False)
        self.shortcut = nn.Identity() if in_channels == 4 * width else ConvNorm(in_channels, 4 * width, 1, relu=False)

    def forward(self, x):
        return F.relu(self.shortcut(x) + self.expand(self.filter(self.reduce(x))))


class BasicBlock(nn.Module):
    """ResNet's basic block: (B, C, H, W) -> same."""

    def __init__(self, width):
        super().__init__()
        self.first = ConvNorm(width, width)
        self.second = ConvNorm(width, width, relu=False)

    def forward(self, x):
        return F.relu(x + self.second(self.first(x)))


class FusionModule(nn.Module):
    """Residual blocks on every branch, then every output sums all branches at its own resolution (Fig. 3).

    Branch b has widths[b] channels and half the resolution of branch b - 1. num_outputs: how many are fused, finest
    first.
    """

    def __init__(self, widths, num_outputs):
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*(BasicBlock(width) for _ in range(NUM_BLOCKS)))
                                      for width in widths)
        self.fusions = nn.ModuleList(
            nn.ModuleList(_resample(widths, branch, output) for branch in range(len(widths)))
            for output in range(num_outputs))

    def forward(self, features):
        """list of (B, widths[b], H / 2^b, W / 2^b) -> the same of the fused branches."""
        features = [branch(feature) for branch, feature in zip(self.branches, features)]
        return [F.relu(sum(resample(feature) for resample, feature in zip(resamples, features)))
                for resamples in self.fusions]


def _resample(widths, branch, output):
    """Maps branch number `branch` to the resolution and width of branch number `output`."""
    if branch == output:
        return nn.Identity()
    if branch > output:
        return Enlarge(widths[branch], widths[output], 2 ** (branch - output))
    # ReLU between the halvings alone: the last one's comes after the sum.
    halvings = [ConvNorm(widths[branch], widths[branch], stride=2) for _ in range(output - branch - 1)]
    return nn.Sequential(*halvings, ConvNorm(widths[branch], widths[output], stride=2, relu=False))


class Enlarge(ConvNorm):
    """1x1 convolution, batch norm, nearest upsampling: (B, C, H, W) -> (B, C', factor * H, factor * W)."""

    def __init__(self, in_channels, out_channels, factor):
        super().__init__(in_channels, out_channels, 1, relu=False)
        self.factor = factor

    def forward(self, x):
        return F.interpolate(super().forward(x), scale_factor=self.factor)


class HRNet(nn.Module):
    """Image (B, 3, H, W) -> feature (B, width, H / 4, W / 4); H and W are multiples of 16.

    width:       channels of the finest branch; each coarser one has twice as many
    stem_width:  channels of the stem
    num_modules: fusion modules of the third stage
    """

    def __init__(self, width, stem_width, num_modules):
        super().__init__()
        widths, wide = [width, 2 * width, 4 * width], 4 * stem_width
        self.stem = nn.Sequential(ConvNorm(3, stem_width, stride=2), ConvNorm(stem_width, stem_width, stride=2))
        self.bottlenecks = nn.Sequential(*(Bottleneck(wide if i else stem_width, stem_width)
                                           for i in range(NUM_BLOCKS)))
        # How each branch starts: two from the bottlenecks, the third from the second.
        self.starts = nn.ModuleList([ConvNorm(wide, widths[0]), ConvNorm(wide, widths[1], stride=2),
                                     ConvNorm(widths[1], widths[2], stride=2)])
        self.stage2 = FusionModule(widths[:2], num_outputs=2)
        self.stage3 = nn.ModuleList(FusionModule(widths, num_outputs=3 if i < num_modules - 1 else 1)
                                    for i in range(num_modules))

    def forward(self, image):
        x = self.bottlenecks(self.stem(image))                                     # (B, 4 * stem_width, H/4, W/4)
        features = self.stage2([self.starts[0](x), self.starts[1](x)])
        features = [*features, self.starts[2](features[-1])]                       # at H/4, H/8, H/16
        for module in self.stage3:
            features = module(features)
        return features[0]
