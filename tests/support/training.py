"""Training runs in processes of their own, and comparisons of what they leave."""

import os
import subprocess
import sys
import time

import torch

from tests.support.tiny import ROOT, SIZES


def command(log_dir, *overrides, launcher=(sys.executable,)):
    return [*launcher, 'run.py', '--mode', 'train', '--config', 'config/vox-256.yaml', '--device', 'cpu',
            '--log_dir', str(log_dir), '--run_name', 'run', '--set', *SIZES, *overrides]


def environment():
    return os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}


def run(*arguments, **options):
    result = subprocess.run(command(*arguments, **options), cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result


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


def wait_for(path, process, seconds=120):
    end = time.monotonic() + seconds
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
