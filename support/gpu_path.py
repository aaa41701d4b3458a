"""A training step or frame as on a GPU, run without one and without data, to count its operations.

Tensors are on PyTorch's meta device: shapes and types alone. Networks take the branches that they take on any device
but a CPU, autocast converts as on CUDA, and attention is one fused kernel.
"""

from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
import torch.nn.functional as F
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

META = torch.device('meta')
# Autocast's lists for CUDA, as far as the networks use them: aten/src/ATen/autocast_mode.h of PyTorch.
IN_BF16 = {'conv2d', 'linear', 'matmul', '__matmul__', '__rmatmul__', 'mm', 'bmm', 'addmm', 'einsum', 'prelu',
           'scaled_dot_product_attention'}
IN_FP32 = {'exp', 'log', 'pow', '__pow__', 'square', 'reciprocal', 'rsqrt', 'softmax', 'sum', 'norm', 'cumsum',
           'layer_norm', 'group_norm', 'l1_loss', 'mse_loss', 'interpolate', 'cosine_similarity', 'softplus'}


class GPUPath(TorchFunctionMode):
    """Context manager: autocast and attention of meta tensors choose dtypes and kernels as on a CUDA device.

    PyTorch's autocast ignores such tensors; the state of the CPU's autocast switches this one.
    """

    def __init__(self):
        super().__init__()
        self._cast_weights = {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, function.__name__
        if torch.is_autocast_enabled('cpu') and name in IN_BF16 | IN_FP32:
            dtype = torch.bfloat16 if name in IN_BF16 else torch.float32
            args, kwargs = tree_map_only(torch.Tensor, lambda tensor: self._cast(tensor, dtype), (args, kwargs))
        if name == 'scaled_dot_product_attention':
            return fused_attention(*args, **kwargs)
        if name == 'backward':
            with self:                   # PyTorch would leave the mode, which recomputed blocks need
                return _engine_run_backward(args[:1], (torch.ones_like(args[0]),), False, False, (),
                                            allow_unreachable=True, accumulate_grad=True)
        return function(*args, **kwargs)

    def _cast(self, tensor, dtype):
        """The tensor in `dtype`; weights that are trained are converted once, as autocast's cache does."""
        if not tensor.is_floating_point() or tensor.dtype == dtype:
            return tensor
        if not (tensor.is_leaf and tensor.requires_grad) or tensor._is_view():
            return tensor.to(dtype)
        if tensor not in self._cast_weights:
            self._cast_weights[tensor] = tensor.to(dtype)
        return self._cast_weights[tensor]

    def forget_weights(self):
        """Clear the cache of converted weights, at the end of an autocast region."""
        self._cast_weights.clear()


def fused_attention(query, keys, values, attn_mask=None, scale=None):
    """F.scaled_dot_product_attention by a GPU's fused kernels, which store no scores.

    FlashAttention (Dao, ICLR 2024, arXiv 2307.08691) for bf16, no mask, and values as wide as keys; otherwise xFormers'
    kernel (Rabe and Staats, arXiv 2112.05682).
    """
    width = query.shape[-1]
    if attn_mask is None and query.dtype == torch.bfloat16 and values.shape[-1] == width:
        if width % 8:
            query, keys, values = (F.pad(part, (0, -width % 8)) for part in (query, keys, values))
        return torch.ops.aten._scaled_dot_product_flash_attention(query, keys, values, scale=scale)[0][..., :width]
    if attn_mask is not None:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
        attn_mask = attn_mask.expand(*query.shape[:3], keys.shape[2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        query, keys, values, attn_mask, query.requires_grad and torch.is_grad_enabled(), scale=scale)[0]


class KnownResults(TorchDispatchMode):
    """Context manager: what a kernel returns for arguments of some shapes and types is worked out once.

    PyTorch does that in Python, in a millisecond, and a training step repeats most kernels. Those that return views or
    change an argument are left alone.
    """

    known = {}      # (kernel, arguments as `described`) -> its result as `described`

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        schema, kwargs = function._schema, kwargs or {}
        if function.namespace != 'aten' or any(part.alias_info for part in (*schema.arguments, *schema.returns)):
            return function(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            key = function, described(args), described(tuple(kwargs.items()))
            if key in self.known:
                return remade(self.known[key])
        result = function(*args, **kwargs)
        kinds = {tensor.device for tensor in tree_leaves(result) if isinstance(tensor, torch.Tensor)}
        if kinds == {META}:              # others, and plain numbers, depend on data
            self.known[key] = described(result)
        return result


def described(value):
    """Tensors within nested tuples and lists as (device, size, stride, dtype), other values as (type, value)."""
    if isinstance(value, torch.Tensor):
        return value.device, tuple(value.shape), value.stride(), value.dtype
    return tuple(map(described, value)) if isinstance(value, (tuple, list)) else (type(value), value)


def remade(description):
    """New meta tensors, and values, of what was `described`."""
    first, *rest = description or (None,)
    if first == META:
        size, stride, dtype = rest
        return torch.empty_strided(size, stride, dtype=dtype, device=META)
    return rest[0] if isinstance(first, type) else tuple(map(remade, description))


@contextmanager
def gpu_path():
    """Context manager: new tensors are meta tensors, which hold no data, and operations are those of a GPU."""
    autocast, enabled, dtype, path = torch.autocast, torch.is_autocast_enabled, torch.get_autocast_dtype, GPUPath()
    with ExitStack() as stack:
        for what, replacement in {
                'torch.autocast': lambda device_type, *args, **kwargs: autocast('cpu', *args, **kwargs),
                'torch.is_autocast_enabled': lambda device_type='cuda': enabled('cpu'),
                'torch.get_autocast_dtype': lambda device_type: dtype('cpu'),
                'torch.clear_autocast_cache': path.forget_weights,
                'torch.optim.optimizer._get_fused_kernels_supported_devices': lambda: ['meta'],
                'torch.utils._foreach_utils._get_foreach_kernels_supported_devices': lambda: ['meta']}.items():
            stack.enter_context(mock.patch(what, replacement))
        for context in (META, path, KnownResults()):
            stack.enter_context(context)
        yield
