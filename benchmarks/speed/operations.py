"""Arithmetic operations of a call, and how many of them the device makes in a second at best.

Counted as PyTorch's torch.utils.flop_counter counts them: a multiplication and an addition are two, of convolutions,
matrix products and attention, forward and backward. Everything else (norms, activations, sampling, optimisers) counts
nothing. So a "GFLOP" here is 2 "GMACs" of papers that count multiply-adds.
"""

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class OperationCount(TorchDispatchMode):
    """PyTorch's FlopCounterMode without its module hooks, which refuse gradients taken at an image."""

    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        formula = flop_registry.get(function.overloadpacket)
        if formula is None:
            with self:                                   # inference mode leaves composite operations whole
                result = function.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = function(*args, **kwargs)
        if formula:
            self.total += formula(*args, **kwargs, out_val=result)
        return result


def flops(function):
    with OperationCount() as count:
        function()
    return count.total


def peak_flops(clock, dtype):
    """Operations per second of a large matrix product and a large convolution, whichever is faster."""
    device = clock.device
    side, images = (8192, 64) if device.type == 'cuda' else (2048, 4)      # less does not fill a GPU
    a = torch.randn(side, side, device=device, dtype=dtype)
    x = torch.randn(images, 128, 64, 64, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    w = torch.randn(128, 128, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    works = [lambda: a @ a, lambda: F.conv2d(x, w, padding=1)]
    return max(flops(work) / min(clock(work)[0] for _ in range(4)) for work in works)
