"""Published checkpoints -> our state dicts: names and layouts, strict in both directions.

A published tensor is addressed as '<network>/<name>': 'net_g/encoder.blocks.0.weight'. Each format says
for every tensor of ours where it comes from; a published tensor that nobody asked for is an error too.
"""

import re
from typing import NamedTuple

import torch

from modules.layers import AttentionBlock, Downsample, ResBlock, Upsample


class ImportFault(ValueError):
    """A published checkpoint does not fit: the message names the tensor."""


class Origin(NamedTuple):
    """Where a tensor of ours lies in the published checkpoint: part `part` of `parts` along the first axis."""
    name: str
    part: int = 0
    parts: int = 1


# What cannot be in a published checkpoint: our own bookkeeping.
OURS_ALONE = re.compile(r'.*\.codebook\.idle')


def _substitute(rules, name):
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement)
    raise KeyError(name)


# ---------------------------------------------------------------------------- this paper (released code)

HOURGLASS = [(r'keypoint_detector\.predictor\.down_(.*)', r'kp_detector.predictor.encoder.down_\1'),
             (r'keypoint_detector\.predictor\.up_(.*)', r'kp_detector.predictor.decoder.up_\1'),
             (r'keypoint_detector\.(.*)', r'kp_detector.\1'),
             (r'dense_motion\.hourglass\.down_(.*)', r'dense_motion_network.hourglass.encoder.down_\1'),
             (r'dense_motion\.hourglass\.up_(.*)', r'dense_motion_network.hourglass.decoder.up_\1'),
             (r'dense_motion\.(.*)', r'dense_motion_network.\1')]

RETRIEVAL = [(r'position', 'position_emb_{0}'),
             (r'layers\.(\d+)\.(self|cross)_attention\.project\.(.*)', r'{0}_block.\1.\2_attn.out_proj.\3'),
             (r'layers\.(\d+)\.feed_forward\.0\.(.*)', r'{0}_block.\1.conv1.\2'),
             (r'layers\.(\d+)\.feed_forward\.2\.(.*)', r'{0}_block.\1.conv2.\2'),
             (r'layers\.(\d+)\.(norm\d.*)', r'{0}_block.\1.\2')]

MOTION = [(r'codebook\.embedding', 'quantize_motion.embedding.weight'),
          (r'encode\.(.*)', r'motion_emb.\1'),
          (r'decode\.(.*)', r'to_motion.\1'),
          (r'embed_driving\.(.*)', r'driving_kp_enc.\1'),
          (r'embed_source\.(\d+)\.(.*)', r'warped_source_enc_<\1>.\2'),
          (r'embed_evidence\.(.*)', r'motion_query_enc_1.\1'),
          (r'embed_query\.(.*)', r'motion_query_enc_2.\1'),
          (r'context\.(.*)', r'to_context.\1'),
          (r'motion_encoder\.retrieved(\d)\.(.*)', r'BasicMotionEncoder.convc\1.\2'),
          (r'motion_encoder\.motion(\d)\.(.*)', r'BasicMotionEncoder.convf\1.\2'),
          (r'motion_encoder\.join\.(.*)', r'BasicMotionEncoder.conv.\1'),
          (r'update\.context\.(.*)', r'refine.convc1.\1'),
          (r'update\.motion\.0\.(.*)', r'refine.conv1.\1'),
          (r'update\.motion\.2\.(.*)', r'refine.conv2.\1'),
          (r'update\.occlusion\.0\.(.*)', r'refine.convo1.\1'),
          (r'update\.occlusion\.2\.(.*)', r'refine.convo2.\1')]

APPEARANCE = [(r'codebook\.embedding', 'quantize_app.embedding.weight'),
              (r'embed\.0\.(.*)', r'app_feat_emb_<0>.\1'),
              (r'unembed\.0\.(.*)', r'to_app_feat_<0>.\1'),
              (r'embed\.(\d+)\.(.*)', r'app_feat_emb_<\1>.1.\2'),
              (r'unembed\.(\d+)\.(.*)', r'to_app_feat_<\1>.0.\2')]

FUSIONS = [(r'fusions\.(\d+)\.encode\.(.*)', r'fuse_convs_dict.<\1+1>.encode_enc.\2'),
           (r'fusions\.(\d+)\.(scale|shift)\.(.*)', r'fuse_convs_dict.<\1+1>.\2.\3'),
           (r'fusions\.(\d+)\.add\.(.*)', r'fuse_ms_dict.<\1+1>.\2')]

# Inside of VQGAN's blocks.
LEAVES = [('.skip.', '.conv_out.'), ('.query.', '.q.'), ('.key.', '.k.'), ('.value.', '.v.'), ('.project.', '.proj_out.')]

TO_1X1 = re.compile(r'appearance\.(un)?embed\.0\.weight')    # a 1x1 convolution there, the same matrix here


def _block_numbers(network):
    """Prefix of each block of our encoder or decoder -> its number in the released code's flat list."""
    kinds = (ResBlock, AttentionBlock, Downsample, Upsample)
    if hasattr(network, 'downs'):
        pairs = [(f'levels.{i}', f'downs.{i}') for i in range(len(network.levels))]
        order = ['stem', *(name for pair in pairs for name in pair), 'middle', 'head']
    else:
        pairs = [(f'ups.{i}', f'levels.{i}') for i in range(len(network.levels))]
        order = ['stem', 'middle', *(name for pair in pairs for name in pair), 'head']
    names = []
    for prefix in order:
        for name, module in network.get_submodule(prefix).named_modules(prefix=prefix):
            if isinstance(module, kinds) or re.fullmatch(r'stem|head\.\d+', name):
                names.append(name)
    return {name: number for number, name in enumerate(names)}


