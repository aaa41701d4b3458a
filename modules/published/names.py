"""Rules that map our tensor names to those of published checkpoints.

A published tensor is addressed as '<network>/<name>': 'net_g/encoder.blocks.0.weight'. The rules are tried from
top to bottom; a tensor of ours without a rule is a bug.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from modules.layers import AttentionBlock, Downsample, ResBlock, Upsample


class Origin(NamedTuple):
    """Location of one of our tensors in the published checkpoint.

    name:        '<network>/<name>'
    part, parts: it is part `part` of `parts` along the first axis
    published:   our shape, of all parts together -> the published one, where axes are split or of size 1
    """
    name: str
    part: int = 0
    parts: int = 1
    published: Callable[[tuple], tuple] = tuple


def _substitute(rules, name):
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement)
    raise KeyError(name)


# ---------------------------------------------------------------------------- this paper (released code)

def _hourglass(ours, theirs):
    """Rules for an hourglass, whose halves are separate networks in the published code."""
    return [(rf'{ours}\.down_(.*)', rf'{theirs}.encoder.down_\1'), (rf'{ours}\.up_(.*)', rf'{theirs}.decoder.up_\1')]


def _flow_update(prefix, encoder, theirs=''):
    """Rules for the flow updater, which this paper took over from MRFA; `theirs`: prefix of its published names."""
    return [(rf'{prefix}motion_encoder\.retrieved(\d)\.(.*)', rf'{encoder}.convc\1.\2'),
            (rf'{prefix}motion_encoder\.motion(\d)\.(.*)', rf'{encoder}.convf\1.\2'),
            (rf'{prefix}motion_encoder\.join\.(.*)', rf'{encoder}.conv.\1'),
            (rf'{prefix}update\.context\.(.*)', rf'{theirs}refine.convc1.\1'),
            (rf'{prefix}update\.motion\.0\.(.*)', rf'{theirs}refine.conv1.\1'),
            (rf'{prefix}update\.motion\.2\.(.*)', rf'{theirs}refine.conv2.\1'),
            (rf'{prefix}update\.occlusion\.0\.(.*)', rf'{theirs}refine.convo1.\1'),
            (rf'{prefix}update\.occlusion\.2\.(.*)', rf'{theirs}refine.convo2.\1')]


HOURGLASS = [*_hourglass(r'keypoint_detector\.predictor', 'kp_detector.predictor'),
             (r'keypoint_detector\.(.*)', r'kp_detector.\1'),
             *_hourglass(r'dense_motion\.hourglass', 'dense_motion_network.hourglass'),
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
          *_flow_update('', 'BasicMotionEncoder')]

APPEARANCE = [(r'codebook\.embedding', 'quantize_app.embedding.weight'),
              (r'embed\.0\.(.*)', r'app_feat_emb_<0>.\1'),
              (r'unembed\.0\.(.*)', r'to_app_feat_<0>.\1'),
              (r'embed\.(\d+)\.(.*)', r'app_feat_emb_<\1>.1.\2'),
              (r'unembed\.(\d+)\.(.*)', r'to_app_feat_<\1>.0.\2')]

FUSIONS = [(r'fusions\.(\d+)\.encode\.(.*)', r'fuse_convs_dict.<\1+1>.encode_enc.\2'),
           (r'fusions\.(\d+)\.(scale|shift)\.(.*)', r'fuse_convs_dict.<\1+1>.\2.\3'),
           (r'fusions\.(\d+)\.add\.(.*)', r'fuse_ms_dict.<\1+1>.\2')]

# Inside of VQGAN's blocks.
LEAVES = [('.skip.', '.conv_out.'), ('.query.', '.q.'), ('.key.', '.k.'), ('.value.', '.v.'),
          ('.project.', '.proj_out.')]


def _block_numbers(network):
    """Prefix of each block of our encoder or decoder -> its number in the released code's flat list."""
    kinds = (ResBlock, AttentionBlock, Downsample, Upsample)
    encodes = hasattr(network, 'downs')
    scales = [f'{part}.{i}' for i in range(len(network.levels))
              for part in (('levels', 'downs') if encodes else ('ups', 'levels'))]
    order = ['stem', *scales, 'middle', 'head'] if encodes else ['stem', 'middle', *scales, 'head']
    names = (name for prefix in order
             for name, module in network.get_submodule(prefix).named_modules(prefix=prefix)
             if isinstance(module, kinds) or re.fullmatch(r'stem|head\.\d+', name))
    return {name: number for number, name in enumerate(names)}


