"""MRFA's refinement by iteration, the correlation it reads for a place, and the patches that its tokens attend to."""

import torch

from figures.figure import Figure, Panel, Row, calls_of, pixels, range_note, spread_note

UNIT = 'correlation'     # of maps: inner products of structure, over the root of their channels


def mrfa_figures(model, moment):
    """Figures of MRFA beyond what all methods have."""
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
    """What every iteration starts from, and its correction."""
    rows, numbers = [], {}
    for i, (motion, flow, occlusion) in enumerate(zip(motions, generated.flows[1:], generated.occlusions[1:]), 1):
        correction = flow - motion.flow
        change = pixels(correction, moment.size)
        before = torch.sigmoid(motion.occlusion_logit)
        numbers[f'refinement {i}'] = {'correction_px_mean': float(change.mean()),
                                      'correction_px_max': float(change.max()),
                                      'visible_change_mean': float((occlusion - before).mean())}
        rows.append(Row(f'iteration {i}, {flow.shape[1]} px', [
            Panel('flow', 'M0 and all so far', motion.flow), Panel('residual', 'correction', correction),
            Panel('heat', 'its length', change, spread_note(change, 'px'), unit='px'), Panel('flow', 'refined', flow),
            Panel('share', 'visible before', before), Panel('share', 'visible after', occlusion)]))
    return Figure('refinement', 'Refinement', 'Every iteration starts from the coarse flow M0 with all corrections so '
                  'far, twice as fine, and adds its own. Lengths are in pixels of the image.', rows, numbers)


def _tokens(detector, image, moment):
    """Which patches of the driving image every keypoint's two tokens attend to in the last layer."""
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
            *(Panel('heat', f'{name} token reads', value, spread_note(value), unit='attention')
              for name, value in zip(('keypoint', 'Jacobian'), maps))]))
        numbers[f'keypoint {k}'] = {f'{name}_share_of_patches': float(value.sum())
                                    for name, value in zip(('keypoint', 'jacobian'), maps)}
    return Figure('tokens', 'Tokens', 'Attention of the learned tokens to the patches of the driving image in the last '
                  'layer, mean over heads. The rest of each row goes to the other tokens.', rows, numbers)


def _correlation(moment, motions, generated, volume):
    """How well the structure around the place `moment.at` fits every place of the source, and what iterations see."""
    side = volume.driving.shape[-1]
    whole = volume.at((side, side))[0][moment.token(side)][None]                                # (1, 1, h, w)
    y, x = divmod(int(whole.argmax()), side)
    strongest = torch.tensor([x, y], device=whole.device) * 2 / (side - 1) - 1
    marks = torch.stack([_at(generated.flows[0], moment), _at(generated.flows[-1], moment), strongest])
    rows = [Row('', [Panel('image', 'result', generated.prediction, points=moment.place),
                     Panel('image', 'source', moment.source, 'red: M0 fetches there, green: the last flow; blue: the '
                           'strongest correlation', points=marks),
                     Panel('map', 'correlation', whole, range_note(whole), UNIT)])]
    for i, motion in enumerate(motions, 1):
        found = _at(volume.look_up(motion.displacement).permute(0, 2, 3, 1), moment)            # (L(2r+1)^2,)
        window = len(volume.window)
        levels = found.view(-1, 1, 1, window, window).transpose(3, 4)                           # x is the slow axis
        rows.append(Row(f'iteration {i}', [
            Panel('map', f'{window} x {window} means of {2 ** level} x {2 ** level}' if level else
                  f'{window} x {window} around it', values, range_note(values), UNIT)
            for level, values in enumerate(levels)]))
    x, y = moment.at
    return Figure('correlation', f'Correlation for x {x}, y {y}', 'Inner product of the structure at this place of the '
                  'driving pose, made of keypoints alone, with that of every place of the source, made of keypoints '
                  'and image. Below: what each iteration reads of it around where its flow points.', rows,
                  {'at': [x, y], 'source': {name: mark.tolist() for name, mark in
                                            zip(('coarse', 'refined', 'strongest'), marks)}})


def _at(field, moment):
    """The vector of a field (1, h, w, C) at the place `moment.at`: (C,)."""
    return field[0].flatten(0, 1)[moment.token(field.shape[1])]
