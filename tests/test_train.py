"""Training: nothing gets lost, and nothing depends on how often the run was interrupted or spread."""

import json
import os
import shutil
import signal
import subprocess
import time
import weakref
from types import SimpleNamespace

import pytest
import torch

from datasets import build
from logger import RunFolder, read_checkpoint
from modules.build import METHODS
from modules.pairs import micro_batches
from modules.training_state import State
from modules.training_step import build_training_step
from support.errors import UserError
from support.signals import StopSignal
from tests.support.agents import run_in_two_processes
from tests.support.small import QUICK, small_config
from tests.support.tiny import ROOT, tiny
from tests.support.training import (
    LIGHT, assert_bit_equal, assert_near, command, environment, final, random_batch, run, train_in, wait_for)

CPU = torch.device('cpu')
CODES = ['model_params.motion_codebook_params.revive_after=2',
         'model_params.appearance_codebook_params={feature_start: true, whitened: true}']
STEPS = 9
LONG = [f'train_params.num_iterations={STEPS}', 'train_params.save_every=2', 'train_params.val_every=100',
        'train_params.log_every=1', 'train_params.num_workers=1', 'train_params.keep_checkpoints=20',
        'train_params.motion_iterations=5', 'model_params.appearance_codebook_params.revive_after=2', *CODES, *LIGHT]


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp('undisturbed')
    run(folder, *LONG)
    return folder


def kill_run(folder, monkeypatch):
    """SIGKILL, at any moment."""
    process = subprocess.Popen(command(folder, *LONG), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE)
    wait_for(folder / 'run' / 'checkpoints' / '00000004.pt', process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def stop_run(folder, monkeypatch):
    """SIGTERM, while step 4 is saved: the run ends with step 5, and with exit code 0."""
    save = RunFolder.save

    def save_and_stop(self, state, step, keep):
        save(self, state, step, keep)
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, 'save', save_and_stop)
        run(folder, *LONG)
    assert RunFolder(folder / 'run', writes=False).newest()[1]['step'] == 5


@pytest.mark.parametrize('interrupt', [kill_run, stop_run])
def test_a_stopped_run_ends_as_an_undisturbed_one(undisturbed, tmp_path, monkeypatch, interrupt):
    interrupt(tmp_path, monkeypatch)
    assert not (tmp_path / 'run' / 'checkpoints' / f'{STEPS:08d}.pt').exists(), 'it had finished already'

    run(tmp_path, *LONG)
    assert_bit_equal(final(tmp_path, STEPS), final(undisturbed, STEPS))
    steps = [json.loads(line)['step'] for line in (tmp_path / 'run' / 'log.jsonl').read_text().splitlines()]
    assert steps.count(STEPS) == 2 and steps.count(5) == 1    # figures and validation; none twice


