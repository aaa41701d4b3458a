"""The configs of 512 px, and every mode at that size, with networks of a few channels."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

import run
from config import schema
from datasets.video import open_clip
from datasets.video_writer import VideoWriter
from modules import memory
from modules.build import build_model
from modules.resize_checkpoint import check_scales, grouped, resize_checkpoint
from tests.support.tiny import ROOT, SIZES
from visualizer import save_png

GPU = 24e9                           # bytes of the card that a pair has to fit
PLAIN, PLUS = 'vox-512.yaml', 'vox-512-plus.yaml'
NARROW = [*SIZES, 'dataset_params.root_dir={root}', 'model_params.image_size=512',
          'model_params.autoencoder_params={channels: [8, 8, 4, 4, 4], res_blocks: 1, norm_groups: 4}',
          *(f'model_params.kp_detector_params.{key}' for key in ('scale_factor=0.125', 'padding=0')),
          'model_params.dense_motion_params.scale_factor=0.125', 'model_params.flow_update_width=8',
          *(f'model_params.{book}_codebook_params.{key}' for book in ('motion', 'appearance')
            for key in ('code_dim=4', 'num_layers=1', 'num_codes=16', 'num_heads=1')),
          'train_params.accumulate=2', 'train_params.num_iterations=1', 'train_params.val_pairs=1',
          'train_params.log_every=1', 'animate_params.num_pairs=1']


# ---------------------------------------------------------------------------- the configs

@pytest.mark.parametrize('name, smaller', [(PLAIN, 'vox-256.yaml'), (PLUS, 'vox-256-plus.yaml')])
def test_all_but_the_finest_scale_is_that_of_256_px(name, smaller):
    """What the picture is seen at, tokens, windows and codes are as there; and so are all tensors of it."""
    large, small = (schema.load(ROOT / 'config' / of) for of in (name, smaller))
    ours, theirs = large.model_params, small.model_params
    assert (ours.grid, ours.flow_size) == (theirs.grid, theirs.flow_size) == (32, 64)
    assert ours.image_size * ours.kp_detector_params.scale_factor == \
        theirs.image_size * theirs.kp_detector_params.scale_factor
    check_scales(theirs, ours)
    with torch.device('meta'):
        carried = resize_checkpoint(build_model(small).state_dict(), build_model(large))
    assert not (carried.resized or carried.unused) and grouped(carried.new, carried.tensors) == [
        'encoder.levels.0', 'encoder.downs.0', 'decoder.levels.4', 'decoder.ups.4', 'fusions.3']
    assert large.train_params.objective_params.loss_weights == small.train_params.objective_params.loss_weights


def test_a_step_fits_one_card_or_four():
    config = schema.load(ROOT / 'config' / PLAIN)
    part = config.train_params.batch_size // config.train_params.accumulate
    assert memory.step_memory(config, part).total < GPU                        # all on one
    alone = schema.override(config, ['train_params.checkpointing=false'])
    assert memory.step_memory(alone, part // 4, gpus=4).total < GPU / 2    # one pair per card


# ---------------------------------------------------------------------------- every mode

@pytest.fixture
def raw(tmp_path):
    """Raw videos of three people, smaller than 512 px, and their metadata."""
    rows = [('aaaaaaaaaaa', 'train', 'id1'), ('bbbbbbbbbbb', 'test', 'id2'), ('ccccccccccc', 'test', 'id3')]
    (tmp_path / 'raw').mkdir()
    for number, (video, *_) in enumerate(rows):
        rough = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        with VideoWriter(tmp_path / 'raw' / f'{video}.mp4', 25) as writer:
            for turn in range(3):
                writer.write(np.array(Image.fromarray(np.roll(rough, turn, 1)).resize((320, 240), Image.BICUBIC)))
    with open(tmp_path / 'vox-metadata.csv', 'w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow('video_id,start,end,bbox,fps,width,height,partition,person_id'.split(','))
        writer.writerows((video, 0, 2, '40-20-240-220', 25, 320, 240, *rest) for video, *rest in rows)
    return ['--dataset', 'voxceleb1', '--videos', tmp_path / 'raw', '--metadata', tmp_path / 'vox-metadata.csv']


def test_every_mode_runs(raw, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, data, folder = ROOT / 'config' / PLAIN, tmp_path / 'data', tmp_path / 'run'
    sets = ['--set', *(part.format(root=data) if part.endswith('{root}') else part for part in NARROW)]
    model = ['--checkpoint', folder / 'checkpoints' / '00000001.pt']
    here = ['--log_dir', tmp_path, '--run_name', 'run', '--device', 'cpu']
    clip = data / 'test' / 'id2#bbbbbbbbbbb#000000#000002.mp4'

    def does(mode, *arguments):
        assert run.main(['--mode', mode, *map(str, arguments)]) == 0, (mode, capsys.readouterr())
        return capsys.readouterr().out

    said = does('prepare', *raw, '--size', 512, '--out', data)
    assert 'crops are 200 to 200 px large in the videos, median 200: 3 of 3 clips are enlarged to 512 px' in said
    does('doctor', '--config', config, *here, *sets)
    does('train', '--config', config, *here, *sets)
    assert torch.load(model[1], weights_only=True)['model']['appearance.embed.3.weight'].shape == (4, 64 * 4)
    does('curves', '--run', folder)
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
