"""3x3 convolutions fused with the operation before them: faster, with less memory in the backward pass."""

from functools import partial

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from modules.ops import is_cpu_inference

# ---------------------------------------------------------------------------- after upsampling or padding

def upsampled_conv(x, conv):
    """3x3 convolution, with padding, of x (B, C, H, W) upsampled to the nearest pixel: (B, C', 2H, 2W).

    Each output reads nine pixels, of which at most four differ. So four 2x2 convolutions of x itself, one for each
    output of a pixel (Shi et al., CVPR 2016), compute the same up to rounding with 4/9 of the products. For a small x,
    adding up the kernels costs more than it saves.
    """
    if torch.is_grad_enabled():
        return RemadeConv.apply(x, conv.weight, conv.bias, Upsampled)
    if not is_cpu_inference(x) or x.shape[2] * x.shape[3] < 1024:
        return conv(Upsampled.of(x))
    taps = conv.weight.permute(0, 2, 3, 1)                                              # (C', 3, 3, C)
    kernels = added_taps(added_taps(taps, 1, 1), 3, 2).flatten(0, 2).permute(0, 3, 1, 2)       # (4C', C, 2, 2)
    fine = F.pixel_shuffle(F.conv2d(x, kernels, conv.bias.repeat_interleave(4), padding=1), 2)
    return dense(fine[..., 1:-1, 1:-1])


def added_taps(kernel, axis, outputs):
    """Three taps along `axis` -> two taps for each of two outputs, which lie along the new axis `outputs`."""
    first, middle, last = kernel.unbind(axis)
    pairs = [torch.stack(pair, axis) for pair in ((first + middle, last), (first, middle + last))]
    return torch.stack(pairs, outputs)


def padded_conv(x, conv):
    """3x3 convolution of every second pixel of x (B, C, H, W), zeros to the right and below: (B, C', H/2, W/2)."""
    if torch.is_grad_enabled():
        return RemadeConv.apply(x, conv.weight, conv.bias, PaddedBelow)
    return conv(PaddedBelow.of(x))


class RemadeConv(torch.autograd.Function):
    """Convolution of `made.of(x)`; only x is kept, and the backward pass computes `made.of(x)` again."""

    @staticmethod
    def forward(ctx, x, kernel, offset, made):
        convolved = F.conv2d(made.of(x), kernel, offset, made.stride, made.padding)
        ctx.save_for_backward(x, kernel, offset)
        ctx.made, ctx.dtype = made, convolved.dtype
        return convolved

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (x, kernel, offset), made = ctx.saved_tensors, ctx.made
        remade = made.of(x)
        by_made, by_kernel, by_offset = conv_gradients(gradient, lambda: remade, remade, kernel, ctx.dtype,
                                                       made.stride, made.padding)
        return made.gradient(by_made, x).to(x.dtype), by_kernel.to(kernel.dtype), by_offset.to(offset.dtype), None


class Upsampled:
    """Twice the size, to the nearest pixel: (B, C, H, W) -> (B, C, 2H, 2W)."""
    stride, padding = 1, 1

    @staticmethod
    def of(x):
        return F.interpolate(x, scale_factor=2, mode='nearest')

    @staticmethod
    def gradient(gradient, x):
        return F.avg_pool2d(gradient, 2, divisor_override=1)        # the sum of four


class PaddedBelow:
    """Zeros to the right and below: (B, C, H, W) -> (B, C, H + 1, W + 1)."""
    stride, padding = 2, 0

    @staticmethod
    def of(x):
        return F.pad(x, (0, 1, 0, 1))

    @staticmethod
    def gradient(gradient, x):
        return gradient[..., :-1, :-1]


def conv_gradients(gradient, convolved, like, kernel, dtype, stride=1, padding=1):
    """Gradients of a convolution with respect to its input, kernel and bias, computed in `dtype`.

    convolved: a function that returns the input; like: a tensor of the input's shape and layout

    On a CPU they are computed one at a time to save memory; the bias's as a sum, several times as fast as oneDNN's.
    """
    def backward(read, *mask):
        return torch.ops.aten.convolution_backward(
            gradient, read.to(dtype), kernel.to(dtype), kernel.shape[:1], [stride] * 2, [padding] * 2, [1, 1],
            False, [0, 0], 1, mask)
    if gradient.device.type != 'cpu':
        return backward(convolved(), True, True, True)
    by_offset = gradient.sum((0, 2, 3))
    by_kernel = backward(convolved(), False, True, False)[1]
    return backward(like, True, False, False)[0], by_kernel, by_offset


# ---------------------------------------------------------------------------- after group norm and SiLU

