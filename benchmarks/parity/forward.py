"""Forward passes in eval mode: every stored intermediate result of each method."""

from contextlib import contextmanager

import numpy as np
import torch

from benchmarks.parity.comparison import FEATURE, FLOW, IMAGE, UNIT, Comparison, numpy, relative_array
from benchmarks.parity.weights import filled, from_fixture, images
from modules.layers import from_unit, to_unit, tokens
from modules.warp import warp

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
    """What our model, filled, makes of the fixture's images in eval mode."""
    model, _ = filled(config, source_format)
    with torch.no_grad():
        return model(*(from_unit(from_fixture(fixture[name])) for name in ('source', 'driving')))


def fomm_forward(fixture, config):
    """Every stored result of FOMM in eval mode."""
    ours = generate(fixture, config, 'fomm')
    yield from shared_motion(fixture, ours.source_keypoints, ours.driving_keypoints, ours.dense_motion)
    yield Comparison('prediction', numpy(to_unit(ours.prediction)), fixture['prediction'], *UNIT)


def mcnet_forward(fixture, config):
    """Every stored result of MCNet in eval mode: also what its memory was asked and what it holds."""
    ours = generate(fixture, config, 'mcnet')
    yield from shared_motion(fixture, ours.source_keypoints, ours.driving_keypoints, ours.dense_motion)
    for name, tensors in (('feat', ours.features), ('value', ours.values)):
        for i, tensor in enumerate(tensors):
            theirs = fixture[f'{name}_list_{i}_sub']
            step = tensor.shape[-1] // theirs.shape[-1]
            yield Comparison(f'{name}_list_{i}_sub', numpy(tensor[:, ::32, ::step, ::step]), theirs, *UNIT)
    yield Comparison('deformed_s4', numpy(ours.warped_source[:, :, ::4, ::4]), fixture['deformed_s4'], *UNIT)
    yield Comparison('prediction', numpy(to_unit(ours.prediction)), fixture['prediction'], *UNIT)


def mrfa_forward(fixture, config):
    """Every stored result of MRFA in eval mode: also the moved image and the occlusions of all scales, as one strip."""
    ours = generate(fixture, config, 'mrfa')
    yield from shared_motion(fixture, ours.source_keypoints, ours.driving_keypoints, ours.dense_motion, logit=True)
    strip = [ours.warped_source]
    for occlusion in (*ours.occlusions[1:], ours.occlusions[0]):
        strip.append(torch.nn.functional.interpolate(occlusion, size=256, mode='bilinear', align_corners=True).expand(-1, 3, -1, -1))
    yield Comparison('warp_img_s4', numpy(torch.cat(strip, dim=3)[:, :, ::4, ::4]), fixture['warp_img_s4'], *UNIT)
    yield Comparison('prediction', numpy(to_unit(ours.prediction)), fixture['prediction'], *UNIT)


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
        step = disparity.shape[-1] // fixture[f'disp_{i}_source_sub'].shape[-1]
        yield Comparison(f'disp_{i}_source_sub', numpy(disparity[:, :, ::step, ::step]), fixture[f'disp_{i}_source_sub'], *FLOW)
    for i, feature in enumerate(features):
        channels, step = feature.shape[1] // 16, feature.shape[-1] // 8
        yield Comparison(f'depth_enc_{i}_sub', numpy(feature[:, ::channels, ::step, ::step]), fixture[f'depth_enc_{i}_sub'], *DAGAN)
    ((depth_feature, before), after), (_, query), (_, key) = (seen[name][0] for name in ('attention', 'query', 'key'))
    for name, feature, channels in (('depth_feature', depth_feature, 16), ('att_before', before, 16),
                                    ('att_after', after, 16), ('query', query, 4), ('key', key, 4)):
        yield Comparison(f'{name}_sub', numpy(feature[:, ::channels, ::4, ::4]), fixture[f'{name}_sub'], *DAGAN)
    rows = (tokens(query.relu()) @ key.relu().flatten(2)).softmax(-1)[0]                  # never made by the model itself
    for name, values in {'rowmax': rows.amax(-1), 'row_0': rows[0], 'row_2080': rows[2080]}.items():
        yield relative_array(f'attention_{name}', values, fixture[f'attention_{name}'])
    moved = warp(to_unit(source), ours.flows[0], align_corners=False)
    yield Comparison('deformed_s4', numpy(moved[:, :, ::4, ::4]), fixture['deformed_s4'], *UNIT)
    yield Comparison('prediction', numpy(to_unit(ours.prediction)), fixture['prediction'], *DAGAN)


@contextmanager
def outputs_of(modules):
    """Within it, every call of the named modules is noted: {name: [(inputs, output), ...]}."""
    seen = {name: [] for name in modules}
    hooks = [module.register_forward_hook(lambda _, inputs, output, name=name: seen[name].append((inputs, output)))
             for name, module in modules.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
