"""The command line as a user meets it: modes end to end, and one line for every mistake."""

import shutil
from fractions import Fraction
from functools import partial

import imageio.v3 as iio
import numpy as np
import pytest
import torch

import run
from benchmarks.parity import weights
from datasets.video import open_clip
from tests.support import command_line, inputs
from tests.support.command_line import succeeds
from tests.support.tiny import ROOT, SIZES, tiny
from tests.support.video_files import write_video


refused = partial(command_line.refused, logged=True)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A run folder with a checkpoint of a tiny model."""
    folder = tmp_path_factory.mktemp('log')
    assert run.main(['--mode', 'train', '--config', str(ROOT / 'config/vox-256.yaml'), '--device', 'cpu',
                     '--log_dir', str(folder), '--set', *SIZES]) == 0
    return folder


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
    """A source image and a driving video of other sizes than the model's."""
    folder = tmp_path_factory.mktemp('clips')
    frames = np.random.default_rng(0).integers(0, 255, (9, 40, 48, 3), dtype=np.uint8)
    iio.imwrite(folder / 'source.png', frames[0])
    write_video(folder / 'driving.mp4', frames, Fraction(30000, 1001))
    return folder


def test_reconstruction_of_the_newest_checkpoint(trained, capsys):
    folder = trained / 'vox-256' / 'reconstruction'
    assert 'psnr' in succeeds(capsys, '--mode', 'reconstruction', '--config', ROOT / 'config/vox-256.yaml', '--device',
                              'cpu', '--log_dir', trained, '--set', *SIZES).lower()
    assert all((folder / name).is_file() for name in ('metrics.json', 'metrics.csv', 'contact_sheet.png'))
    assert len(list((folder / 'videos').glob('*.mp4'))) == 2


def checkpoint(trained):
    return next((trained / 'vox-256' / 'checkpoints').glob('*.pt'))


def test_animation_of_one_pair(trained, clips, tmp_path, capsys):
    result = tmp_path / 'out.mp4'
    succeeds(capsys, '--mode', 'animate', '--checkpoint', checkpoint(trained), '--device', 'cpu', '--source_image',
             clips / 'source.png', '--driving_video', clips / 'driving.mp4', '--result_video', result,
             '--adapt_scale', '--find_best_frame', '--side_by_side')
    clip = open_clip(result)
    assert len(clip) == 9 and clip.fps == Fraction(30000, 1001) and clip.read([0])[0].shape == (32, 96, 3)


# ---------------------------------------------------------------------------- mistakes

TRAIN = ['--mode', 'train', '--config', ROOT / 'config/vox-256.yaml', '--device', 'cpu']


def test_no_data(capsys, tmp_path):
    def message(root):
        return refused(capsys, *TRAIN, '--log_dir', tmp_path / 'log', '--set', *SIZES,
                       f'dataset_params.root_dir={root}')

    assert 'nowhere: no such data folder' in message(tmp_path / 'nowhere')
    assert not list((tmp_path / 'log').iterdir())
    (tmp_path / 'train').mkdir()
    assert 'is empty' in message(tmp_path)
    (tmp_path / 'train' / 'clip.mp4').write_text('not a video')
    assert 'expected person#video' in message(tmp_path)
    shutil.rmtree(tmp_path / 'train')
    (tmp_path / 'train' / 'person#clip').mkdir(parents=True)
    assert 'person#clip (a folder without PNG or JPEG frames)' in message(tmp_path)


def test_training_that_cannot_begin(capsys, tmp_path, monkeypatch):
    def message(*sets):
        return refused(capsys, *TRAIN, '--log_dir', tmp_path / 'log', '--set', *SIZES, *sets)

    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    line = message('train_params.objective_params.loss_weights.perceptual=1')
    assert 'vgg19-dcbb9e9d.pth' in line and str(tmp_path) in line and 'https://' in line
    assert 'batch_size=2 cannot be split' in message('train_params.accumulate=3')
    (tmp_path / 'log').rmdir()
    (tmp_path / 'log').write_text('a file where the folder should be')
    assert 'cannot create this folder' in message()
    if not torch.cuda.is_available():
        assert 'finds no CUDA GPU' in refused(capsys, '--mode', 'train', '--device', 'cuda')
    assert 'expected auto, cpu' in refused(capsys, '--mode', 'train', '--device', 'gpu')


