"""Weights for another image size: a 512 px model initialised from a 256 px checkpoint.

Tensors of the same shape are copied. These rules hold where the image size changes a shape, or where the model has a
scale that the checkpoint lacks:

    position embeddings  are interpolated bilinearly over the token grid (Dosovitskiy et al., ICLR 2021, Sec. 3.2)
    codes                keep their indices; further groups, of a model with more compensated scales, stay new
    layers of a scale    that only this model compensates start as those of the checkpoint's finest compensated scale;
                         window embeddings and their inverses are resized together (`resized_windows`)
    a new finest scale   starts as the identity (Chen et al., ICLR 2016, arXiv 1511.05641), so that the larger model
                         initially performs about as well as the smaller one

Scales are counted from the coarsest. Levels of the encoder are numbered from the finest, so their numbers change.
"""

import re
from collections import Counter
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.autoencoder import Fusion
from modules.layers import Downsample, ResBlock, Upsample

# Keys of model_params that may differ between checkpoint and model.
MAY_DIFFER = ('image_size', 'kp_detector_params.scale_factor', 'dense_motion_params.scale_factor',
              'autoencoder_params.channels', *(f'{book}_codebook_params.{key}' for book in ('motion', 'appearance')
                                               for key in ('num_scales', 'num_codes')))

POSITION = re.compile(r'(.*\.retrieval|structure)\.position')
CODES = re.compile(r'.*\.codebook\.(embedding|idle)')
ENCODER_LEVEL = re.compile(r'(encoder\.(?:levels|downs)\.)(\d+)(\..*)')
OF_A_SCALE = re.compile(r'(motion\.(?:context|embed_source)\.|appearance\.(?:embed|unembed)\.|'
                        r'(?:motion|appearance)\.codebook\.whiten\.)(\d+)(\..*)')
EMBED, UNEMBED = (re.compile(rf'appearance\.{name}\.(\d+)\.({kinds})')
                  for name, kinds in (('embed', 'weight'), ('unembed', 'weight|bias')))


@dataclass(frozen=True)
class ResizedCheckpoint:
    """A checkpoint's tensors in the shapes of another network.

    tensors: the whole state dict for that network
    resized: names of tensors that were resized, or copied from another scale
    new:     names of tensors that keep their initialisation
    unused:  parts of the checkpoint that the network does not have
    """
    tensors: dict[str, Tensor]
    resized: list[str]
    new: list[str]
    unused: list[str]

    def __str__(self):
        """One line: the number of copied tensors, and the parts that were resized, are new or are unused."""
        copied = len(self.tensors) - len(self.resized) - len(self.new)
        parts = [f'{copied} of {len(self.tensors)} tensors copied']
        if self.resized:
            parts.append(f'resized: {", ".join(grouped(self.resized, self.tensors))}')
        parts.append(f'new: {", ".join(grouped(self.new, self.tensors)) or "nothing"}')
        if self.unused:
            parts.append(f'unused: {", ".join(self.unused)}')
        return '; '.join(parts)


def check_scales(theirs, ours):
    """ValueError if the scales of two models' Params do not correspond; the rest may differ in MAY_DIFFER only."""
    if not hasattr(ours, 'autoencoder_params'):
        return
    shorter, longer = sorted((params.autoencoder_params.channels for params in (theirs, ours)), key=len)
    if longer[:len(shorter)] != shorter:
        raise ValueError('autoencoder_params.channels is {} there and {} in the config: scales have the same widths, '
                         'coarsest first, and one model may have further, finer ones'.format(
                             *(list(params.autoencoder_params.channels) for params in (theirs, ours))))
    for name in ('motion_codebook_params', 'appearance_codebook_params'):
        books = [getattr(params, name) for params in (theirs, ours)]
        (there, codes_there), (here, codes_here) = ((book.num_scales, book.num_codes) for book in books)
        if codes_there * here != codes_here * there or bool(here) != bool(there):
            raise ValueError(f'{name} has {codes_there} codes for {there} scales there and {codes_here} for {here} in '
                             'the config: keep as many codes per scale')


@torch.no_grad()
def resize_checkpoint(theirs, network):
    """The ResizedCheckpoint of the state dict `theirs` for `network`.

    Both models must pass `check_scales`. Blocks of the network's new scales are initialised to the identity in place.
    """
    own = network.state_dict()
    finer = _count('encoder.levels', own) - _count('encoder.levels', theirs)
    found, resized, used = {}, [], set()
    for name, tensor in own.items():
        origin = _origin(name, theirs, finer)
        if origin not in theirs:
            continue
        value = _fitted(name, origin, theirs[origin], tensor)
        if value is not None:
            found[name] = value
            used.add(origin)
            if value is not theirs[origin] or OF_A_SCALE.fullmatch(name) and origin != name:
                resized.append(name)
    new = [name for name in own if name not in found]
    for part, module in network.named_modules():
        if part and not any(f'{part}.{name}' in found for name in module.state_dict()):
            init_identity(module)
    return ResizedCheckpoint({name: found.get(name, tensor) for name, tensor in own.items()}, resized, new,
                             grouped([name for name in theirs if name not in used], theirs))


