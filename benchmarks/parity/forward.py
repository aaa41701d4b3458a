"""Forward passes in eval mode: every stored intermediate result of each method."""

from contextlib import contextmanager

import numpy as np
import torch

from benchmarks.parity.comparison import FEATURE, FLOW, IMAGE, UNIT, Comparison, numpy, relative_array, stored
from benchmarks.parity.weights import filled, from_fixture, images, place, recipe
from metrics.openface import OpenFace
from modules.layers import from_unit, to_unit, tokens
from modules.warp import identity_grid, resize, warp

FLIPS = 8                      # of 1024 quantisation indices: near-ties may go either way


def shared_motion(fixture, ours, keypoint=FLOW, flow=FLOW, logit=None):
    """Comparisons for all FOMM descendants: keypoints of both images, coarse flow, occlusion, mask.

    ours: the Generated; keypoint, flow, logit: tolerances, (largest, mean)
    logit is for fixtures whose occlusion is before the sigmoid (MRFA's), ten times as large.
    """
    dense = ours.dense_motion
    for name, keypoints in (('source', ours.source_keypoints), ('driving', ours.driving_keypoints)):
        for part in ('value', 'jacobian'):
            yield stored(fixture, f'kp_{name}_{part}', getattr(keypoints, part), keypoint)
    yield stored(fixture, 'deformation', dense.flow, flow)
    occlusion = dense.occlusion_logit if logit else dense.occlusion_logit.sigmoid()
    yield stored(fixture, 'occlusion_map', occlusion, logit or flow)
    if 'mask_s4' in fixture:
        yield stored(fixture, 'mask_s4', dense.mask, flow)


def generate(fixture, config, source_format):
    """Output of our model, filled, for the fixture's images in eval mode."""
    model, _ = filled(config, source_format)
    with torch.no_grad():
        return model(*(from_unit(from_fixture(fixture[name])) for name in ('source', 'driving')))


def fomm_forward(fixture, config):
    """Comparisons of every stored result of FOMM in eval mode."""
    ours = generate(fixture, config, 'fomm')
    yield from shared_motion(fixture, ours)
    yield stored(fixture, 'prediction', to_unit(ours.prediction), UNIT)


def mcnet_forward(fixture, config):
    """Comparisons of every stored result of MCNet in eval mode, with queries and values of its memory."""
    ours = generate(fixture, config, 'mcnet')
    yield from shared_motion(fixture, ours)
    for name, tensors in (('feat', ours.features), ('value', ours.values)):
        for i, tensor in enumerate(tensors):
            yield stored(fixture, f'{name}_list_{i}_sub', tensor, UNIT)
    yield stored(fixture, 'deformed_s4', ours.warped_source, UNIT)
    yield stored(fixture, 'prediction', to_unit(ours.prediction), UNIT)


def smac_forward(fixture, config):
    """Comparisons of every intermediate result of the paper's model in eval mode."""
    ours = generate(fixture, config, 'smac')
    yield from shared_motion(fixture, ours)
    yield stored(fixture, 'driving_kp_heatmap_s4', ours.dense_motion.driving_heatmaps, FLOW)

    lists = {'deformation_list': ours.flows, 'res_deform_list': ours.residuals, 'out_occ': ours.occlusions[1:]}
    for name, tensors in lists.items():
        for i, tensor in enumerate(tensors):
            yield stored(fixture, f'{name}_{i}', tensor, FLOW)
    for i, tensor in enumerate(ours.reconstructions):
        # A flipped index changes the pixels around its token; the mean shows whether more than that differs.
        offset = tensor - identity_grid(tensor.shape[1:3], tensor)
        yield stored(fixture, f'motion_recon_list_{i}', offset, (1.0, 1e-4))
    for name, codes in (('motion', ours.motion_quantized), ('app', ours.appearance_quantized)):
        key = f'codebook_loss_{name}_list'
        yield relative_array(key, torch.stack([scale.loss for scale in codes]), fixture[key], 1e-4)
        for i, scale in enumerate(codes):
            flips = numpy(scale.indices).ravel() != fixture[f'vq_index_{name}_{i}']
            yield Comparison(f'vq_index_{name}_{i} flips', np.array([flips.sum()]), np.zeros(1), FLIPS, FLIPS)

    for name, tensors in (('before', ours.warped), ('after', ours.compensated)):
        for i, tensor in enumerate(tensors):
            if (key := f'app_{name}_{i}_sub') in fixture:
                yield stored(fixture, key, tensor, FEATURE)
    yield stored(fixture, 'lq_feat_c8', ours.compensated[0], FEATURE)
    yield stored(fixture, 'out', ours.prediction, IMAGE)
    yield stored(fixture, 'out_lr_0', ours.first_scale_prediction, IMAGE)


