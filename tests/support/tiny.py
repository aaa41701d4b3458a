"""Configs small enough that a training step takes a fraction of a second on one core."""

from pathlib import Path

import torch

from config import schema
from logger import write_checkpoint
from modules.build import build_model

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / 'shared'
REFERENCE = SHARED / 'facts' / 'reference'

SIZES = [
    'dataset_params.root_dir=null', 'dataset_params.synthetic_params={train_people: 6, test_people: 2, frames: 12}',
    'model_params.image_size=32', 'model_params.flow_update_width=16',
    'model_params.kp_detector_params={num_kp: 4, block_expansion: 8, num_blocks: 2, max_features: 16, '
    'scale_factor: 0.5, padding: 3}',
    'model_params.dense_motion_params={block_expansion: 8, num_blocks: 2, max_features: 16, scale_factor: 0.25}',
    'model_params.autoencoder_params={channels: [16, 16, 8, 8], res_blocks: 2, norm_groups: 4}',
    'model_params.motion_codebook_params.num_codes=32', 'model_params.motion_codebook_params.code_dim=8',
    'model_params.motion_codebook_params.num_heads=2',
    'model_params.appearance_codebook_params.num_codes=32', 'model_params.appearance_codebook_params.code_dim=16',
    'model_params.appearance_codebook_params.num_heads=2',
    'model_params.discriminator_params={channels: 8, num_layers: 2}',
    'train_params.batch_size=2', 'train_params.num_workers=0', 'train_params.val_pairs=2',
    'train_params.num_iterations=4',
    'train_params.motion_iterations=0',
    'train_params.precision=fp32', 'train_params.objective_params.loss_weights.perceptual=0',
    'train_params.objective_params.adversarial_start=1', 'visualizer_params.samples=1',
]

FOUR = ['model_params.image_size=64']                             # four scales: the token grid grows
FIVE = [*FOUR, 'model_params.autoencoder_params.channels=[16, 16, 8, 8, 8]',
        'model_params.dense_motion_params.scale_factor=0.125', 'model_params.kp_detector_params.scale_factor=0.25']
NEW_SCALE = 'encoder.levels.0, encoder.downs.0, decoder.levels.4, decoder.ups.4, fusions.3'       # of FIVE


def tiny(*overrides, config='config/vox-256.yaml'):
    """The paper's model at 32 px on the embedded heads, without VGG19; adversarial from the second step on."""
    return schema.load(ROOT / config, [*SIZES, *overrides])


def save_models(folder, *names):
    """{name: path} of untrained models of other weights, in folder/NAME/checkpoints as those of runs."""
    paths = {name: folder / name / 'checkpoints' / '00000004.pt' for name in names}
    for seed, path in enumerate(paths.values()):
        save_model(path, seed=seed)
    return paths


def save_model(path, config=None, seed=0, change=lambda model: None):
    """Write a checkpoint of an untrained model, by default of `tiny()`, at step 4; returns the model."""
    config = config or tiny()
    torch.manual_seed(seed)
    model = build_model(config)
    change(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = model.state_dict()
    write_checkpoint(path, {'config': config.as_dict(), 'step': 4, 'model': state, 'ema': state})
    return model
