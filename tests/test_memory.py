"""Sizes that memory has no room for end in one line, before the kernel ends the process."""

import pytest
import torch

import run
from config import schema
from modules import frame_memory, network_memory
from modules.build import build_discriminator, build_model
from modules.warp import shapes_alone
from support.errors import UserError
from support.hardware import is_out_of_memory
from tests.support.command_line import commands
from tests.support.inputs import CONFIGS, write_inputs
from tests.support.tiny import tiny

CPU = torch.device('cpu')


def test_weights_that_do_not_fit_are_refused_before_they_are_made(monkeypatch):
    config, taken = tiny(), []
    weights = sum(parameter.nbytes for parameter in build_model(config).parameters())
    monkeypatch.setattr(network_memory, 'LOOKED_AT', weights // 2)
    monkeypatch.setattr(network_memory, 'available_memory', lambda: 2 * weights)
    torch.manual_seed(0)
    looked_at = build_model(config).state_dict()
    monkeypatch.setattr(network_memory, 'available_memory', lambda: None)       # the system does not say
    torch.manual_seed(0)
    assert all(torch.equal(looked_at[name], tensor) for name, tensor in build_model(config).state_dict().items())

    monkeypatch.setattr(network_memory, 'available_memory', lambda: 2 * weights - 1)
    monkeypatch.setattr(torch.nn.Module, 'register_parameter', _counting(taken))
    with pytest.raises(UserError, match='method synergy has 0.0 GiB of weights, of which 2 copies have to fit the 0.0'):
        build_model(config)
    assert sum(taken) < weights
    monkeypatch.setattr(network_memory, 'LOOKED_AT', 0)
    monkeypatch.setattr(network_memory, 'available_memory', lambda: 1000)
    with pytest.raises(UserError, match='its discriminator has'):
        build_discriminator(config)


def _counting(taken):
    original = torch.nn.Module.register_parameter

    def register(module, name, parameter):
        original(module, name, parameter)
        if type(parameter) is torch.nn.Parameter:
            taken.append(parameter.nbytes)
    return register


def test_one_tensor_beyond_all_memory_is_refused_by_the_whole():
    """PyTorch's own error, which names one tensor and no key, ended in a traceback."""
    with pytest.raises(UserError, match=r'method synergy has \d{4}\.\d GiB of weights.*; lower widths'):
        build_model(tiny('model_params.autoencoder_params={channels: [65536, 65536, 16, 8], res_blocks: 1, '
                         'norm_groups: 4}'))


def test_networks_without_numbers_take_no_memory(monkeypatch):
    monkeypatch.setattr(network_memory, 'available_memory', lambda: 0)
    with shapes_alone():
        build_model(tiny())
    with torch.device('meta'):
        build_model(tiny())


def test_the_peak_counts_what_exists_at_one_time():
    with frame_memory.Peak() as peak:
        a = torch.zeros(1000)
        b = a[:500].view(50, 10)             # no memory of its own
        del a
        c = torch.zeros(500) + 1             # one of the two is gone when the sum is there
        del b, c
        torch.zeros(700)
    assert peak.most == 4 * 2000


def test_a_frame_is_counted_where_sizes_are_out_of_the_ordinary(monkeypatch):
    config = tiny()
    needed = frame_memory.estimate(config)
    assert frame_memory.BASE < needed < frame_memory.BASE + 2 ** 26
    assert frame_memory.estimate(tiny('model_params.image_size=64')) > needed
    monkeypatch.setattr(frame_memory, 'available_memory', lambda: needed - 1)
    frame_memory.check_frame(config, CPU)                                        # not counted
    monkeypatch.setattr(frame_memory, 'USUAL', 1)
    with pytest.raises(UserError, match='a frame of 32 px takes at least 0.4 GiB'):
        frame_memory.check_frame(config, CPU)
    monkeypatch.setattr(frame_memory, 'available_memory', lambda: None)          # the system does not say
    frame_memory.check_frame(config, CPU)


def test_the_sizes_of_all_configs_are_ordinary():
    for path in CONFIGS:
        assert frame_memory.widest(schema.load(path).model_params) <= frame_memory.USUAL


# ---------------------------------------------------------------------------- modes

@pytest.fixture(scope='module')
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp('memory')
    return folder, write_inputs(folder / 'inputs')


BUILDS = ('train', 'reconstruction', 'animate', 'evaluate', 'inspect', 'study', 'import', 'compare', 'demo', 'export')


@pytest.mark.parametrize('mode', BUILDS)
def test_every_mode_that_builds_a_model_says_so_in_one_line(places, mode, capsys):
    known = {command[1]: command for command in commands(*places)}
    known['export'] = ['--mode', 'export', '--checkpoint', str(places[1]['checkpoint']), '--out', str(places[0] / 'x')]
    too_large = 'discriminator_params.channels=65536' if mode == 'import' else 'image_size=16384'
    assert run.main([*known[mode], '--set', f'model_params.{too_large}']) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
    assert len(said) == 1 and 'GiB' in said[0] and 'lower' in said[0], said


def test_the_doctor_says_so_too(places, capsys):
    doctor = next(command for command in commands(*places) if command[1] == 'doctor')
    assert run.main([*doctor, '--set', 'model_params.image_size=16384']) != 0
    said = capsys.readouterr()
    assert 'not even one sample fits' in said.out + said.err


@pytest.mark.parametrize('raised', [
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
                 'to allocate 17179869184 bytes. Error code 12 (Cannot allocate memory)'),
    torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...'), MemoryError()],
    ids=['cpu', 'gpu', 'python'])
def test_memory_that_ends_anywhere_is_one_line(raised, monkeypatch, capsys):
    """The rest is a bug, and keeps its traceback."""
    import modes.doctor

    def fail(options):
        raise raised
    monkeypatch.setattr(modes.doctor, 'run', fail)
    assert run.main(['--mode', 'doctor']) == 2
    assert capsys.readouterr().err.startswith('error: memory is full') and is_out_of_memory(raised)
    raised = RuntimeError('shapes do not fit')
    with pytest.raises(RuntimeError, match='shapes'):
        run.main(['--mode', 'doctor'])


def test_what_pytorch_says_of_memory_is_recognised():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2 ** 60, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2 ** 62, dtype=torch.float64)
    assert is_out_of_memory(refused.value)
