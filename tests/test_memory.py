"""Sizes that memory has no room for end in one line, before the kernel ends the process."""

import subprocess
import sys
from functools import partial

import pytest
import torch

import run
from config import schema
from modules import build, memory
from modules.build import build_discriminator, build_model
from support.errors import UserError
from support.hardware import is_out_of_memory
from tests.support.command_line import commands
from tests.support.tiny import ROOT, tiny

CPU = torch.device('cpu')

# Peak resident memory of a second training step, and the count, in bytes; what was there before the networks is left
# out of both, with what a first step loads. Freed memory is returned, so that the allocator loses little.
MEASURE = """
import sys, torch
from pathlib import Path
from benchmarks import speed
from config import schema
from modules import memory
from support import hardware
hardware.prepare_cpu(schema.load(sys.argv[1], ['train_params.keep_freed=false']).train_params)
torch.set_num_threads(1)
config, batch = schema.load(sys.argv[1], sys.argv[3:]), int(sys.argv[2])
count = memory.step_memory(config, batch).total - memory.BASE
speed.Training(config, 1, torch.device('cpu'))()
hardware.trim_freed_memory()
before = int(Path('/proc/self/status').read_text().split('VmRSS:')[1].split()[0]) * 1024
work = speed.Training(config, batch, torch.device('cpu'))
work()
print(count, speed.peak_memory(torch.device('cpu'), work) * 2 ** 30 - before)
"""


@pytest.mark.parametrize('arguments', [
    'config/demo-64.yaml 16', *(pytest.param(more, marks=pytest.mark.full) for more in (
        'config/demo-64.yaml 48 train_params.checkpointing=true', 'config/demo-fomm-64.yaml 96',
        'config/demo-mcnet-64.yaml 112'))])
def test_the_count_is_within_a_tenth_of_the_peak_on_a_cpu(arguments):
    done = subprocess.run([sys.executable, '-c', MEASURE, *arguments.split()], cwd=ROOT, capture_output=True, text=True,
                          check=True)
    count, peak = map(float, done.stdout.split())
    assert 0.9 < count / peak < 1.1


def test_the_peak_counts_what_exists_at_one_time():
    with memory.Peak() as peak:
        a = torch.zeros(1000)
        b = a[:500].view(50, 10)             # no memory of its own
        del a
        b += 1
        c = torch.zeros(500) + 1             # one of the two is freed before the sum is bound
        del b, c
        x = torch.ones(300, requires_grad=True)
        y = x.exp().sin()                    # both are saved for the backward pass, and y is a third
        y.sum().backward()
    assert peak.most == 4 * 2000


def test_memory_of_a_step_has_all_its_parts():
    few = partial(tiny, 'model_params.autoencoder_params={channels: [16, 16, 8], res_blocks: 1, norm_groups: 4}',
                  *(f'model_params.{book}_codebook_params.{key}=1' for book in ('motion', 'appearance')
                    for key in ('num_scales', 'num_layers')))
    config = few()
    alone, four = (memory.step_memory(config, 8, gpus) for gpus in (1, 4))
    trained = sum(parameter.nbytes for network in (build_model(config), build_discriminator(config))
                  for parameter in network.parameters())
    assert alone.optimizer >= 2 * trained and alone.buckets == 0 and four.buckets >= trained
    assert four.total == pytest.approx(alone.total + four.buckets, rel=1e-3)
    less, half = (memory.step_memory(few(change), 8) for change in (
        'train_params.checkpointing=true', 'train_params.precision=bf16'))
    assert less.activations < alone.activations and half.activations < 0.8 * alone.activations
    prediction = build_model(config)(*torch.zeros(2, 1, 3, 32, 32)).prediction
    assert prediction.isfinite().all(), 'a cached grid has no data'


