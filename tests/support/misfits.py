"""What a device does not take well, found without one: on tensors of FakeTensorMode."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Misfits(TorchDispatchMode):
    """Within it, notes operations on tensors of several devices, such as copies, and float64 off the CPU."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [part for part in tree_leaves((args, kwargs, result)) if isinstance(part, torch.Tensor)]
        kinds = {(tensor.device.type, tensor.dtype) for tensor in tensors}
        if len({device for device, _ in kinds}) > 1 or any(
                dtype == torch.float64 and device != 'cpu' for device, dtype in kinds):
            self.found.append((function, kinds))
        return result
