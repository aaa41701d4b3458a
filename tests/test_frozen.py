"""Our own outputs, frozen at small size: a later refactoring cannot drift unseen.

    python -m tests.test_frozen      # freeze anew, after a change that is meant to move numbers

Weights and inputs are functions of names and seeds (benchmarks/parity/weights.py), so only results are stored.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.one_step import take_step
from tests.support.small import small_config
from tests.support.tiny import tiny

FOLDER = Path(__file__).parent / 'frozen'
CASES = {
    'synergy': ('smac', tiny),
    'synergy-equal': ('smac', lambda: tiny('model_params.motion_codebook_params.allocation=equal',
                                           'model_params.appearance_codebook_params.num_scales=1')),
    'synergy-plus': ('smac', lambda: tiny(config='config/vox-256-plus.yaml')),
    **{name: (name, lambda name=name: small_config(name)) for name in ('fomm', 'mcnet', 'dagan')},
    'mrfa': ('mrfa', lambda: small_config('mrfa-fomm')),
}


def outputs(source, config):
    """What one training step of the case gives: prediction, flows, occlusions, losses, gradient norms."""
    model, step = take_step(config, source)
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
