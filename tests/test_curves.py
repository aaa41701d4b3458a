"""Is my loss normal? Runs compared with a reference of three seeds, and alarms during training."""

import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import train
from config import schema
from curves import record, reference
from curves.alarms import Watch
from curves.compare import compare
from curves.draw import draw
from curves.history import read_run
from curves.rules import RULES
from logger import RunFolder
from modules import training_step
from tests.support.command_line import refused, succeeds
from tests.support.tiny import tiny

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
    """Lines of a log: scalars go from one value to another, noisily; `changes` are {name: f(step, value)}."""
    rng, changes = np.random.default_rng(seed), dict(changes)
    lean = {name: rng.normal(0, 0.015) for name in SCALARS | LATE}
    for step in range(every, last + 1, every):
        present = SCALARS | (LATE if step > WHOLE else {})
        line = {name: value(ends, step / LAST, rng, lean[name]) for name, ends in present.items()} | ZERO
        line['learning_rate'] = 1e-3 if step <= 1600 else 3e-4
        yield {'step': step} | {name: changes[name](step, now) if name in changes else now
                                for name, now in line.items()}
        if step % 200 == 0:
            yield {'step': step, 'validation/psnr': 20 + 8 * step / LAST + rng.normal(0, 0.2),
                   'copying_source/psnr': 22.26}


def value(ends, at, rng, lean):
    start, end = ends
    size = max(map(abs, ends))
    return end + (start - end) * np.exp(-4 * at) + size * (lean + rng.normal(0, 0.03))


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
    return {name: finding.text for name, finding in
            compare(read_run(folder), reference.read_reference('heads'))[1].items()}


# ---------------------------------------------------------------------------- anomalies

@pytest.mark.parametrize('options', [{'seed': 0}, {'seed': 8}, {'seed': 9}, {'every': 4}, {'every': 100}, {'last': 300},
                                     {'changes': {'total': lambda step, value: value * (6 if step == 1000 else 1)}}])
def test_a_run_of_the_recipe_is_normal(tmp_path, options):
    """Whatever its seed, however often it logs, from its first steps on, and in spite of a short spike."""
    assert not findings(write_run(tmp_path / 'run', **options))


@pytest.mark.parametrize('scalar, change, words', [
    ('diagnostics/keypoint_spread', lambda step, value: value if step < 1000 else 1e-4, 'keypoints collapsed'),
    ('diagnostics/flow_magnitude_px', lambda step, value: 0.0, 'flow is 0'),
    ('codes_used/motion_1', lambda step, value: 0.03, 'codes died'),
    ('perplexity/motion_0', lambda step, value: 1.0, 'codes died'),
    ('adversarial', lambda step, value: value + 3, 'discriminator'),
    ('diagnostics/gradient_norm', lambda step, value: 20 * value, 'gradients are larger'),
    ('diagnostics/skipped_steps', lambda step, value: int(step > 900), 'not finite'),
    ('data/wait_share', lambda step, value: 0.9, 'num_workers'),
    ('learning_rate', lambda step, value: 10 * value, 'learning rate'),
    ('total', lambda step, value: 3 * value, 'no known reason'),
])
def test_an_anomaly_gets_its_line_and_no_other(tmp_path, scalar, change, words):
    found = findings(write_run(tmp_path / 'run', changes={scalar: change}))
    assert found.keys() == {scalar}
    assert found[scalar].startswith(f'{scalar}: ') and words in found[scalar] and '\n' not in found[scalar]


def test_a_discriminator_has_won_where_both_its_losses_are_gone(tmp_path):
    gone = {name: lambda step, value: 1e-3 for name in ('discriminator_real', 'discriminator_fake')}
    found = findings(write_run(tmp_path / 'run', changes=gone))
    assert found.keys() == gone.keys() and all('discriminator won' in line for line in found.values())


@pytest.mark.parametrize('every', [4, 20, 100])
def test_the_line_says_where_and_by_how_much(tmp_path, every):
    bump = {'total': lambda step, v: v * (4 if 800 < step <= 1400 else 1)}
    words = findings(write_run(tmp_path / 'run', changes=bump, every=every))['total'].split()
    assert words[1:4] == ['above', 'the', 'band'] and 760 <= int(words[6]) <= 900 and 1360 <= int(words[8]) <= 1460


