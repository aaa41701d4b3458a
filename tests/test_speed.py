"""The speed benchmark runs on a CPU, parts for GPUs included. No time is tested."""

import json

import pytest
import torch

from benchmarks import speed
from tests.support.tiny import ROOT, SIZES, tiny

CPU = torch.device('cpu')


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(speed, 'peak_flops', lambda device, precision: 1e12)


def test_peak_memory_is_that_of_the_call():
    large, small = (speed.peak_memory(CPU, lambda: torch.ones(count * 2 ** 20)) for count in (64, 1))
    assert 0.2 < large - small < 0.3, 'GiB of 63 Mi fp32 numbers'


def test_measurements_of_a_step():
    found = speed.training(speed.Job(tiny(), CPU, 2, repeats=3))
    assert found['range'][0] <= found['seconds'] <= found['range'][1] and found['peak_gib'] > 0
    assert found['per_second'] == pytest.approx(2 / found['seconds'])
    assert found['mfu'] == pytest.approx(found['tflop'] / found['seconds'])


def test_parts_for_gpus_run_on_a_cpu():
    job = speed.Job(tiny(), CPU, 2, repeats=1)
    assert [row['batch'] for row in speed.scaling(job, 'fp32')] == [1, 2]
    assert len(speed.video(job)) == 3 and speed.captured(job) == {}


def test_a_sweep_ends_when_memory_or_time_is_used_up(monkeypatch):
    def full(self, batch):
        if batch > 1:
            raise torch.OutOfMemoryError
    monkeypatch.setattr(speed, 'measured', lambda job, work, operations: {'batch': job.batch})
    monkeypatch.setattr(speed.Training, 'resize', full)
    job = speed.Job(tiny(), CPU, 8)
    assert speed.scaling(job, 'fp32') == [{'batch': 1}]
    monkeypatch.setattr(speed, 'SWEEP_SECONDS', -1)
    assert speed.scaling(job, 'fp32') == [] and speed.choices(job) == {}


def test_the_command_keeps_its_measurements(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, 'in_process', lambda part, job: part(job))
    speed.main(['--device', 'cpu', '--config', str(ROOT / 'config' / 'vox-256.yaml'), '--set', *SIZES, '--frames', '1',
                '--repeats', '1', '--json', str(tmp_path / 'speed.json')])
    found = json.loads((tmp_path / 'speed.json').read_text())
    assert found['training step']['batch'] == 2 and 'MFU' in capsys.readouterr().out
