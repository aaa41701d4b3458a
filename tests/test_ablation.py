"""Benchmarks on synthetic heads: ablations by one protocol, trained once, with errors in honest units; expression."""

import json
import shutil
from concurrent.futures import Executor, Future
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import ablation, expression
from benchmarks.ablation import ROWS, clip_truth, run_name, settings
from benchmarks.ablation_scores import SCORES, follow, motion_scores
from datasets.build import TEST_SEED, TRAIN_SEED, VALIDATION_SEED
from datasets.synthetic.clips import flow, synthetic_people
from modules.objective import COMMON_LOSSES
from modules.talking_head import Generated
from tests.support.tiny import save_model

CPU = torch.device('cpu')
TINY = ['model_params.image_size=32', 'dataset_params.synthetic_params={train_people: 2, test_people: 2, frames: 3}',
        'train_params.batch_size=2', 'train_params.num_iterations=2', 'train_params.val_pairs=1',
        'train_params.save_every=1', 'train_params.keep_checkpoints=2', 'visualizer_params.samples=1']


@pytest.mark.parametrize('budget', ['quick', 'medium', 'full'])
def test_rows_differ_in_what_they_name_alone(budget):
    configs = {name: config.as_dict() for name, config in settings(budget).items()}
    assert list(configs) == list(ROWS)
    for name, config in configs.items():
        # One map of Jacobians is MRFA's own; all else of keypoints and coarse motion is common.
        assert config['model_params']['kp_detector_params'].pop('shared_jacobian') == (name == 'mrfa')
    for name, config in configs.items():
        assert config['dataset_params'] == configs['mmc-mac']['dataset_params'], name
        for key, value in config['train_params'].items():
            if key not in ('objective_params', 'discriminator_learning_rate'):
                assert value == configs['mmc-mac']['train_params'][key], f'{name}: {key}'
        ours, theirs = (each['train_params']['objective_params']['loss_weights']
                        for each in (config, configs['mmc-mac']))
        assert all(ours.get(key, 0) == theirs.get(key, 0) for key in COMMON_LOSSES), name
        for key in ('image_size', 'kp_detector_params', 'dense_motion_params'):
            assert config['model_params'][key] == configs['mmc-mac']['model_params'][key], f'{name}: {key}'
        if config['model_params']['method'] == 'synergy':
            for book in ('motion_codebook_params', 'appearance_codebook_params'):
                for key in ('num_scales', 'allocation'):
                    config['model_params'][book][key] = configs['mmc-mac']['model_params'][book][key]
            assert config == configs['mmc-mac'], name


def test_rows_of_one_model_are_one_run():
    configs = settings('quick')
    names = {row: run_name(configs, row, 0) for row in ROWS}
    assert names['progressive'] == names['mmc-mac'] and len(set(names.values())) == len(ROWS) - 1
    assert names['smc'] != run_name(configs, 'smc', 1)
    assert names['smc'] != run_name(settings('quick', ['train_params.batch_size=3']), 'smc', 0)


def test_a_new_option_that_is_off_changes_no_run(monkeypatch):
    config = settings('quick')['mmc']
    before = ablation.fingerprint(config)
    plain = type(config).as_dict
    monkeypatch.setattr(type(config), 'as_dict', lambda self: plain(self) | {'new_params': {'option': False}})
    assert ablation.fingerprint(config) == before


def test_the_true_flow_finds_the_landmarks_and_no_flow_leaves_them():
    clip, = synthetic_people(1, 1, 3 * ablation.SPACING, 128, seed=7)['id700000']
    truth = clip_truth(clip)
    states = [clip.state(index) for index in range(0, len(clip), ablation.SPACING)]
    true = np.stack([flow(clip.identity, states[0], state, clip.size)[0] for state in states[1:]])
    right = motion_scores(follow(torch.from_numpy(true), truth), truth)
    still = motion_scores(truth.landmarks[1:], truth)
    assert right['head'] < 0.5 < 0.25 * still['head']
    assert right['expression'] < 1

    unit = torch.linspace(-1, 1, 16)
    identity = torch.stack(torch.meshgrid(unit, unit, indexing='xy'), -1).expand(len(states) - 1, -1, -1, -1)
    np.testing.assert_allclose(follow(identity, truth), truth.landmarks[1:], atol=1e-3)


class Here(Executor):
    """Does the work at once, in this process, because training needs the main thread."""

    def submit(self, function, *arguments):
        future = Future()
        future.set_result(function(*arguments))
        return future


def trained(out, row='baseline', overrides=()):
    """A tiny run of one row and its result."""
    configs = settings('quick', [*TINY, *overrides])
    run = ablation.collect(configs, [row], out, ablation.heads(configs[row], out, Here()))[row][1]
    ablation.run_all([run], out / 'results.json', Here(), 1, CPU)
    return run, ablation.read_results(out / 'results.json')[run.name]


