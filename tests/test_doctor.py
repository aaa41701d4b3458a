"""Doctor: every broken set-up is named with what to do, several at once, and nothing makes it crash."""

import hashlib
import json
import shutil
import sys
from collections import namedtuple

import imageio.v3 as iio
import numpy as np
import pytest
import torch

import run
from config import schema
from modules import memory
from modules.build import build_model
from support.errors import UserError
from tests.support.command_line import succeeds
from tests.support.inputs import saved
from tests.support.tiny import SHARED, save_model, tiny
from tests.support.video_files import write_video
from tools.doctor import config as doctor_config
from tools.doctor import data, environment
from tools.doctor.finding import BLOCKS
from tools.doctor.weights import check_weights_file

SMALL = ('model_params.autoencoder_params={channels: [16, 8], res_blocks: 1, norm_groups: 4}',
         'model_params.dense_motion_params.scale_factor=0.5', 'model_params.motion_codebook_params.num_scales=2',
         'model_params.appearance_codebook_params.num_scales=2', 'model_params.motion_codebook_params.num_layers=1')


class Setup:
    """A data set of frame folders, a config for it, and doctor's answer."""

    def __init__(self, folder):
        self.root, self.config_path, self.logs = folder / 'data', folder / 'small.yaml', folder / 'log'
        frames = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
        for name in ('train/ann#1#0#3', 'train/bob#1#0#3', 'test/cat#1#0#3'):
            (self.root / name).mkdir(parents=True)
            for index, frame in enumerate(frames):
                iio.imwrite(self.root / name / f'{index:06d}.png', frame)
        self.config = tiny(*SMALL, f'dataset_params.root_dir={self.root}', 'train_params.num_iterations=6')
        schema.save(self.config, self.config_path)
        self.folder = self.logs / 'small' / 'checkpoints'
        self.folder.mkdir(parents=True)

    def examine(self, capsys, *arguments):
        """(exit code, findings as JSON)."""
        code = run.main(['--mode', 'doctor', '--config', str(self.config_path), '--log_dir', str(self.logs),
                         '--device', 'cpu', '--json', *map(str, arguments)])
        return code, json.loads(capsys.readouterr().out)

    def blocked(self, capsys, *arguments):
        """{check: finding} of what blocks, at least one."""
        code, answer = self.examine(capsys, *arguments)
        assert code == 1 and answer['blocked']
        return blocking(answer)


