"""What a GPU computes is what a CPU does, as near as its arithmetic allows.

    pytest -m gpu tests/test_gpu.py                     # on a machine with one
    TEST_DEVICE=cpu pytest -m gpu tests/test_gpu.py     # the same code on a CPU, to see that it runs

Written without a GPU: tolerances of TF32 and bf16 are stated from their mantissas and have met none yet.
"""

import os
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks import speed
from benchmarks.parity import weights
from benchmarks.parity.kinds import compare
from inference import Renderer
from logger import RunFolder, read_checkpoint
from modules.build import METHODS, build_model
from modules.pairs import micro_batches
from modules.training_step import build_training_step
from resume import restore
from support.transfer import Transfer
from tests import test_accumulation
from tests.support.compiled import assert_compiled_steps_are_the_same
from tests.support.half_step import CONFIGS, assert_bf16_is_near_fp32, config_of, pair_of_frames
from tests.support.one_step import assert_same_step, one_step
from tests.support.small import small_config
from tests.support.tiny import REFERENCE, ROOT, tiny
from tests.support.toys import ToyClip
from tests.support.training import TORCHRUN, assert_bit_equal, command, environment, final, random_batch
from train import train

DEVICE = torch.device(os.environ.get('TEST_DEVICE', 'cuda'))
THERE = torch.cuda.is_available() if DEVICE.type == 'cuda' else True


def gpu(test):
    return pytest.mark.gpu(pytest.mark.skipif(not THERE, reason='no CUDA GPU is here')(test))


@pytest.fixture(autouse=True)
def exact():
    """fp32 in full: PyTorch's convolutions take TF32 by default."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


# ---------------------------------------------------------------------------- the same numbers

FIXTURES = sorted(path.name for path in REFERENCE.glob('*.npz') if not path.name.startswith('traj'))


@gpu
@pytest.mark.parametrize('name', FIXTURES)
def test_a_fixture_is_the_public_codes(name):
    with weights.on(DEVICE):
        comparisons = compare(REFERENCE / name)
    assert len(comparisons) >= 2
    assert [comparison.name for comparison in comparisons if not comparison.verdict()[-1]] == []


@pytest.fixture(scope='module')
def cpu_step():
    return one_step(tiny())


@gpu
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=['channels first', 'last'])
def test_a_training_step_is_the_cpus(cpu_step, layout):
    assert_same_step(one_step(tiny(), layout=layout, device=DEVICE), cpu_step)


@gpu
def test_compiled_blocks_are_the_same():
    assert_compiled_steps_are_the_same(DEVICE)


@gpu
@pytest.mark.parametrize('method', sorted(CONFIGS))
def test_a_step_in_bf16_is_near_one_in_fp32(method):
    """Full widths on a GPU."""
    assert_bf16_is_near_fp32(config_of(method, narrow=DEVICE.type == 'cpu'), pair_of_frames(), DEVICE)


@gpu
@pytest.mark.parametrize('method', sorted(METHODS))
def test_a_step_waits_for_the_gpu_once(method):
    config, size = small(method), small(method).model_params.image_size
    step = build_training_step(config, DEVICE)
    batch = {name: value if name == 'index' else F.interpolate(value, size=size).to(DEVICE)
             for name, value in random_batch(2).items()}
    parts = micro_batches(batch | {'index': batch['index'].cpu()}, step.params)
    step(parts, step.first_full_step)                               # grids are made once, and kept
    if DEVICE.type == 'cuda':
        torch.cuda.set_sync_debug_mode('warn')
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            assert step(parts, step.first_full_step).finite
    finally:
        if DEVICE.type == 'cuda':
            torch.cuda.set_sync_debug_mode('default')
    waits = [warning for warning in caught if 'synchroniz' in str(warning.message)]
    assert len(waits) == (DEVICE.type == 'cuda')


@gpu
def test_a_step_is_the_same_however_it_is_split(monkeypatch):
    monkeypatch.setattr(test_accumulation, 'CPU', DEVICE)
    whole, found = (test_accumulation.learned(count)[0] for count in (1, 4))
    assert found[0] == pytest.approx(whole[0], rel=1e-3)
    assert (found[1] - whole[1]).norm() <= 1e-3 * whole[1].norm()


def small(method):
    return tiny() if method == 'synergy' else small_config(method)


def predictions(tf32=False, bf16=False):
    """Of an untrained model: those of the fixtures' weights amplify rounding."""
    config = tiny()
    torch.manual_seed(0)
    model = build_model(config).eval().to(DEVICE, memory_format=torch.channels_last)
    size = config.model_params.image_size
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    with weights.on(DEVICE):
        source, driving = (F.interpolate(2 * weights.images(seeds) - 1, size=size, mode='area')
                           for seeds in ((1,), (2,)))
    with torch.inference_mode(), torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
        return model.render(model.encode_source(source), model.keypoints(driving)).prediction.float()


