"""The speed benchmark can switch off what it says it can, and its yardstick is bare. (No time is a test.)"""

from pathlib import Path

import pytest
import torch

from benchmarks.speed import gpu, turns
from benchmarks.speed.__main__ import PUBLIC
from benchmarks.speed.optimisations import OPTIMISATIONS, TRAINING_ONLY, ablation
from benchmarks.speed.parts import Job
from benchmarks.speed.work import Animation, Training
from modules.build import METHODS
from tests.support.tiny import ROOT, tiny

CPU = torch.device('cpu')


def test_every_optimisation_can_be_switched_off():
    clock = turns.Clock(CPU)
    training, animation = Training(tiny(), 1, CPU), Animation(tiny(), 1, CPU)
    step, frame = (ablation(clock, work, 1, []) for work in (training, animation))
    assert step.keys() == OPTIMISATIONS.keys() and step.keys() - frame.keys() == set(TRAINING_ONLY)


def test_stages_are_those_of_the_step_that_trains():
    stages = Training(tiny(), 1, CPU).stages(turns.Clock(CPU))
    assert {'networks forward', 'backward', 'discriminator step', 'clipping, optimisers, EMA'} <= stages.keys()


def test_peak_memory_is_that_of_the_call():
    large, small = (turns.peak_memory(CPU, lambda: torch.ones(count * 2 ** 20)) for count in (64, 1))
    assert 0.2 < large - small < 0.3, 'GiB of 63 Mi fp32 numbers'


@pytest.fixture
def settings_of_ours(monkeypatch):
    """Those that training makes for its process."""
    for name in turns.ALLOCATORS:
        monkeypatch.setenv(name, '')
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)


def test_the_yardstick_is_bare(settings_of_ours):
    """No module of ours, so no call of mallopt; denormal numbers and environment as PyTorch finds them."""
    with turns.Yardstick('frame', CPU, threads=1) as yardstick:
        found = yardstick.about()
        work, wall = yardstick()
    script = ROOT / 'benchmarks' / 'speed' / 'yardstick.py'
    places = {Path(file).resolve() for file in found['files']}
    assert script in places
    ours = {path for path in ROOT.rglob('*.py') if not path.relative_to(ROOT).parts[0].startswith('.venv')}
    assert places & ours == {script}
    assert found['denormals'] and found['threads'] == 1 and not found['environment'].keys() & set(turns.ALLOCATORS)
    assert work > 0 and wall > 0


def test_turns_alternate_and_each_has_its_ratio():
    order, times = [], iter((9.0, 2.0, 4.0, 8.0))      # the first is to warm up

    def yardstick():
        order.append('yardstick')
        return (next(times),) * 2

    def clock(measured):
        measured()
        return 8.0, 16.0
    found = turns.in_turns(clock, yardstick, lambda: order.append('model'), 3, unit=2)
    assert order == ['yardstick', 'model'] * 4
    assert found['ratios'] == [2.0, 1.0, 0.5] and found['ratio'] == 1.0 and found['wall_ratio'] == 2.0
    assert found['seconds'] == 4.0 and found['turns'] == 3


def test_public_figures_are_of_methods():
    assert PUBLIC.keys() <= METHODS.keys()


def test_what_a_gpu_is_asked_runs_on_a_cpu(monkeypatch):
    monkeypatch.setattr(gpu, 'peak_flops', lambda clock, dtype: 1e12)
    job = Job(tiny(), CPU, 2, threads=1, turns=1)
    found = gpu.scaling(job, 'fp32')
    assert [row['batch'] for row in found['batches']] == [1, 2] and found['ended'] == 'asked for no more'
    one, two = found['batches']
    assert two['share_of_peak'] == pytest.approx(2 * found['gflop_per_sample'] / 1e3 / two['seconds'])
    assert found['mib_per_sample'] == pytest.approx(1024 * (two['peak_gib'] - one['peak_gib']))
    frames = gpu.video(job)
    assert len(frames) == 4 and min(frames.values()) > 0
    assert gpu.graph(job) == {}


def test_sweeps_end_with_the_memory_or_the_time(monkeypatch):
    def full(self, batch):
        if batch > 1:
            raise torch.OutOfMemoryError
    monkeypatch.setattr(gpu, 'peak_flops', lambda clock, dtype: 1e12)
    monkeypatch.setattr(gpu.Training, 'resize', full, raising=True)
    monkeypatch.setattr(gpu, 'timed', lambda clock, work: 1.0)
    monkeypatch.setattr(gpu, 'flops', lambda work: 1e12)
    monkeypatch.setattr(gpu, 'peak_memory', lambda device, work: 1.0)
    found = gpu.scaling(Job(tiny(), CPU, 8, threads=1, turns=1), 'fp32')
    assert found['ended'] == 'memory' and len(found['batches']) == 1
    monkeypatch.setattr(gpu, 'SECONDS', -1)
    assert gpu.scaling(Job(tiny(), CPU, 8, threads=1, turns=1), 'fp32')['ended'] == 'time'
    assert set(gpu.choices(Job(tiny(), CPU, 2, threads=1, turns=1))) == set(gpu.CHOICES)