def norm_silu_conv(x, norm, conv):
    """conv(silu(norm(x))) for a GroupNorm, a 3x3 convolution with padding, and x (B, C, H, W).

    Only x is kept for the backward pass; autograd would also keep the normalised and the convolved tensor. Both are
    cheap to compute again (as in Chen et al., arXiv 1604.06174). A training step of the paper's model (two pairs at
    256 px, one CPU thread) peaks at 5.9 GiB with it and 8.0 GiB without, in no more CPU time.
    """
    if torch.is_grad_enabled():
        return NormSiluConv.apply(x, norm.weight, norm.bias, conv.weight, conv.bias, norm.num_groups, norm.eps)
    return conv(F.silu(norm(x), inplace=True))


class NormSiluConv(torch.autograd.Function):
    """Group norm, SiLU, 3x3 convolution; the backward pass normalises again."""

    @staticmethod
    def forward(ctx, x, weight, bias, kernel, offset, groups, eps):
        # Weights are converted here, not by autocast, so that the backward pass need not convert them again.
        normal_dtype, conv_dtype = NormSiluConv.dtypes(x)
        ctx.dtypes = weight.dtype, kernel.dtype
        weight, bias = weight.to(normal_dtype), bias.to(normal_dtype)
        kernel, offset = kernel.to(conv_dtype), offset.to(conv_dtype)
        normal, mean, rstd = NormSiluConv.normalise(x, weight, bias, groups, eps)
        ctx.save_for_backward(x, weight, bias, kernel, mean, rstd)
        ctx.groups, ctx.eps = groups, eps
        return F.conv2d(F.silu(normal, inplace=True).to(conv_dtype), kernel, offset, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight, bias, kernel, mean, rstd = ctx.saved_tensors
        normal, *_ = NormSiluConv.normalise(x, weight, bias, ctx.groups, ctx.eps)
        gradient, by_kernel, by_offset = conv_gradients(gradient, partial(F.silu, normal), normal, kernel, kernel.dtype)
        gradient = gradient.to(normal.dtype)
        gradient = dense(torch.ops.aten.silu_backward.grad_input(gradient, normal, grad_input=gradient))
        del normal
        by_x, by_weight, by_bias = group_norm_gradients(gradient, dense(x.to(weight.dtype)), mean, rstd, weight)
        of_norm, of_conv = ctx.dtypes
        return (by_x.to(x.dtype), by_weight.to(of_norm), by_bias.to(of_norm), by_kernel.to(of_conv),
                by_offset.to(of_conv), None, None)

    @staticmethod
    def dtypes(x):
        """Types of (normalised, convolved): on CPUs norms are fp32, on GPUs of the type of x.

        PyTorch's autocast would normalise in fp32 there too, for which x is converted, and converted back.
        """
        device = x.device.type
        convolved = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        return torch.float32 if device == 'cpu' else x.dtype, convolved

    @staticmethod
    def normalise(x, weight, bias, groups, eps):
        """(normalised, mean, 1 / standard deviation) in the type of the weights."""
        batch, channels, height, width = x.shape
        return torch.native_group_norm(dense(x.to(weight.dtype)), weight, bias, batch, channels, height * width,
                                       groups, eps)


def group_norm_gradients(gradient, x, mean, rstd, weight):
    """Gradients of group norm with respect to x (B, C, H, W), weight and bias (C,); mean, rstd (B, groups) of forward.

    PyTorch's kernel, except for channels last on CPUs. There it is several times slower than this formula, which takes
    each channel's sums first and then makes whole passes over memory.
    """
    batch, channels, *size = x.shape
    groups, pixels = mean.shape[1], size[0] * size[1]
    if x.device.type != 'cpu' or not x.is_contiguous(memory_format=torch.channels_last):
        return torch.ops.aten.native_group_norm_backward(
            gradient, x, mean, rstd, weight, batch, channels, pixels, groups, [True, True, True])
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


# ---------------------------------------------------------------------------- layout in memory

def dense(x):
    """x (B, C, H, W) made contiguous: on CPUs channels last if its channels are adjacent, otherwise channels first."""
    channels_last = x.stride(1) == 1 and x.shape[1] > 1 and x.device.type == 'cpu'
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def in_layout_of(weight, x):
    """x (B, C, H, W) in the layout of a convolution's weight, converted once for all convolutions that read it."""
    if weight.is_contiguous():
        return x
    return x.contiguous(memory_format=torch.channels_last)


def keep_layout(x):
    """Give the gradient of x (B, C, H, W) the memory layout of x once it is complete.

    Gradients of warps and windows are channels first, and each convolution before them would convert them again.
    """
    layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    if x.requires_grad:
        x.register_hook(lambda gradient: gradient if gradient is None else gradient.contiguous(memory_format=layout))