@pytest.fixture
def simply_counted(monkeypatch):
    """step_memory as a line: without a pass, checkpointing halves activations."""
    monkeypatch.setattr(memory, 'step_memory', lambda config, batch, gpus=1: memory.StepMemory(
        100, 100, 200, 100 * (gpus > 1), 1000 * batch // (1 + config.train_params.checkpointing)))


def test_settings_that_fit_keep_the_batch(simply_counted):
    config = schema.override(tiny(), ['train_params.batch_size=16'])
    whole = memory.step_memory(config, 16).total
    assert memory.fitting_settings(config, whole)[0][0] == {'accumulate': 1, 'checkpointing': 'false'}
    settings, needed = memory.fitting_settings(config, whole - 1)[0]
    assert settings['accumulate'] == 2 and needed == memory.step_memory(config, 8)
    assert memory.fitting_settings(config, whole - 1, gpus=4)[0][0]['accumulate'] == 1
    assert memory.fitting_settings(config, memory.BASE) == []


def test_a_batch_too_large_is_refused_with_what_fits(simply_counted, monkeypatch):
    config = tiny('train_params.keep_freed=false')
    limit = memory.step_memory(config, 4).total
    monkeypatch.setattr(memory, 'available_memory', lambda: limit)
    monkeypatch.setattr(memory, 'SMALL', 0)
    memory.check_batch(config, 64, CPU)                                          # small: not counted
    monkeypatch.setattr(memory, 'SMALL', 2 ** 40)
    memory.check_batch(config, 4, CPU)
    with pytest.raises(UserError, match='on 64 pairs takes about .*--set train_params.accumulate=16 train_params'):
        memory.check_batch(config, 64, CPU)
    monkeypatch.setattr(memory, 'available_memory', lambda: 1)
    with pytest.raises(UserError, match='not even one pair fits'):
        memory.check_batch(config, 2, CPU)


def test_a_full_gpu_is_explained_in_pytorchs_words():
    said = ('CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.69 GiB of which 1.15 GiB '
            'is free. Process 1 has 3 GiB in use.')
    with pytest.raises(UserError) as raised, memory.explained(4):
        raise torch.OutOfMemoryError(said)
    assert 'Tried to allocate 2.00 GiB' in str(raised.value) and 'accumulate' in str(raised.value)
    assert 'Process' not in str(raised.value) and 'checkpointing=true' in str(raised.value)


def test_weights_that_do_not_fit_are_refused_before_they_are_made(monkeypatch):
    config, taken = tiny(), []
    weights = sum(parameter.nbytes for parameter in build_model(config).parameters())
    monkeypatch.setattr(build, 'available_memory', lambda: 2 * weights)
    torch.manual_seed(0)
    checked = build_model(config).state_dict()
    monkeypatch.setattr(build, 'available_memory', lambda: None)                 # not known
    torch.manual_seed(0)
    assert all(torch.equal(checked[name], tensor) for name, tensor in build_model(config).state_dict().items())

    def register(module, name, parameter):
        original(module, name, parameter)
        if parameter is not None and not parameter.is_meta:
            taken.append(name)
    original = torch.nn.Module.register_parameter
    monkeypatch.setattr(torch.nn.Module, 'register_parameter', register)
    monkeypatch.setattr(build, 'available_memory', lambda: 2 * weights - 1)
    with pytest.raises(UserError, match='method synergy has 0.0 GiB of weights, of which 2 copies must fit 0.0'):
        build_model(config)
    assert not taken
    monkeypatch.setattr(build, 'available_memory', lambda: 1000)
    with pytest.raises(UserError, match='its discriminator has'):
        build_discriminator(config)
    with torch.device('meta'):
        build_model(config)


def test_a_frame_that_does_not_fit_is_refused(monkeypatch):
    config = tiny()
    assert memory.frame_memory(tiny('model_params.image_size=64')) > memory.frame_memory(config)
    monkeypatch.setattr(memory, 'available_memory', lambda: memory.BASE)
    memory.check_frame(config, CPU)                                              # small: not counted
    monkeypatch.setattr(memory, 'SMALL', 2 ** 40)
    with pytest.raises(UserError, match='a frame of 32 px takes at least 0.5 GiB'):
        memory.check_frame(config, CPU)
    monkeypatch.setattr(memory, 'available_memory', lambda: None)                # not known
    memory.check_frame(config, CPU)


# ---------------------------------------------------------------------------- modes

BUILDS = ('train', 'reconstruction', 'animate', 'evaluate', 'inspect', 'study', 'import', 'compare', 'demo', 'export',
          'doctor')


@pytest.mark.parametrize('mode', BUILDS)
def test_every_mode_that_builds_a_model_says_so_in_one_line(places, mode, capsys, monkeypatch):
    monkeypatch.setattr(memory, 'step_memory', lambda *_: memory.StepMemory(0, 0, 0, 0, 2 ** 50))    # is slow
    known = {command[1]: command for command in commands(*places)}
    known['export'] = ['--mode', 'export', '--checkpoint', str(places[1]['checkpoint']), '--out', str(places[0] / 'x')]
    too_large = 'discriminator_params.channels=65536' if mode == 'import' else 'image_size=16384'
    code, said = run.main([*known[mode], '--set', f'model_params.{too_large}']), capsys.readouterr()
    if mode == 'doctor':                       # among its other findings
        assert code != 0 and 'not even one pair fits' in said.out + said.err
        return
    said = [line for line in said.err.splitlines() if line.startswith('error: ')]
    assert code == 2 and len(said) == 1 and 'GiB' in said[0] and 'lower' in said[0], said


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
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2 ** 60, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)
    raised = RuntimeError('shapes do not fit')
    with pytest.raises(RuntimeError, match='shapes'):
        run.main(['--mode', 'doctor'])
