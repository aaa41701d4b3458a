"""Runs over a reference of three seeds, their anomalies, and alarms during training."""

import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from config import schema
from curves import record, reference
from curves.alarms import Watch
from curves.anomalies import find_anomalies
from curves.draw import draw
from curves.history import read_run
from curves.rules import RULES
from modules import training_step
from tests.support.command_line import refused, succeeds
from tests.support.tiny import tiny
from tests.support.training import train_in

WHOLE = 500                  # the first step of the whole model: codes and discriminator come with it
LAST = 2000
SCALARS = {'total': (3, 0.5), 'l1': (0.2, 0.02), 'diagnostics/keypoint_spread': (0.25, 0.33),
           'diagnostics/flow_magnitude_px': (0.3, 1.2), 'diagnostics/gradient_norm': (100, 10),
           'data/wait_s': (0.02, 0.01), 'data/wait_share': (0.1, 0.05)}
LATE = {'codes_used/motion_0': (0.4, 0.7), 'codes_used/motion_1': (0.3, 0.5), 'perplexity/motion_0': (4, 6),
        'perplexity/motion_1': (6, 9), 'adversarial': (-0.2, 0.2), 'discriminator_real': (1, 0.7),
        'discriminator_fake': (1, 0.8)}
ZERO = {'diagnostics/skipped_steps': 0, 'data/skipped_clips': 0}


def figures(seed, changes=(), every=20, last=LAST):
    """Lines of a log: scalars go from one value to another; `changes` are {name: f(step, value)}."""
    changes = dict(changes)
    for step in range(every, last + 1, every):
        line = {name: end + (start - end) * np.exp(-4 * step / LAST) + 1e-3 * seed
                for name, (start, end) in (SCALARS | (LATE if step > WHOLE else {})).items()} | ZERO
        yield {'step': step} | {name: changes[name](step, now) if name in changes else now
                                for name, now in line.items()}
        if step % 200 == 0:
            yield {'step': step, 'validation/psnr': 20 + 8 * step / LAST, 'copying_source/psnr': 22.26}


