"""Cost counter: what it counts, and ceilings on a training step of the recipes. Speed benchmark: no time is tested."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import cost, speed
from config import schema
from support.gpu_path import gpu_path
from tests.support.small import small_config
from tests.support.tiny import ROOT, SIZES

# Of a training step, batch of 2: (TFLOP, GB, launches). They may only fall.
CEILINGS = {'vox-256': (3.80, 61, 4540), 'vox-256-plus': (3.80, 39.1, 5192)}


@pytest.mark.parametrize('name', CEILINGS)
def test_a_training_step_costs_no_more_than_its_ceiling(name):
    operations, size, launches = cost.training_step(schema.load(ROOT / 'config' / f'{name}.yaml'), 2).totals
    tflop, gigabytes, count = CEILINGS[name]
    assert 0.9 * tflop < operations / 1e12 <= tflop
    assert 0.9 * gigabytes < size / 1e9 <= gigabytes
    assert 0.9 * count < launches <= count


def test_kernels_are_counted_with_all_that_they_read_and_write():
    a, b = torch.empty(4, 5, device='meta'), torch.empty(5, 6, device='meta')
    with cost.CostCounter() as counter:
        product = a @ b
        product.view(2, 12).t()              # no kernels
        product += 1
    assert counter.totals == (2 * 4 * 5 * 6, 4 * (20 + 30 + 24) + 4 * (24 + 24), 2)


def test_attention_writes_no_scores():
    with gpu_path(), cost.CostCounter() as counter:
        query, keys, values = (torch.empty(1, 2, 4096, 8, requires_grad=True) for _ in range(3))
        F.scaled_dot_product_attention(query, keys, values).sum().backward()
    assert counter.totals[1] < 4 * 4096 ** 2 and counter.totals[0] > 4 * 2 * 4096 ** 2 * 8


def test_what_is_read_of_data_is_not_taken_from_an_earlier_call():
    one, two = (torch.tensor(number) for number in (1.0, 2.0))
    with gpu_path():
        assert (one.item(), two.item()) == (1, 2) and torch.equal(one, one) and not torch.equal(one, two)


def matrix_functions(x):
    """Results of functions of a matrix (4, 4)."""
    return [x @ x, F.linear(x, x), F.conv2d(x[None, None], x[None, None]), torch.einsum('ij,jk->ik', x, x), x.exp(),
            x.square(), x ** 2, x.softmax(0), x.sum(), x.mean(), F.layer_norm(x, (4,)), F.group_norm(x[None], 2),
            F.interpolate(x[None, None], scale_factor=2), F.l1_loss(x, x), F.mse_loss(x, x), F.avg_pool2d(x[None], 2),
            F.interpolate(x[None, None], size=(2, 2), mode='bilinear'), F.relu(x), F.gelu(x), x.abs(), x + 1,
            F.grid_sample(x[None, None], x.view(1, 2, 4, 2), align_corners=True),
            F.scaled_dot_product_attention(*3 * [x[None, None]])]


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_autocast_gives_the_types_of_a_cuda_device(dtype):
    """PyTorch's own lists apply to CUDA tensors without data, but only in a forward pass."""
    with torch.backends.cudnn.flags(enabled=False), FakeTensorMode():
        x = torch.empty(4, 4, device='cuda', dtype=dtype)
        torch.set_autocast_enabled('cuda', True)
        torch.set_autocast_dtype('cuda', torch.bfloat16)
        try:
            wanted = [result.dtype for result in matrix_functions(x)]
        finally:
            torch.set_autocast_enabled('cuda', False)
            torch.clear_autocast_cache()
    with gpu_path(), torch.autocast('cuda', torch.bfloat16):
        assert [result.dtype for result in matrix_functions(torch.empty(4, 4, dtype=dtype))] == wanted


@pytest.mark.parametrize('name', ['fomm', 'mcnet', 'mrfa', 'dagan'])
def test_every_method_is_counted(name):
    config = schema.override(small_config(name), ['train_params.precision=bf16'])
    one, two = (cost.training_step(config, batch).totals for batch in (2, 4))
    assert two[2] == one[2] and two[0] == pytest.approx(2 * one[0], rel=0.01) and one[1] < two[1] < 2 * one[1]
    assert 0 < cost.frame(config).totals[0] < one[0]


def test_a_motion_step_costs_less_and_precision_halves_no_operation():
    config, bf16 = (small_config('fomm', change)
                    for change in ('train_params.motion_iterations=1', 'train_params.precision=bf16'))
    whole, motion = (cost.training_step(config, 2, motion_only).totals for motion_only in (False, True))
    assert all(less < more for less, more in zip(motion, whole))
    assert cost.training_step(bf16, 2).totals[0] == pytest.approx(whole[0], rel=0.02)


def test_the_command_prints_bounds(capsys):
    cost.main(['--config', str(ROOT / 'config' / 'demo-fomm-64.yaml'), '--top', '3', '--set',
               'train_params.motion_iterations=1'])
    printed = capsys.readouterr().out
    assert 'training step, batch of 2' in printed and 'motion step' in printed and printed.count('RTX 3090') == 3


# ---------------------------------------------------------------------------- seconds

def test_peak_memory_is_that_of_the_call():
    large, small = (speed.peak_memory(torch.device('cpu'), lambda: torch.ones(count * 2 ** 20)) for count in (64, 1))
    assert 0.2 < large - small < 0.3, 'GiB of 63 Mi fp32 numbers'


def test_the_command_keeps_its_measurements_and_a_wrong_config_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, 'in_process', lambda threads, *job: speed.measured(*job))
    monkeypatch.setattr(speed, 'peak_flops', lambda device, precision: 1e12)
    speed.main(['--device', 'cpu', '--config', str(ROOT / 'config' / 'vox-256.yaml'), '--set', *SIZES, '--frames', '1',
                '--repeats', '3', '--json', str(tmp_path / 'speed.json')])
    assert 'MFU' in capsys.readouterr().out
    found = json.loads((tmp_path / 'speed.json').read_text())['training step']
    assert found['range'][0] <= found['seconds'] <= found['range'][1] and found['peak_gib'] > 0
    assert found['per_second'] == pytest.approx(2 / found['seconds'])
    assert found['mfu'] == pytest.approx(found['tflop'] / found['seconds'])
    for benchmark in (cost, speed):
        assert benchmark.main(['--config', 'nothing.yaml']) == 2 and 'nothing.yaml' in capsys.readouterr().err