def _vqgan_name(network, published, name):
    prefix = max((p for p in _block_numbers(network) if name.startswith(p + '.')), key=len)
    leaf = name[len(prefix):]
    for ours, theirs in LEAVES:
        leaf = leaf.replace(ours, theirs)
    return f'net_g/{published}.blocks.{_block_numbers(network)[prefix]}{leaf}'


def _with_sizes(name, grid):
    """'<i>' or '<i+1>' -> pixels of that scale: the released code names layers by feature size."""
    name = re.sub(r'<(\d+)\+1>', lambda m: str(grid * 2 ** (int(m[1]) + 1)), name)
    return re.sub(r'<(\d+)>', lambda m: str(grid * 2 ** int(m[1])), name)


def smac_origin(model, name):
    """Where our tensor `name` ('model.…' or 'discriminator.…') lies in the released checkpoints of this paper."""
    owner, name = name.split('.', 1)
    if owner == 'discriminator':
        return Origin(f'net_d/{name}')
    head, _, rest = name.partition('.')
    if head in ('keypoint_detector', 'dense_motion'):
        return Origin('net_motion_estimator/' + _substitute(HOURGLASS, name))
    if head == 'encoder':
        return Origin(_vqgan_name(model.encoder, 'encoder', rest))
    if head == 'decoder':
        return Origin(_vqgan_name(model.decoder, 'generator', rest))
    if head == 'fusions':
        published = _substitute(FUSIONS, name)
    elif rest.startswith('retrieval.'):
        return _retrieval_origin('app' if head == 'appearance' else 'motion', rest.removeprefix('retrieval.'))
    else:
        published = _substitute(MOTION if head == 'motion' else APPEARANCE, rest)
    published = published.replace(*LEAVES[0])
    return Origin('net_g/' + _with_sizes(published, model.params.grid))


def _retrieval_origin(kind, name):
    stacked = re.fullmatch(r'layers\.(\d+)\.(self|cross)_attention\.(query|key|value)\.(weight|bias)', name)
    if stacked:    # torch.nn.MultiheadAttention keeps the three in one tensor
        layer, attention, role, leaf = stacked.groups()
        return Origin(f'net_g/{kind}_block.{layer}.{attention}_attn.in_proj_{leaf}',
                      ('query', 'key', 'value').index(role), 3)
    return Origin('net_g/' + _substitute(RETRIEVAL, name).format(kind))


def smac_constants(model):
    """Published tensors that follow from the config: the anti-alias kernels."""
    return {'net_motion_estimator/kp_detector.down.weight': model.keypoint_detector.down.weight,
            'net_motion_estimator/dense_motion_network.down.weight': model.dense_motion.down.weight}


# ---------------------------------------------------------------------------- formats

class Format(NamedTuple):
    """How one public code names and stores the tensors of one method."""
    method: str                  # model_params.method that it fits
    origin: callable             # (model, our name) -> Origin
    constants: callable          # model -> published tensors that we recompute
    networks: tuple[str, ...]    # network keys; the discriminator's last, as it may be absent


FORMATS = {'smac': Format('synergy', smac_origin, smac_constants, ('net_g', 'net_motion_estimator', 'net_d'))}


def _ours(model, discriminator):
    named = {f'model.{name}': tensor for name, tensor in model.state_dict().items()}
    if discriminator is not None:
        named |= {f'discriminator.{name}': tensor for name, tensor in discriminator.state_dict().items()}
    return {name: tensor for name, tensor in named.items() if not OURS_ALONE.fullmatch(name)}


def published_shapes(source, model, discriminator=None):
    """'<network>/<name>' -> shape of every tensor that the format `source` stores for these networks."""
    layout = FORMATS[source]
    shapes = {name: tuple(tensor.shape) for name, tensor in layout.constants(model).items()}
    for name, tensor in _ours(model, discriminator).items():
        origin = layout.origin(model, name)
        shape = list(tensor.shape)
        if origin.parts > 1:
            shape[0] *= origin.parts
        if TO_1X1.fullmatch(name.removeprefix('model.')):
            shape += [1, 1]
        shapes[origin.name] = tuple(shape)
    return shapes


@torch.no_grad()
def import_tensors(source, published, model, discriminator=None):
    """Copy published tensors, '<network>/<name>' -> tensor, into our networks.

    Every tensor must be used once and none be missing or of another shape; nothing is copied otherwise.
    Raises ImportFault naming the first tensor at fault.
    """
    layout = FORMATS[source]
    expected = published_shapes(source, model, discriminator)
    for name, shape in expected.items():
        if name not in published:
            raise ImportFault(f'tensor {name} {shape} is missing')
        if tuple(published[name].shape) != shape:
            raise ImportFault(f'tensor {name} has shape {tuple(published[name].shape)}, the config asks for {shape}')
    for name in published:
        if name not in expected:
            raise ImportFault(f'tensor {name} {tuple(published[name].shape)} has no place in this model')
    for name, constant in layout.constants(model).items():
        if not torch.allclose(published[name].float(), constant.cpu(), atol=1e-5):
            raise ImportFault(f'tensor {name} differs from the kernel that scale_factor gives')
    for name, tensor in _ours(model, discriminator).items():
        origin = layout.origin(model, name)
        value = published[origin.name]
        if origin.parts > 1:
            value = value.chunk(origin.parts)[origin.part]
        tensor.copy_(value.view_as(tensor))
