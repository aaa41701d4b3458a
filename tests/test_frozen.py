"""Our own outputs, frozen at small size: a later refactoring cannot drift unseen.

    python -m tests.test_frozen      # freeze anew, after a change that is meant to move numbers

Weights and inputs are functions of names and seeds (benchmarks/parity/weights.py), so only results are stored.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.parity import weights
from modules.build import build_objective
from modules.losses import RandomTransform
from tests.support.small import small_config
from tests.support.tiny import tiny

FOLDER = Path(__file__).parent / 'frozen'
CASES = {
    'synergy': ('smac', tiny),
    'synergy-equal': ('smac', lambda: tiny('model_params.motion_codebook_params.allocation=equal',
                                           'model_params.appearance_codebook_params.num_scales=1')),
    'synergy-plus': ('smac', lambda: tiny(config='config/vox-256-plus.yaml')),
    'fomm': ('fomm', lambda: small_config('fomm')),
    'mcnet': ('mcnet', lambda: small_config('mcnet')),
    'mrfa': ('mrfa', lambda: small_config('mrfa-fomm')),
    'dagan': ('dagan', lambda: small_config('dagan')),
}


def outputs(source, config):
    """What one training step of the case gives: prediction, flows, occlusions, losses, gradient norms."""
    adversarial = source == 'smac'
    model, discriminator = weights.filled(config, source, with_discriminator=adversarial)
    size = config.model_params.image_size
    images = [torch.nn.functional.interpolate(2 * weights.images(seeds) - 1, size=size, mode='area')
              for seeds in ((1, 3), (2, 4))]
    transform = RandomTransform.draw(2, torch.Generator().manual_seed(0))
    objective = build_objective(config, model).eval()
    step = objective(*images, transform, discriminator=discriminator.requires_grad_(False) if adversarial else None)
    step.total.backward()
    parameters = [parameter for _, parameter in sorted(model.named_parameters()) if parameter.grad is not None]
    norms = torch.stack([parameter.grad.norm() for parameter in parameters])
    result = {'prediction': step.generated.prediction, 'gradient_norms': norms}
    result |= {f'flow_{i}': flow for i, flow in enumerate(step.generated.flows)}
    result |= {f'occlusion_{i}': occlusion for i, occlusion in enumerate(step.generated.occlusions)}
    result |= {f'loss_{name}': value for name, value in step.losses.items()}
    return {name: value.detach().numpy() for name, value in result.items()}


@pytest.mark.parametrize('name', CASES)
def test_numbers_stay(name):
    source, config = CASES[name]
    found = outputs(source, config())
    with np.load(FOLDER / f'{name}.npz') as frozen:
        assert set(found) == set(frozen.files)
        for key in frozen.files:
            scale = max(1e-3, float(np.abs(frozen[key]).max()))
            tolerance = 1e-2 if key == 'gradient_norms' else 1e-3
            assert np.abs(found[key] - frozen[key]).max() <= tolerance * scale, key


if __name__ == '__main__':
    FOLDER.mkdir(exist_ok=True)
    for case, (kind, make) in CASES.items():
        np.savez_compressed(FOLDER / f'{case}.npz', **outputs(kind, make()))
