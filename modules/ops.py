"""Matrix products and attention; on CPUs by oneDNN, which uses AVX-512 also on AMD, unlike MKL."""

from itertools import repeat

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable


class Conv1x1(nn.Conv2d):
    """1x1 convolution: (B, C, H, W) -> (B, C', H, W)."""

    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x):
        return pointwise(x, self.weight, self.bias)


class TokenLinear(nn.Linear):
    """Linear layer of tokens: (B, M, C) -> (B, M, C'). On a CPU it is a convolution, because nn.Linear uses MKL."""

    def forward(self, x):
        return product(x, self.weight, self.bias) if x.device.type == 'cpu' else super().forward(x)


def product(x, weight, bias=None):
    """x (B, M, C) times weight (C', C) transposed, by oneDNN: (B, M, C')."""
    row = x.unflatten(1, (1, -1)).permute(0, 3, 1, 2)
    return pointwise(row, weight[:, :, None, None], bias).permute(0, 2, 3, 1).flatten(1, 2)


def pointwise(x, weight, bias):
    """1x1 convolution of x (B, C, H, W) by oneDNN.

    On one CPU thread PyTorch selects a kernel of half the speed unless the convolution is dilated, which changes
    nothing for a kernel of one pixel. Inputs of at most 20,480 numbers it computes without oneDNN; dilated, slower.
    """
    alone = (x.device.type == 'cpu' and not torch.compiler.is_compiling() and torch.get_num_threads() == 1
             and (len(x) > 1 or x.numel() > 20_480))
    return F.conv2d(x, weight, bias, dilation=2 if alone else 1)


def is_cpu_inference(x):
    """Whether this is CPU inference, where faster kernels with other rounding are allowed.

    Not so in training: weights that amplify rounding, as those of the parity fixtures, show it in their gradients.
    """
    return x.device.type == 'cpu' and torch.is_inference_mode_enabled()


# ---------------------------------------------------------------------------- attention

def attention(query, keys, values, mask=None):
    """Each query's mean of the values, weighted by softmax(Q K^T / sqrt(D)) (Vaswani et al., NeurIPS 2017, Eq. 1).

    query (B, heads, M, D), keys and values (B, heads, K, D), mask (B, 1, 1, K), True where a key may be read
    -> (B, heads, M, D)
    """
    # One head at a time is faster on CPUs, unless tokens are few, or so many that a head's weights exceed the caches.
    pays = 2 ** 19 <= query.shape[2] * keys.shape[2] <= 2 ** 22
    if not pays or query.device.type != 'cpu' or query.dtype != torch.float32 or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
    if is_cpu_inference(query):
        found = [product(weights(q, k, hidden), v[0].mT.contiguous()) for q, k, v, hidden in heads(
            query, keys, values, mask=mask)]
        return together(found, query)
    return HeadByHead.apply(query, keys, values, mask)


class HeadByHead(torch.autograd.Function):
    """PyTorch's attention with a backward pass of its own, one head at a time."""

    @staticmethod
    def forward(ctx, query, keys, values, mask):
        ctx.save_for_backward(query, keys, values, mask)
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        query, keys, values, mask = ctx.saved_tensors
        found = zip(*(gradients(*head) for head in heads(query, keys, values, gradient, mask=mask)))
        by_query, by_keys, by_values = (together(of_heads, query) for of_heads in found)
        return by_query * query.shape[3] ** -0.5, by_keys, by_values, None


def heads(query, *others, mask):
    """For each head: its query (1, M, D) over sqrt(D), the others (1, K, D), and the additive mask (K,) or None.

    D is padded to a multiple of 16, for which oneDNN is fastest.
    """
    tensors = (F.pad(tensor, (0, -tensor.shape[3] % 16)).flatten(0, 1).contiguous()[:, None]
               for tensor in (query * query.shape[3] ** -0.5, *others))
    hidden = repeat(None)
    if mask is not None:
        hidden = torch.where(mask, 0., -torch.inf).expand(*query.shape[:2], 1, -1).flatten(0, 2)
    return zip(*tensors, hidden)


def together(of_heads, query):
    """Tensors (1, M, D) of all heads -> (B, heads, M, D), D being the query's again."""
    return torch.cat(of_heads).unflatten(0, query.shape[:2])[..., :query.shape[3]]


def weights(q, k, hidden):
    """Attention weights of one head: (1, M, K), rows sum to 1."""
    return product(q, k[0], hidden).softmax(-1)


def gradients(q, k, v, gradient, hidden):
    """Gradients of one head's attention with respect to q, k and v."""
    read = weights(q, k, hidden)
    by_scores = torch._softmax_backward_data(product(gradient, v[0]), read, -1, read.dtype)
    return (product(by_scores, k[0].mT.contiguous()), product(by_scores.mT, q[0].mT.contiguous()),
            product(read.mT, gradient[0].mT.contiguous()))
