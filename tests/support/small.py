"""Small configs and models of every method, 64 px, for tests on one core."""

import torch
import torch.nn.functional as F
from torch import nn

from config import schema
from modules.build import build_model
from tests.support.tiny import ROOT, SIZES

SMALL = ['model_params.image_size=64',
         'model_params.kp_detector_params={num_kp: 4, block_expansion: 8, num_blocks: 2, max_features: 32, '
         'scale_factor: 0.5, padding: 3}',
         'model_params.dense_motion_params={block_expansion: 8, num_blocks: 2, max_features: 32, scale_factor: 0.25}',
         'train_params.objective_params.loss_weights={l1: 10, perceptual: 0, keypoint_distance: 0}']
SMALL_FIRST_ORDER = [*SMALL, 'model_params.block_expansion=8', 'model_params.max_features=32',
                     'model_params.discriminator_params={block_expansion: 4, max_features: 32, num_blocks: 3}']
SMALL_MRFA = [*SMALL_FIRST_ORDER, 'model_params.num_down_blocks=3', 'model_params.flow_update_width=8',
              'model_params.structure_params={block_expansion: 4, num_blocks: 2, max_features: 16, channels: 8}']
SMALL_METHOD = {'fomm': [*SMALL_FIRST_ORDER, 'model_params.num_bottleneck_blocks=1'],
                'fomm-adv': [*SMALL_FIRST_ORDER, 'model_params.num_bottleneck_blocks=1'],
                'mcnet': [*SMALL_FIRST_ORDER, 'model_params.memory_channels=16', 'model_params.memory_size=6',
                          'model_params.style_channels=12', 'model_params.style_hidden=8'],
                'mrfa-fomm': SMALL_MRFA,
                'mrfa': [*SMALL_MRFA, 'model_params.token_pose_params={width: 4, stem_width: 4, num_modules: 1, '
                         'patch_size: 2, dim: 16, num_heads: 2, num_layers: 2}'],
                'dagan': [*SMALL_FIRST_ORDER, 'model_params.num_bottleneck_blocks=1',
                          'model_params.attention_channels=4',
                          'model_params.depth_params={pretrained: null, block_expansion: 8, num_stages: 3}']}
SMALL_SYNERGY = [*SMALL, 'model_params.flow_update_width=16',
                 'model_params.autoencoder_params={channels: [16, 12, 8, 8], res_blocks: 1, norm_groups: 4}',
                 'model_params.motion_codebook_params={num_codes: 16, code_dim: 8, num_heads: 2}',
                 'model_params.appearance_codebook_params={num_codes: 16, code_dim: 8, num_heads: 2}',
                 'model_params.discriminator_params={channels: 4, num_layers: 2}',
                 'train_params.objective_params.adversarial_start=0']


# Two steps on synthetic heads.
QUICK = [*SIZES[:1], 'dataset_params.synthetic_params={train_people: 4, test_people: 2, frames: 6}',
         'train_params.batch_size=2', 'train_params.num_workers=0', 'train_params.val_pairs=2',
         'train_params.num_iterations=2', 'visualizer_params.samples=1', 'animate_params.num_pairs=1']


def small_config(name, *overrides):
    file, sizes = ('vox-256', SMALL_SYNERGY) if name == 'synergy' else (f'{name}-vox-256', SMALL_METHOD[name])
    return schema.load(ROOT / 'config' / f'{file}.yaml', [*sizes, *overrides])


def small_model(name):
    """A model whose keypoints have Jacobians, and whose noise would show."""
    torch.manual_seed(0)
    model = build_model(small_config(name))
    if name == 'synergy':
        for parameter in model.parameters():         # away from the special initial values
            parameter.data.add_(0.05 * torch.randn_like(parameter))
        return model.eval()
    detector = model.keypoint_detector
    if name == 'mrfa':
        nn.init.normal_(detector.tokens), nn.init.normal_(detector.value_head[1].weight, std=0.3)
    nn.init.normal_((detector.jacobian_head[1] if name == 'mrfa' else detector.jacobian).weight, std=0.02)
    model.head.weight.data.mul_(3)
    if name == 'dagan':
        nn.init.constant_(model.attention.gamma, 0.7)
    if name == 'mcnet':
        nn.init.constant_(model.compensation.condition.noise_strength, 0.5)
    return model.eval()


def random_images(batch, seed=1, size=64):
    low = torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(2 * low - 1, size=size, mode='bilinear')