def test_signals_that_come_twice_are_one_request(monkeypatch):
    with StopSignal() as stopping:
        assert not stopping.requested
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert stopping.requested
        monkeypatch.setattr(StopSignal, 'REPEAT', -1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


def test_two_processes_equal_one_process(tmp_path):
    """Same global batch, same losses and weights, batch norm included; to rounding, as sums are split."""
    options = ['train_params.num_iterations=4', 'train_params.motion_iterations=1', 'train_params.batch_size=4',
               'train_params.log_every=1', 'model_params.appearance_codebook_params.revive_after=3', *CODES]
    run_in_two_processes(*command(tmp_path / 'two', *options)[2:])
    run(tmp_path / 'one', *options)
    one, two = (final(tmp_path / name, 4) for name in ('one', 'two'))
    assert_near(one, two, ('model', 'ema', 'discriminator'), apart=1e-3)

    logs = ([json.loads(line) for line in (tmp_path / name / 'run' / 'log.jsonl').read_text().splitlines()]
            for name in ('one', 'two'))
    for ours, theirs in zip(*logs, strict=True):
        # The adaptive weight is a ratio of gradients, which depends on those biases from its second step on.
        losses = {name: value for name, value in ours.items()
                  if '/' not in name and (name != 'adaptive_weight' or ours['step'] == 2)}
        assert {name: theirs[name] for name in losses} == pytest.approx(losses, rel=1e-3)


def train_tiny(folder, *overrides):
    train_in(folder, tiny(*overrides))


def test_old_checkpoints_go_and_a_finished_run_is_not_trained_again(tmp_path):
    settings = 'train_params.save_every=1', 'train_params.keep_checkpoints=2'
    train_tiny(tmp_path, *settings)
    kept = {path.stem: path.stat().st_mtime_ns for path in (tmp_path / 'checkpoints').glob('*.pt')}
    assert kept.keys() == {'00000003', '00000004'}
    train_tiny(tmp_path, *settings)
    assert kept == {path.stem: path.stat().st_mtime_ns for path in (tmp_path / 'checkpoints').glob('*.pt')}
    assert list((tmp_path / 'pictures').glob('*.png')) and list((tmp_path / 'tensorboard').iterdir())


class Poisoned(METHODS['synergy'].model):
    """Gives a loss that is not finite at chosen steps."""
    poisoned = ()
    calls = 0

    def forward(self, source, driving):
        generated = super().forward(source, driving)
        if self.training:
            type(self).calls += 1
            if self.calls in self.poisoned:
                generated.losses['motion_code'] = generated.losses['motion_code'] * float('nan')
                self.keypoint_detector.predictor.down_blocks[0].norm.running_mean.data.fill_(float('nan'))
        return generated


@pytest.fixture
def poison(monkeypatch):
    monkeypatch.setitem(METHODS, 'synergy', METHODS['synergy']._replace(model=Poisoned))
    monkeypatch.setattr(Poisoned, 'calls', 0)
    return lambda steps: monkeypatch.setattr(Poisoned, 'poisoned', steps)


def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path, poison):
    poison((2, 3))
    train_tiny(tmp_path, 'train_params.log_every=4')
    state = read_checkpoint(tmp_path / 'checkpoints' / '00000004.pt')
    assert all(value.isfinite().all() for key in ('model', 'ema') for value in state[key].values())
    assert state['optimizer']['state'][0]['step'] == 2
    assert '"diagnostics/skipped_steps": 2' in (tmp_path / 'log.jsonl').read_text()


def test_too_many_of_them_stop_the_run_and_keep_the_batch(tmp_path, poison):
    poison(range(1, 100))
    with pytest.raises(UserError, match='3 steps were not finite'):
        train_tiny(tmp_path, 'train_params.max_nonfinite=2')
    saved = torch.load(next((tmp_path / 'nonfinite').iterdir()), weights_only=True)
    assert saved['source'].shape == (2, 3, 32, 32) and saved['step'] == 3


