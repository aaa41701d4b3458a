"""MRFA's correlation and refinement, DaGAN's depth network and attention, their files, and all modes of all methods."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import run
from config import schema
from datasets.video_writer import VideoWriter
from logger import RunFolder, read_checkpoint
from modules import memory
from modules.build import build_model
from modules.depth import DepthNetwork, DepthParams
from modules.fomm import Fomm
from modules.keypoint_detector import KeypointDetector, KeypointDetectorParams
from modules.published.formats import (
    FORMATS, ImportFault, flatten_checkpoint, import_tensors, published_shapes)
from modules.warp import identity_grid, to_displacement
from support.errors import UserError
from tests.support.small import SMALL_METHOD, random_images, small_config, small_model
from tests.support.tiny import ROOT, SIZES
from train import train
from visualizer import save_png

CPU = torch.device('cpu')
QUICK = [*SIZES[:2], 'dataset_params.synthetic_params={train_people: 4, test_people: 2, frames: 6}',
         'train_params.batch_size=2', 'train_params.num_workers=0', 'train_params.val_pairs=2',
         'train_params.num_iterations=2', 'visualizer_params.samples=1', 'animate_params.num_pairs=1']


# ---------------------------------------------------------------------------- MRFA

@torch.no_grad()
def test_without_corrections_every_scale_has_the_prior():
    model = small_model('mrfa-fomm')
    for head in (model.refinement.update.motion[-1], model.refinement.update.occlusion[-1]):
        nn.init.zeros_(head.weight), nn.init.zeros_(head.bias)
    generated = model(random_images(1, 1), random_images(1, 2))
    prior, *refined = generated.flows
    assert [flow.shape[1] for flow in refined] == [8, 16, 32, 64] and len(generated.occlusions) == 5
    torch.testing.assert_close(refined[1], prior, atol=1e-5, rtol=0)                # its own grid
    assert (prior - identity_grid((16, 16), prior)).abs().max() > 0.01
    nn.init.constant_(model.refinement.update.motion[-1].bias, 0.5)
    moved = [to_displacement(flow) for flow in model(random_images(1, 1), random_images(1, 2)).flows[1:]]
    still = [to_displacement(flow) for flow in refined]
    # Half a pixel at each scale, and what coarser scales have corrected counts twice at the next.
    for correction, ours, theirs in zip((0.5, 1.5, 3.5, 7.5), moved, still):
        torch.testing.assert_close(ours - theirs, torch.full_like(ours, correction), atol=1e-4, rtol=0)


def test_keypoints_may_share_one_map_of_jacobians():
    torch.manual_seed(0)
    params = KeypointDetectorParams(num_kp=4, block_expansion=4, num_blocks=1, shared_jacobian=True, scale_factor=1)
    detector = KeypointDetector(params)
    nn.init.normal_(detector.jacobian.weight, std=0.3), detector.kp.weight.data.mul_(30)
    found = detector(random_images(2, size=16)).jacobian
    assert detector.jacobian.weight.shape[0] == 4 and found.shape == (2, 4, 2, 2)
    assert (found[:, 0] - found[:, 1]).abs().max() > 1e-3        # each reads it where it is


# ---------------------------------------------------------------------------- DaGAN

@torch.no_grad()
def test_a_fresh_dagan_renders_as_fomm_does():
    model = small_model('dagan')
    nn.init.zeros_(model.attention.gamma)
    source, driving = random_images(1, 1), random_images(2, 2)
    state, pose = model.encode_source(source), model.keypoints(driving)
    torch.testing.assert_close(model.render(state, pose).prediction, Fomm.render(model, state, pose).prediction)
    nn.init.ones_(model.attention.gamma)
    assert (model.render(state, pose).prediction - Fomm.render(model, state, pose).prediction).abs().max() > 1e-3


@torch.no_grad()
def test_keypoints_see_the_disparity():
    model, image = small_model('dagan'), random_images(1)
    before = model.keypoints(image).value
    model.depth.decoder.heads[0].bias.add_(3)
    assert (model.keypoints(image).value - before).abs().max() > 1e-5


def test_the_depth_network_is_never_trained():
    model = small_model('dagan').train()
    before = {name: tensor.clone() for name, tensor in model.depth.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    model(random_images(2, 1), random_images(2, 2)).prediction.square().mean().backward()
    optimizer.step()
    assert not any(module.training for module in model.depth.modules()) and model.encoder.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.depth.state_dict().items())
    assert all(parameter.grad is None for parameter in model.depth.parameters())


@pytest.mark.parametrize('layers, widths', [(18, [8, 8, 16, 32, 64]), (50, [8, 32, 64, 128, 256])])
@torch.no_grad()
def test_disparities_of_both_depth_networks(layers, widths):
    torch.manual_seed(0)
    network = DepthNetwork(DepthParams(num_layers=layers, block_expansion=8))
    image = (random_images(2) + 1) / 2
    features = network.encoder(image)
    assert [feature.shape[1] for feature in features] == widths
    disparities = network.decoder(features)
    assert [tuple(disparity.shape[1:]) for disparity in disparities] == [(1, side, side) for side in (64, 32, 16, 8)]
    assert 0 < disparities[0].min() < disparities[0].max() < 1 and torch.equal(network(image), disparities[0])


# ---------------------------------------------------------------------------- published files

def depth_files(folder, network, **damage):
    """encoder.pth and depth.pth as their authors save them: with sizes and a classifier that nothing uses."""
    torch.manual_seed(5)
    halves = {'depth_encoder': {'height': 224, 'width': 224, 'use_stereo': False,
                                'encoder.fc.weight': torch.zeros(9, 4), 'encoder.fc.bias': torch.zeros(9)},
              'depth_decoder': {}}
    for name, shape in published_shapes('depth', network).items():
        half, name = name.split('/')
        halves[half][name] = torch.randn(shape).abs() * 0.1
    halves['depth_encoder'] |= damage
    folder.mkdir(exist_ok=True)
    for half, name in zip(halves, ('encoder.pth', 'depth.pth')):
        torch.save(halves[half], folder / name)
    return halves


def train_in(folder, name, *overrides):
    config = schema.load(ROOT / 'config' / f'{name}-vox-256.yaml', [*SMALL_METHOD[name], *QUICK, *overrides])
    run_folder = RunFolder(folder)
    try:
        train(config, run_folder, CPU)
    finally:
        run_folder.close()


def test_training_begins_with_the_published_depth_network_and_keeps_it(tmp_path):
    files, given = tmp_path / 'weights_19', f'model_params.depth_params.pretrained={tmp_path / "weights_19"}'
    with pytest.raises(UserError, match='encoder.pth and .*depth.pth are missing: docs/weights.md'):
        train_in(tmp_path / 'run', 'dagan', given)
    halves = depth_files(files, build_model(small_config('dagan')).depth)
    train_in(tmp_path / 'run', 'dagan', given)
    state = read_checkpoint(tmp_path / 'run' / 'checkpoints' / '00000002.pt')
    for part in ('model', 'ema'):
        assert torch.equal(state[part]['depth.encoder.stages.1.0.conv1.weight'],
                           halves['depth_encoder']['encoder.layer2.0.conv1.weight'])
        assert torch.equal(state[part]['depth.decoder.blocks.2.1.bias'],
                           halves['depth_decoder']['decoder.5.conv.conv.bias'])
    (files / 'depth.pth').unlink()               # the checkpoint holds it
    train_in(tmp_path / 'run', 'dagan', given, 'train_params.num_iterations=3')

    depth_files(files, build_model(small_config('dagan')).depth, **{'encoder.conv1.weight': torch.zeros(8, 3, 5, 5)})
    with pytest.raises(UserError, match='weights_19: tensor depth_encoder/encoder.conv1.weight has shape'):
        train_in(tmp_path / 'other', 'dagan', given)


def test_dagan_is_imported_with_its_depth_network(tmp_path):
    model = build_model(small_config('dagan'))
    torch.manual_seed(7)
    tensors = {name: torch.randn(shape) for name, shape in published_shapes('dagan', model).items()}
    tensors |= FORMATS['dagan'].constants(model)
    contents = {'epoch': 99}
    for name, tensor in tensors.items():
        network, name = name.split('/', 1)
        if not network.startswith('depth'):
            contents.setdefault(network, {})['module.' + name] = tensor
    halves = depth_files(tmp_path, model.depth)
    with pytest.raises(ImportFault, match='depth_encoder is in none of the files'):
        flatten_checkpoint('dagan', [contents])
    files = [torch.load(tmp_path / name, weights_only=True) for name in ('encoder.pth', 'depth.pth')]
    import_tensors('dagan', flatten_checkpoint('dagan', [contents, *files]), model)
    assert torch.equal(model.disparity_encoder.first.conv.weight, tensors['generator/src_first.conv.weight'])
    assert torch.equal(model.attention.key.weight, tensors['generator/AttnModule.key_conv.weight'])
    assert torch.equal(model.depth.decoder.heads[1].bias, halves['depth_decoder']['decoder.9.conv.bias'])


@pytest.mark.parametrize('name, prior, other', [('mrfa', 'mtia', 'fomm'), ('mrfa-fomm', 'fomm', 'mtia')])
def test_mrfa_is_imported_without_its_loss_network(name, prior, other):
    model = build_model(small_config(name))
    torch.manual_seed(7)
    tensors = {name: torch.randn(shape) for name, shape in published_shapes('mrfa', model).items()}
    tensors |= FORMATS['mrfa'].constants(model)
    state = {name.replace('model/', 'module.'): tensor for name, tensor in tensors.items()}
    loss = {'module.vgg.slice1.0.weight': torch.zeros(1), 'module.pyramid.downs.1.weight': torch.zeros(1)}
    import_tensors('mrfa', flatten_checkpoint('mrfa', [{'model': state | loss, 'optimizer': {}, 'epoch': 99}]), model)
    assert torch.equal(model.levels[1].join.weight, tensors['model/decoder.generator.channel_block.1.conv1.weight'])
    assert torch.equal(model.refinement.update.occlusion[0].bias, tensors['model/decoder.refine.convo1.bias'])
    assert torch.equal(model.structure.source.down_blocks[0].conv.weight,
                       tensors['model/decoder.kp_img.encoder.down_blocks.0.conv.weight'])
    with pytest.raises(ImportFault, match=f'that of prior_model: {prior}, the config asks for {other}'):
        import_tensors('mrfa', tensors, build_model(small_config(dict(mtia='mrfa-fomm', fomm='mrfa')[prior])))
    with pytest.raises(ImportFault, match='it is one of format mrfa'):
        flatten_checkpoint('fomm', [{'model': state}])


def test_a_config_without_a_prior_is_loaded_and_says_which_it_is(tmp_path, caplog):
    (tmp_path / 'old.yaml').write_text('model_params: {method: mrfa}')
    with caplog.at_level('INFO'):
        assert schema.load(tmp_path / 'old.yaml').model_params.prior_model == 'fomm'
    assert "old.yaml has no model_params.prior_model: it is MRFA with FOMM's keypoint detector" in caplog.text


# ---------------------------------------------------------------------------- all modes

@pytest.mark.parametrize('name', ['fomm', 'mcnet', 'mrfa', 'mrfa-fomm', 'dagan'])
def test_every_mode_runs(name, tmp_path, capsys):
    sets = ['--set', *SMALL_METHOD[name], *QUICK]
    model = ['--checkpoint', tmp_path / 'run' / 'checkpoints' / '00000002.pt']
    shared = ['--device', 'cpu', '--log_dir', tmp_path, '--run_name', 'run']
    frames = ((random_images(4, size=64) + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy()
    with VideoWriter(tmp_path / 'driving.mp4', 25) as video:
        for frame in frames:
            video.write(frame)
    save_png(tmp_path / 'source.png', frames[0])
    one = ['--source_image', tmp_path / 'source.png', '--driving_video', tmp_path / 'driving.mp4',
           '--result_video', tmp_path / 'result.mp4']
    for mode, arguments in [('train', ['--config', ROOT / 'config' / f'{name}-vox-256.yaml', *sets, *shared]),
                            ('reconstruction', [*model, *shared]), ('animate', [*model, *shared]),
                            ('animate', [*model, '--device', 'cpu', *one]),
                            ('evaluate', [*model, *shared, '--metrics', 'psnr.rgb']), ('inspect', [*model, *shared])]:
        assert run.main(['--mode', mode, *map(str, arguments)]) == 0, capsys.readouterr().err
    folder = tmp_path / 'run'
    assert json.loads((folder / 'reconstruction' / 'metrics.json').read_text())
    assert (tmp_path / 'result.mp4').stat().st_size and list((folder / 'animation').glob('*.mp4'))
    assert list((folder / 'evaluation').rglob('metrics.json'))


@pytest.mark.parametrize('name', ['mrfa', 'dagan'])
def test_memory_is_estimated_without_computing(name):
    one, two = (memory.step_memory(small_config(name), batch).activations for batch in (1, 2))
    assert one < two <= 2 * one


@pytest.mark.parametrize('name, port, steps', [('mrfa', 29526, 1), ('mrfa-fomm', 29527, 3), ('dagan', 29528, 3)])
def test_two_processes_equal_one(name, port, steps, tmp_path):
    """Same global batch, same weights, batch norm included; to rounding, as sums are split.

    Fresh token transformers hardly see the image: their gradients are so small that Adam makes steps of their rounding.
    """
    options = ['train_params.batch_size=4', f'train_params.num_iterations={steps}']
    train_in(tmp_path / 'one', name, *options)
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2', f'--master_port={port}']
    arguments = ['run.py', '--mode', 'train', '--config', f'config/{name}-vox-256.yaml', '--device', 'cpu',
                 '--log_dir', str(tmp_path), '--run_name', 'two', '--set', *SMALL_METHOD[name], *QUICK, *options]
    environment = os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    result = subprocess.run([*launcher, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    one, two = (read_checkpoint(tmp_path / folder / 'checkpoints' / f'{steps:08d}.pt') for folder in ('one', 'two'))
    for part in ('model', 'discriminator') if name == 'dagan' else ('model',):
        for key, ours in one[part].items():
            # Biases before a batch norm or a softmax have gradients of rounding alone, which Adam turns into whole
            # steps; hence the absolute part.
            apart = (ours.double() - two[part][key]).norm()
            assert apart <= 1e-3 * ours.double().norm() + 4e-3, f'{part}.{key}: {apart:.1e} apart'
