"""Cost of a training step and of a frame: floating-point operations, bytes read and written, kernel launches.

    python -m benchmarks.cost --config config/vox-256.yaml --batch 2 [--set key=value ...] [--top 20]

The real training step runs on tensors without data, along the path that a GPU takes, in a few seconds and with the
same result on any machine. Counted is every kernel: every operation but views and allocations. Its bytes are those of
all inputs and outputs; a multiplication and an addition are two operations (torch.utils.flop_counter). Caches, TF32 and
what torch.compile fuses are not modelled, so the times below are bounds: no step is faster than its arithmetic at peak
rate, and no uncompiled one faster than its bytes at peak bandwidth.
"""

import argparse
import sys
from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from config import schema
from modules.build import build_model
from modules.memory import empty_training
from support.errors import program
from support.gpu_path import gpu_path

# Peak rates of the data sheets: (TFLOP/s in fp32 without tensor cores, in dense bf16 with fp32 sums, TB/s of memory).
# https://images.nvidia.com/aem-dam/en-zz/Solutions/geforce/ampere/pdf/NVIDIA-ampere-GA102-GPU-Architecture-Whitepaper-V1.pdf
# https://www.nvidia.com/en-us/data-center/h200/
DEVICES = {'RTX 3090': (35.6, 71.0, 0.936), 'H200': (67.0, 989.0, 4.8)}

NO_KERNEL = {'empty', 'empty_like', 'empty_strided', 'new_empty', 'new_empty_strided', 'detach', '_unsafe_view',
             'lift_fresh', 'resize_', 'set_', '_reshape_alias'}


class CostCounter(TorchDispatchMode):
    """Context manager that counts kernels by the name of their operation.

    launches, bytes, operations: Counter of each; `bytes` of all inputs and outputs
    """

    def __init__(self):
        super().__init__()
        self.launches, self.bytes, self.operations = Counter(), Counter(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = function._schema.name.partition('::')[2]
        tensors = [part for part in tree_leaves((args, kwargs, result)) if isinstance(part, torch.Tensor)]
        if function.is_view or function.namespace != 'aten' or name in NO_KERNEL or not tensors:
            return result
        self.launches[name] += 1
        self.bytes[name] += sum(tensor.nbytes for tensor in tensors)
        if formula := flop_registry.get(function.overloadpacket):
            self.operations[name] += formula(*args, **kwargs, out_val=result)
        return result

    @property
    def totals(self):
        """(operations, bytes, launches)."""
        return sum(self.operations.values()), sum(self.bytes.values()), sum(self.launches.values())


# ---------------------------------------------------------------------------- what is counted

def training_step(config, batch, motion_only=False):
    """CostCounter of one training step on `batch` pairs, update included, once everything takes part.

    motion_only: of a step that trains keypoints and coarse flow alone (train_params.motion_iterations)
    """
    with gpu_path():
        step, pairs = empty_training(config, batch)
        for counter in (CostCounter(), CostCounter()):           # the first step also makes the optimisers' moments
            with counter:
                result = step.gradients([pairs], 1 if motion_only else step.first_full_step)
                result.gradient_norm = step.state.clip_gradients()
                step.update(result)
    return counter


def frame(config, batch=1):
    """CostCounter of `batch` frames of a source image that is already encoded."""
    size = config.model_params.image_size
    with gpu_path(), torch.no_grad():
        model = build_model(config).eval()
        source, driving = torch.empty(1, 3, size, size), torch.empty(batch, 3, size, size)
        with torch.autocast('cuda', torch.bfloat16, enabled=config.train_params.precision == 'bf16'):
            state = model.encode_source(source)
            with CostCounter() as counter:
                model.render(state, model.keypoints(driving))
    return counter


def bounds(totals, precision):
    """{device: (seconds of the arithmetic at peak rate, seconds of the bytes at peak bandwidth)}."""
    operations, size, _ = totals
    return {name: (operations / (1e12 * (bf16 if precision == 'bf16' else fp32)), size / (1e12 * bandwidth))
            for name, (fp32, bf16, bandwidth) in DEVICES.items()}


@program
def main(arguments=None):
    parser = argparse.ArgumentParser(prog='python -m benchmarks.cost', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', default='config/vox-256.yaml')
    parser.add_argument('--set', nargs='+', default=[], metavar='key=value', help='override config values')
    parser.add_argument('--batch', type=int, default=2, help='pairs of a training step, frames of an animation')
    parser.add_argument('--top', type=int, default=0, metavar='N', help='also print the N operations with most bytes')
    options = parser.parse_args(arguments)
    config = schema.load(options.config, options.set)
    parts = {'training step': training_step(config, options.batch), 'frames': frame(config, options.batch)}
    if config.train_params.motion_iterations:
        parts['motion step'] = training_step(config, options.batch, motion_only=True)
    for name, counter in parts.items():
        operations, size, launches = counter.totals
        print(f'{name}, batch of {options.batch}, {config.train_params.precision}: {operations / 1e12:.3f} TFLOP, '
              f'{size / 1e9:.1f} GB, {launches:,} launches')
        for device, seconds in bounds(counter.totals, config.train_params.precision).items():
            print('  {}: at least {:.1f} ms of arithmetic, {:.1f} ms of memory'.format(
                device, *(1000 * value for value in seconds)))
        for operation, moved in counter.bytes.most_common(options.top):
            print(f'  {operation:40} {counter.launches[operation]:6,} launches {moved / 1e9:8.2f} GB')


if __name__ == '__main__':
    sys.exit(main())