def _count(part, names):
    """How many children a ModuleList has, by the names of tensors."""
    return len({name.removeprefix(f'{part}.').partition('.')[0] for name in names if name.startswith(f'{part}.')})


def _origin(name, theirs, finer):
    """Name of the tensor `name` in the checkpoint of a model that has `finer` fewer scales."""
    if level := ENCODER_LEVEL.fullmatch(name):
        return f'{level[1]}{int(level[2]) - finer}{level[3]}'
    if (layer := OF_A_SCALE.fullmatch(name)) and (count := _count(layer[1].removesuffix('.'), theirs)):
        return f'{layer[1]}{min(int(layer[2]), count - 1)}{layer[3]}'
    return name


def _fitted(name, origin, value, own):
    """The checkpoint's tensor `origin`, `value`, in the shape of our tensor `name`, `own`; None without a rule."""
    if value.shape == own.shape:
        return value
    if POSITION.fullmatch(name):
        return resized_positions(value, own.shape)
    if CODES.fullmatch(name):
        return torch.cat([value[:len(own)], own[len(value):].to(value)])
    for pattern, resize in ((EMBED, resized_windows), (UNEMBED, resized_unembedding)):
        if pattern.fullmatch(name):
            here, there = (2 ** int(pattern.fullmatch(of)[1]) for of in (name, origin))
            value = resize(value, there, here)
            return value if value.shape == own.shape else None
    return None


# ---------------------------------------------------------------------------- the rules

def resized_positions(value, shape):
    """Position embeddings of a square grid, (g*g, D) or MRFA's (1, D, g, g), resized bilinearly to `shape`."""
    if value.dim() == 4:
        return F.interpolate(value, size=shape[2:], mode='bilinear', antialias=True)
    there, here = (round(count ** 0.5) for count in (len(value), shape[0]))
    picture = value.t().unflatten(1, (there, there))[None]                                             # (1, D, g, g)
    return resized_positions(picture, (1, shape[1], here, here))[0].flatten(1).t()


def resized_windows(weight, there, here):
    """Embedding (D, p*p*C) of windows of p = `there` px -> (D, q*q*C) of q = `here` px.

    Each kernel (p, p) is enlarged by repeating pixels, or reduced to means, and divided by (q / p)^2: a window whose
    pixels are repeated gives the same token as before.
    """
    return _resized_pictures(weight, there, here) * (there / here) ** 2


def resized_unembedding(value, there, here):
    """Un-embedding (p*p*C, D) or its bias (p*p*C,), likewise but undivided: a token gives its window, enlarged."""
    return _resized_pictures(value.t(), there, here).t() if value.dim() == 2 else \
        _resized_pictures(value[None], there, here)[0]


def _resized_pictures(rows, there, here):
    """Windows (D, p*p*C) as `partition_windows` lays them out -> (D, q*q*C), by area; p = `there`, q = `here`."""
    pictures = rows.unflatten(1, (there, there, -1)).permute(0, 3, 1, 2)                               # (D, C, p, p)
    return F.interpolate(pictures, size=(here, here), mode='area').permute(0, 2, 3, 1).flatten(1)


@torch.no_grad()
def init_identity(block):
    """Initialise a block of a new scale to the identity; modules of other classes keep their weights.

    Residual blocks and fusions add 0, upsampling repeats pixels, downsampling averages four.
    """
    if isinstance(block, ResBlock):
        _zero(block.conv2)
    elif isinstance(block, Fusion):
        _zero(block.scale[-1], block.shift[-1], block.add)
    elif isinstance(block, Upsample):
        _zero(block.conv)
        nn.init.dirac_(block.conv.weight)
    elif isinstance(block, Downsample):
        _zero(block.conv)
        block.conv.weight[:, :, :2, :2] = torch.eye(len(block.conv.weight))[:, :, None, None] / 4


def _zero(*layers):
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


# ---------------------------------------------------------------------------- names

def grouped(some, every):
    """The fewest modules whose tensors are exactly those named in `some`, out of `every`, in order."""
    inside, whole = (Counter(part for name in names for part in _parts(name)) for names in (some, every))
    return list(dict.fromkeys(next(part for part in _parts(name) if inside[part] == whole[part]) for name in some))


def _parts(name):
    """'a.b.c' -> 'a', 'a.b', 'a.b.c'."""
    words = name.split('.')
    return ['.'.join(words[:end]) for end in range(1, len(words) + 1)]
