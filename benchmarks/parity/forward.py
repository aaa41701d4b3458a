"""Forward passes in eval mode: every stored intermediate result of each method."""

from contextlib import contextmanager

import numpy as np
import torch

from benchmarks.parity.comparison import FEATURE, FLOW, IMAGE, UNIT, Comparison, numpy, relative_array
from benchmarks.parity.weights import filled, from_fixture, images, place, recipe
from metrics.openface import OpenFace
from modules.layers import from_unit, to_unit, tokens
from modules.warp import identity_grid, resize, warp

FLIPS = 8                      # of 1024 quantisation indices: near-ties may go either way


def shared_motion(fixture, source, driving, dense, logit=False):
    """What all FOMM descendants store: keypoints of both images, coarse flow, occlusion, mask.

    logit: the fixture's occlusion is before the sigmoid (MRFA's), ten times as large
    """
    for name, keypoints in (('source', source), ('driving', driving)):
        for part in ('value', 'jacobian'):
            key = f'kp_{name}_{part}'
            yield Comparison(key, numpy(getattr(keypoints, part)), fixture[key], *FLOW)
    yield Comparison('deformation', numpy(dense.flow), fixture['deformation'], *FLOW)
    occlusion = dense.occlusion_logit if logit else dense.occlusion_logit.sigmoid()
    yield Comparison('occlusion_map', numpy(occlusion), fixture['occlusion_map'], *(UNIT if logit else FLOW))
    if 'mask_s4' in fixture:
        yield Comparison('mask_s4', numpy(dense.mask[:, :, ::4, ::4]), fixture['mask_s4'], *FLOW)


def generate(fixture, config, source_format):
    """Output of our model, filled, for the fixture's images in eval mode."""
    model, _ = filled(config, source_format)
    with torch.no_grad():
        return model(*(from_unit(from_fixture(fixture[name])) for name in ('source', 'driving')))


def fomm_forward(fixture, config):
    """Every stored result of FOMM in eval mode."""
    ours = generate(fixture, config, 'fomm')
    yield from shared_motion(fixture, ours.source_keypoints, ours.driving_keypoints, ours.dense_motion)
    yield Comparison('prediction', numpy(to_unit(ours.prediction)), fixture['prediction'], *UNIT)


def mcnet_forward(fixture, config):
    """Every stored result of MCNet in eval mode, with queries and values of its memory."""
    ours = generate(fixture, config, 'mcnet')
    yield from shared_motion(fixture, ours.source_keypoints, ours.driving_keypoints, ours.dense_motion)
    for name, tensors in (('feat', ours.features), ('value', ours.values)):
        for i, tensor in enumerate(tensors):
            theirs = fixture[f'{name}_list_{i}_sub']
            step = tensor.shape[-1] // theirs.shape[-1]
            yield Comparison(f'{name}_list_{i}_sub', numpy(tensor[:, ::32, ::step, ::step]), theirs, *UNIT)
    yield Comparison('deformed_s4', numpy(ours.warped_source[:, :, ::4, ::4]), fixture['deformed_s4'], *UNIT)
    yield Comparison('prediction', numpy(to_unit(ours.prediction)), fixture['prediction'], *UNIT)


def smac_forward(fixture, config):
    """Every intermediate result of the paper's model in eval mode."""
    ours = generate(fixture, config, 'smac')
    yield from shared_motion(fixture, ours.source_keypoints, ours.driving_keypoints, ours.dense_motion)
    yield Comparison('driving_kp_heatmap_s4', numpy(ours.dense_motion.driving_heatmaps[:, :, ::4, ::4]),
                     fixture['driving_kp_heatmap_s4'], *FLOW)

    lists = {'deformation_list': ours.flows, 'res_deform_list': ours.residuals, 'out_occ': ours.occlusions[1:]}
    for name, tensors in lists.items():
        for i, tensor in enumerate(tensors):
            yield Comparison(f'{name}_{i}', numpy(tensor), fixture[f'{name}_{i}'], *FLOW)
    for i, tensor in enumerate(ours.reconstructions):
        # A flipped index changes the pixels around its token; the mean shows whether more than that differs.
        offset = tensor - identity_grid(tensor.shape[1:3], tensor)
        yield Comparison(f'motion_recon_list_{i}', numpy(offset), fixture[f'motion_recon_list_{i}'], 1.0, 1e-4)
    for name, codes in (('motion', ours.motion_quantized), ('app', ours.appearance_quantized)):
        theirs = fixture[f'codebook_loss_{name}_list']
        yield Comparison(f'codebook_loss_{name}_list', numpy(torch.stack([scale.loss for scale in codes])), theirs,
                         *2 * [1e-4 * theirs.max()])
        for i, scale in enumerate(codes):
            flips = numpy(scale.indices).ravel() != fixture[f'vq_index_{name}_{i}']
            yield Comparison(f'vq_index_{name}_{i} flips', np.array([flips.sum()]), np.zeros(1), FLIPS, FLIPS)

    for name, tensors in (('before', ours.warped), ('after', ours.compensated)):
        for i, tensor in enumerate(tensors):
            step = tensor.shape[-1] // 16
            key = f'app_{name}_{i}_sub'
            if key in fixture:
                yield Comparison(key, numpy(tensor[:, ::16, ::step, ::step]), fixture[key], *FEATURE)
    yield Comparison('lq_feat_c8', numpy(ours.compensated[0][:, ::8]), fixture['lq_feat_c8'], *FEATURE)
    yield Comparison('out', numpy(ours.prediction), fixture['out'], *IMAGE)
    first_scale, theirs = numpy(ours.first_scale_prediction), fixture['out_lr_0']
    stride = first_scale.shape[-1] // theirs.shape[-1]
    yield Comparison('out_lr_0', first_scale[:, :, ::stride, ::stride], theirs, *IMAGE)


