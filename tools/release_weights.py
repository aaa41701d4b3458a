"""A checkpoint -> a small safetensors file to give away: averaged weights in half precision, with their config.

    python -m tools.release_weights log/heads-128/checkpoints/00007000.pt weights/heads-128.safetensors
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from logger import read_checkpoint
from support.errors import UserError, program
from support.files import file_hash, make_folder, written_whole


def release(checkpoint, out):
    """Write the EMA weights of a checkpoint file, fp16, to `out`; `read_checkpoint` reads it. Returns its SHA-256."""
    state = read_checkpoint(checkpoint)
    tensors = {name: (value.half() if value.is_floating_point() else value).contiguous()
               for name, value in state['ema'].items()}
    for name, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f'{checkpoint}: {name} has values beyond half precision')
    make_folder(Path(out).parent)
    with written_whole(out) as unfinished:
        save_file(tensors, unfinished, {name: json.dumps(state[name]) for name in ('format', 'config', 'step')})
    return file_hash(out)


@program
def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', help='a checkpoint file of a run')
    parser.add_argument('out', help='the safetensors file to write')
    options = parser.parse_args(arguments)
    digest = release(options.checkpoint, options.out)
    print(f'{options.out}: {Path(options.out).stat().st_size:,} bytes, sha256 {digest}')


if __name__ == '__main__':
    sys.exit(main())
