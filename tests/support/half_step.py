"""A training step in bf16 compared with one in fp32, at 256 px."""

import pytest
import torch

from benchmarks.parity.weights import vgg_state
from config import schema
from datasets.synthetic.clips import synthetic_people
from modules.build import METHODS
from modules.objective import needs_vgg
from modules.pairs import Pairs, draw_transform
from modules.training_step import build_training_step
from tests.support.small import SMALL_METHOD, SMALL_SYNERGY
from tests.support.tiny import ROOT
from visualizer import to_tensor

CPU = torch.device('cpu')
SIZE = 256
CONFIGS = {'synergy': 'vox-256-plus', 'fomm': 'fomm-adv-vox-256', 'mcnet': 'mcnet-vox-256', 'mrfa': 'mrfa-vox-256',
           'dagan': 'dagan-vox-256'}
assert CONFIGS.keys() == METHODS.keys()
NARROW = {'synergy': SMALL_SYNERGY} | SMALL_METHOD
PIXELS = 127.5                     # of 256 px per unit of a position
FLOW = 0.05                        # px of 256 that a flow may differ by
IMAGE, LOSS, COSINE = 0.01, 0.02, 0.95      # prediction: rms over range; losses: relative; gradients: of each network


def config_of(method, narrow, size=SIZE):
    sets = ['dataset_params.root_dir=null', 'train_params.objective_params.adversarial_start=0']
    if narrow:
        sets += [*NARROW[method], f'model_params.image_size={size}',
                 f'model_params.kp_detector_params.scale_factor={64 / size}']
    if method == 'dagan':
        sets.append('model_params.depth_params.pretrained=null')
    return schema.load(ROOT / 'config' / f'{CONFIGS[method]}.yaml', sets)


def pair_of_frames(size=SIZE):
    """A pair of frames of a synthetic head."""
    (clip,), = synthetic_people(1, 1, 8, size, 3).values()
    source, driving = (to_tensor(clip.read([index])) for index in (0, 5))
    return Pairs(source, driving, draw_transform(0, [0]))


def one_step(config, pairs, precision, device=CPU):
    """(ObjectiveOutput, losses by name, gradient of each network) of the first full step, from the config's start."""
    config = schema.override(config, [f'train_params.precision={precision}'])
    params, outputs = config.train_params, []
    step = build_training_step(config, device, vgg_state() if needs_vgg(params.objective_params) else None)
    step.objective.register_forward_hook(lambda *call: outputs.append(call[-1]))
    losses = step.gradients([pairs], step.first_full_step).losses
    gradients = {name: [parameter.grad.double().flatten().cpu() for parameter in network.parameters()
                        if parameter.grad is not None] for name, network in step.state.model.named_children()}
    return outputs[0], losses, {name: torch.cat(found) for name, found in gradients.items() if found}


def assert_bf16_is_near_fp32(config, pairs, device=CPU):
    (wanted, losses, gradients), (found, rounded, theirs) = (one_step(config, pairs, precision, device)
                                                             for precision in ('fp32', 'bf16'))
    for flow, other in zip(wanted.generated.flows, found.generated.flows, strict=True):
        assert other.dtype == torch.float32
        assert PIXELS * (flow - other).norm(dim=-1).max() <= FLOW
    image, other = wanted.generated.prediction, found.generated.prediction
    assert (image - other).square().mean().sqrt() <= IMAGE * (image.max() - image.min())
    assert {name: float(value) for name, value in rounded.items()} == pytest.approx(
        {name: float(value) for name, value in losses.items()}, rel=LOSS, abs=1e-4)
    assert gradients.keys() == theirs.keys()
    assert [name for name, gradient in gradients.items()
            if gradient.any() and torch.cosine_similarity(gradient, theirs[name], dim=0) < COSINE] == []
