"""The ladder: a model of one image size begins with the weights of a model of another, 512 px with those of 256 px.

Tensors that fit are taken. What the image size gives another shape, or a scale that the other model lacks, has rules:

    position embeddings  are interpolated bilinearly over the token grid (Dosovitskiy et al., ICLR 2021, Sec. 3.2)
    codes                keep their places; the further groups of a model with more compensated scales stay new
    layers of a scale    that is compensated here alone begin as those of the finest scale compensated there; window
                         embeddings and their inverses are resized together (`resized_windows`)
    a finest scale       that is new begins by passing what it gets (Chen et al., ICLR 2016, arXiv 1511.05641), so that
                         the larger model begins about where the smaller one ended

Scales are counted from the coarsest, so levels of the encoder, which are numbered from the finest on, change numbers.
"""

import re
from collections import Counter
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.autoencoder import Fusion
from modules.layers import Downsample, ResBlock, Upsample

# Keys of model_params that may differ between the two: all other differences make another model.
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
class Carried:
    """What a network begins with.

    tensors: its whole state dict
    resized: names of those that a rule resized, or took from another scale
    fresh:   names of those that stay as they were initialised
    left:    parts of the other network that have no place in this one
    """
    tensors: dict[str, Tensor]
    resized: list[str]
    fresh: list[str]
    left: list[str]

    def __str__(self):
        """One line: how many tensors were taken, and the parts that were not."""
        taken = len(self.tensors) - len(self.resized) - len(self.fresh)
        parts = [f'{taken} of {len(self.tensors)} tensors as they are']
        if self.resized:
            parts.append(f'resized: {", ".join(grouped(self.resized, self.tensors))}')
        parts.append(f'new: {", ".join(grouped(self.fresh, self.tensors)) or "nothing"}')
        if self.left:
            parts.append(f'without a place here: {", ".join(self.left)}')
        return '; '.join(parts)


def check_scales(theirs, ours):
    """ValueError if scales of two models' Params, alike but for MAY_DIFFER, do not correspond."""
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
def carry(theirs, network):
    """The state dict with which `network` begins, given `theirs` of a model of the same kind: Carried.

    Both models are alike but for MAY_DIFFER, see `check_scales`. The network itself changes where a scale of it is new:
    that begins by passing.
    """
    own = network.state_dict()
    finer = _count('encoder.levels', own) - _count('encoder.levels', theirs)
    found, resized, asked = {}, [], set()
    for name, tensor in own.items():
        origin = _origin(name, theirs, finer)
        if origin not in theirs:
            continue
        value = _fitted(name, origin, theirs[origin], tensor)
        if value is not None:
            found[name] = value
            asked.add(origin)
            if value is not theirs[origin] or OF_A_SCALE.fullmatch(name) and origin != name:
                resized.append(name)
    fresh = [name for name in own if name not in found]
    for part, module in network.named_modules():
        if part and not any(f'{part}.{name}' in found for name in module.state_dict()):
            begin_passing(module)
    return Carried({name: found.get(name, tensor) for name, tensor in own.items()}, resized, fresh,
                   grouped([name for name in theirs if name not in asked], theirs))


def _count(part, names):
    """How many children a ModuleList has, by the names of tensors."""
    return len({name.removeprefix(f'{part}.').partition('.')[0] for name in names if name.startswith(f'{part}.')})


def _origin(name, theirs, finer):
    """What the tensor `name` is called in the checkpoint of a model with `finer` scales less."""
    if level := ENCODER_LEVEL.fullmatch(name):
        return f'{level[1]}{int(level[2]) - finer}{level[3]}'
    if (layer := OF_A_SCALE.fullmatch(name)) and (count := _count(layer[1].removesuffix('.'), theirs)):
        return f'{layer[1]}{min(int(layer[2]), count - 1)}{layer[3]}'
    return name


def _fitted(name, origin, value, own):
    """`value`, called `origin` there, in the shape of `own`, called `name` here; None where no rule gives it."""
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
    """Positions of a square grid, (g*g, D) or MRFA's (1, D, g, g), in `shape`: bilinear between middles of tokens."""
    if value.dim() == 4:
        return F.interpolate(value, size=shape[2:], mode='bilinear', antialias=True)
    there, here = (round(count ** 0.5) for count in (len(value), shape[0]))
    picture = value.t().unflatten(1, (there, there))[None]                                             # (1, D, g, g)
    return resized_positions(picture, (1, shape[1], here, here))[0].flatten(1).t()


def resized_windows(weight, there, here):
    """Embedding (D, p*p*C) of windows of p = `there` px -> (D, q*q*C) of q = `here` px.

    Each of its pictures (p, p) is enlarged by repeating pixels, or reduced to their means, and its values are divided
    by how many more there are: a window that is enlarged gives the token that it gave.
    """
    return _resized_pictures(weight, there, here) * (there / here) ** 2


def resized_unembedding(value, there, here):
    """Un-embedding (p*p*C, D), or its bias (p*p*C,), likewise, but not divided: a token gives its window enlarged."""
    return _resized_pictures(value.t(), there, here).t() if value.dim() == 2 else \
        _resized_pictures(value[None], there, here)[0]


def _resized_pictures(rows, there, here):
    """(D, p*p*C) -> (D, q*q*C); windows are laid out as `partition_windows` does."""
    pictures = rows.unflatten(1, (there, there, -1)).permute(0, 3, 1, 2)                               # (D, C, p, p)
    return F.interpolate(pictures, size=(here, here), mode='area').permute(0, 2, 3, 1).flatten(1)


@torch.no_grad()
def begin_passing(block):
    """Have a new block of a scale pass what it gets; other modules stay as they are.

    Residual blocks and fusions add 0, upsampling repeats pixels, downsampling takes the mean of four.
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
    """The fewest parts of a network that hold the tensors named in `some` and no other of `every`, in their order."""
    inside, whole = (Counter(part for name in names for part in _parts(name)) for names in (some, every))
    return list(dict.fromkeys(next(part for part in _parts(name) if inside[part] == whole[part]) for name in some))


def _parts(name):
    """'a.b.c' -> 'a', 'a.b', 'a.b.c'."""
    words = name.split('.')
    return ['.'.join(words[:end]) for end in range(1, len(words) + 1)]
