"""Conversion of published checkpoints, strict in both directions.

A published tensor is addressed as '<network>/<name>': 'net_g/encoder.blocks.0.weight'. modules/published/names.py maps
every tensor of ours to its origin; a published tensor that none of ours comes from is an error too.

    smac   https://github.com/ShaelynZ/synergize-motion-appearance (the paper's)
    fomm   https://github.com/AliaksandrSiarohin/first-order-model
    mcnet  https://github.com/harlanhong/ICCV2023-MCNET
    dagan  https://github.com/harlanhong/CVPR2022-DaGAN
    mrfa   https://github.com/JialeTao/MRFA
"""

import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from modules.published.names import (
    anti_alias_kernels, dagan_origin, depth_origin, fomm_origin, mcnet_origin, mrfa_constants, mrfa_origin, mrfa_prior,
    smac_origin)


class ImportFault(ValueError):
    """A published checkpoint does not fit: the message names the file's network or the tensor."""


# What cannot be in a published checkpoint: our own bookkeeping.
OURS_ALONE = re.compile(r'.*\.codebook\.(idle|whiten\..*)')


# ---------------------------------------------------------------------------- files of each format

# A tensor name that only this network of the paper's has begins so.
SMAC_NETWORKS = {'net_g': 'encoder.blocks.', 'net_motion_estimator': 'dense_motion_network.', 'net_d': 'main.'}


def _is_state(state):
    return isinstance(state, dict) and all(isinstance(value, torch.Tensor) for value in state.values())


def _without_prefix(state):
    """Drops the 'module.' that DistributedDataParallel puts before every name."""
    return {name.removeprefix('module.'): tensor for name, tensor in state.items()}


def _smac_networks(loaded, ema):
    """The network in a file of this paper's released code, recognised by its tensors' names; net_g also has EMA."""
    if not _is_state(loaded.get('params')):
        return None
    state = _without_prefix(loaded['params'])
    for network, mark in SMAC_NETWORKS.items():
        if any(name.startswith(mark) for name in state):
            break
    else:
        return None
    if ema and network == 'net_g':
        if not _is_state(loaded.get('params_ema')):
            raise ImportFault('the file of net_g holds no averaged weights (params_ema)')
        state = _without_prefix(loaded['params_ema'])
    return {network: state}


# A tensor of the generator that this method alone has.
FIRST_ORDER_MARKS = {'mcnet': 'mbUnit.mb', 'dagan': 'AttnModule.gamma'}


def _first_order_networks(method, loaded, ema):
    """One file holds all networks, and what training needs besides (optimizer_*, epoch); no averaged weights."""
    networks = {name: _without_prefix(state) for name, state in loaded.items() if _is_state(state)}
    if 'generator' not in networks:
        return None
    found = [other for other, mark in FIRST_ORDER_MARKS.items() if mark in networks['generator']] or ['fomm']
    return networks if found == [method] else None


def _dagan_networks(loaded, ema):
    """DaGAN's own file, or one of the two that hold its depth network."""
    return _first_order_networks('dagan', loaded, ema) or _depth_networks(loaded, ema)


def _depth_networks(loaded, ema):
    """One file holds one half, by its names; the encoder's also holds sizes and a classifier that nothing uses."""
    for network, mark in (('depth_encoder', 'encoder.conv1.weight'), ('depth_decoder', 'decoder.0.conv.conv.weight')):
        if mark in loaded:
            return {network: {name: tensor for name, tensor in loaded.items()
                              if isinstance(tensor, torch.Tensor) and not name.startswith('encoder.fc.')}}
    return None


# Of MRFA's checkpoint, what belongs to the loss.
MRFA_LOSS = ('vgg.', 'pyramid.')


def _mrfa_networks(loaded, ema):
    """One file holds one model, its loss network included."""
    state = loaded.get('model')
    if not _is_state(state) or not any(name.endswith('decoder.pos_embedding') for name in state):
        return None
    return {'model': {name: tensor for name, tensor in _without_prefix(state).items()
                      if not name.startswith(MRFA_LOSS)}}