def test_checkpoints_that_are_none(capsys, trained, tmp_path):
    def message(content):
        (tmp_path / 'x.pt').write_bytes(content)
        return refused(capsys, '--mode', 'reconstruction', '--checkpoint', tmp_path / 'x.pt', '--device', 'cpu')

    whole = checkpoint(trained).read_bytes()
    assert 'no such file' in refused(capsys, '--mode', 'animate', '--checkpoint', tmp_path / 'none.pt')
    assert 'train first' in refused(capsys, '--mode', 'animate', '--log_dir', tmp_path)
    assert 'is truncated' in message(whole[:len(whole) // 2])
    assert 'Git LFS pointer' in message(b'version https://git-lfs.github.com/spec/v1\noid sha256:1\n')
    assert 'web page' in message(b'<!DOCTYPE html><html></html>')
    assert 'is empty' in message(b'') and 'damaged' in message(b'hello')
    torch.save({'some': torch.zeros(1)}, tmp_path / 'y.pt')
    assert 'not a checkpoint of this project' in refused(capsys, '--mode', 'animate', '--checkpoint', tmp_path / 'y.pt')


class Payload:
    """Would write a file if anybody unpickled it."""
    target = None

    def __reduce__(self):
        return open, (self.target, 'w')


def test_code_in_a_checkpoint_is_never_run(capsys, tmp_path):
    Payload.target = str(tmp_path / 'run')
    torch.save({'format': 1, 'model': Payload()}, tmp_path / 'x.pt')
    assert 'more than tensors' in refused(capsys, '--mode', 'animate', '--checkpoint', tmp_path / 'x.pt')
    assert not (tmp_path / 'run').exists()


def test_a_checkpoint_of_another_config(capsys, trained):
    line = refused(capsys, '--mode', 'reconstruction', '--checkpoint', checkpoint(trained),
                   '--config', ROOT / 'config/demo-64.yaml', '--device', 'cpu')
    assert 'holds another model: model_params.' in line


def test_animation_inputs(capsys, trained, clips, tmp_path):
    def message(*arguments):
        return refused(capsys, '--mode', 'animate', '--checkpoint', checkpoint(trained), '--device', 'cpu', *arguments)

    source, driving = clips / 'source.png', clips / 'driving.mp4'
    (tmp_path / 'text.mp4').write_text('not a video')
    assert 'belong together' in message('--source_image', source)
    assert 'nowhere.png' in message('--source_image', tmp_path / 'nowhere.png', '--driving_video', driving)
    assert 'text.mp4' in message('--source_image', source, '--driving_video', tmp_path / 'text.mp4')
    assert 'text.mp4' in message('--source_image', tmp_path / 'text.mp4', '--driving_video', driving)
    result = tmp_path / 'out.xyz'
    assert 'out.xyz' in message('--source_image', source, '--driving_video', driving, '--result_video', result)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['text.mp4']


# ---------------------------------------------------------------------------- import of published weights

@pytest.fixture
def published(tmp_path):
    """Files with the published names and layout, filled reproducibly, of a tiny model: path by network."""
    networks, paths = inputs.networks_of('smac', tiny()), {}
    for network, tensors in networks.items():
        paths[network], stored = tmp_path / f'{network}.pth', {'params': tensors}
        if network == 'net_g':
            stored['params_ema'] = {name: 0.9 * tensor for name, tensor in tensors.items()}
        torch.save(stored, paths[network])
    return paths


def import_arguments(paths, out):
    return ['--mode', 'import', '--from', 'smac', *paths, '--out', out, '--config', ROOT / 'config/vox-256.yaml',
            '--set', *SIZES]


def test_published_weights_come_in_whole(capsys, published, tmp_path):
    out = tmp_path / 'model.pt'
    succeeds(capsys, *import_arguments(published.values(), out))
    state = torch.load(out, weights_only=True)
    stem = weights.recipe('net_g/encoder.blocks.0.weight', (8, 3, 3, 3))
    assert torch.equal(state['model']['encoder.stem.weight'], stem)
    assert torch.equal(state['ema']['encoder.stem.weight'], 0.9 * stem)        # the EMA where it exists
    assert torch.equal(state['ema']['keypoint_detector.kp.weight'], state['model']['keypoint_detector.kp.weight'])
    assert 'discriminator' in state
    succeeds(capsys, '--mode', 'reconstruction', '--checkpoint', out, '--log_dir', tmp_path, '--device', 'cpu')


def test_imported_codes_are_in_use_whatever_the_config_starts_with(capsys, published, tmp_path):
    out = tmp_path / 'model.pt'
    starts = [f'model_params.{name}_codebook_params.{key}' for name in ('motion', 'appearance')
              for key in ('feature_start=true', 'revive_after=5')]
    succeeds(capsys, *import_arguments(published.values(), out), *starts)
    state = torch.load(out, weights_only=True)
    idle = [value for part in ('model', 'ema') for name, value in state[part].items() if name.endswith('codebook.idle')]
    assert len(idle) == 4 and not any(value.any() for value in idle)


@pytest.mark.parametrize('damage, message', [
    (lambda tensors: tensors.pop('encoder.blocks.0.bias'), 'encoder.blocks.0.bias'),
    (lambda tensors: tensors.update({'surplus.weight': torch.zeros(3)}), 'surplus.weight'),
    (lambda tensors: tensors.update({'encoder.blocks.0.bias': torch.zeros(3)}), '(3,)'),
])
def test_a_published_file_that_does_not_fit_is_named_and_nothing_written(capsys, published, tmp_path, damage, message):
    stored = torch.load(published['net_g'], weights_only=True)
    for tensors in stored.values():
        damage(tensors)
    torch.save(stored, published['net_g'])
    out = tmp_path / 'model.pt'
    assert message in refused(capsys, *import_arguments(published.values(), out)) and not out.exists()


def test_published_files_that_are_broken_or_missing(capsys, published, tmp_path):
    out = tmp_path / 'model.pt'
    assert 'net_motion_estimator' in refused(capsys, *import_arguments([published['net_g']], out))
    cut = tmp_path / 'cut.pth'
    cut.write_bytes(published['net_g'].read_bytes()[:5000])
    assert 'cut.pth' in refused(capsys, *import_arguments([cut, published['net_motion_estimator']], out))
    Payload.target = str(tmp_path / 'run')
    torch.save({'params': Payload()}, cut)
    assert 'more than tensors' in refused(capsys, *import_arguments([cut, published['net_motion_estimator']], out))
    assert not out.exists() and not (tmp_path / 'run').exists()
    assert 'needs --from' in refused(capsys, '--mode', 'import')
