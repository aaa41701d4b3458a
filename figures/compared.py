"""Figures of compared methods: MCNet's memory (Fig. 1e of its paper), MRFA's tokens, DaGAN's disparities."""

from figures.figure import Figure, Panel, Row, calls_of, range_note, spread_note
from modules.layers import to_unit

CHANNELS = 6             # channels of a memory that are drawn, evenly spread


def mcnet_figures(model, moment):
    """The meta-memory, before conditioning and conditioned on the source at each scale."""
    compensation, generated, rows = model.compensation, moment.generated, []
    memories = {'the meta-memory, before conditioning': compensation.memory}
    for i, feature in enumerate(generated.features, 1):
        caption = f'scale {i}: conditioned on the source keypoints and the feature of {feature.shape[-1]} px'
        memories[caption] = compensation.conditioned(feature, moment.state.keypoints.value)
    for caption, memory in memories.items():
        chosen = [i * memory.shape[1] // CHANNELS for i in range(CHANNELS)]
        channels = [Panel('map', f'channel {i}', memory[:, i:i + 1], range_note(memory[:, i])) for i in chosen]
        rows.append(Row(caption, [Panel('feature', 'all channels', memory, basis='memory'), *channels]))
    return [Figure('memory', 'Memory', 'Some channels of the memory, each from its smallest value (black) to its '
                   'largest. Conditioning is a convolution, so equal numbers before and after it do not mean the same '
                   'channel.', rows, {})]


def mrfa_figures(model, moment):
    """With prior_model mtia: patches of the driving image that the tokens of each keypoint attend to, last layer."""
    detector = model.keypoint_detector
    if model.params.prior_model != 'mtia':
        return []
    with calls_of(detector.layers[-1]) as calls:
        found = detector(model.observe(moment.driving))
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
    return [Figure('tokens', 'Tokens', 'Attention of the learned tokens to patches of the driving image in the last '
                   'layer, mean over heads. The remaining attention goes to other tokens.', rows, numbers)]


def dagan_figures(model, moment):
    images = {'source': moment.source, 'driving': moment.driving, 'result': moment.generated.prediction}
    disparities = {name: model.depth(to_unit(image)) for name, image in images.items()}
    return [Figure('depth', 'Depth', 'Disparity of the depth network, in (0, 1); white is near. Keypoints are detected '
                   'in image and disparity. That of the result is shown for comparison only.',
                   [Row('', [Panel('image', name, image) for name, image in images.items()]),
                    Row('', [Panel('map', f'disparity of the {name}', found, range_note(found))
                             for name, found in disparities.items()])],
                   {name: {'mean': float(found.mean())} for name, found in disparities.items()})]
