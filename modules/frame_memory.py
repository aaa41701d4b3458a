"""What a frame needs of memory: counted without computing anything, so that sizes that are too large say so."""

import dataclasses
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from modules.build import build_model
from modules.network_memory import GIB, WIDTHS
from modules.warp import shapes_alone
from support.errors import UserError
from support.hardware import available_memory

BASE = 0.4 * GIB             # bytes of Python and PyTorch themselves
ROUGH = 2 ** 14              # bytes per pixel of a frame of the paper's model, generously
USUAL = 2048                 # no whole number of the configs is larger


def check_frame(config, device):
    """UserError if not even one frame, with its weights, can fit the memory that this machine has left.

    On GPUs allocation itself says so; a CPU process would be killed without a word. The count takes a second: it is
    made where sizes are out of the ordinary.
    """
    limit = available_memory() if device.type == 'cpu' else None
    if limit and (config.model_params.image_size ** 2 * ROUGH > limit / 2 or widest(config.model_params) > USUAL):
        needed = estimate(config)
        if needed > limit:
            raise UserError(f'model_params: a frame of {config.model_params.image_size} px takes at least '
                            f'{needed / GIB:.1f} GiB, and {limit / GIB:.1f} GiB of memory are left; lower image_size, '
                            f'{WIDTHS}')


def widest(params):
    """The largest whole number of the Params and all within them, but for the size of the image."""
    numbers = [0]
    for field in dataclasses.fields(params):
        value = getattr(params, field.name)
        if dataclasses.is_dataclass(value):
            numbers.append(widest(value))
        elif field.name != 'image_size':
            numbers += [part for part in (value if isinstance(value, (list, tuple)) else [value])
                        if isinstance(part, int)]
    return max(numbers)


def estimate(config):
    """Bytes that encoding a source and rendering one frame of it take at least: all tensors that exist at one time."""
    size = config.model_params.image_size
    with shapes_alone(), torch.inference_mode(False), torch.no_grad():
        model = build_model(config).eval()
        image = torch.zeros(1, 3, size, size)
        with Peak() as peak:
            model.render(model.encode_source(image), model.keypoints(image))
        return BASE + peak.most + sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


class Peak(TorchDispatchMode):
    """Within it, `most` is the most bytes that the results of all operations had at one time."""

    def __init__(self):
        super().__init__()
        self.most, self._now, self._users = 0, 0, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for part in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(part, torch.Tensor):
                self._count(part)
        return result

    def _count(self, tensor):
        """Views share a storage, which lasts as long as the last of them."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if not self._users.get(key):
            self._now += size
            self.most = max(self.most, self._now)
        self._users[key] = self._users.get(key, 0) + 1
        weakref.finalize(tensor, self._forget, key, size).atexit = False

    def _forget(self, key, size):
        self._users[key] -= 1
        if not self._users[key]:
            self._now -= size
