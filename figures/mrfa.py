"""Figures of MRFA: refinement by iteration, correlation of one place, patches that its tokens attend to."""

import torch

from figures.figure import Figure, Panel, Row, calls_of, pixels, range_note, spread_note

UNIT = 'correlation'     # inner products of structure, divided by the root of their channels


def mrfa_figures(model, moment):
    """Figures of MRFA beyond the common ones."""
    with calls_of(model.refinement) as calls:
        generated = model.render(moment.state, moment.keypoints)
    motions = [motion for _, motion, _, _ in calls]                # before each correction
    figures = [_refinement(moment, motions, generated)]
    if model.params.prior_model == 'mtia':
        figures.append(_tokens(model.keypoint_detector, model.observe(moment.driving), moment))
    if moment.at is not None:
        figures.append(_correlation(moment, motions, generated, calls[0][-1]))
    return figures


def _refinement(moment, motions, generated):
    """The input of every iteration, and its correction."""
    rows, numbers = [], {}
    for i, (motion, flow, occlusion) in enumerate(zip(motions, generated.flows[1:], generated.occlusions[1:]), 1):
        correction = flow - motion.flow
        change = pixels(correction, moment.size)
        before = torch.sigmoid(motion.occlusion_logit)
        numbers[f'refinement {i}'] = {'correction_px_mean': float(change.mean()),
                                      'correction_px_max': float(change.max()),
                                      'visible_change_mean': float((occlusion - before).mean())}
        rows.append(Row(f'iteration {i}, {flow.shape[1]} px', [
            Panel('flow', 'flow so far', motion.flow), Panel('residual', 'correction', correction),
            Panel('heat', 'length', change, spread_note(change, 'px'), unit='px'), Panel('flow', 'refined', flow),
            Panel('share', 'visible before', before), Panel('share', 'visible after', occlusion)]))
    return Figure('refinement', 'Refinement', 'Every iteration doubles the resolution of the flow so far, the coarse '
                  'flow M0 with all corrections, and adds its own. Lengths are in pixels of the image.', rows, numbers)


def _tokens(detector, image, moment):
    """Attention of the two tokens of every keypoint to patches of the driving image, in the last layer."""
    with calls_of(detector.layers[-1]) as calls:
        found = detector(image)
    learned, side = 2 * detector.num_kp, detector.patches_across
    read = detector.layers[-1].attention_weights(calls[0][0], range(learned)).mean(1)               # (1, 2K, 2K + P)
    patches = read[:, :, learned:].unflatten(2, (side, side))
    rows, numbers = [], {}
    for k in range(detector.num_kp):
        maps = patches[:, [k]], patches[:, [detector.num_kp + k]]
        rows.append(Row(f'keypoint {k}', [
            Panel('image', 'driving', moment.driving, points=found.value[0, [k]]),
            *(Panel('heat', f'{name} token', value, spread_note(value), unit='attention')
              for name, value in zip(('keypoint', 'Jacobian'), maps))]))
        numbers[f'keypoint {k}'] = {f'{name}_share_of_patches': float(value.sum())
                                    for name, value in zip(('keypoint', 'jacobian'), maps)}
    return Figure('tokens', 'Tokens', 'Attention of the learned tokens to the patches of the driving image in the last '
                  'layer, mean over heads. The remaining attention goes to other tokens.', rows, numbers)


def _correlation(moment, motions, generated, volume):
    """Correlation of the structure at the place `moment.at` with every place of the source, and the parts looked up."""
    side = volume.driving.shape[-1]
    whole = volume.at((side, side))[0][moment.token(side)][None]                                # (1, 1, h, w)
    y, x = divmod(int(whole.argmax()), side)
    strongest = torch.tensor([x, y], device=whole.device) * 2 / (side - 1) - 1
    marks = torch.stack([_at(generated.flows[0], moment), _at(generated.flows[-1], moment), strongest])
    rows = [Row('', [Panel('image', 'result', generated.prediction, points=moment.place),
                     Panel('image', 'source', moment.source, 'red: sampled by M0; green: by the last flow; blue: '
                           'strongest correlation', points=marks),
                     Panel('map', 'correlation', whole, range_note(whole), UNIT)])]
    for i, motion in enumerate(motions, 1):
        found = _at(volume.look_up(motion.displacement).permute(0, 2, 3, 1), moment)            # (L(2r+1)^2,)
        window = len(volume.window)
        levels = found.view(-1, 1, 1, window, window).transpose(3, 4)                           # x is the slow axis
        rows.append(Row(f'iteration {i}', [
            Panel('map', f'{window} x {window} means of {2 ** level} x {2 ** level}' if level else
                  f'{window} x {window} around the flow', values, range_note(values), UNIT)
            for level, values in enumerate(levels)]))
    x, y = moment.at
    return Figure('correlation', f'Correlation for x {x}, y {y}', 'Inner product of the structure at this place of the '
                  'driving pose, computed from keypoints, with that of every place of the source, computed from '
                  'keypoints and image. Below: the windows that each iteration looks up around its flow.', rows,
                  {'at': [x, y], 'source': {name: mark.tolist() for name, mark in
                                            zip(('coarse', 'refined', 'strongest'), marks)}})


def _at(field, moment):
    """The vector of a field (1, h, w, C) at the place `moment.at`: (C,)."""
    return field[0].flatten(0, 1)[moment.token(field.shape[1])]
