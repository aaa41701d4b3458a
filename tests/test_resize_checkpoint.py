"""Models of other image sizes: the weights that they start from, the configs of 512 px, every mode at that size."""

import json
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from config import schema
from datasets.video import open_clip
from modules import memory
from modules.appearance_compensation import partition_windows, reverse_windows
from modules.autoencoder import Fusion
from modules.build import build_discriminator, build_model
from modules.layers import Downsample, ResBlock, Upsample
from modules.resize_checkpoint import (check_scales, grouped, init_identity, resize_checkpoint, resized_positions,
    resized_unembedding, resized_windows)
from tests.support.command_line import succeeds
from tests.support.inputs import VOX
from tests.support.small import SMALL_METHOD, small_config
from tests.support.tiny import FIVE, NEW_SCALE, ROOT, SIZES, tiny
from tests.support.training import assert_bit_equal
from tests.support.video_files import write_video
from visualizer import save_png

CODES_TOO = [*FIVE, *(f'model_params.{book}_codebook_params.{key}' for book in ('motion', 'appearance')
                      for key in ('num_scales=5', 'num_codes=40'))]

# ---------------------------------------------------------------------------- the rules

def test_models_of_one_size_are_alike():
    theirs, network = (build_model(tiny()) for _ in range(2))
    resized = resize_checkpoint(theirs.state_dict(), network)
    assert_bit_equal(resized.tensors, theirs.state_dict())
    assert not (resized.resized or resized.new or resized.unused) and str(resized).endswith('; new: nothing')


@pytest.mark.parametrize('name', SMALL_METHOD)
def test_all_tensors_of_the_other_methods_fit(name):
    config = small_config(name)
    larger = schema.override(config, ['model_params.image_size=128'])
    check_scales(config.model_params, larger.model_params)                    # there is nothing to check
    for network in (build_model, build_discriminator):
        resized, model = resize_checkpoint(network(config).state_dict(), network(larger)), network is build_model
        # Sines and cosines of more patches are those of the new size.
        assert resized.new == resized.unused == (['keypoint_detector.position'] if name == 'mrfa' and model else [])
        assert resized.resized == (['structure.position'] if name.startswith('mrfa') and model else [])


def test_positions_are_interpolated_between_the_middles_of_tokens():
    """2 x 2 tokens become 4 x 4: the corners stay, others lie a quarter or three quarters between two."""
    grown = resized_positions(torch.tensor([[0.0, 1], [4, 1], [8, 1], [12, 1]]), (16, 2))
    assert grown[:, 0].view(4, 4).tolist() == [[0, 1, 3, 4], [2, 3, 5, 6], [6, 7, 9, 10], [8, 9, 11, 12]]
    assert grown[:, 1].tolist() == [1] * 16
    picture = torch.randn(1, 3, 4, 4)
    rows = resized_positions(picture[0].flatten(1).t(), (64, 3))
    torch.testing.assert_close(rows.t().view(1, 3, 8, 8), resized_positions(picture, (1, 3, 8, 8)))


def test_a_window_that_is_enlarged_gives_the_token_that_it_gave_and_back():
    embed, unembed, bias = torch.randn(5, 2 * 2 * 3), torch.randn(2 * 2 * 3, 5), torch.randn(2 * 2 * 3)
    feature = torch.randn(2, 3, 8, 8)
    enlarged = F.interpolate(feature, scale_factor=2, mode='nearest')
    token = partition_windows(feature, 4) @ embed.t()
    torch.testing.assert_close(partition_windows(enlarged, 4) @ resized_windows(embed, 2, 4).t(), token)
    small, large = (reverse_windows(token @ weight.t() + offset, 4, 3) for weight, offset in (
        (unembed, bias), (resized_unembedding(unembed, 2, 4), resized_unembedding(bias, 2, 4))))
    torch.testing.assert_close(large, F.interpolate(small, scale_factor=2, mode='nearest'))
    assert resized_windows(torch.tensor([[1.0, 2]]), 1, 2).tolist() == [[0.25, 0.5] * 4]


