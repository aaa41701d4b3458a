"""Figures of DaGAN: disparities, the effect of attention, and the attention of one place."""

from figures.figure import READ_CODES, Figure, Panel, Row, length, range_note
from modules.codebook import perplexity
from modules.layers import to_unit


def dagan_figures(model, moment):
    """Figures of DaGAN beyond the common ones."""
    figures = [_depth(model, moment), _attention(moment)]
    return figures if moment.at is None else [*figures, _reads(model, moment)]


def _depth(model, moment):
    images = {'source': moment.source, 'driving': moment.driving, 'result': moment.generated.prediction}
    disparities = {'source': moment.generated.disparity} | {
        name: model.depth(to_unit(images[name])) for name in ('driving', 'result')}
    return Figure('depth', 'Depth', 'Disparity of the depth network, in (0, 1); white is near. Keypoints are detected '
                  'in image and disparity. That of the result is shown for comparison only.',
                  [Row('', [Panel('image', name, image) for name, image in images.items()]),
                   Row('', [Panel('map', f'disparity of the {name}', disparities[name],
                                  range_note(disparities[name]), 'disparity') for name in images])],
                  {name: {'min': float(found.min()), 'mean': float(found.mean()), 'max': float(found.max())}
                   for name, found in disparities.items()})


def _attention(moment):
    """The warped feature before and after attention."""
    before, after = moment.generated.warped, moment.generated.attended
    change = length(after - before)
    share = float(change.square().sum().sqrt() / before.float().norm())
    return Figure('attention', 'Effect of attention', 'The warped feature before and after attention with queries '
                  'from the source disparity, in the same colours.',
                  [Row('', [Panel('feature', 'warped feature', before, basis='feature'),
                            Panel('feature', 'with attention', after, basis='feature'),
                            Panel('heat', 'change', change, f'{100 * share:.1f} % of the feature',
                                  unit='of features')])], {'relative_change': share})


def _reads(model, moment):
    """Attention of the place `moment.at` of the source."""
    warped, side = moment.generated.warped, moment.generated.warped.shape[-1]
    weights = model.attention.weights(moment.state.features.depth_feature, warped)[0, moment.token(side)]    # (h*w,)
    places = [{'x': int(place) % side, 'y': int(place) // side, 'share': float(share)}
              for share, place in zip(*weights.topk(READ_CODES))]
    x, y = moment.at
    return Figure('reads', f'Attention of x {x}, y {y}', 'The query is the source disparity at this place; '
                  'keys and values are the warped feature. The result is added at the same place of the driving pose: '
                  'queries are not warped, as in the public code.',
                  [Row('', [Panel('image', 'source: query', moment.source, points=moment.place),
                            Panel('map', 'disparity', moment.generated.disparity, unit='disparity'),
                            Panel('image', 'result', moment.generated.prediction, points=moment.place),
                            Panel('heat', 'attention', 100 * weights.view(1, 1, side, side),
                                  f'perplexity {perplexity(weights):.1f} of {side ** 2}', unit='% of attention')])],
                  {'at': [x, y], 'places': places})
