"""Networks larger than this machine's memory: refused while they are built, before the kernel ends the process."""

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from modules.warp import shapes_alone
from support.errors import UserError
from support.hardware import available_memory, is_out_of_memory

GIB = 2 ** 30
LOOKED_AT = GIB      # bytes of weights from which on a network is looked at as a whole; the published ones have half
COPIES = 2           # of the weights, at least: the network's, and those that are read from a checkpoint or averaged
WIDTHS = 'widths (channels, block_expansion, max_features, *_dim), num_layers or num_codes'     # of model_params


class _TooLarge(Exception):
    pass


def fitting(build, what):
    """The network that build() makes, unless the memory that is left has no room for COPIES of its weights: UserError.

    build: makes it anew at every call, out of no other tensors
    what:  its name in the message
    """
    limit, taken = available_memory(), 0

    def count(module, name, parameter):
        nonlocal taken
        if taken <= LOOKED_AT and type(parameter) is nn.Parameter and parameter.device.type == 'cpu':     # with numbers
            taken += parameter.nbytes
            if taken > LOOKED_AT and limit is not None and COPIES * _weight_bytes(build) > limit:
                raise _TooLarge
    hook = register_module_parameter_registration_hook(count)
    try:
        return build()
    except (_TooLarge, RuntimeError) as error:
        if not isinstance(error, _TooLarge) and not is_out_of_memory(error):
            raise
    finally:
        hook.remove()
    left = '' if limit is None else f', of which {COPIES} copies have to fit the {limit / GIB:.1f} GiB that are left'
    raise UserError(f'model_params: {what} has {_weight_bytes(build) / GIB:.1f} GiB of weights{left}; lower {WIDTHS}')


def _weight_bytes(build):
    """Bytes of the weights of build(), which are not allocated."""
    with shapes_alone():
        return sum(parameter.numel() * parameter.element_size() for parameter in build().parameters())