def test_blocks_of_a_new_scale_pass_what_they_get():
    x, feature = torch.randn(2, 2, 8, 6, 6)
    blocks = [ResBlock(8, 8, 4), Upsample(8), Downsample(8), Fusion(8, 4)]
    for block in blocks:
        init_identity(block)
    residual, up, down, fusion = blocks
    torch.testing.assert_close(residual(x), x)
    torch.testing.assert_close(up(x), F.interpolate(x, scale_factor=2, mode='nearest'))
    torch.testing.assert_close(down(x), F.avg_pool2d(x, 2))
    torch.testing.assert_close(fusion(x, feature), x)


def test_levels_of_the_encoder_are_counted_from_the_coarsest():
    theirs, network = build_model(tiny()).state_dict(), build_model(tiny(*FIVE))
    resized = resize_checkpoint(theirs, network)
    assert grouped(resized.new, resized.tensors) == NEW_SCALE.split(', ') and not (resized.resized or resized.unused)
    for level in range(4):
        ours, old = (state[f'encoder.levels.{number}.blocks.0.0.conv1.weight']
                     for state, number in ((resized.tensors, level + 1), (theirs, level)))
        assert torch.equal(ours, old)
    down = resize_checkpoint(resized.tensors, build_model(tiny()))            # and the way back
    assert_bit_equal(down.tensors, theirs)
    assert not down.new and down.unused == NEW_SCALE.split(', ')


def test_further_codes_and_compensated_scales():
    theirs, network = build_model(tiny()).state_dict(), build_model(tiny(*CODES_TOO))
    fresh = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = resize_checkpoint(theirs, network).tensors
    for book in ('motion', 'appearance'):
        codes, old, new = (state[f'{book}.codebook.embedding'] for state in (found, theirs, fresh))
        assert torch.equal(codes[:32], old) and torch.equal(codes[32:], new[32:])
    assert torch.equal(found['motion.context.4.weight'], theirs['motion.context.3.weight'])
    assert torch.equal(found['appearance.embed.4.weight'], resized_windows(theirs['appearance.embed.3.weight'], 8, 16))


def test_parts_are_named_once():
    every = ['a.x.weight', 'a.x.bias', 'a.y.weight', 'b.weight', 'b.bias']
    assert grouped(every[:3], every) == ['a'] and grouped(['a.x.bias', *every[3:]], every) == ['a.x.bias', 'b']


# ---------------------------------------------------------------------------- the configs

@pytest.mark.parametrize('recipe', ['', '-plus'])
def test_all_but_the_finest_scale_is_that_of_256_px(recipe):
    """What the picture is seen at, tokens, windows and codes are as there; and so are all tensors of it."""
    large, small = (schema.load(ROOT / 'config' / f'vox-{size}{recipe}.yaml') for size in (512, 256))
    ours, theirs = large.model_params, small.model_params
    assert (ours.grid, ours.flow_size) == (theirs.grid, theirs.flow_size) == (32, 64)
    assert ours.image_size * ours.kp_detector_params.scale_factor == \
        theirs.image_size * theirs.kp_detector_params.scale_factor
    check_scales(theirs, ours)
    with torch.device('meta'):
        carried = resize_checkpoint(build_model(small).state_dict(), build_model(large))
    assert not (carried.resized or carried.unused)
    assert grouped(carried.new, carried.tensors) == NEW_SCALE.split(', ')
    assert large.train_params.objective_params.loss_weights == small.train_params.objective_params.loss_weights