@pytest.fixture(scope='module')
def first(tmp_path_factory):
    return trained(tmp_path_factory.mktemp('ablation'))


def test_a_finished_run_is_kept_and_an_interrupted_one_resumes_to_the_same_scores(first, tmp_path, monkeypatch):
    run, result = first
    shutil.copy(run.out / 'results.json', tmp_path)            # all that another machine needs
    assert trained(tmp_path)[1] == result and not (tmp_path / 'runs').exists()
    assert str(run.out) not in (tmp_path / 'results.json').read_text()
    for scores in result['heads']:
        assert set(SCORES) - {'lpips'} <= set(scores) and all(np.isfinite(value) for value in scores.values())

    early, late = (run.out / 'runs' / run.name / 'checkpoints' / f'{step:08d}.pt' for step in (1, 2))
    before = early.stat().st_mtime_ns
    (run.out / 'results.json').unlink()
    late.unlink()
    with monkeypatch.context() as stopped:                     # by Ctrl-C
        stopped.setattr(ablation, 'train', lambda config, folder, device: None)
        with pytest.raises(KeyboardInterrupt):
            trained(run.out)
    assert trained(run.out)[1]['heads'] == result['heads'] and late.exists()
    assert early.stat().st_mtime_ns == before, 'it started again'


def test_the_table_stands_beside_the_paper(tmp_path):
    runs = ablation.collect(settings('quick'), ['fomm', 'baseline', 'progressive'], tmp_path, 'heads')
    known, path = {}, tmp_path / 'results.json'
    for name, of_row in runs.items():
        for seed, run in enumerate(of_row):
            of_heads = [dict.fromkeys(SCORES, 20 + seed + (name == 'fomm') * (head - 1.5)) for head in range(4)]
            known[run.name] = {'heads': of_heads, 'parameters': 1_234_567}
    path.write_text(json.dumps(known))
    results = ablation.results_of(runs, path)
    lines = ablation.table(results, dict.fromkeys(SCORES, 3.14159)).splitlines()
    assert len({line.count('|') for line in lines}) == 1 and len(lines) == 6
    assert lines[2].startswith('| copy of the source |  | 3.14 | 3.1416 | 3.1416 |')
    assert lines[3].startswith('| FOMM | 3 | 21.00 ± 1.00 | 21.0000 ± 1.0000 |')
    assert lines[3].endswith('| 1.23 M | 22.96 | 0.0474 | 1.4037 |')

    # -1.5, -0.5, 0.5, 1.5 on four heads, three times: their mean, and their standard deviation over the root of twelve.
    paired = ablation.paired_table(results).splitlines()
    assert paired[2].startswith('| FOMM | 12 | +0.00 ± 0.34 |')
    del known[runs['fomm'][2].name]
    path.write_text(json.dumps(known))
    fewer = ablation.table(ablation.results_of(runs, path), dict.fromkeys(SCORES, 1.0)).splitlines()
    assert fewer[3].startswith('| FOMM | 2 |')


def test_a_wrong_setting_is_one_line(tmp_path, capsys):
    assert ablation.main(['--out', str(tmp_path), '--set', 'train_params.batchsize=3']) == 2
    assert 'did you mean batch_size' in capsys.readouterr().err


# ---------------------------------------------------------------------------- expression

def copying(gain):
    """A model that shows the driving image times `gain` on the source: 1 is perfect, 0 stands still."""
    model = SimpleNamespace(params=SimpleNamespace(image_size=32), eval=lambda: model)
    model.encode_source = model.keypoints = lambda image: image
    model.render = lambda source, driving: Generated(source + gain * (driving - source), [], [])
    return model


@pytest.mark.parametrize('gain', [0.0, 0.5, 1.0])
def test_the_share_is_that_of_the_true_change(gain):
    found = expression.measure(copying(gain), 32, people=2)
    assert found == pytest.approx(dict.fromkeys(expression.MOVES, gain), abs=0.03)


def test_one_part_moves_and_the_head_is_still():
    rest, moved = map(np.stack, zip(*expression.pairs('mouth', 2, 64)))
    rows = np.nonzero(np.abs(rest.astype(int) - moved).max((0, 2, 3)) >= expression.CHANGED)[0]
    assert rows.size and rows.min() > 30                  # nothing above the middle of the face
    assert not {expression.SEED} & {TRAIN_SEED, TEST_SEED, VALIDATION_SEED}


def test_a_run_is_measured_from_the_command_line(tmp_path, capsys):
    save_model(tmp_path / 'model.pt')
    assert expression.main(['--checkpoint', str(tmp_path / 'model.pt'), '--people', '1']) == 0
    assert '| lids |' in capsys.readouterr().out
    assert expression.main(['--checkpoint', str(tmp_path / 'nothing.pt')]) == 2
    assert 'nothing.pt' in capsys.readouterr().err
