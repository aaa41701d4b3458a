"""A method in one file is enough: a toy goes through train, reconstruction and animation by its config alone."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import run
from modules.build import METHODS, Method
from modules.layers import DownBlock2d
from modules.talking_head import Generated, Keypoints, SourceState, TalkingHead
from modules.warp import identity_grid, warp

CONFIG = """
dataset_params:
  synthetic_params: {train_people: 4, test_people: 2, frames: 8}
model_params: {method: toy, image_size: 32, width: 8}
train_params:
  num_iterations: 3
  batch_size: 2
  num_workers: 0
  val_pairs: 2
  objective_params:
    loss_weights: {l1: 1, equivariance_value: 1, equivariance_jacobian: 1, keypoint_distance: 1, stillness: 0.1}
animate_params: {num_pairs: 1}
"""


@dataclass(frozen=True)
class ToyParams:
    image_size: int = 32
    width: int = 4


class Toy(TalkingHead):
    """Moves the whole source by what its one keypoint moved."""

    Params = ToyParams
    own_losses = ('stillness',)

    def __init__(self, params):
        super().__init__()
        self.down = DownBlock2d(3, params.width)
        self.heat = nn.Conv2d(params.width, 1, 3, padding=1)
        self.paint = nn.Conv2d(3, 3, 1)

    @property
    def last_weight(self):
        return self.paint.weight

    def keypoints(self, image):
        logits = self.heat(self.down(image))
        heatmap = logits.flatten(2).softmax(-1).view(logits.shape)[..., None]
        value = (heatmap * identity_grid(logits.shape[-2:], logits)).sum((2, 3))
        return Keypoints(value, torch.eye(2).expand(len(value), 1, 2, 2))

    def encode_source(self, image):
        return SourceState(self.keypoints(image), image)

    def render(self, source, driving):
        move = (source.keypoints.value - driving.value)[:, :, None]                      # (B, 1, 1, 2)
        flow = identity_grid((8, 8), move) + move
        image = source.features.expand(len(flow), -1, -1, -1)
        return Generated(self.paint(warp(image, flow)), [flow], [])

    def forward(self, source, driving):
        state, keypoints = self.encode_source(source), self.keypoints(driving)
        generated = self.render(state, keypoints)
        generated.source_keypoints, generated.driving_keypoints = state.keypoints, keypoints
        generated.losses['stillness'] = (keypoints.value - state.keypoints.value).abs().mean()
        return generated


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, 'toy', Method(Toy, lambda params: None))
    path = tmp_path / 'toy.yaml'
    path.write_text(CONFIG)
    return path


def test_a_new_method_runs_in_every_mode(config, tmp_path, capsys):
    for mode in ('train', 'reconstruction', 'animate', 'inspect'):
        arguments = ['--mode', mode, '--config', config, '--log_dir', tmp_path / 'log', '--device', 'cpu']
        assert run.main([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
    folder = tmp_path / 'log' / 'toy'
    assert (folder / 'checkpoints' / '00000003.pt').is_file() and list((folder / 'pictures').glob('*.png'))
    assert (folder / 'reconstruction' / 'metrics.json').is_file()
    assert list((folder / 'animation').glob('*.mp4'))
    assert {path.name for path in (folder / 'inspect').glob('*.png')} == {'01-motion.png', '02-motion.png'}


def test_a_method_without_coarse_flow_has_no_motion_iterations(config, tmp_path, capsys):
    arguments = ['--mode', 'train', '--config', config, '--log_dir', tmp_path / 'log', '--device', 'cpu',
                 '--set', 'train_params.motion_iterations=1']
    assert run.main([str(argument) for argument in arguments]) == 2
    assert 'method toy has no coarse flow' in capsys.readouterr().err