def test_a_step_fits_one_card_or_four():
    config, card = schema.load(ROOT / 'config' / 'vox-512.yaml'), 24e9
    part = config.train_params.batch_size // config.train_params.accumulate
    assert memory.step_memory(config, part).total < card                      # all on one
    alone = schema.override(config, ['train_params.checkpointing=false'])
    assert memory.step_memory(alone, part // 4, gpus=4).total < card / 2      # one pair per card


# ---------------------------------------------------------------------------- every mode

NARROW = [*SIZES, 'dataset_params.root_dir={root}', 'model_params.image_size=512',
          'model_params.autoencoder_params={channels: [8, 8, 4, 4, 4], res_blocks: 1, norm_groups: 4}',
          *(f'model_params.kp_detector_params.{key}' for key in ('scale_factor=0.125', 'padding=0')),
          'model_params.dense_motion_params.scale_factor=0.125', 'model_params.flow_update_width=8',
          *(f'model_params.{book}_codebook_params.{key}' for book in ('motion', 'appearance')
            for key in ('code_dim=4', 'num_layers=1', 'num_codes=16', 'num_heads=1')),
          'train_params.accumulate=2', 'train_params.num_iterations=1', 'train_params.val_pairs=1',
          'train_params.log_every=1', 'animate_params.num_pairs=1']

@pytest.fixture
def raw(tmp_path):
    """Raw videos of three people, smaller than 512 px, and their metadata."""
    rows = [('aaaaaaaaaaa', 'train', 'id1'), ('bbbbbbbbbbb', 'test', 'id2'), ('ccccccccccc', 'test', 'id3')]
    for number, (video, *_) in enumerate(rows):
        rough = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        write_video(tmp_path / 'raw' / f'{video}.mp4', (
            np.array(Image.fromarray(np.roll(rough, turn, 1)).resize((320, 240), Image.BICUBIC)) for turn in range(3)))
    (tmp_path / 'vox-metadata.csv').write_text(VOX + ''.join(
        f'{video},0,2,40-20-240-220,25,320,240,{partition},{person}\n' for video, partition, person in rows))
    return ['--dataset', 'voxceleb1', '--videos', tmp_path / 'raw', '--metadata', tmp_path / 'vox-metadata.csv']


def test_every_mode_runs(raw, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, data, folder = ROOT / 'config' / 'vox-512.yaml', tmp_path / 'data', tmp_path / 'run'
    sets = ['--set', *(part.format(root=data) if part.endswith('{root}') else part for part in NARROW)]
    model = ['--checkpoint', folder / 'checkpoints' / '00000001.pt']
    here = ['--log_dir', tmp_path, '--run_name', 'run', '--device', 'cpu']
    clip = data / 'test' / 'id2#bbbbbbbbbbb#000000#000002.mp4'

    does = partial(succeeds, capsys, '--mode')
    said = does('prepare', *raw, '--size', 512, '--out', data)
    assert 'crops are 200 to 200 px large in the videos, median 200: 3 of 3 clips are enlarged to 512 px' in said
    does('doctor', '--config', config, *here, *sets)
    does('train', '--config', config, *here, *sets)
    assert torch.load(model[1], weights_only=True)['model']['appearance.embed.3.weight'].shape == (4, 64 * 4)
    does('reconstruction', *model, *here)
    does('animate', *model, *here)
    save_png(tmp_path / 'face.png', open_clip(clip).read([0])[0])
    one = ['--source_image', 'face.png', '--driving_video', clip]
    does('animate', *model, '--device', 'cpu', *one, '--result_video', 'result.mp4')
    does('evaluate', *model, *here, '--metrics', 'psnr.rgb')
    does('inspect', *model, *here, '--code_frames', 1)
    does('compare', '--checkpoints', f'one={model[1]}', '--device', 'cpu', *one, '--frames', 1)
    does('study', '--checkpoints', f'one={model[1]}', f'two={model[1]}', '--device', 'cpu', '--pairs', 1, '--checks', 0)
    assert json.loads((folder / 'reconstruction' / 'metrics.json').read_text())
    assert all(list((tmp_path / place).rglob(kind)) for place, kind in (
        ('run/evaluation', 'metrics.json'), ('run/inspect', '*.png'), ('compare', '*.png'), ('study', '*.html')))
    assert open_clip(tmp_path / 'result.mp4').read([0])[0].shape == (512, 512, 3)