def mrfa_forward(fixture, config):
    """Every stored result of MRFA in eval mode: also the warped image and the occlusions of all scales."""
    # Fixtures of the token transformer that hold no inner tensors are of the plain recipe.
    model, _ = filled(config, 'mrfa', plain='inner/hr_stem_sub' not in fixture)
    source, driving = (from_unit(from_fixture(fixture[name])) for name in ('source', 'driving'))
    with torch.no_grad():
        if 'inner/hr_stem_sub' in fixture:
            yield from token_detector(fixture, model.keypoint_detector, to_unit(source))
        ours = model(source, driving)
    yield from shared_motion(fixture, ours.source_keypoints, ours.driving_keypoints, ours.dense_motion, logit=True)
    strip = [ours.warped_source]
    for occlusion in (*ours.occlusions[1:], ours.occlusions[0]):
        strip.append(resize(occlusion, ours.prediction.shape[-2:]).expand(-1, 3, -1, -1))
    yield Comparison('warp_img_s4', numpy(torch.cat(strip, dim=3)[:, :, ::4, ::4]), fixture['warp_img_s4'], *UNIT)
    yield Comparison('prediction', numpy(to_unit(ours.prediction)), fixture['prediction'], *UNIT)


def token_detector(fixture, detector, image):
    """Every stored inner tensor of MRFA's token transformer: HRNet's branches, then the tokens layer by layer."""
    backbone, layers = detector.backbone, dict(enumerate(detector.layers))
    parts = {'stem': backbone.stem, 'layer1': backbone.bottlenecks, 'stage2': backbone.stage2, 'embed': detector.embed}
    parts |= {('start', i): start for i, start in enumerate(backbone.starts)}
    parts |= {('stage3', i): module for i, module in enumerate(backbone.stage3)}
    parts |= {('layer', i): layer for i, layer in layers.items()}
    parts |= {('attended', i): layer.project for i, layer in layers.items()}
    with outputs_of(parts) as seen:
        detector(image)
    found = {name: calls[0] for name, calls in seen.items()}
    inputs = {i: found['layer', i][0][0] for i in layers}
    pictures = {'stem': found['stem'][1], 'layer1': found['layer1'][1], 'transition2_2': found['start', 2][1]}
    pictures |= {f'transition1_{i}': found['start', i][1] for i in (0, 1)}
    pictures |= {f'stage2_{i}': picture for i, picture in enumerate(found['stage2'][1])}
    pictures |= {f'stage3_{m}_{i}': picture for m in range(len(backbone.stage3))
                 for i, picture in enumerate(found['stage3', m][1])}
    for name, picture in pictures.items():
        theirs = fixture[f'inner/hr_{name}_sub']
        channels, step = picture.shape[1] // theirs.shape[1], picture.shape[2] // theirs.shape[2]
        yield Comparison(f'inner/hr_{name}_sub', numpy(picture[:, ::channels, ::step, ::step]), theirs, *TOKENS)
    sequences = {'patch_embedding_sub': (found['embed'][1], 4, 4), 'pos_embedding_sub': (detector.position, 8, 4),
                 'tokens_before_sub': (inputs[0], 4, 4), 'tokens_after_sub': (found['layer', len(layers) - 1][1], 4, 4),
                 'tokens_after': (found['layer', len(layers) - 1][1][:, :2 * detector.num_kp], 1, 1)}
    for i in layers:
        for what, tensor in (('input', inputs[i]), ('attended', inputs[i] + found['attended', i][1]),
                             ('output', found['layer', i][1])):
            sequences[f'tokens_layer_{i}_{what}_sub'] = tensor, 12, 8
    for name, (tensor, tokens_apart, entries_apart) in sequences.items():
        yield Comparison(f'inner/{name}', numpy(tensor[:, ::tokens_apart, ::entries_apart]), fixture[f'inner/{name}'],
                         *TOKENS)
    for i in (0, len(layers) - 1):
        rows = layers[i].attention_weights(inputs[i], [0, 13, 150])
        yield Comparison(f'inner/attention_layer_{i}_rows', numpy(rows), fixture[f'inner/attention_layer_{i}_rows'],
                         *TOKENS)


