"""Fine-tuning begins with another run's weights, of any image size; a resumed run may change little of its config."""

import json
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import yaml

from config import schema
from config.changes import MAY_CHANGE, changes, check_going_on, may_change
from logger import RunFolder, read_checkpoint, write_checkpoint
from modes.options import named, run_path, training_config, training_path
from modules.training_step import build_training_step
from resume import find_resume_point, restore
from run import parse
from support.errors import UserError
from support.files import split_assignment
from tests.support import training
from tests.support.small import small_config
from tests.support.tiny import FIVE, FOUR, NEW_SCALE, tiny
from tests.support.training import assert_bit_equal
from tools.doctor.weights import check_checkpoint

CPU = torch.device('cpu')


def train_in(folder, *overrides, checkpoint=None):
    training.train_in(folder, tiny('train_params.save_every=2', *overrides), checkpoint)


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    """The last checkpoint of a run, its average far enough from its weights to tell one from the other."""
    folder = tmp_path_factory.mktemp('base')
    train_in(folder, 'train_params.learning_rate=1e-3', 'train_params.ema_decay=0.9')
    return folder / 'checkpoints' / '00000004.pt'


OTHER_DATA = ['train_params.seed=5']
BOTH = pytest.mark.parametrize('sets', [OTHER_DATA, FIVE], ids=['same size', 'larger'])


@pytest.fixture(scope='module', params=[OTHER_DATA, FIVE], ids=['same size', 'larger'])
def tuned(request, base, tmp_path_factory):
    """(folder, settings) of an undisturbed run that began with it."""
    folder = tmp_path_factory.mktemp('tuned')
    train_in(folder, *request.param, checkpoint=base)
    return folder, request.param


@BOTH
def test_it_begins_with_the_average_and_nothing_else(base, tmp_path, sets):
    config, theirs = tiny(*sets), read_checkpoint(base)
    state = build_training_step(config, CPU).state
    assert restore(RunFolder(tmp_path), config, state, base).step == 0
    assert any(not torch.equal(theirs['model'][name], value) for name, value in theirs['ema'].items())
    moved = 'encoder.levels', 'encoder.downs'                  # numbered from the finest
    kept = [name for name in theirs['ema'] if sets == OTHER_DATA or not name.startswith(moved)]
    for network in (state.model.state_dict(), state.ema.state_dict()):
        assert_bit_equal({name: network[name] for name in kept}, {name: theirs['ema'][name] for name in kept})
    assert_bit_equal(state.model.state_dict(), state.ema.state_dict())
    assert_bit_equal(state.discriminator.state_dict(), theirs['discriminator'])
    assert not state.optimizer.state and not state.discriminator_optimizer.state


@BOTH
def test_a_checkpoint_without_discriminator_or_optimiser_will_do(base, tmp_path, caplog, sets):
    """As imported ones are."""
    imported = {name: value for name, value in read_checkpoint(base).items() if name in ('config', 'model', 'ema')}
    write_checkpoint(tmp_path / 'model.pt', imported | {'step': 0})
    state = build_training_step(tiny(*sets), CPU).state
    untrained = {name: value.clone() for name, value in state.discriminator.state_dict().items()}
    with caplog.at_level('INFO'):
        restore(RunFolder(tmp_path / 'run'), tiny(*sets), state, tmp_path / 'model.pt')
    assert_bit_equal(state.discriminator.state_dict(), untrained)
    assert torch.equal(state.model.state_dict()['encoder.stem.weight'], imported['ema']['encoder.stem.weight'])
    assert 'it has no discriminator' in caplog.text


@pytest.mark.parametrize('step, again', [(2, True), (2, False), (None, True), (None, False)],
                         ids=['saved, same command', 'saved, resumed', 'unsaved, same command', 'unsaved, resumed'])
def test_an_interrupted_one_ends_as_an_undisturbed_one(base, tuned, tmp_path, step, again, caplog):
    """Also where it was stopped before its first checkpoint; weights are resized once."""
    (undisturbed, sets), folder = tuned, RunFolder(tmp_path / 'run')
    shutil.copy(undisturbed / 'origin.json', folder.path)
    if step is not None:
        shutil.copy(undisturbed / 'checkpoints' / f'{step:08d}.pt', folder.checkpoints)
    with caplog.at_level('INFO'):
        train_in(folder.path, *sets, checkpoint=base if again else None)
    assert ('from 32 to 64 px' in caplog.text) == (step is None and sets == FIVE)
    assert_bit_equal(*(torch.load(path / 'checkpoints' / '00000004.pt', weights_only=True)
                       for path in (folder.path, undisturbed)))


def test_folders_of_other_runs_are_left_alone(base, tuned, tmp_path):
    tuned, sets = tuned

    def files():
        return sorted((path, path.stat().st_mtime_ns) for run in (base.parents[1], tuned) for path in run.rglob('*'))
    before = files()
    with pytest.raises(UserError, match=f'a new one would overwrite.*--resume {base.parents[1]}'):
        train_in(base.parents[1], checkpoint=base)
    other = shutil.copy(base.with_name('00000002.pt'), tmp_path / 'other.pt')
    with pytest.raises(UserError, match=f'began with {base}, not with {other}; choose another --run_name'):
        train_in(tuned, *sets, checkpoint=other)
    with pytest.raises(UserError, match="began without weights of another, not with"):
        train_in(base.parents[1], checkpoint=other)
    assert files() == before


