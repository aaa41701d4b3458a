"""Convolution blocks shared by several networks: FOMM's hourglass family and VQGAN's residual family.

FOMM: Siarohin et al., NeurIPS 2019, arXiv 2003.00196; https://github.com/AliaksandrSiarohin/first-order-model
VQGAN: Esser et al., CVPR 2021, arXiv 2012.09841; https://github.com/CompVis/taming-transformers
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from modules.convolutions import in_layout_of, norm_silu_conv, padded_conv, upsampled_conv
from modules.ops import Conv1x1, attention
from support import distributed

# ---------------------------------------------------------------------------- normalisation

class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation (Ioffe and Szegedy, ICML 2015) over the global batch: eps 1e-5, momentum 0.1.

    Without a process group this is plain batch normalisation. With one, statistics are of all processes together, on
    any device (torch's SyncBatchNorm supports GPUs only). The released code intends this, but its layer falls back to
    each process's share of the batch. Batches are not counted (num_batches_tracked): the momentum does not need it.
    """

    def forward(self, x):
        """(B, C, H, W) -> same."""
        if not self.training or distributed.world() == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training,
                                self.momentum, self.eps)

        count = x.numel() // x.shape[1] * distributed.world()
        y, mean, variance = _GlobalBatchNorm.apply(x, self.weight, self.bias, self.running_mean, count, self.eps)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        return y


class _GlobalBatchNorm(torch.autograd.Function):
    """Batch normalisation over all processes, in fp32, with one exchange forward and one backward.

    Inputs: x (B, C, H, W), weight, bias (C,), shift (C,), number of values per channel in all processes, eps. Returns
    y (B, C, H, W) in x's type, mean and variance (C,). The sums exchanged are of x - shift, alike in all processes and
    near the mean, so that the variance, a difference of sums, keeps its digits.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, shift, count, eps):
        shifted = x.float() - shift[:, None, None]
        sums = torch.stack([shifted.sum((0, 2, 3)), shifted.square().sum((0, 2, 3))])
        distributed.add_up(sums)
        offset, square = sums / count
        mean, variance = shift + offset, (square - offset.square()).clamp(min=0)
        rstd = (variance + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.count = count
        ctx.mark_non_differentiable(mean, variance)
        y = (shifted - offset[:, None, None]) * (weight * rstd)[:, None, None] + bias[:, None, None]
        return y.to(x.dtype), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, *_):
        x, weight, mean, rstd = ctx.saved_tensors
        gradient = gradient.float()
        normal = (x.float() - mean[:, None, None]) * rstd[:, None, None]
        sums = torch.stack([gradient.sum((0, 2, 3)), (gradient * normal).sum((0, 2, 3))])
        by_bias, by_weight = sums.clone()              # of this process: DDP averages gradients of parameters
        distributed.add_up(sums)
        constant, slope = (sums / ctx.count)[:, :, None, None]
        by_x = (gradient - constant - normal * slope) * (weight * rstd)[:, None, None]
        return by_x.to(x.dtype), by_weight, by_bias, None, None, None


class FeatureNorm(nn.GroupNorm):
    """Group norm that `norm_silu_conv` computes, in the type of features."""


def group_norm(channels, groups=32, kind=nn.GroupNorm):
    """VQGAN's normalisation (Wu and He, ECCV 2018): `groups` groups or as many as there are channels, eps 1e-6."""
    return kind(min(groups, channels), channels, eps=1e-6)


# ---------------------------------------------------------------------------- FOMM's blocks

class SameBlock2d(nn.Module):
    """Convolution, batch norm, ReLU at one resolution: (B, C, H, W) -> (B, C', H, W)."""

    def __init__(self, in_channels, out_channels, kernel_size=3):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.norm = BatchNorm2d(out_channels)

    def forward(self, x):
        return F.relu(self.norm(self.conv(x)), inplace=True)


class DownBlock2d(SameBlock2d):
    """Convolution, batch norm, ReLU, then average pooling: (B, C, H, W) -> (B, C', H/2, W/2)."""

    def forward(self, x):
        return F.avg_pool2d(super().forward(x), 2)


class UpBlock2d(SameBlock2d):
    """Nearest upsampling, then convolution, batch norm, ReLU: (B, C, H, W) -> (B, C', 2H, 2W)."""

    def forward(self, x):
        return F.relu(self.norm(upsampled_conv(x, self.conv)), inplace=True)


class ResBlock2d(nn.Module):
    """Two (batch norm, ReLU, 3x3 convolution) with a skip, as He et al., ECCV 2016: (B, C, H, W) -> same."""

    def __init__(self, channels):
        super().__init__()
        self.norm1 = BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        h = self.conv1(F.relu(self.norm1(x)))
        return x + self.conv2(F.relu(self.norm2(h)))


