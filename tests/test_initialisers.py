"""A new model's weights are distributed as in the released codes: PyTorch's defaults, and the exceptions below.

Statistics of the released code itself are known of the paper's method and its discriminator alone (std of the
discriminator's first layer 0.084). Of the others the released code's initialisers are known by formula.
"""

import math
import re

import pytest
from torch import nn

from modules.build import build_discriminator, build_model
from modules.codebook import Codebook
from modules.retrieval import MultiHeadAttention
from tests.support.small import small_config
from tests.support.tiny import tiny

NORMS = nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d
DEVIATIONS = 6          # of the estimate of a mean or a standard deviation

TOKEN_LINEAR = r'(embed|layers\.\d+\.(query_key_value|project|mlp\.[02])|value_head\.1)'    # of MRFA's detector

# Names of parameters -> (mean, std) of a parameter.
EXCEPTIONS = {
    r'keypoint_detector\.jacobian\.weight': lambda x: (0, 0),
    r'keypoint_detector\.jacobian\.bias': lambda x: (0.5, 0.5),                       # 1, 0, 0, 1 for each keypoint
    r'(motion|appearance)\.retrieval\.position': lambda x: (0, 0),
    # MCNet: as StyleGAN2's equalised learning rate and its own meta-memory and dynamic convolution.
    r'compensation\.memory': lambda x: (0, math.sqrt(2 / x[0].numel())),
    r'compensation\.condition\.(style_weight|weight)': lambda x: (0, 1),
    r'compensation\.condition\.style_bias': lambda x: (1, 0),
    r'compensation\.condition\.(noise_strength|bias)': lambda x: (0, 0),
    r'compensation\.key_value\.weight': lambda x: (0, math.sqrt(2 / x[0].numel())),
    r'compensation\.key_value\.bias': lambda x: (0, 0),                               # released: not initialised
    r'compensation\.key_value\.(squeeze|choose)\.weight': lambda x: (0, math.sqrt(2 / len(x))),     # fan-out
    r'compensation\.key_value\.choose\.bias': lambda x: (0, 0),
    r'structure\.position': lambda x: (0, 0.02),                                      # MRFA
    r'keypoint_detector\.tokens': lambda x: (0, 0.02),
    rf'keypoint_detector\.{TOKEN_LINEAR}\.weight': lambda x: (0, 0.02),
    rf'keypoint_detector\.{TOKEN_LINEAR}\.bias': lambda x: (0, 0),
    r'keypoint_detector\.jacobian_head\.1\.weight': lambda x: (0, 0),
    r'keypoint_detector\.jacobian_head\.1\.bias': lambda x: (0.5, 0.5),                 # 1, 0, 0, 1
    r'attention\.gamma': lambda x: (0, 0),                                            # DaGAN
}


def expected(network):
    """{name: (mean, std)} of every parameter."""
    found = {}
    for path, module in network.named_modules():
        own = dict(module.named_parameters(recurse=False))
        named = {f'{path}.{name}'.lstrip('.'): (name, value) for name, value in own.items()}
        for full, (name, value) in named.items():
            plain = full.replace('parametrizations.weight.original', 'weight')
            if rule := next((rule for pattern, rule in EXCEPTIONS.items() if re.fullmatch(pattern, plain)), None):
                found[full] = rule(value)
            elif isinstance(module, NORMS):
                found[full] = (float(name == 'weight'), 0)
            elif isinstance(module, Codebook):
                found[full] = (0, 1 / len(value) / math.sqrt(3))
            elif name in ('weight', 'original0', 'original'):
                found[full] = (0, 1 / math.sqrt(3 * value[0].numel()))
            elif name == 'bias':
                found[full] = (0, 1 / math.sqrt(3 * module.weight[0].numel()))
    for path, module in network.named_modules():
        if isinstance(module, MultiHeadAttention):                # torch.nn.MultiheadAttention: Xavier, 3 x dim outputs
            for layer in ('query', 'key', 'value'):
                found[f'{path}.{layer}.weight'] = (0, math.sqrt(1 / (2 * module.query.in_features)))
                found[f'{path}.{layer}.bias'] = (0, 0)
            found[f'{path}.project.bias'] = (0, 0)
    return found


@pytest.mark.parametrize('name', ['synergy', 'fomm-adv', 'mcnet', 'mrfa', 'mrfa-fomm', 'dagan'])
def test_new_weights_are_distributed_as_in_the_released_code(name):
    config = tiny('model_params.discriminator_params.channels=32') if name == 'synergy' else small_config(name)
    wrong = []
    for network in (build_model(config), build_discriminator(config)):
        wanted = expected(network)
        for parameter, value in network.named_parameters():
            if parameter.startswith('depth.'):                    # the released code loads these from a file
                continue
            (mean, std), count = wanted[parameter], value.numel()
            found = float(value.detach().double().mean()), float(value.detach().double().std(correction=0))
            if abs(found[0] - mean) > DEVIATIONS * std / math.sqrt(count) + 1e-6 or \
                    abs(found[1] - std) > DEVIATIONS * std / math.sqrt(2 * count) + 1e-6:
                wrong.append(f'{parameter}: mean {found[0]:.3g}, std {found[1]:.3g}; expected {mean:.3g}, {std:.3g}')
    assert wrong == []


def test_the_papers_discriminator_starts_as_the_released_one():
    layers = [layer for layer in build_discriminator(tiny('model_params.discriminator_params={}')).main
              if isinstance(layer, nn.Conv2d)]
    assert float(layers[0].weight.std()) == pytest.approx(0.084, abs=0.003)
