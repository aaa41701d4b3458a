"""Convolution blocks shared by several networks: FOMM's hourglass family and VQGAN's residual family.

FOMM: Siarohin et al., NeurIPS 2019, arXiv 2003.00196; https://github.com/AliaksandrSiarohin/first-order-model
VQGAN: Esser et al., CVPR 2021, arXiv 2012.09841; https://github.com/CompVis/taming-transformers
"""

from itertools import repeat

import torch
import torch.nn.functional as F
from torch import nn

from support import distributed

# ---------------------------------------------------------------------------- matrix products

class Conv1x1(nn.Conv2d):
    """1x1 convolution: (B, C, H, W) -> (B, C', H, W)."""

    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x):
        return pointwise(x, self.weight, self.bias)


class TokenLinear(nn.Linear):
    """The same for tokens: (B, M, C) -> (B, M, C').

    As a convolution: oneDNN uses AVX-512 on all processors, MKL, which nn.Linear asks, not on AMD's.
    """

    def forward(self, x):
        return product(x, self.weight, self.bias) if x.device.type == 'cpu' else super().forward(x)


def product(x, weight, bias=None):
    """x (B, M, C) times weight (C', C) transposed, by oneDNN: (B, M, C')."""
    row = x.unflatten(1, (1, -1)).permute(0, 3, 1, 2)
    return pointwise(row, weight[:, :, None, None], bias).permute(0, 2, 3, 1).flatten(1, 2)


def attention(query, keys, values, mask=None):
    """Each query's mean of the values, weighted by softmax(Q K^T / sqrt(D)) (Vaswani et al., NeurIPS 2017, Eq. 1).

    query (B, heads, M, D), keys and values (B, heads, K, D), mask (B, 1, 1, K), True where a key may be read
    -> (B, heads, M, D)
    """
    if not (of_a_frame(query) and query.dtype == torch.float32):
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
    # The same, head by head, with oneDNN's products, which want multiples of 16 channels: PyTorch's kernel has MKL's.
    heads, padding = query.shape[:2], (0, -query.shape[3] % 16)
    query = F.pad(query * query.shape[3] ** -0.5, padding).flatten(0, 1).contiguous()
    keys, values = F.pad(keys, padding).flatten(0, 1).contiguous(), values.flatten(0, 1).mT.contiguous()
    hidden = repeat(None) if mask is None else torch.where(mask, 0., -torch.inf).expand(*heads, 1, -1).flatten(0, 2)
    found = [product(product(q[None], k, bias).softmax(-1), v) for q, k, v, bias in zip(query, keys, values, hidden)]
    return torch.cat(found).unflatten(0, heads)


def of_a_frame(x):
    """Whether x is on a CPU and only looked at: then it may be had faster, rounded otherwise.

    Gradients of weights that amplify rounding, as the parity fixtures' do, would show it.
    """
    return x.device.type == 'cpu' and torch.is_inference_mode_enabled()


def pointwise(x, weight, bias):
    """1x1 convolution of x (B, C, H, W) by oneDNN.

    On one thread of a CPU, PyTorch would take a kernel of half its speed, unless the kernel is dilated; a dilated pixel
    is a pixel.
    """
    alone = x.device.type == 'cpu' and torch.get_num_threads() == 1
    return F.conv2d(x, weight, bias, dilation=2 if alone else 1)


# ---------------------------------------------------------------------------- upsampling

def upsampled_conv(x, conv):
    """3x3 convolution, with padding, of x (B, C, H, W) upsampled to the nearest pixel: (B, C', 2H, 2W).

    An output sees nine pixels of which at most four differ: four 2x2 convolutions of x itself, one for each output of a
    pixel (Shi et al., CVPR 2016), give the same with 4/9 of the products, up to rounding. A small x is not worth it:
    adding up the taps would cost more.
    """
    if torch.is_grad_enabled():
        return RemadeConv.apply(x, conv.weight, conv.bias, Upsampled)
    if not of_a_frame(x) or x.shape[2] * x.shape[3] < 1024:
        return conv(Upsampled.of(x))
    taps = conv.weight.permute(0, 2, 3, 1)                                              # (C', 3, 3, C)
    kernels = added_taps(added_taps(taps, 1, 1), 3, 2).flatten(0, 2).permute(0, 3, 1, 2)       # (4C', C, 2, 2)
    fine = F.pixel_shuffle(F.conv2d(x, kernels, conv.bias.repeat_interleave(4), padding=1), 2)
    return dense(fine[..., 1:-1, 1:-1])


def added_taps(kernel, axis, outputs):
    """Three taps along `axis` -> two for each of two outputs, the latter along a new axis `outputs` in front."""
    first, middle, last = kernel.unbind(axis)
    pairs = [torch.stack(pair, axis) for pair in ((first + middle, last), (first, middle + last))]
    return torch.stack(pairs, outputs)


# ---------------------------------------------------------------------------- convolutions that keep less