def test_weights_that_were_replaced_before_the_first_checkpoint_are_noticed(base, tmp_path):
    copy, run = shutil.copy(base, tmp_path / 'model.pt'), RunFolder(tmp_path / 'run')
    run.save_config(tiny(), find_resume_point(run, tiny(), copy))
    assert find_resume_point(run, tiny()).of_another_run
    shutil.copy(base.with_name('00000002.pt'), copy)
    with pytest.raises(UserError, match='has changed since the run'):
        find_resume_point(run, tiny())


BOOKS = [f'model_params.{name}_codebook_params.num_codes=16' for name in ('motion', 'appearance')]


@pytest.mark.parametrize('sets, said', [
    (BOOKS, 'model_params.motion_codebook_params.num_codes is 32 there and 16 in the config'),
    (BOOKS, 'model_params.appearance_codebook_params.num_codes is 32 there and 16 in the config'),
    ([*FOUR, 'model_params.flow_update_width=8'], 'model_params.flow_update_width is 16 there and 8 in the config'),
    ([*FOUR, 'model_params.kp_detector_params.padding=0'], 'model_params.kp_detector_params.padding is 3 there'),
    ([*FOUR, 'model_params.autoencoder_params.channels=[16, 8, 8, 8]'],
     r'autoencoder_params.channels is \[16, 16, 8, 8\] there and .* in the config: scales have the same'),
    ([*FOUR, BOOKS[0]], 'has 32 codes for 4 scales there and 16 for 4 in the config: keep as many codes per scale')])
def test_a_checkpoint_of_another_model_is_refused_by_the_keys_that_differ(base, tmp_path, sets, said):
    with pytest.raises(UserError, match=f'{base}: .*{said}'):
        find_resume_point(RunFolder(tmp_path, writes=False), tiny(*sets), base)
    if sets == BOOKS:                                   # nor does its own run take it
        with pytest.raises(UserError, match=said):
            find_resume_point(RunFolder(base.parents[1], writes=False), tiny(*sets))


def test_another_method_is_refused(base, tmp_path):
    with pytest.raises(UserError, match="model_params.method is 'synergy' there and 'fomm' in the config"):
        find_resume_point(RunFolder(tmp_path, writes=False), small_config('fomm'), base)


@pytest.mark.parametrize('sets, resized, new', [
    (FOUR, 'resized: motion.retrieval.position, appearance.retrieval.position; ', 'nothing'), (FIVE, '', NEW_SCALE)],
    ids=['four', 'five'])
def test_the_message_names_what_is_new_in_a_larger_model(base, tmp_path, caplog, sets, resized, new):
    with caplog.at_level('INFO'):
        train_in(tmp_path, *sets, 'train_params.num_iterations=1', checkpoint=base)
    line, = (message for message in caplog.messages if message.startswith('from 32 to 64 px, model'))
    assert line.endswith(f'tensors copied; {resized}new: {new}') and '\n' not in line
    assert any(message.startswith('from 32 to 64 px, discriminator') for message in caplog.messages)


def test_doctor_says_what_is_taken(base, tmp_path):
    case = Namespace(config=tiny(*FIVE), size=64, checkpoint=base, run_folder=tmp_path / 'run')
    said = [finding.what for finding in check_checkpoint(case)]
    assert any(line.startswith('from 32 to 64 px: ') and line.endswith(f'new: {NEW_SCALE}') for line in said)


def test_the_run_is_named_after_config_or_weights():
    def path(checkpoint, config=None, run_name=None):
        options = Namespace(checkpoint=checkpoint, config=config, run_name=run_name, log_dir='log')
        return str(training_path(options)), training_config(options)
    assert path('log/demo-64/checkpoints/00003600.pt') == ('log/demo-64-tuned', None)
    assert path('published.pt') == ('log/published-tuned', None)
    assert path('published.pt', 'config/vox-256.yaml') == ('log/vox-256-tuned', 'config/vox-256.yaml')
    assert path('published.pt', run_name='ann') == ('log/ann', None)
    assert path(None) == ('log/vox-256', 'config/vox-256.yaml')


def test_a_run_folder_stands_for_its_newest_checkpoint(tmp_path):
    run = tmp_path / 'log' / 'ann'
    (run / 'checkpoints').mkdir(parents=True)
    with pytest.raises(UserError, match=f'{run}: holds no checkpoint'):
        parse(['--mode', 'evaluate', '--checkpoint', str(run)])
    for name in '00000200.pt', '00000100.pt', 'best.pt':
        (run / 'checkpoints' / name).touch()
    newest = run / 'checkpoints' / '00000200.pt'
    for mode in 'train', 'evaluate', 'animate', 'doctor', 'export', 'inspect':
        options, _ = parse(['--mode', mode, '--checkpoint', str(run)])
        assert options.checkpoint == str(newest)
    options, _ = parse(['--mode', 'compare', '--checkpoints', str(run), f'Ours={run}'])
    assert named(options)[0] == {'ann': newest, 'Ours': newest}