def test_ema_is_the_running_average_and_excluded_networks_follow(tmp_path):
    config = tiny('train_params.ema_decay=0.75')
    model = METHODS['synergy'].model(config.model_params)
    state = State(config.train_params, model, None)
    before = {name: value.clone() for name, value in state.ema.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    state.optimizer.step = lambda: None
    state.update(False, [])
    after = state.ema.state_dict()
    torch.testing.assert_close(after['encoder.stem.weight'], before['encoder.stem.weight'] + 0.25)
    torch.testing.assert_close(after['dense_motion.mask.weight'], before['dense_motion.mask.weight'] + 1)


def test_learning_rate_falls_at_the_milestones():
    config = tiny('train_params.milestones=[10, 20]', 'train_params.gamma=0.5', 'train_params.learning_rate=1.0')
    state = State(config.train_params, METHODS['synergy'].model(config.model_params), None)
    assert [state.learning_rate(step) for step in (1, 10, 11, 20, 21)] == [1, 1, 0.5, 0.5, 0.25]


@pytest.mark.parametrize('kind, order', [('l2', 2.0), ('inf', float('inf'))])
def test_groups_of_networks_are_clipped_apart(kind, order):
    config = tiny('train_params.clip_norm=0.5', f'train_params.clip_norm_type={kind}',
                  'train_params.clip_apart=[[keypoint_detector], [dense_motion, encoder]]')
    model = METHODS['synergy'].model(config.model_params)
    groups = {'keypoint_detector': ['keypoint_detector'], 'others': ['dense_motion', 'encoder'], 'free': ['decoder']}

    def gradients(names):
        return torch.cat([parameter.grad.flatten()
                          for name in names for parameter in getattr(model, name).parameters()])
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = {name: gradients(names).clone() for name, names in groups.items()}
    whole = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm()
    torch.testing.assert_close(State(config.train_params, model, None).clip_gradients(), whole, atol=0, rtol=1e-4)
    for name, names in groups.items():
        limit = 1.0 if name == 'free' else 0.5 / torch.linalg.vector_norm(before[name], order)
        torch.testing.assert_close(gradients(names), before[name] * limit, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize('names', ['clip_apart=[[keypoint_detectr]]', 'ema_exclude=[keypoint_detectr]'])
def test_a_network_that_is_not_there_is_refused(names):
    config = tiny('train_params.clip_norm=1', f'train_params.{names}')
    with pytest.raises(UserError, match='the model has no network keypoint_detectr; did you mean keypoint_detector'):
        State(config.train_params, METHODS['synergy'].model(config.model_params), None)


def test_nothing_that_a_step_generated_outlives_its_micro_batch():
    made, left = [], []
    step = build_training_step(tiny('train_params.accumulate=2'), CPU)

    def note(model, images, generated):
        left.append(sum(image() is not None for image in made))
        made.append(weakref.ref(generated.prediction))
    step.state.model.register_forward_hook(note)
    results = [step(micro_batches(random_batch(2), step.params), step.first_full_step) for _ in range(2)]
    assert all(result.finite for result in results) and len(left) >= 4 and not any(left)


def test_validation_sees_as_many_people_as_it_can(monkeypatch):
    people = 'ann#1', 'ann#2', 'bob', 'cid'                  # of one clip each, as they are found without id_sampling
    monkeypatch.setattr(build, 'test_people', lambda *_: {name: [SimpleNamespace(name=name)] for name in people})
    assert [clip.name for clip in build.validation_clips(None, 64)] == ['ann#1', 'bob', 'cid', 'ann#2']


@pytest.mark.parametrize('method', ['synergy', 'fomm-adv', 'mcnet', 'mrfa', 'dagan'])
def test_every_method_resumes_exactly_and_motion_iterations_train_keypoints_and_coarse_flow_alone(tmp_path, method):
    config = small_config(method, *QUICK, 'train_params.motion_iterations=2', 'train_params.num_iterations=4',
                          'train_params.save_every=1', 'train_params.keep_checkpoints=9', 'train_params.ema_decay=0.9')
    whole, resumed = (tmp_path / name / 'checkpoints' for name in ('whole', 'resumed'))
    train_in(whole.parent, config)
    one, two, three = (read_checkpoint(whole / f'{step:08d}.pt')['model'] for step in (1, 2, 3))
    moved = {name.split('.')[0] for name in one if not torch.equal(one[name], two[name])}
    assert moved == {'keypoint_detector', 'dense_motion'}
    painted = {name.split('.')[0] for name in one if not torch.equal(two[name], three[name])}
    assert painted >= {'keypoint_detector', 'dense_motion', 'encoder'}

    resumed.mkdir(parents=True)
    shutil.copy(whole / '00000003.pt', resumed)
    written = (resumed / '00000003.pt').stat().st_mtime_ns
    train_in(resumed.parent, config)
    assert (resumed / '00000003.pt').stat().st_mtime_ns == written          # it resumed from there
    assert_bit_equal(*(torch.load(folder / '00000004.pt', weights_only=True) for folder in (whole, resumed)))
