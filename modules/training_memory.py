"""What a training step needs of memory: estimated without computing anything, so that a batch too large says so."""

from contextlib import contextmanager

import torch

from modules.build import build_discriminator, build_model
from modules.frame_memory import BASE, USUAL, widest
from modules.network_memory import WIDTHS
from modules.objective import needs_discriminator, needs_vgg
from modules.perceptual import VGG19
from modules.warp import shapes_alone
from support.errors import UserError
from support.hardware import available_memory, keep_freed_memory, keep_small_freed_memory, return_freed_memory

COPIES = 5                                       # of the model: weights, gradients, two of Adam, EMA
SCRATCH = 1.2                                    # gradients and kernels' scratch beside what autograd keeps, measured
PIECES, FEW_PIECES = 0.3, 0.12                   # of all that a step hands out: what freed memory that is kept loses
ROUGH = 2 ** 15                                  # bytes per pixel that training the paper's model takes


def arrange(params):
    """Have a CPU's allocator keep of freed memory what training by TrainParams can afford; before the first tensor.

    Checkpointing spends time to save memory, and so does returning the largest tensors' memory: a seventh more, for a
    seventh less (benchmarks/README.md).
    """
    if not params.keep_freed:
        return_freed_memory()
    elif params.checkpointing:
        keep_small_freed_memory()
    else:
        keep_freed_memory()


def check_batch(config, batch, device):
    """UserError if a training step of `batch` samples cannot fit the memory that this machine has left.

    On GPUs allocation itself says so (`too_large`); a CPU process would be killed without a word.
    """
    params, limit = config.model_params, available_memory() if device.type == 'cpu' else None
    if limit and (batch * params.image_size ** 2 * ROUGH > limit / 2 or widest(params) > USUAL):
        if estimate(config, batch) > limit:
            raise too_large(config, batch, limit)


@contextmanager
def explained(config, batch, device):
    """Within it, a GPU that runs out of memory raises the UserError of `too_large`."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise too_large(config, batch, torch.cuda.get_device_properties(device).total_memory) from None


def too_large(config, batch, limit):
    """The UserError for a batch that does not fit `limit` bytes: the estimate, and the largest that fits."""
    # Linear from two samples on; a single one keeps a little less than its share.
    two, three = (estimate(config, count) for count in (2, 3))
    wanted, largest = two + (batch - 2) * (three - two), int((limit - two) // (three - two)) + 2
    if largest > 0:
        advice = (f'the largest that fits is {largest} per process: raise train_params.accumulate or lower '
                  'train_params.batch_size, or set train_params.checkpointing=true')
    else:
        advice = (f'not even one sample fits: set train_params.checkpointing=true, or lower model_params.image_size, '
                  f'{WIDTHS}')
    return UserError(f'a training step of {batch} samples takes about {wanted / 2 ** 30:.1f} GiB of '
                     f'{limit / 2 ** 30:.1f} GiB; {advice}')


def estimate(config, batch):
    """Bytes of one training step, estimated without computing: what autograd keeps, and the weights' copies."""
    size, params = config.model_params.image_size, config.train_params
    objective = params.objective_params
    with shapes_alone():
        model = build_model(config)
        images = [torch.zeros(batch, 3, size, size) for _ in range(2)]
        kept = handed_out = _kept_bytes(lambda: model(*images))
        if params.checkpointing:
            model.enable_activation_checkpointing()
            kept = _kept_bytes(lambda: model(*images))
        weights = COPIES * _bytes(model)
        if needs_discriminator(objective):
            weights += (COPIES - 1) * _bytes(build_discriminator(config))
        if needs_vgg(objective):
            network, prediction = VGG19(), torch.zeros(batch, 3, size, size, requires_grad=True)
            kept += _kept_bytes(lambda: network(prediction))
            weights += _bytes(network)
    pieces = params.keep_freed * (FEW_PIECES if params.checkpointing else PIECES)
    return BASE + weights + SCRATCH * kept + pieces * handed_out


def _bytes(module):
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def _kept_bytes(function):
    """Bytes that autograd keeps for the backward pass of `function`."""
    storages = {}

    def keep(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            storages[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function()
    return sum(storage.nbytes() for storage in storages.values())