def test_paths_may_contain_an_equals_sign(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Path('log/lr=1e-4')
    (run / 'checkpoints').mkdir(parents=True)
    (run / 'checkpoints' / '00000100.pt').touch()
    (run / 'm=2.pt').touch()
    options, _ = parse(['--mode', 'compare', '--checkpoints', f'{run}/m=2.pt', f'Ours={run}',
                        '--generated', f'A={run}'])
    assert named(options) == ({'m=2': run / 'm=2.pt', 'Ours': run / 'checkpoints' / '00000100.pt'}, {'A': run})
    assert split_assignment('Ours=missing/lr=1.pt') == ('Ours', Path('missing/lr=1.pt'))
    assert split_assignment('missing/lr=1.pt') == (None, Path('missing/lr=1.pt'))


def test_results_of_different_runs_lie_apart():
    paths = [run_path(parse(['--mode', 'evaluate', '--checkpoint', f'log/{run}/checkpoints/00000100.pt'])[0])
             for run in ('ann', 'bob')]
    assert paths == [Path('log/ann'), Path('log/bob')]
    elsewhere = '--mode', 'evaluate', '--checkpoint', '/data/log/ann/checkpoints/00000100.pt'
    assert run_path(parse(elsewhere)[0]) == Path('/data/log/ann')            # beside its weights, unless told otherwise
    assert run_path(parse([*elsewhere, '--log_dir', 'here'])[0]) == Path('here/ann')
    assert run_path(parse([*elsewhere, '--run_name', 'eva'])[0]) == Path('log/eva')
    assert run_path(parse(['--mode', 'evaluate', '--checkpoint', 'weights/model.pt'])[0]) == Path('log/model')


# ---------------------------------------------------------------------------- a config that has changed

def test_what_has_changed_is_said_in_one_line(base, tmp_path, caplog):
    shutil.copytree(base.parents[1], tmp_path / 'run')
    with caplog.at_level('INFO'):
        train_in(tmp_path / 'run', 'train_params.num_iterations=5', 'train_params.learning_rate=1e-4',
                 'train_params.ema_decay=0.9')
    assert ('changed since then: train_params.num_iterations 4 -> 5, train_params.learning_rate 0.001 -> 0.0001'
            in caplog.messages)
    saved = yaml.safe_load((tmp_path / 'run' / 'config.yaml').read_text())
    assert saved['train_params']['learning_rate'] == 1e-4


@pytest.mark.parametrize('override', [
    'train_params.seed=1', 'train_params.betas=[0.5, 0.9]', 'dataset_params.id_sampling=false',
    'dataset_params.augmentation_params.hue=0.1', 'dataset_params.synthetic_params.train_people=7',
    'train_params.objective_params.adversarial=lsgan'])
def test_a_run_cannot_change_what_it_is(base, tmp_path, override):
    shutil.copytree(base.parents[1], tmp_path / 'run')
    before = (tmp_path / 'run' / 'config.yaml').read_bytes()
    key = override.partition('=')[0]
    with pytest.raises(UserError, match=f'a resumed run cannot change {key} .* undo it, or start a new run'):
        train_in(tmp_path / 'run', 'train_params.learning_rate=1e-3', 'train_params.ema_decay=0.9', override)
    assert (tmp_path / 'run' / 'config.yaml').read_bytes() == before


def test_a_data_set_may_move():
    assert may_change('dataset_params.root_dir', '/disk/vox', '/scratch/vox')
    assert not may_change('dataset_params.root_dir', '/disk/vox', '/disk/celebv')
    before, after = (tiny(f'dataset_params.root_dir={root}/vox') for root in ('a', 'b'))
    assert check_going_on(before, after, 'x.pt') == "dataset_params.root_dir 'a/vox' -> 'b/vox'"


def test_keys_that_may_change_are_keys():
    known = changes(tiny(), schema.load('config/fomm-vox-256.yaml')).keys() | set(every_key(tiny().as_dict()))
    assert [key for key in MAY_CHANGE if not any(f'{name}.'.startswith(f'{key}.') for name in known)] == []


def every_key(section, prefix=''):
    for key, value in section.items():
        yield f'{prefix}{key}'
        if isinstance(value, dict):
            yield from every_key(value, f'{prefix}{key}.')


@pytest.mark.parametrize('text', ['', '{', '[]', '{"checkpoint": "x"}', '{"checkpoint": 1, "sha256": 2, "step": "x"}'])
def test_a_damaged_origin_is_named(tmp_path, text):
    (tmp_path / 'origin.json').write_text(text)
    with pytest.raises(UserError, match='origin.json: is damaged'):
        RunFolder(tmp_path).origin()


def test_the_origin_is_kept_where_people_can_read_it(base, tuned):
    origin = json.loads((tuned[0] / 'origin.json').read_text())
    assert origin['checkpoint'] == str(base.resolve()) and origin['step'] == 4 and len(origin['sha256']) == 64
