"""Training runs in processes of their own, and comparisons of what they leave."""

import os
import sys
import time
from contextlib import chdir

import torch

from logger import RunFolder
from run import main as run_main
from tests.support.tiny import ROOT, SIZES
from train import train


# Overrides for training that is about processes and files, not about the networks.
LIGHT = ['model_params.autoencoder_params={channels: [8, 8, 4, 4], res_blocks: 1, norm_groups: 2}',
         'model_params.motion_codebook_params.num_layers=1', 'model_params.appearance_codebook_params.num_layers=1']
# Two processes of one machine.
TORCHRUN = sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2'


def command(log_dir, *overrides, launcher=(sys.executable,)):
    return [*launcher, 'run.py', '--mode', 'train', '--config', 'config/vox-256.yaml', '--device', 'cpu',
            '--log_dir', str(log_dir), '--run_name', 'run', '--set', *SIZES, *overrides]


def environment():
    return os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}


def run(log_dir, *overrides):
    """`command` in this process."""
    with chdir(ROOT):
        assert run_main(command(log_dir, *overrides)[2:]) == 0


def train_in(folder, config, checkpoint=None):
    """Train in this process, in the run folder `folder`."""
    run_folder = RunFolder(folder)
    try:
        train(config, run_folder, torch.device('cpu'), checkpoint)
    finally:
        run_folder.close()


def without_gloo(output):
    """The lines of a process's output, without those that Gloo prints in PyTorch 2.7 to 2.10."""
    return [line for line in output.splitlines() if not line.startswith('[Gloo]')]


def assert_near(one, two, parts, apart):
    """Weights of two checkpoints are the same but for sums that are split otherwise.

    Biases before a batch norm or a softmax have gradients of rounding alone, which Adam turns into whole steps: they
    may be `apart`. Everything else would be further from each other had it seen other samples.
    """
    for part in parts:
        for name, ours in one[part].items():
            norm = (ours.double() - two[part][name]).norm()
            assert norm <= 1e-3 * ours.double().norm() + apart, f'{part}.{name}: {norm:.1e} apart'


def final(log_dir, step):
    return torch.load(log_dir / 'run' / 'checkpoints' / f'{step:08d}.pt', weights_only=True)


def flat(state, prefix=''):
    items = state.items() if isinstance(state, dict) else enumerate(state)
    for key, value in items:
        if isinstance(value, (dict, list)):
            yield from flat(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', value


def assert_bit_equal(a, b):
    a, b = dict(flat(a)), dict(flat(b))
    assert a.keys() == b.keys()
    different = [key for key in a
                 if not (torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key])]
    assert not different, different[:5]


def wait_for(path, process):
    end = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end, f'{path} did not appear'
        time.sleep(0.02)


def random_batch(count, seed=0):
    images = torch.rand(2, count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return {'source': images[0], 'driving': images[1], 'index': torch.arange(count)}


def steps_of(board):
    """{tag: steps} as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(board), size_guidance={'scalars': 0}).Reload()
    return {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()['scalars']}
