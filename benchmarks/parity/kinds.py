"""Which fixture is of which kind, and all comparisons of one."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.parity.forward import dagan_forward, fomm_forward, mcnet_forward, mrfa_forward, openface, smac_forward
from benchmarks.parity.step import first_order_step, smac_step
from benchmarks.parity.trajectory import smac_trajectory
from config import schema
from modules.build import METHODS
from support.errors import UserError

CONFIGS = Path(__file__).parents[2] / 'config'


class Kind(NamedTuple):
    """Fixtures of one kind hold all keys of `has`; the first kind that fits decides.

    comparisons: (fixture, config) -> Comparisons
    config:      the default, by its name in config/; None for none
    threads:     over which the fixture's sums were split. Batch norm over a batch of two, at the bottom of an
                 hourglass, makes the order of summation show: with another number a step drifts thirty times more.
    """
    comparisons: Callable
    config: str | None
    has: set[str]
    threads: int = 1


KINDS = [
    Kind(smac_trajectory, 'vox-256', {'iterations', 'step0/perceptual_raw', 'final/param_delta_norm'}),
    Kind(smac_forward, 'vox-256', {'vq_index_motion_0'}, threads=2),
    Kind(smac_step, 'vox-256', {'perceptual_raw'}, threads=2),
    Kind(dagan_forward, 'dagan-vox-256', {'prediction', 'depth_source'}),
    Kind(mcnet_forward, 'mcnet-vox-256', {'prediction', 'feat_list_0_sub'}, threads=2),
    Kind(mrfa_forward, 'mrfa-vox-256', {'prediction', 'warp_img_s4', 'inner/hr_stem_sub'}),
    Kind(mrfa_forward, 'mrfa-fomm-vox-256', {'prediction', 'warp_img_s4'}),
    Kind(fomm_forward, 'fomm-vox-256', {'prediction', 'deformation', 'mask_s4'}, threads=2),
    Kind(partial(first_order_step, source='dagan'), 'dagan-vox-256', {'log/perceptual', 'depth_layers'}),
    Kind(partial(first_order_step, source='mcnet'), 'mcnet-vox-256', {'log/perceptual', 'feat_consistent_terms'}),
    Kind(partial(first_order_step, source='mrfa'), 'mrfa-vox-256',
         {'log/perceptual', 'log/equivariance', 'post/model/encoder.pre_feature.bn1.running_mean/mean'}),
    Kind(partial(first_order_step, source='mrfa'), 'mrfa-fomm-vox-256', {'log/perceptual', 'log/equivariance'}),
    Kind(partial(first_order_step, source='fomm'), 'fomm-adv-vox-256', {'log/perceptual', 'log/gen_gan'}),
    Kind(partial(first_order_step, source='fomm'), 'fomm-vox-256', {'log/perceptual', 'log/equivariance_value'}),
    Kind(openface, None, {'embedding', 'pooled'}),
]


def compare(path, config=None, overrides=()):
    """All comparisons of a fixture file, in the order of the computation.

    config: path of the YAML, the kind's own if it is None; overrides: 'section.key=value' on top
    Raises UserError if the file is no fixture, or of another method than the config.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            fixture = {name: stored[name] for name in stored.files}
    except (OSError, ValueError) as error:
        raise UserError(f'fixture {path} cannot be read: {error}') from None
    kind = next((kind for kind in KINDS if kind.has <= fixture.keys()), None)
    if kind is None:
        raise UserError(f'fixture {path} is of no known kind; methods: {", ".join(METHODS)}')
    loaded = None
    if kind.config is not None:
        depth = fixture.get('num_layers', fixture.get('depth_layers'))
        given = [] if depth is None else [f'model_params.depth_params.num_layers={int(depth)}']
        own = CONFIGS / f'{kind.config}.yaml'
        loaded, method = schema.load(config or own, [*given, *overrides]), schema.load(own).method
        if loaded.method != method:
            raise UserError(f'fixture {path} is of method {method}, the config of {loaded.method}: '
                            'give another --config')
    before = torch.get_num_threads()
    torch.set_num_threads(kind.threads)
    try:
        return list(kind.comparisons(fixture, loaded))
    finally:
        torch.set_num_threads(before)