TOKENS = (1e-4, 2e-5)          # three to ten times the drift of its tokens; a mistake shows a thousand times larger
DAGAN = (2e-4, 2e-6)           # ten times the drift of its features and its prediction, which are well conditioned


def dagan_forward(fixture, config):
    """Every stored result of DaGAN in eval mode: also its depth network's and its attention's."""
    model, _ = filled(config, 'dagan')
    source, driving = (from_unit(images([seed])) for seed in fixture['seeds'])
    parts = {'encoder': model.depth.encoder, 'decoder': model.depth.decoder, 'attention': model.attention,
             'query': model.attention.query, 'key': model.attention.key}
    with torch.no_grad(), outputs_of(parts) as seen:
        ours = model(source, driving)
    yield from shared_motion(fixture, ours.source_keypoints, ours.driving_keypoints, ours.dense_motion)
    for name, (_, disparities) in zip(('source', 'driving'), seen['decoder']):
        yield Comparison(f'depth_{name}', numpy(disparities[0]), fixture[f'depth_{name}'], *FLOW)
    features, disparities = seen['encoder'][0][1], seen['decoder'][0][1]
    for i, disparity in enumerate(disparities[1:], start=1):
        theirs = fixture[f'disp_{i}_source_sub']
        step = disparity.shape[-1] // theirs.shape[-1]
        yield Comparison(f'disp_{i}_source_sub', numpy(disparity[:, :, ::step, ::step]), theirs, *FLOW)
    for i, feature in enumerate(features):
        channels, step, key = feature.shape[1] // 16, feature.shape[-1] // 8, f'depth_enc_{i}_sub'
        yield Comparison(key, numpy(feature[:, ::channels, ::step, ::step]), fixture[key], *DAGAN)
    ((depth_feature, before), after), (_, query), (_, key) = (seen[name][0] for name in ('attention', 'query', 'key'))
    for name, feature, channels in (('depth_feature', depth_feature, 16), ('att_before', before, 16),
                                    ('att_after', after, 16), ('query', query, 4), ('key', key, 4)):
        yield Comparison(f'{name}_sub', numpy(feature[:, ::channels, ::4, ::4]), fixture[f'{name}_sub'], *DAGAN)
    rows = (tokens(query.relu()) @ key.relu().flatten(2)).softmax(-1)[0]      # the model never computes them
    for name, values in {'rowmax': rows.amax(-1), 'row_0': rows[0], 'row_2080': rows[2080]}.items():
        yield relative_array(f'attention_{name}', values, fixture[f'attention_{name}'])
    moved = warp(to_unit(source), ours.flows[0], align_corners=False)
    yield Comparison('deformed_s4', numpy(moved[:, :, ::4, ::4]), fixture['deformed_s4'], *UNIT)
    yield Comparison('prediction', numpy(to_unit(ours.prediction)), fixture['prediction'], *DAGAN)


def openface(fixture, config):
    """The face embedding of AED, and what its last layer sees."""
    network = OpenFace()
    network.load_state_dict({name: recipe(f'openface/{name}', tensor.shape) if tensor.is_floating_point() else tensor
                             for name, tensor in network.state_dict().items()})
    network.to(place(), torch.get_default_dtype()).eval()
    with torch.no_grad(), outputs_of({'last': network.layer25}) as seen:
        embedding = network(from_fixture(fixture['image']))
    (pooled,), _ = seen['last'][0]
    yield relative_array('pooled', pooled, fixture['pooled'], 1e-5)
    yield Comparison('embedding', numpy(embedding), fixture['embedding'], 1e-5, 1e-6)


@contextmanager
def outputs_of(modules):
    """Yields the calls of the named modules in its body: {name: [(inputs, output), ...]}."""
    seen = {name: [] for name in modules}
    hooks = [module.register_forward_hook(lambda _, inputs, output, name=name: seen[name].append((inputs, output)))
             for name, module in modules.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