PRIOR_CONFIGS = {'mtia': 'mrfa-vox-256.yaml', 'fomm': 'mrfa-fomm-vox-256.yaml'}


def _check_prior(model, published):
    """ImportFault if a file of MRFA has another keypoint detector than the config asks for."""
    prior = mrfa_prior(published)
    if prior != model.params.prior_model:
        raise ImportFault(f"the file's keypoint detector is that of prior_model: {prior}, the config asks for "
                          f'{model.params.prior_model}; use config/{PRIOR_CONFIGS[prior]}')


class Format(NamedTuple):
    """How one public code names and stores the tensors of one method.

    method:    model_params.method that it fits
    networks:  keys of the networks that must be there
    unpack:    (loaded file, whether averaged weights are wanted) -> {network: state dict}, None for another format
    origin:    (model, our name) -> Origin
    constants: model -> published tensors that we recompute
    discriminator: its network's key, which may be absent; None for a method without one
    check:     (model, published tensors) raises ImportFault if they are of another variant of the method
    """
    method: str
    networks: tuple[str, ...]
    unpack: Callable
    origin: Callable
    constants: Callable
    discriminator: str | None = 'discriminator'
    check: Callable = lambda model, published: None


FIRST_ORDER_NETWORKS = ('generator', 'kp_detector')
DEPTH_NETWORKS = ('depth_encoder', 'depth_decoder')
SMAC_KERNELS = partial(anti_alias_kernels, 'net_motion_estimator/kp_detector.',
                       'net_motion_estimator/dense_motion_network.')
FIRST_ORDER_KERNELS = partial(anti_alias_kernels, 'kp_detector/', 'generator/dense_motion_network.')

FORMATS = {
    'smac': Format('synergy', ('net_g', 'net_motion_estimator'), _smac_networks, smac_origin, SMAC_KERNELS, 'net_d'),
    'fomm': Format('fomm', FIRST_ORDER_NETWORKS, partial(_first_order_networks, 'fomm'), fomm_origin,
                   FIRST_ORDER_KERNELS),
    'mcnet': Format('mcnet', FIRST_ORDER_NETWORKS, partial(_first_order_networks, 'mcnet'), mcnet_origin,
                    FIRST_ORDER_KERNELS),
    'dagan': Format('dagan', (*FIRST_ORDER_NETWORKS, *DEPTH_NETWORKS), _dagan_networks, dagan_origin,
                    FIRST_ORDER_KERNELS),
    'mrfa': Format('mrfa', ('model',), _mrfa_networks, mrfa_origin, mrfa_constants, discriminator=None,
                   check=_check_prior),
}


# Also of parts of a model, which no checkpoint of a method holds.
LAYOUTS = FORMATS | {
    'depth': Format('dagan', DEPTH_NETWORKS, _depth_networks, depth_origin, lambda part: {}, discriminator=None),
}


def flatten_checkpoint(source, loaded, ema=False):
    """Loaded checkpoint files of the format `source` -> '<network>/<name>' -> tensor.

    loaded:  what torch.load gave for each file, in any order
    ema:     take averaged weights for the networks that have them (the paper's net_g), instead of the raw ones
    Raises ImportFault for a file of another network, method or kind, for a network that is given twice or not at all.
    """
    layout, networks = LAYOUTS[source], {}
    known = [*layout.networks, layout.discriminator] if layout.discriminator else layout.networks
    for contents in loaded:
        for network, state in _unpack(source, contents, ema).items():
            if network in networks:
                raise ImportFault(f'network {network} is in two of the files')
            if network not in known:
                raise ImportFault(f'network {network} is not of format {source}, which has {", ".join(known)}')
            networks[network] = state
    for network in layout.networks:
        if network not in networks:
            raise ImportFault(f'network {network} is in none of the files; found: {", ".join(networks) or "none"}')
    return {f'{network}/{name}': tensor for network, state in networks.items() for name, tensor in state.items()}