class RemadeConv(torch.autograd.Function):
    """Convolution of what `Made.of` makes of x; the backward pass makes it again, so that x alone is kept."""

    @staticmethod
    def forward(ctx, x, kernel, offset, made):
        convolved = F.conv2d(made.of(x), kernel, offset, made.stride, made.padding)
        ctx.save_for_backward(x, kernel, offset)
        ctx.made, ctx.dtype = made, convolved.dtype
        return convolved

    @staticmethod
    def backward(ctx, gradient):
        (x, kernel, offset), made = ctx.saved_tensors, ctx.made
        convolved = made.of(x)
        by_kernel, by_made = (conv_gradient(which, gradient, convolved, kernel, ctx.dtype, made.stride, made.padding)
                              for which in ('kernel', 'input'))
        return (made.gradient(by_made, x).to(x.dtype), by_kernel.to(kernel.dtype),
                gradient.sum((0, 2, 3)).to(offset.dtype), None)


class Upsampled:
    """Twice the size, to the nearest pixel: (B, C, H, W) -> (B, C, 2H, 2W)."""
    stride, padding = 1, 1

    @staticmethod
    def of(x):
        return F.interpolate(x, scale_factor=2, mode='nearest')

    @staticmethod
    def gradient(gradient, x):
        return torch.ops.aten.upsample_nearest2d_backward(gradient, gradient.shape[-2:], x.shape)


class PaddedBelow:
    """Zeros to the right and below: (B, C, H, W) -> (B, C, H + 1, W + 1)."""
    stride, padding = 2, 0

    @staticmethod
    def of(x):
        return F.pad(x, (0, 1, 0, 1))

    @staticmethod
    def gradient(gradient, x):
        return gradient[..., :-1, :-1]


def conv_gradient(which, gradient, convolved, kernel, dtype, stride=1, padding=1):
    """Gradient of a convolution by its 'kernel' or its 'input', which reads no more than the shape of `convolved`.

    One at a time, so that there is less memory at once. By the offset it is a sum, which is, on CPUs, several times as
    fast as oneDNN's.
    """
    by_input, by_kernel, _ = torch.ops.aten.convolution_backward(
        gradient, convolved.to(dtype), kernel.to(dtype), None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1,
        [which == 'input', which == 'kernel', False])
    return by_input if which == 'input' else by_kernel


# ---------------------------------------------------------------------------- normalisation