def test_points_that_are_not_finite_are_said_and_harm_nothing(tmp_path):
    folder = write_run(tmp_path / 'run', changes={
        'l1': lambda step, v: float('nan') if step in (600, 900) else v,
        'total': lambda step, v: float('inf') if step == 700 else v})
    found = findings(folder)
    assert 'not finite at 2 of 100 points, first at step 600' in found['l1'] and found.keys() == {'l1', 'total'}
    drawn(folder)


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


@pytest.mark.parametrize('seeds, overrides, why', [
    ([0], [], 'one seed has no range'), ([0, 1, 2], ['train_params.learning_rate=0.01'], 'another config')])
def test_without_a_band_runs_are_checked_against_limits_alone(tmp_path, shelf, capsys, seeds, overrides, why):
    heads = reference.read_reference('heads')
    reference.write_reference(replace(heads, seeds={seed: heads.seeds[seed] for seed in seeds}), shelf)
    folder = write_run(tmp_path / 'run', overrides=overrides, changes={
        'total': lambda step, v: 9 * v, 'diagnostics/keypoint_spread': lambda step, v: 0.001})
    text = succeeds(capsys, '--mode', 'curves', '--run', folder)
    found = [line.partition(':')[0] for line in text.splitlines()]
    assert why in text and 'diagnostics/keypoint_spread' in found and 'total' not in found


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


def test_every_shipped_reference_finds_its_own_seeds_normal(monkeypatch):
    monkeypatch.undo()
    for name in reference.names():
        read = reference.read_reference(name)
        schema.parse(json.loads(json.dumps(read.config)), name)
        assert reference.nearest(read.config).name == name
        for curves in read.seeds.values():
            assert not compare(curves, read)[1]


# ---------------------------------------------------------------------------- the mode

def drawn(folder):
    panels, found = compare(read_run(folder), reference.read_reference('heads'))
    return draw(panels, found, 'title', ('run', 'heads'))


def test_there_is_a_panel_for_every_scalar_of_both(tmp_path):
    folder = write_run(tmp_path / 'run', changes={'l1': lambda step, v: v / 1000 if step < 1000 else v})
    scales = {axes.get_title(): axes.get_yscale() for axes in drawn(folder).axes}
    assert scales.keys() == read_run(folder).keys()
    assert scales['l1'] == 'log' and scales['diagnostics/keypoint_spread'] == 'linear'


def test_the_command(tmp_path, capsys):
    folder = write_run(tmp_path / 'mine', changes={'diagnostics/keypoint_spread': lambda step, v: 0.001},
                       overrides=['train_params.batch_size=4'])
    with open(folder / 'log.jsonl', 'a') as file:
        file.write('{"step": 2000, "my_loss": 3}\n')
    lines = succeeds(capsys, '--mode', 'curves', '--run', folder, '--reference', 'heads').splitlines()
    assert 'reference heads (3 seeds)' in lines[0] and 'train_params.batch_size 4 (reference: 2)' in lines[1]
    assert lines[4] == 'without a reference, not drawn: my_loss'
    assert min(Image.open(folder / 'curves.png').size) > 500
    early = write_run(tmp_path / 'early', every=1, last=3)
    assert 'no steps in common' in succeeds(capsys, '--mode', 'curves', '--run', early)


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


def train_in(folder, *overrides):
    run_folder = RunFolder(folder)
    try:
        train.train(tiny('train_params.log_every=1', *overrides), run_folder, torch.device('cpu'))
    finally:
        run_folder.close()


def test_training_reports_an_alarm_once_and_a_resumed_run_does_not_repeat_it(tmp_path, collapsing, caplog):
    name = 'keypoints collapsed'
    train_in(tmp_path, 'train_params.num_iterations=7', 'train_params.save_every=6')
    alarms = [json.loads(line) for line in (tmp_path / 'alarms.jsonl').read_text().splitlines()]
    assert [line['step'] for line in alarms if line['rule'] == name] == [5]
    assert len([record for record in caplog.records if name in record.message]) == 1
    assert {'data/wait_share', 'data/step_s'} <= read_run(tmp_path).keys()

    (tmp_path / 'checkpoints' / '00000007.pt').unlink()
    train_in(tmp_path, 'train_params.num_iterations=9')
    assert [json.loads(line) for line in (tmp_path / 'alarms.jsonl').read_text().splitlines()
            if json.loads(line)['rule'] == name] == [line for line in alarms if line['rule'] == name]
