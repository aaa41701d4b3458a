"""Alarms during training, each with its likely cause."""

import itertools
import json

import pytest
import torch

from logger import RunFolder
from modules import training_step
from support.alarms import RULES, Watch
from tests.support.tiny import tiny
from tests.support.training import train_in


@pytest.mark.parametrize('name, values', [
    ('keypoints collapsed', {'diagnostics/keypoint_spread': 1e-4}),
    ('keypoints flew apart', {'diagnostics/keypoint_spread': 0.97}),
    ('flow without motion', {'diagnostics/flow_magnitude_px': 0.0}),
    ('codes died', {'perplexity/motion_0': 1.0, 'perplexity/motion_1': 6.0}),
    ('discriminator won', {'discriminator_real': 1e-3, 'discriminator_fake': 1e-3}),
    ('training waits for data', {'data/wait_share': 0.9}),
    ('steps were not finite', {'diagnostics/skipped_steps': 1})])
def test_a_limit_that_stays_exceeded_raises_its_alarm_alone(name, values):
    watch = Watch()
    alarms = [alarm for step in range(0, 1001, 50) for alarm in watch({'step': step} | values)[0]]
    assert [alarm.rule.name for alarm in alarms] == [name]
    assert alarms[0].text.startswith(f'{name}: {next(iter(values))} ') and '\n' not in alarms[0].text


def test_one_loss_of_the_discriminator_alone_is_no_alarm():
    assert not Watch()({'step': 900, 'discriminator_real': 1.0, 'discriminator_fake': 1e-3})[0]


def watched(spreads):
    """[(step, name)] of alarms raised, [(step, name)] of those over, for one keypoint spread per 50 steps."""
    watch, raised, over = Watch(), [], []
    for step, spread in enumerate(spreads, 1):
        for found, alarms in zip((raised, over), watch({'step': 50 * step, 'diagnostics/keypoint_spread': spread})):
            found += [(50 * step, alarm.rule.name) for alarm in alarms]
    return raised, over


def test_an_alarm_comes_once_and_again_only_after_recovery():
    name = 'keypoints collapsed'
    assert watched([0.3] * 5 + [0.001] * 20) == ([(500, name)], [])
    assert watched([0.001] * 10 + [0.3] + [0.001] * 10) == ([(250, name), (800, name)], [(550, name)])
    assert watched([0.001, 0.001, 0.3] * 10) == ([], [])
    assert watched([float('nan')] * 20) == ([], [])


@pytest.fixture
def collapsing(monkeypatch):
    """Training whose keypoints collapse from step 3 on, under rules that wait for 2 steps."""
    true = training_step.diagnostics
    monkeypatch.setattr(training_step, 'diagnostics', lambda generated: true(generated) | (
        {'diagnostics/keypoint_spread': torch.tensor(0.001)} if next(count) > 2 else {}))
    monkeypatch.setattr('support.alarms.RULES', [rule._replace(steps=2) for rule in RULES])
    count = itertools.count(1)


def test_training_reports_an_alarm_once_and_a_resumed_run_does_not_repeat_it(tmp_path, collapsing, caplog):
    name = 'keypoints collapsed'
    every = 'train_params.log_every=1'
    train_in(tmp_path, tiny(every, 'train_params.num_iterations=7', 'train_params.save_every=6'))
    alarms = [json.loads(line) for line in (tmp_path / 'alarms.jsonl').read_text().splitlines()]
    assert [line['step'] for line in alarms if line['rule'] == name] == [5]
    assert len([record for record in caplog.records if name in record.message]) == 1
    steps = [line for line in RunFolder(tmp_path, writes=False).figures() if 'total' in line]
    assert len(steps) == 7 and all({'data/wait_share', 'data/step_s'} <= line.keys() for line in steps)

    (tmp_path / 'checkpoints' / '00000007.pt').unlink()
    train_in(tmp_path, tiny(every, 'train_params.num_iterations=9'))
    assert [json.loads(line) for line in (tmp_path / 'alarms.jsonl').read_text().splitlines()
            if json.loads(line)['rule'] == name] == [line for line in alarms if line['rule'] == name]