@gpu
@pytest.mark.parametrize('rough, least', [(dict(bf16=True), 45), (dict(tf32=True), 60)], ids=['bf16', 'tf32'])
def test_coarser_arithmetic_is_near(rough, least):
    """In dB of the prediction's range: bf16 keeps 8 bits of a number, TF32 11, which is 18 dB more."""
    wanted, found = predictions(), predictions(**rough)
    error = (wanted - found).square().mean()
    assert 10 * torch.log10((wanted.max() - wanted.min()).square() / error) >= least


# ---------------------------------------------------------------------------- training

RUN = ['train_params.num_iterations=4', 'train_params.save_every=2', 'train_params.val_every=100',
       'train_params.keep_checkpoints=9']


def trained(folder, until=4):
    run = RunFolder(folder)
    try:
        train(tiny(*RUN, f'train_params.num_iterations={until}'), run, DEVICE)
    finally:
        run.close()
    return read_checkpoint(folder / 'checkpoints' / f'{until:08d}.pt')


def apart(one, two):
    """How far the weights are from each other, of the norm of one."""
    vectors = [torch.cat([value.double().flatten().cpu() for value in state['model'].values()]) for state in (one, two)]
    return float((vectors[0] - vectors[1]).norm() / vectors[0].norm())


@gpu
def test_a_resumed_run_is_as_near_as_the_same_run_twice(tmp_path):
    """Bit-equal where the GPU repeats itself; else no further than its own order of summation takes it."""
    once, twice = trained(tmp_path / 'once'), trained(tmp_path / 'twice')
    half = trained(tmp_path / 'resumed', until=2)
    state = build_training_step(tiny(*RUN), DEVICE).state
    restore(RunFolder(tmp_path / 'resumed', writes=False), tiny(*RUN), state)
    assert_bit_equal(state.checkpoint(tiny(*RUN), 2)['model'], {k: v.to(DEVICE) for k, v in half['model'].items()})
    assert apart(trained(tmp_path / 'resumed'), once) <= 10 * apart(twice, once)


# Sums whose order CUDA leaves to chance, in the gradients of what reads a picture at a place or resizes it, and of rows
# that are looked up. The first two have no kernel of another kind.
BY_CHANCE = {'grid_sampler_2d_backward_cuda', 'cudnn_grid_sampler_backward', 'upsample_bilinear2d_backward_out_cuda',
             'upsample_nearest2d_backward_cuda', 'index_add_cuda_', 'adaptive_avg_pool2d_backward_cuda',
             'reflection_pad2d_backward_cuda', 'replication_pad2d_backward_cuda', 'embedding_dense_backward_cuda'}


@gpu
def test_only_known_operations_are_left_to_chance():
    step = build_training_step(tiny(), DEVICE)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            step(micro_batches(random_batch(2), step.params), step.first_full_step)
    finally:
        torch.use_deterministic_algorithms(False)
    names = {found[1] for warning in caught
             if (found := re.search(r'(\w+) does not have a deterministic implementation', str(warning.message)))}
    assert names <= BY_CHANCE


@gpu
def test_two_processes_on_one_gpu_equal_one(tmp_path):
    """Without TF32, whose rounding Adam would turn into whole steps."""
    options = ['train_params.num_iterations=3', 'train_params.batch_size=4']
    for name, launcher in {'one': (sys.executable,), 'two': TORCHRUN}.items():
        arguments = [word if word != 'cpu' else DEVICE.type
                     for word in command(tmp_path / name, *options, launcher=launcher)]
        subprocess.run(arguments, cwd=ROOT, check=True,
                       env=environment() | {'CUDA_VISIBLE_DEVICES': '0', 'NVIDIA_TF32_OVERRIDE': '0'})
    one, two = (final(tmp_path / name, 3) for name in ('one', 'two'))
    assert apart(one, two) <= 1e-3


# ---------------------------------------------------------------------------- animation

@gpu
def test_frames_through_pinned_memory_are_the_same(model):
    clip, renderer = ToyClip(num_frames=21), Renderer(model.to(DEVICE), DEVICE, 4)
    found = [batch.frames for batch in renderer.follow(clip.frame(0)).render(clip.frames())]
    renderer.transfer = Transfer('cpu')
    renderer.transfer.device = DEVICE
    wanted = [batch.frames for batch in renderer.follow(clip.frame(0)).render(clip.frames())]
    assert len(found) == 6 and all(map(np.array_equal, found, wanted))


@gpu
@pytest.mark.parametrize('work', [speed.Training, speed.Animation])
def test_speed_and_memory_are_measured(work):
    found = speed.measured(work, tiny(), 2, DEVICE, 1)
    assert found['seconds'] > 0 and found['peak_gib'] > 0 and found['mfu'] > 0