def write_run(folder, seed=7, changes=(), overrides=(), **options):
    folder.mkdir(parents=True)
    schema.save(tiny(f'train_params.seed={seed}', *overrides), folder / 'config.yaml')
    (folder / 'log.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in figures(seed, changes, **options)))
    return folder


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A folder with runs of three seeds, seed0 to seed2, and `heads.jsonl`, the reference that they make."""
    folder = tmp_path_factory.mktemp('made')
    runs = [write_run(folder / f'seed{seed}', seed) for seed in range(3)]
    assert record.main([*map(str, runs), '--name', 'heads', '--out', str(folder)]) == 0
    return folder


@pytest.fixture(autouse=True)
def shelf(made, tmp_path, monkeypatch):
    """A folder of references that holds `heads` alone."""
    folder = tmp_path / 'curves'
    folder.mkdir()
    shutil.copy(made / 'heads.jsonl', folder)
    monkeypatch.setattr(reference, 'FOLDER', folder)
    return folder


def findings(folder):
    return {name: anomaly.text for name, anomaly in find_anomalies(read_run(folder)).items()}


# ---------------------------------------------------------------------------- anomalies

@pytest.mark.parametrize('scalar, change, words', [
    ('diagnostics/keypoint_spread', lambda step, value: value if step < 1000 else 1e-4, 'keypoints collapsed'),
    ('diagnostics/flow_magnitude_px', lambda step, value: 0.0, 'flow is 0'),
    ('perplexity/motion_0', lambda step, value: 1.0, 'codes died'),
    ('diagnostics/skipped_steps', lambda step, value: int(step > 900), 'not finite'),
    ('data/wait_share', lambda step, value: 0.9, 'num_workers'),
])
def test_an_anomaly_gets_its_line_and_no_other(tmp_path, scalar, change, words):
    found = findings(write_run(tmp_path / 'run', changes={scalar: change}))
    assert found.keys() == {scalar}
    assert found[scalar].startswith(f'{scalar}: ') and words in found[scalar] and '\n' not in found[scalar]


def test_a_discriminator_has_won_where_both_its_losses_are_gone(tmp_path):
    gone = {name: lambda step, value: 1e-3 for name in ('discriminator_real', 'discriminator_fake')}
    found = findings(write_run(tmp_path / 'run', changes=gone))
    assert found.keys() == gone.keys() and all('discriminator won' in line for line in found.values())


def test_points_that_are_not_finite_are_said_and_harm_nothing(tmp_path):
    folder = write_run(tmp_path / 'run', changes={
        'l1': lambda step, v: float('nan') if step in (600, 900) else v,
        'total': lambda step, v: float('inf') if step == 700 else v})
    found = findings(folder)
    assert 'not finite at 2 of 100 points, first at step 600' in found['l1'] and found.keys() == {'l1', 'total'}
    curves = read_run(folder)
    figure = draw(curves, reference.read_reference('heads'), find_anomalies(curves), 'run')
    assert {axes.get_title() for axes in figure.axes} == curves.keys()


def test_a_resumed_run_has_one_curve(tmp_path):
    folder = write_run(tmp_path / 'run')
    lines = (folder / 'log.jsonl').read_text().splitlines()
    abandoned = [json.dumps(json.loads(line) | {'total': 1e6}) for line in lines if json.loads(line)['step'] > 1000]
    kept = [line for line in lines if json.loads(line)['step'] <= 1000]
    (folder / 'log.jsonl').write_text('\n'.join([*kept, *abandoned[:30], '{"step": 1600, "tot', *lines[len(kept):]]))
    curve = read_run(folder)['total']
    assert (np.diff(curve.steps) > 0).all() and len(curve.steps) == 100 and curve.values.max() < 10
    assert not findings(folder)


# ---------------------------------------------------------------------------- references

def test_a_reference_is_small_and_reads_as_it_was_written(made):
    read = reference.read_reference('heads')
    assert sorted(read.seeds) == [0, 1, 2] and read.config['model_params']['image_size'] == 32
    whole, thin = read_run(made / 'seed1')['l1'], read.seeds[1]['l1']
    assert len(thin.steps) <= reference.POINTS and thin.values.mean() == pytest.approx(whole.values.mean(), rel=1e-3)
    private = write_run(made / 'private', 5, overrides=['dataset_params.root_dir=/somewhere/private/heads-1'])
    assert record.main([str(private), '--name', 'x', '--out', str(made)]) == 0
    text = (made / 'x.jsonl').read_text()
    assert 'private' not in text and 'heads-1' in text         # where the data lay is nobody's business
    long = reference.thinned(reference.Curve(np.arange(1, 1201), np.arange(1, 1201.)))
    assert long.steps.tolist() == list(range(8, 1201, 8)) and long.values[:2].tolist() == [4.5, 12.5]


@pytest.mark.parametrize('runs, message', [
    ((0, 0), 'seed 0 appears twice'), ((0, 'other'), 'another recipe than'), ((0, 'none'), 'config.yaml')])
def test_runs_that_are_no_seeds_of_one_recipe_make_no_reference(made, tmp_path, shelf, capsys, runs, message):
    write_run(tmp_path / 'other', 5, overrides=['train_params.learning_rate=0.5'])
    (tmp_path / '0').symlink_to(made / 'seed0')
    assert record.main([*(str(tmp_path / str(name)) for name in runs), '--name', 'x', '--out', str(shelf)]) == 2
    assert message in capsys.readouterr().err and not (shelf / 'x.jsonl').exists()


def test_the_nearest_reference_has_the_method_and_then_the_fewest_differences(tmp_path):
    heads = reference.read_reference('heads')
    far = json.loads(json.dumps(heads.config))
    far['train_params'] |= {'learning_rate': 0.5, 'batch_size': 64}
    other = json.loads(json.dumps(heads.config))
    other['model_params']['method'] = 'fomm'
    for name, config in (('far', far), ('other', other)):
        reference.write_reference(replace(heads, name=name, config=config), reference.FOLDER)
    near = tiny('train_params.batch_size=4', 'train_params.seed=5', 'train_params.log_every=7').as_dict()
    assert reference.nearest(near).name == 'heads'
    assert list(reference.differences(near, heads.config)) == ['train_params.batch_size']
    near['train_params'] |= {'learning_rate': 0.5}
    assert reference.nearest(near).name in ('heads', 'far')
    near['model_params']['method'] = 'fomm'
    assert reference.nearest(near).name == 'other'


def test_every_shipped_reference_is_its_own_nearest_and_without_anomalies(monkeypatch):
    monkeypatch.undo()
    for name in reference.names():
        read = reference.read_reference(name)
        schema.parse(json.loads(json.dumps(read.config)), name)
        assert reference.nearest(read.config).name == name
        for curves in read.seeds.values():
            assert not find_anomalies(curves)


# ---------------------------------------------------------------------------- the mode

def test_the_command(tmp_path, capsys):
    folder = write_run(tmp_path / 'mine', changes={'diagnostics/keypoint_spread': lambda step, v: 0.001},
                       overrides=['train_params.batch_size=4'])
    with open(folder / 'log.jsonl', 'a') as file:
        file.write('{"step": 2000, "my_loss": 3}\n')
    lines = succeeds(capsys, '--mode', 'curves', '--run', folder, '--reference', 'heads').splitlines()
    assert 'reference heads (3 seeds)' in lines[0] and 'train_params.batch_size 4 (reference: 2)' in lines[1]
    assert lines[2].startswith('diagnostics/keypoint_spread: 0.001 at step') and lines[3].startswith('figure: ')
    assert min(Image.open(folder / 'curves.png').size) > 500


@pytest.mark.parametrize('arguments, message', [
    (['--run', 'mien'], 'log.jsonl holds no values'),
    (['--run', 'mine', '--reference', 'haeds'], 'there is no such reference; did you mean heads?')])
def test_mistakes_get_one_line(tmp_path, capsys, monkeypatch, arguments, message):
    write_run(tmp_path / 'mine')
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, '--mode', 'curves', *arguments)


# ---------------------------------------------------------------------------- rules and alarms

def watched(values, scalar='diagnostics/keypoint_spread', every=50):
    """[(step, name)] of alarms raised, [(step, name)] of those over, for one value per interval."""
    watch, raised, over = Watch(), [], []
    for i, value in enumerate(values, 1):
        new, done = watch({'step': every * i, scalar: value})
        raised += [(every * i, alarm.rule.name) for alarm in new]
        over += [(every * i, alarm.rule.name) for alarm in done]
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
    monkeypatch.setattr('curves.alarms.RULES', [rule._replace(steps=2) for rule in RULES])
    count = itertools.count(1)


def test_training_reports_an_alarm_once_and_a_resumed_run_does_not_repeat_it(tmp_path, collapsing, caplog):
    name = 'keypoints collapsed'
    every = 'train_params.log_every=1'
    train_in(tmp_path, tiny(every, 'train_params.num_iterations=7', 'train_params.save_every=6'))
    alarms = [json.loads(line) for line in (tmp_path / 'alarms.jsonl').read_text().splitlines()]
    assert [line['step'] for line in alarms if line['rule'] == name] == [5]
    assert len([record for record in caplog.records if name in record.message]) == 1
    assert {'data/wait_share', 'data/step_s'} <= read_run(tmp_path).keys()

    (tmp_path / 'checkpoints' / '00000007.pt').unlink()
    train_in(tmp_path, tiny(every, 'train_params.num_iterations=9'))
    assert [json.loads(line) for line in (tmp_path / 'alarms.jsonl').read_text().splitlines()
            if json.loads(line)['rule'] == name] == [line for line in alarms if line['rule'] == name]