def _vqgan_name(network, published, name):
    numbers = _block_numbers(network)
    prefix = max((prefix for prefix in numbers if name.startswith(f'{prefix}.')), key=len)
    leaf = name[len(prefix):]
    for ours, theirs in LEAVES:
        leaf = leaf.replace(ours, theirs)
    return f'net_g/{published}.blocks.{numbers[prefix]}{leaf}'


def _with_sizes(name, grid):
    """'<i>' or '<i+1>' -> pixels of that scale: the released code names layers by feature size."""
    name = re.sub(r'<(\d+)\+1>', lambda m: str(grid * 2 ** (int(m[1]) + 1)), name)
    return re.sub(r'<(\d+)>', lambda m: str(grid * 2 ** int(m[1])), name)


def smac_origin(model, name):
    """Origin of our tensor `name` ('model.…' or 'discriminator.…') in the released checkpoints of this paper."""
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
    published = 'net_g/' + _with_sizes(published.replace(*LEAVES[0]), model.params.grid)
    if re.fullmatch(r'appearance\.(un)?embed\.0\.weight', name):
        return Origin(published, published=lambda shape: (*shape, 1, 1))    # a 1x1 convolution there, a matrix here
    return Origin(published)


def _retrieval_origin(kind, name):
    stacked = re.fullmatch(r'layers\.(\d+)\.(self|cross)_attention\.(query|key|value)\.(weight|bias)', name)
    if stacked:    # torch.nn.MultiheadAttention keeps the three in one tensor
        layer, attention, role, leaf = stacked.groups()
        return Origin(f'net_g/{kind}_block.{layer}.{attention}_attn.in_proj_{leaf}',
                      ('query', 'key', 'value').index(role), 3)
    return Origin('net_g/' + _substitute(RETRIEVAL, name).format(kind))


def anti_alias_kernels(keypoint_detector, dense_motion, model):
    """Published tensors that follow from the config, with the published prefixes of the two networks that hold them."""
    return {f'{keypoint_detector}down.weight': model.keypoint_detector.down.weight,
            f'{dense_motion}down.weight': model.dense_motion.down.weight}


# ---------------------------------------------------------------------------- FOMM and MCNet (public codes)

FIRST_ORDER = [(r'encoder\.(.*)', r'\1'),
               (r'head\.(.*)', r'final.\1')]

FOMM = [(r'bottleneck\.(\d+)\.(.*)', r'bottleneck.r\1.\2'),
        (r'(up_blocks\..*)', r'\1')]

MCNET = [(r'levels\.(\d+)\.residual\.(\d)\.(.*)', r'resblock.<2*\1+\2>.\3'),
         (r'levels\.(\d+)\.up\.(.*)', r'up_blocks.\1.\2'),
         (r'compensation\.memory', 'mbUnit.mb'),
         (r'compensation\.project\.(\d+)\.(.*)', r'mbUnit.feat_forward_proj_<\1>.\2'),
         (r'compensation\.unproject\.(\d+)\.(.*)', r'mbUnit.conv_<\1>.\2'),
         (r'compensation\.norm\.(\d+)\.(.*)', r'mbUnit.norm_<\1>.\2'),
         (r'compensation\.identity\.(.*)', r'mbUnit.style_route.\1'),
         (r'compensation\.condition\.style_(.*)', r'mbUnit.styleconv.modulated_conv.modulation.\1'),
         (r'compensation\.condition\.weight', 'mbUnit.styleconv.modulated_conv.weight'),
         (r'compensation\.condition\.noise_strength', 'mbUnit.styleconv.weight'),
         (r'compensation\.condition\.bias', 'mbUnit.styleconv.activate.bias'),
         (r'compensation\.key_value\.squeeze\.(.*)', r'mbUnit.conv_kv.attention.fc1.\1'),
         (r'compensation\.key_value\.choose\.(.*)', r'mbUnit.conv_kv.attention.fc2.\1'),
         (r'compensation\.key_value\.(.*)', r'mbUnit.conv_kv.\1'),
         (r'compensation\.query\.(.*)', r'mbUnit.query_conv.\1'),
         (r'compensation\.difference\.(.*)', r'mbUnit.diff_conv.\1')]

# torch.nn.utils.spectral_norm's names there, those of its successor here.
SPECTRAL = [('.parametrizations.weight.original', '.weight_orig'), ('.parametrizations.weight.0._', '.weight_')]