def has_discriminator(source, published):
    """Whether the tensors '<network>/<name>' of format `source` include the discriminator's."""
    return any(name.startswith(f'{LAYOUTS[source].discriminator}/') for name in published)


def _unpack(source, contents, ema):
    if not isinstance(contents, dict):
        raise ImportFault(f'the file is no checkpoint of format {source}: it holds a {type(contents).__name__}')
    networks = LAYOUTS[source].unpack(contents, ema)
    if networks is None:
        others = [name for name, layout in FORMATS.items() if layout.unpack(contents, False) is not None]
        holds = f'it is one of format {others[0]}' if others else f'it holds {_few(contents)}'
        raise ImportFault(f'the file is no checkpoint of format {source}: {holds}')
    return networks


def _few(names):
    names = [str(name) for name in names]
    return (', '.join(names[:6]) or 'nothing') + (', ...' if len(names) > 6 else '')


# ---------------------------------------------------------------------------- tensors

def _ours(model, discriminator):
    named = {f'model.{name}': tensor for name, tensor in model.state_dict().items()}
    if discriminator is not None:
        named |= {f'discriminator.{name}': tensor for name, tensor in discriminator.state_dict().items()}
    return {name: tensor for name, tensor in named.items() if not OURS_ALONE.fullmatch(name)}


def published_shapes(source, model, discriminator=None):
    """'<network>/<name>' -> shape of every tensor that the format `source` stores for these networks."""
    layout = LAYOUTS[source]
    shapes = {name: tuple(tensor.shape) for name, tensor in layout.constants(model).items()}
    for name, tensor in _ours(model, discriminator).items():
        origin = layout.origin(model, name)
        shape = list(tensor.shape)
        if origin.parts > 1:
            shape[0] *= origin.parts
        shapes[origin.name] = origin.published(tuple(shape))
    return shapes


@torch.no_grad()
def import_tensors(source, published, model, discriminator=None):
    """Copy published tensors, '<network>/<name>' -> tensor, into our networks.

    Every tensor must be used once and none be missing or of another shape; nothing is copied otherwise.
    Raises ImportFault naming the first tensor at fault.
    """
    layout = LAYOUTS[source]
    layout.check(model, published)
    expected = published_shapes(source, model, discriminator)
    for name, shape in expected.items():
        if name not in published:
            raise ImportFault(f'tensor {name} {shape} is missing')
        if not isinstance(published[name], torch.Tensor) or published[name].layout != torch.strided \
                or published[name].is_quantized or published[name].is_complex() or published[name].is_meta:
            raise ImportFault(f'{name} is no plain tensor of numbers')
        if tuple(published[name].shape) != shape:
            raise ImportFault(f'tensor {name} has shape {tuple(published[name].shape)}, the config asks for {shape}')
    for name in published:
        if name not in expected:
            raise ImportFault(f'tensor {name} {tuple(published[name].shape)} has no place in this model')
    for name, constant in layout.constants(model).items():
        found = published[name]
        rounding = torch.finfo(found.dtype).eps if found.is_floating_point() else 0     # of files in half precision
        if not torch.allclose(found.float(), constant.cpu().float(), atol=1e-5, rtol=rounding):
            raise ImportFault(f'tensor {name} differs from the kernel that scale_factor gives')
    for name, tensor in _ours(model, discriminator).items():
        origin = layout.origin(model, name)
        value = published[origin.name]
        if origin.parts > 1:
            value = value.chunk(origin.parts)[origin.part]
        tensor.copy_(value.reshape(tensor.shape))
    for name, tensor in model.state_dict().items():
        if name.endswith('.codebook.idle'):
            tensor.zero_()      # feature_start begins with idle codes, and would replace these at the first step