@pytest.fixture
def real_estimate(tmp_path, monkeypatch):
    """Networks that are tried and weighed, which takes seconds."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    return Setup(tmp_path)


@pytest.fixture
def setup(real_estimate, monkeypatch):
    """Networks that are taken to fit."""
    monkeypatch.setattr(memory, 'step_memory',
                        lambda config, batch, gpus=1: memory.StepMemory(0, 0, 0, 0, 10 ** 8 * batch))
    monkeypatch.setattr(memory, 'frame_memory', lambda config: 10 ** 8)
    return real_estimate


def blocking(answer):
    return {finding['check']: f'{finding["what"]} [{finding["where"]}] -> {finding["todo"]}'
            for finding in answer['findings'] if finding['severity'] == BLOCKS}


# ---------------------------------------------------------------------------- eight broken set-ups

def no_space(setup, monkeypatch):
    usage = namedtuple('usage', 'total used free')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage(2 ** 40, 2 ** 40 - 1000, 1000))


def corrupt_clips(setup, monkeypatch):
    path = write_video(setup.root / 'test/dan#1#0#3.mp4',
                       np.random.default_rng(0).integers(0, 255, (9, 32, 32, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:3000])


# Name: (check, what is wrong, what to do, what breaks it: a function or a --set).
BROKEN = {
    'wrong names': ('training data', 'ann: this name has no person', 'rename the clips or set id_sampling: false',
                    lambda setup, _: shutil.move(setup.root / 'train/ann#1#0#3', setup.root / 'train/ann')),
    'empty test folder': ('test data', 'test: is empty', 'expected <root>/train',
                          lambda setup, _: shutil.rmtree(setup.root / 'test/cat#1#0#3')),
    'pointer as checkpoint': ('checkpoint', 'is a Git LFS pointer', 'git lfs pull',
                              lambda setup, _: (setup.folder / '00000004.pt').write_text(
                                  'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n')),
    'mixed sizes': ('test data', 'clips cannot be read: cat#1#0#3', 'replace or remove', lambda setup, _: iio.imwrite(
        setup.root / 'test/cat#1#0#3/000009.png', np.zeros((16, 32, 3), np.uint8))),
    'impossible crop': ('config', 'image_size=31 cannot be halved', '--set model_params.image_size=32',
                        'model_params.image_size=31'),
    'no space': ('disk', 'the disk is full', 'keep_checkpoints=1', no_space),
    'missing weights': ('training weights', 'the perceptual loss needs VGG19', 'loss_weights.perceptual=0',
                        'train_params.objective_params.loss_weights.perceptual=1'),
    'corrupt clips': ('test data', 'clips cannot be read: dan#1#0#3', 'replace or remove', corrupt_clips),
}


@pytest.mark.parametrize('name', BROKEN)
def test_a_broken_set_up_is_named_with_what_to_do(name, setup, monkeypatch, capsys):
    check, what, todo, breaks = BROKEN[name]
    if callable(breaks):
        breaks(setup, monkeypatch)
    code, answer = setup.examine(capsys, *(() if callable(breaks) else ('--set', breaks)))
    found = blocking(answer)
    assert code == 1 and answer['blocked']
    assert what in found[check] and todo in found[check], found
    assert any(what in step and todo in step for step in answer['to_do']), answer['to_do']


# ---------------------------------------------------------------------------- and a healthy one

def test_a_healthy_set_up_is_not_blocked(real_estimate, capsys):
    setup = real_estimate
    save_model(setup.folder / '00000004.pt', setup.config)
    code, answer = setup.examine(capsys)
    assert code == 0 and not answer['blocked'] and not blocking(answer), blocking(answer)
    text = succeeds(capsys, '--mode', 'doctor', '--config', setup.config_path, '--log_dir', setup.logs)
    for part in ('checkpoint of step 4', '2 clips of 2 people', 's per batch of 2', 'MP4 and read the same frames'):
        assert part in text
    assert text.rstrip().endswith('Nothing blocks training.')


def test_it_says_what_training_starts_from(setup, capsys):
    save_model(setup.logs / 'model.pt', setup.config)
    save_model(setup.folder / '00000004.pt', setup.config)
    assert f'training resumes in {setup.folder.parent}' in json.dumps(setup.examine(capsys))
    assert 'changed since then: train_params.save_every' in json.dumps(
        setup.examine(capsys, '--set', 'train_params.save_every=3'))
    found = setup.blocked(capsys, '--set', 'train_params.seed=3')
    assert 'a resumed run cannot change train_params.seed 0 -> 3' in found['checkpoint']
    code, answer = setup.examine(capsys, '--checkpoint', setup.logs / 'model.pt', '--set', 'train_params.seed=3')
    assert code == 0 and f'a new run from its weights, at step 0, in {setup.logs}/small-tuned' in json.dumps(answer)
    found = setup.blocked(capsys, '--checkpoint', setup.folder / '00000004.pt', '--run_name', 'small')
    assert 'a new one would overwrite' in found['checkpoint']
    arguments = '--checkpoint', setup.logs / 'model.pt', '--log_dir', setup.logs
    assert f'{setup.logs}/model-tuned' in succeeds(capsys, '--mode', 'doctor', *arguments)      # with its own config


def test_what_blocks_comes_before_what_spoils(setup, monkeypatch, capsys):
    no_space(setup, monkeypatch)
    shutil.copytree(setup.root / 'train/ann#1#0#3', setup.root / 'test/ann#2#0#3')
    _, answer = setup.examine(capsys)
    assert 'disk is full' in answer['to_do'][0] and 'in both train and test' in answer['to_do'][-1]


@pytest.mark.parametrize('overrides, check, message', [
    # A 48 px image halves well, but not as often as the hourglass of 12 px keypoint images does.
    (('image_size=48', 'kp_detector_params.num_blocks=4'), 'config', 'cannot be halved 4 times'),
    # The 7x7 heads of the keypoint detector, without padding, do not fit on 4 px: a forward pass shows it.
    (('image_size=8', 'kp_detector_params.padding=0', 'dense_motion_params.num_blocks=1'), 'networks',
     'do not support 8 px')])
def test_sizes_that_do_not_fit_together(real_estimate, capsys, overrides, check, message):
    found = real_estimate.blocked(capsys, '--set', *(f'model_params.{value}' for value in overrides))[check]
    assert message in found and 'model_params.image_size=' in found


def test_a_batch_that_the_memory_cannot_hold_says_how_to_split_it(setup, monkeypatch, capsys):
    monkeypatch.setattr(memory, 'available_memory', lambda: 2 * 2 ** 30)
    found = setup.blocked(capsys, '--set', 'train_params.batch_size=64')
    assert '--set train_params.accumulate=' in found['memory']


def test_a_check_that_breaks_is_a_finding(setup, monkeypatch, capsys):
    monkeypatch.setattr(data, 'find_people', lambda *arguments: 1 / 0)
    found = setup.blocked(capsys)
    assert 'ZeroDivisionError' in found['training data'] and 'disk' not in found


def test_a_config_that_cannot_be_read_leaves_the_rest_unchecked(setup, capsys):
    found = setup.blocked(capsys, '--set', 'train_params.batch_sise=2')
    assert list(found) == ['config'] and 'batch_size' in found['config']


def test_weights_that_are_cut_do_not_match_their_name(tmp_path):
    whole = saved({'weight': torch.zeros(4)})
    named = tmp_path / f'net-{hashlib.sha256(whole).hexdigest()[:8]}.pth'
    named.write_bytes(whole)
    check_weights_file(named)
    named.write_bytes(whole[:-10])
    with pytest.raises(UserError, match='truncated'):
        check_weights_file(named)


@pytest.mark.skipif(not (SHARED / 'bad').is_dir(), reason='needs the shared fixtures')
def test_damaged_videos_of_many_kinds_are_all_named(setup, capsys):
    bad = ['truncated_no_moov.mp4', 'truncated_moov_first.mp4', 'text_file.mp4', 'frames_mixed_size']
    for name in bad:
        path = SHARED / 'bad' / name
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, setup.root / 'train' / f'eve#{name}')
    found = setup.blocked(capsys, '--set', 'dataset_params.max_broken=2')
    assert '4 of 6 clips cannot be read' in found['training data']


def test_entries_that_are_no_clips_are_listed(setup, capsys):
    (setup.root / 'train/eve#1#0#3').mkdir()
    (setup.root / 'train/dan#1#0#3.mp4').symlink_to(setup.root / 'gone.mp4')
    code, answer = setup.examine(capsys)
    found, = (finding for finding in answer['findings'] if 'left out' in finding['what'])
    assert code == 0 and found['severity'] == 'warning'
    assert '2 entries' in found['what'] and 'dan#1#0#3.mp4 (a link to nothing)' in found['what']


# ---------------------------------------------------------------------------- packages that are there but do not work

def test_a_video_that_cannot_be_read_again_blocks(setup, monkeypatch, capsys):
    def unreadable(path):
        raise TypeError("open() got an unexpected keyword argument 'metadata_errors'")
    monkeypatch.setattr(environment, 'open_clip', unreadable)
    assert 'small MP4 cannot be written and read: TypeError' in setup.blocked(capsys)['video']


def test_a_package_that_cannot_be_imported_is_not_called_available(setup, monkeypatch, tmp_path, capsys):
    (tmp_path / 'pytorch_fid.py').write_text('print("noise on stdout")\nimport numpy.gone\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'pytorch_fid', raising=False)
    monkeypatch.setattr(environment, 'NEEDED', ('torch', 'no_such_package'))
    code, answer = setup.examine(capsys)
    assert code == 1 and 'no_such_package cannot be imported (not installed)' in blocking(answer)['versions']
    fid, = (finding for finding in answer['findings'] if 'FID' in finding['what'])
    assert fid['severity'] == 'note' and "pytorch-fid: No module named 'numpy.gone'" in fid['todo']


def test_a_frame_that_is_not_finite_blocks(real_estimate, monkeypatch, capsys):
    real = build_model

    def broken(config):
        model = real(config)
        torch.nn.init.constant_(next(model.parameters()), float('nan'))
        return model
    monkeypatch.setattr(doctor_config, 'build_model', broken)
    assert 'cpu renders no valid frame' in real_estimate.blocked(capsys)['memory']
