"""bf16 weights for bf16 training, converted by one kernel per network; autocast takes one per weight and use."""

from contextlib import contextmanager

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from modules.layers import FeatureNorm

CONVERTED = nn.Conv2d, nn.Linear, FeatureNorm


class HalfWeights:
    """The convolutions and linear layers of a TalkingHead that autocast runs in bf16, by network.

    Gradients reach the fp32 weights when those of a whole network are there: processes exchange them from then on.
    """

    def __init__(self, model):
        left = {module for name in model.fp32_networks for module in model.get_submodule(name).modules()}
        # Its gradient is also taken alone, for the adaptive weight: a shared conversion would need that of all others.
        left |= {module for module in model.modules() if getattr(module, 'weight', None) is model.last_weight}
        self.networks = [[(module, name) for module in network.modules()
                          if isinstance(module, CONVERTED) and module not in left
                          for name, weight in module._parameters.items() if weight is not None]
                         for network in model.children()]

    @contextmanager
    def __call__(self):
        """Context manager for forward and backward passes: the layers hold bf16 weights within it."""
        before = [[module._parameters[name] for module, name in network] for network in self.networks]
        try:
            for network, weights in zip(self.networks, before):
                self._put(network, ToHalf.apply(*weights))
            yield
        finally:
            for network, weights in zip(self.networks, before):
                self._put(network, weights)

    @staticmethod
    def _put(network, weights):
        for (module, name), weight in zip(network, weights):
            module._parameters[name] = weight


class ToHalf(torch.autograd.Function):
    """fp32 tensors converted to bf16, and their gradients back."""

    @staticmethod
    def forward(ctx, *weights):
        ctx.set_materialize_grads(False)
        return tuple(converted(weights, torch.bfloat16))

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        found = iter(converted([gradient for gradient in gradients if gradient is not None], torch.float32))
        return tuple(None if gradient is None else next(found) for gradient in gradients)


def converted(tensors, dtype):
    """Copies of the tensors in `dtype`, made by one kernel."""
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    if copies:
        torch._foreach_copy_(copies, list(tensors))
    return copies