class Hourglass(nn.Module):
    """FOMM's U-Net (Ronneberger et al., MICCAI 2015): `num_blocks` halvings, a skip connection at every resolution.

    Input (B, in_channels, H, W), output (B, out_channels, H, W) with
    out_channels = min(max_features, block_expansion) + in_channels, as the input itself is the last skip.
    """

    def __init__(self, in_channels, block_expansion, num_blocks, max_features):
        super().__init__()
        widths = [in_channels] + [min(max_features, block_expansion * 2 ** level) for level in range(1, num_blocks + 1)]
        self.down_blocks = nn.ModuleList(DownBlock2d(*pair) for pair in zip(widths, widths[1:]))
        self.up_blocks = nn.ModuleList()
        for level in reversed(range(num_blocks)):
            skip = 0 if level == num_blocks - 1 else widths[level + 1]
            self.up_blocks.append(UpBlock2d(widths[level + 1] + skip, min(max_features, block_expansion * 2 ** level)))
        self.out_channels = min(max_features, block_expansion) + in_channels

    def forward(self, x):
        skips = [in_layout_of(self.down_blocks[0].conv.weight, x)]
        for block in self.down_blocks:
            skips.append(block(skips[-1]))
        x = skips.pop()
        for block in self.up_blocks:
            x = torch.cat([block(x), skips.pop()], dim=1)
        return x


def check_hourglasses(params, **further):
    """Raise ValueError if an hourglass cannot halve its input `num_blocks` times.

    params:  of the whole model
    further: names of other parts with `num_blocks` halvings, and the scale of their input
    """
    scales = {name: getattr(params, name).scale_factor for name in ('kp_detector_params', 'dense_motion_params')}
    for name, scale in (scales | further).items():
        size, count = shrunk(params.image_size, scale), getattr(params, name).num_blocks
        check_halvings(params.image_size, f'{name}.num_blocks', size, count)


def check_halvings(image_size, name, size, count):
    """Raise ValueError if an input of `size` pixels cannot be halved `count` times."""
    if size < 1 or count >= size.bit_length() or size % 2 ** count:
        raise ValueError(f'image_size={image_size} gives {name} inputs of {size} px, '
                         f'which cannot be halved {count} times')


def shrunk(size, scale):
    """Side of the image that AntiAlias returns for an image of side `size`."""
    return -(-size // round(1 / scale))


class AntiAlias(nn.Module):
    """Gaussian blur, then every 1/scale-th pixel starting at the first (FOMM's anti-aliased downsampling).

    sigma = (1/scale - 1)/2, kernel 2*round(4*sigma) + 1, zero padding. (B, C, H, W) -> (B, C, H*scale, W*scale).
    """

    def __init__(self, channels, scale):
        super().__init__()
        self.stride = round(1 / scale)
        sigma = (1 / scale - 1) / 2
        size = 2 * round(4 * sigma) + 1
        position = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
        line = torch.exp(-position.square() / (2 * sigma ** 2)) if sigma else torch.ones(size)
        kernel = line[:, None] * line[None, :]
        # The kernel is a function of `scale`, so checkpoints do not hold it.
        kernel = (kernel / kernel.sum()).expand(channels, 1, size, size).clone()
        self.register_buffer('weight', kernel, persistent=False)

    def forward(self, x):
        if self.stride == 1:
            return x
        # Striding the convolution skips the pixels that would be dropped.
        return F.conv2d(x, self.weight, padding=self.weight.shape[-1] // 2, stride=self.stride, groups=x.shape[1])


# ---------------------------------------------------------------------------- VQGAN's blocks

class ResBlock(nn.Module):
    """Two (group norm, SiLU, 3x3 convolution) with a skip: (B, C, H, W) -> (B, C', H, W)."""

    def __init__(self, in_channels, out_channels, groups=32):
        super().__init__()
        self.norm1 = group_norm(in_channels, groups, FeatureNorm)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, groups, FeatureNorm)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Identity() if in_channels == out_channels else Conv1x1(in_channels, out_channels)

    def forward(self, x):
        h = norm_silu_conv(x, self.norm1, self.conv1)
        return self.skip(x) + norm_silu_conv(h, self.norm2, self.conv2)


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions, with a skip: (B, C, H, W) -> same."""

    def __init__(self, channels, groups=32):
        super().__init__()
        self.norm = group_norm(channels, groups)
        self.query = Conv1x1(channels, channels)
        self.key = Conv1x1(channels, channels)
        self.value = Conv1x1(channels, channels)
        self.project = Conv1x1(channels, channels)

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (tokens(layer(h))[:, None] for layer in (self.query, self.key, self.value))   # (B, 1, H*W, C)
        h = attention(q, k, v)[:, 0]                                                            # (B, H*W, C)
        return x + self.project(untokens(h, x.shape[-2:]))


class Downsample(nn.Module):
    """Strided 3x3 convolution; pads right and bottom only, as VQGAN does: (B, C, H, W) -> (B, C, H/2, W/2)."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x):
        return padded_conv(x, self.conv)


class Upsample(nn.Module):
    """Nearest upsampling, then a 3x3 convolution: (B, C, H, W) -> (B, C, 2H, 2W)."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return upsampled_conv(x, self.conv)


# ---------------------------------------------------------------------------- tokens

def tokens(x):
    """(B, C, H, W) -> (B, H*W, C), row by row."""
    return x.flatten(2).transpose(1, 2)


def untokens(x, size):
    """(B, H*W, C) -> (B, C, H, W) for size (H, W); the inverse of `tokens`."""
    return x.transpose(1, 2).unflatten(2, size)


# ---------------------------------------------------------------------------- image ranges

def to_unit(image):
    """Image (B, C, H, W) in [-1, 1], our interface's range -> [0, 1], that of FOMM's networks and discriminators."""
    return (image + 1) / 2


def from_unit(image):
    """Image (B, C, H, W) in [0, 1] -> [-1, 1]."""
    return 2 * image - 1