DISCRIMINATOR = [(r'(\d+)\.blocks\.(.*)', r'\1.down_blocks.\2'),
                 (r'(\d+)\.head\.(.*)', r'\1.conv.\2')]


def _discriminator_origin(params, name):
    for ours, theirs in SPECTRAL:
        name = name.replace(ours, theirs)
    index, _, rest = _substitute(DISCRIMINATOR, name.removeprefix('scales.')).partition('.')
    scale = f'{params.scales[int(index)]:g}'.replace('.', '-')    # named by their scale: '1', '0-5'
    return Origin(f'discriminator/discs.{scale}.{rest}')


def _first_order_origin(rules, model, name):
    owner, name = name.split('.', 1)
    if owner == 'discriminator':
        return _discriminator_origin(model.params.discriminator_params, name)
    published = _substitute(HOURGLASS + FIRST_ORDER + rules, name)
    if published.startswith('kp_detector.'):
        return Origin(published.replace('.', '/', 1))
    return Origin(f'generator/{published}')


def fomm_origin(model, name):
    """Origin of our tensor `name` ('model.…' or 'discriminator.…') in a checkpoint of FOMM's public code."""
    return _first_order_origin(FOMM, model, name)


def mcnet_origin(model, name):
    """Origin of our tensor `name` ('model.…' or 'discriminator.…') in a checkpoint of MCNet's public code."""
    params, origin = model.params, _first_order_origin(MCNET, model, name)
    published = re.sub(r'<2\*(\d+)\+(\d+)>', lambda m: str(2 * int(m[1]) + int(m[2])), origin.name)
    published = _with_sizes(published, params.image_size // 2 ** params.num_down_blocks)
    if published.endswith('conv_kv.weight'):
        count = params.num_kernels
        return Origin(published, published=lambda shape: (count, shape[0] // count, *shape[1:]))
    if published.endswith('modulated_conv.weight'):
        return Origin(published, published=lambda shape: (1, *shape))
    return Origin(published)


# ---------------------------------------------------------------------------- DaGAN (public code)

DAGAN = [(r'disparity_encoder\.first\.(.*)', r'src_first.\1'),
         (r'disparity_encoder\.down_blocks\.(.*)', r'src_down_blocks.\1'),
         (r'attention\.gamma', 'AttnModule.gamma'),
         (r'attention\.(query|key|value)\.(.*)', r'AttnModule.\1_conv.\2'),
         *FOMM]


def dagan_origin(model, name):
    """Origin of our tensor `name` ('model.…' or 'discriminator.…') in DaGAN's files and its depth network's."""
    if name.startswith('model.depth.'):
        return depth_origin(model.depth, name.replace('.depth', '', 1))
    return _first_order_origin(DAGAN, model, name)


def depth_origin(network, name):
    """Origin of our tensor `name` ('model.…') of a DepthNetwork in Monodepth2's two files."""
    part, _, rest = name.removeprefix('model.').partition('.')
    if part == 'encoder':
        stage = re.sub(r'^stages\.(\d)', lambda match: f'layer{int(match[1]) + 1}', rest)
        return Origin(f'depth_encoder/encoder.{stage}')
    kind, number, rest = rest.split('.', 2)
    if kind == 'heads':
        return Origin(f'depth_decoder/decoder.{2 * len(network.decoder.blocks) + int(number)}.conv.{rest}')
    place, rest = rest.split('.', 1)
    return Origin(f'depth_decoder/decoder.{2 * int(number) + int(place)}.conv.conv.{rest}')


# ---------------------------------------------------------------------------- MRFA (public code)

HRNET_PLACES = [('bottlenecks.', 'layer1.'), ('starts.0.', 'transition1.0.'), ('starts.1.', 'transition1.1.0.'),
                ('starts.2.', 'transition2.2.0.'), ('stage2.', 'stage2.0.'), ('fusions.', 'fuse_layers.')]

# A convolution and its norm are called conv<n> and bn<n> within a block; elsewhere they are numbered 0 and 1.
HRNET_LAYERS = [rule for ours, theirs, number in (('conv', 'conv', 0), ('norm', 'bn', 1)) for rule in (
    (rf'stem\.0\.{ours}\.(.*)', rf'{theirs}1.\1'),
    (rf'stem\.1\.{ours}\.(.*)', rf'{theirs}2.\1'),
    (rf'(.*)\.(?:reduce|first)\.{ours}\.(.*)', rf'\1.{theirs}1.\2'),
    (rf'(.*)\.(?:filter|second)\.{ours}\.(.*)', rf'\1.{theirs}2.\2'),
    (rf'(.*)\.expand\.{ours}\.(.*)', rf'\1.{theirs}3.\2'),
    (rf'(.*)\.shortcut\.{ours}\.(.*)', rf'\1.downsample.{number}.\2'),
    (rf'(.*)\.{ours}\.(.*)', rf'\1.{number}.\2'))]

TOKEN_POSE = [(r'embed\.(.*)', r'patch_to_embedding.\1'),
              (r'tokens', 'keypoint_token'),
              (r'position', 'pos_embedding'),
              (r'layers\.(\d+)\.norm1\.(.*)', r'transformer.layers.\1.0.fn.norm.\2'),
              (r'layers\.(\d+)\.query_key_value\.(.*)', r'transformer.layers.\1.0.fn.fn.to_qkv.\2'),
              (r'layers\.(\d+)\.project\.(.*)', r'transformer.layers.\1.0.fn.fn.to_out.0.\2'),
              (r'layers\.(\d+)\.norm2\.(.*)', r'transformer.layers.\1.1.fn.norm.\2'),
              (r'layers\.(\d+)\.mlp\.0\.(.*)', r'transformer.layers.\1.1.fn.fn.net.0.\2'),
              (r'layers\.(\d+)\.mlp\.2\.(.*)', r'transformer.layers.\1.1.fn.fn.net.3.\2'),
              (r'value_head\.(.*)', r'mlp_head.\1'),
              (r'jacobian_head\.(.*)', r'mlp_head_jacobian.\1')]

MRFA = [*_hourglass(r'keypoint_detector\.predictor', 'encoder.predictor'),
        (r'keypoint_detector\.(.*)', r'encoder.\1'),
        *_hourglass(r'dense_motion\.hourglass', 'dense_motion.hourglass'),
        (r'(dense_motion\..*)', r'\1'),
        (r'encoder\.(.*)', r'decoder.generator.\1'),
        (r'head\.(.*)', r'decoder.generator.final.\1'),
        (r'levels\.(\d+)\.norm\.(.*)', r'decoder.generator.channel_block.\1.norm1.\2'),
        (r'levels\.(\d+)\.join\.(.*)', r'decoder.generator.channel_block.\1.conv1.\2'),
        (r'levels\.(\d+)\.residual\.(.*)', r'decoder.generator.resblock.\1.\2'),
        (r'levels\.(\d+)\.up\.(.*)', r'decoder.generator.up_blocks.\1.\2'),
        (r'structure\.position', 'decoder.pos_embedding'),
        *_hourglass(r'structure\.driving', 'decoder.kp'),
        *_hourglass(r'structure\.source', 'decoder.kp_img'),
        (r'structure\.driving_head\.(.*)', r'decoder.kp_head.\1'),
        (r'structure\.source_head\.(.*)', r'decoder.kp_img_head.\1'),
        (r'refinement\.context\.(.*)', r'decoder.to_context.\1'),
        *_flow_update(r'refinement\.', 'decoder.corr_enc', 'decoder.')]


def mrfa_origin(model, name):
    """Origin of our tensor `name` ('model.…') in a checkpoint of MRFA's public code, which has no discriminator."""
    part, _, rest = name.removeprefix('model.keypoint_detector.').partition('.')
    if model.params.prior_model == 'fomm' or not name.startswith('model.keypoint_detector.'):
        return Origin('model/' + _substitute(MRFA, name.removeprefix('model.')))
    if part != 'backbone':
        return Origin('model/encoder.transformer.' + _substitute(TOKEN_POSE, f'{part}.{rest}' if rest else part))
    published = _substitute(HRNET_LAYERS, rest)
    for ours, theirs in HRNET_PLACES:
        published = published.replace(ours, theirs)
    return Origin(f'model/encoder.pre_feature.{published}')


def mrfa_constants(model):
    """Published tensors that follow from the config: the anti-alias kernels."""
    kernels = {'model/dense_motion.down.weight': model.dense_motion.down.weight,
               'model/down.weight': model.dense_motion.down.weight}
    if model.params.prior_model == 'fomm':
        kernels['model/encoder.down.weight'] = model.keypoint_detector.down.weight
    return kernels


def mrfa_prior(names):
    """The prior_model of a published checkpoint of MRFA, by its tensors' names."""
    return 'mtia' if any(name.startswith('model/encoder.transformer.') for name in names) else 'fomm'