def mrfa_forward(fixture, config):
    """Comparisons of MRFA in eval mode: keypoints, flow, warped image, occlusions of all scales, prediction."""
    ours = generate(fixture, config, 'mrfa')
    yield from shared_motion(fixture, ours, logit=UNIT)
    strip = [ours.warped_source]
    for occlusion in (*ours.occlusions[1:], ours.occlusions[0]):
        strip.append(resize(occlusion, ours.prediction.shape[-2:]).expand(-1, 3, -1, -1))
    yield stored(fixture, 'warp_img_s4', torch.cat(strip, dim=3), UNIT)
    yield stored(fixture, 'prediction', to_unit(ours.prediction), UNIT)


DAGAN = (2e-4, 9e-6)           # ten times the drift of its features and its prediction, which are well conditioned


def dagan_forward(fixture, config):
    """Comparisons of every stored result of DaGAN in eval mode, with its depth network and attention."""
    model, _ = filled(config, 'dagan')
    source, driving = (from_unit(images([seed])) for seed in fixture['seeds'])
    parts = {'encoder': model.depth.encoder, 'decoder': model.depth.decoder, 'attention': model.attention,
             'query': model.attention.query, 'key': model.attention.key}
    with torch.no_grad(), outputs_of(parts) as seen:
        ours = model(source, driving)
    yield from shared_motion(fixture, ours)
    for name, (_, disparities) in zip(('source', 'driving'), seen['decoder']):
        yield stored(fixture, f'depth_{name}', disparities[0], FLOW)
    features, disparities = seen['encoder'][0][1], seen['decoder'][0][1]
    for i, disparity in enumerate(disparities[1:], start=1):
        yield stored(fixture, f'disp_{i}_source_sub', disparity, FLOW)
    for i, feature in enumerate(features):
        yield stored(fixture, f'depth_enc_{i}_sub', feature, DAGAN)
    ((depth_feature, before), after), (_, query), (_, key) = (seen[name][0] for name in ('attention', 'query', 'key'))
    for name, feature in (('depth_feature', depth_feature), ('att_before', before), ('att_after', after),
                          ('query', query), ('key', key)):
        yield stored(fixture, f'{name}_sub', feature, DAGAN)
    rows = (tokens(query.relu()) @ key.relu().flatten(2)).softmax(-1)[0]      # the model never computes them
    for name, values in {'rowmax': rows.amax(-1), 'row_0': rows[0], 'row_2080': rows[2080]}.items():
        yield relative_array(f'attention_{name}', values, fixture[f'attention_{name}'])
    moved = warp(to_unit(source), ours.flows[0], align_corners=False)
    yield stored(fixture, 'deformed_s4', moved, UNIT)
    yield stored(fixture, 'prediction', to_unit(ours.prediction), DAGAN)


def openface(fixture, config):
    """Comparisons of AED's face embedding, and of its last layer's input."""
    network = OpenFace()
    network.load_state_dict({name: recipe(f'openface/{name}', tensor.shape) if tensor.is_floating_point() else tensor
                             for name, tensor in network.state_dict().items()})
    network.to(place()).eval()
    with torch.no_grad(), outputs_of({'last': network.layer25}) as seen:
        embedding = network(from_fixture(fixture['image']))
    (pooled,), _ = seen['last'][0]
    yield relative_array('pooled', pooled, fixture['pooled'], 1e-5)
    yield stored(fixture, 'embedding', embedding, (1e-5, 1e-6))


@contextmanager
def outputs_of(modules):
    """Record the calls of {name: module} within the block: yields {name: [(inputs, output), ...]}."""
    seen = {name: [] for name in modules}
    hooks = [module.register_forward_hook(lambda _, inputs, output, name=name: seen[name].append((inputs, output)))
             for name, module in modules.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