class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation (Ioffe and Szegedy, ICML 2015) over the global batch: eps 1e-5, momentum 0.1.

    Without a process group this is plain batch normalisation. With one, statistics are those of all
    processes together, on any device (torch's SyncBatchNorm knows GPUs only). The released code means to do so, but
    its layer falls back to each process's own part of the batch.
    """

    def forward(self, x):
        """(B, C, H, W) -> same."""
        if not self.training or distributed.world() == 1:
            return super().forward(x)

        values = x.float()
        count = values.numel() // values.shape[1] * distributed.world()
        mean = distributed.total(values.sum((0, 2, 3))) / count
        centred = values - mean[:, None, None]
        variance = distributed.total(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def group_norm(channels, groups=32):
    """VQGAN's normalisation (Wu and He, ECCV 2018): `groups` groups or as many as there are channels, eps 1e-6."""
    return nn.GroupNorm(min(groups, channels), channels, eps=1e-6)


def norm_silu_conv(x, norm, conv):
    """conv(silu(norm(x))) for a GroupNorm, a 3x3 convolution with padding, and x (B, C, H, W).

    Keeps x alone for the backward pass, where autograd would also keep what is normalised and what is convolved. Both
    are cheap to have again (as in Chen et al., arXiv 1604.06174). A training step of the paper's model (batch of 2 at
    256 px, one CPU thread) peaks at 5.9 GiB with it and 8.0 GiB without, in no more CPU time: benchmarks/README.md.
    """
    if torch.is_grad_enabled():
        return NormSiluConv.apply(x, norm.weight, norm.bias, conv.weight, conv.bias, norm.num_groups, norm.eps)
    return conv(F.silu(norm(x), inplace=True))


class NormSiluConv(torch.autograd.Function):
    """Group norm, SiLU, 3x3 convolution; the backward pass normalises again."""

    @staticmethod
    def forward(ctx, x, weight, bias, kernel, offset, groups, eps):
        normal, mean, rstd = NormSiluConv.normalise(x, weight, bias, groups, eps)
        convolved = F.conv2d(F.silu(normal, inplace=True), kernel, offset, padding=1)
        ctx.save_for_backward(x, weight, bias, kernel, offset, mean, rstd)
        ctx.groups, ctx.eps, ctx.dtype = groups, eps, convolved.dtype
        return convolved

    @staticmethod
    def backward(ctx, gradient):
        x, weight, bias, kernel, offset, mean, rstd = ctx.saved_tensors
        normal, *_ = NormSiluConv.normalise(x, weight, bias, ctx.groups, ctx.eps)
        by_offset = gradient.sum((0, 2, 3))
        by_kernel = conv_gradient('kernel', gradient, F.silu(normal), kernel, ctx.dtype)
        gradient = conv_gradient('input', gradient, normal, kernel, ctx.dtype).to(normal.dtype)
        gradient = dense(torch.ops.aten.silu_backward.grad_input(gradient, normal, grad_input=gradient))
        del normal
        by_x, by_weight, by_bias = group_norm_gradients(gradient, dense(x.to(weight.dtype)), mean, rstd, weight)
        return by_x.to(x.dtype), by_weight, by_bias, by_kernel.to(kernel.dtype), by_offset.to(offset.dtype), None, None

    @staticmethod
    def normalise(x, weight, bias, groups, eps):
        """(normalised, mean, 1 / standard deviation), in the precision of the weights, as under autocast."""
        return torch.native_group_norm(dense(x.to(weight.dtype)), weight, bias, *NormSiluConv.sizes(x), groups, eps)

    @staticmethod
    def sizes(x):
        return x.shape[0], x.shape[1], x.shape[2] * x.shape[3]


def group_norm_gradients(gradient, x, mean, rstd, weight):
    """Gradients of group norm by x (B, C, H, W), weight and bias (C,); mean and rstd (B, groups) are the forward's.

    PyTorch's own where memory has channels first. Its kernel for channels last is several times slower on CPUs than
    the same formula, each channel's sums first, by whole passes over memory.
    """
    batch, channels, *size = x.shape
    groups, pixels = mean.shape[1], size[0] * size[1]
    if x.device.type != 'cpu' or not x.is_contiguous(memory_format=torch.channels_last):
        return torch.ops.aten.native_group_norm_backward(gradient, x, mean, rstd, weight, batch, channels, pixels, groups,
                                                         [True, True, True])
    x, gradient = (tensor.permute(0, 2, 3, 1).flatten(1, 2) for tensor in (x, gradient))         # (B, H*W, C)
    product = gradient * x
    by_bias, by_scale = (tensor.sum(1).unflatten(1, (groups, -1)) for tensor in (gradient, product))
    mean, rstd, scale = mean[:, :, None], rstd[:, :, None], weight.unflatten(0, (groups, -1))    # (B, G, 1), (G, C/G)
    bias_sum, scale_sum = ((tensor * scale).mean(2, keepdim=True) / pixels for tensor in (by_bias, by_scale))
    slope = (bias_sum * mean - scale_sum) * rstd ** 3
    offset = -slope * mean - bias_sum * rstd
    slope, offset, scale = (tensor.expand_as(by_bias).reshape(batch, 1, channels)
                            for tensor in (slope, offset, rstd * scale))
    by_x = torch.addcmul(offset, x, slope, out=product).addcmul_(gradient, scale)
    by_weight = ((by_scale - by_bias * mean) * rstd).sum(0).flatten()
    return by_x.unflatten(1, size).permute(0, 3, 1, 2), by_weight, by_bias.sum(0).flatten()


def dense(x):
    """x (B, C, H, W) without gaps in memory, channels last where it nearly is; the tensor itself if it has none."""
    channels_last = x.stride(1) == 1 and x.shape[1] > 1 and x.device.type == 'cpu'
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


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
        skips = [x]
        for block in self.down_blocks:
            skips.append(block(skips[-1]))
        x = skips.pop()
        for block in self.up_blocks:
            x = torch.cat([block(x), skips.pop()], dim=1)
        return x


def check_hourglasses(params, **further):
    """ValueError if keypoint detector or dense motion network cannot halve their inputs as often as their Params say.

    params:  of the whole model
    further: names of other parts with `num_blocks` halvings, and the scale at which they see the image
    """
    scales = {name: getattr(params, name).scale_factor for name in ('kp_detector_params', 'dense_motion_params')}
    for name, scale in (scales | further).items():
        size, count = shrunk(params.image_size, scale), getattr(params, name).num_blocks
        check_halvings(params.image_size, f'{name}.num_blocks', size, count)


def check_halvings(image_size, name, size, count):
    """ValueError if `size` pixels, which an image of `image_size` gives, cannot be halved `count` times."""
    if size < 1 or count >= size.bit_length() or size % 2 ** count:
        raise ValueError(f'image_size={image_size} gives {name} inputs of {size} px, '
                         f'which cannot be halved {count} times')


def shrunk(size, scale):
    """Pixels that AntiAlias makes of `size`."""
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
        # The kernel follows from `scale`, so checkpoints need not carry it.
        kernel = (kernel / kernel.sum()).expand(channels, 1, size, size).clone()
        self.register_buffer('weight', kernel, persistent=False)

    def forward(self, x):
        if self.stride == 1:
            return x
        # Striding the convolution skips the pixels that would be thrown away.
        return F.conv2d(x, self.weight, padding=self.weight.shape[-1] // 2, stride=self.stride, groups=x.shape[1])


# ---------------------------------------------------------------------------- VQGAN's blocks

class ResBlock(nn.Module):
    """Two (group norm, SiLU, 3x3 convolution) with a skip: (B, C, H, W) -> (B, C', H, W)."""

    def __init__(self, in_channels, out_channels, groups=32):
        super().__init__()
        self.norm1 = group_norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, groups)
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
        if torch.is_grad_enabled():
            return RemadeConv.apply(x, self.conv.weight, self.conv.bias, PaddedBelow)
        return self.conv(PaddedBelow.of(x))


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
