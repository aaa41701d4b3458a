"""Figures of compared methods beyond the common ones: MCNet's memory (Fig. 1e of its paper), DaGAN's disparities."""

from figures.figure import Figure, Panel, Row, range_note
from modules.layers import to_unit

CHANNELS = 6             # channels of a memory that are drawn, evenly spread


def mcnet_figures(model, moment):
    """The memory of all faces, and conditioned on this one for each scale."""
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


def dagan_figures(model, moment):
    """Disparities of source, driving image and result."""
    images = {'source': moment.source, 'driving': moment.driving, 'result': moment.generated.prediction}
    disparities = {name: model.depth(to_unit(image)) for name, image in images.items()}
    return [Figure('depth', 'Depth', 'Disparity of the depth network, in (0, 1); white is near. Keypoints are detected '
                   'in image and disparity. That of the result is shown for comparison only.',
                   [Row('', [Panel('image', name, image) for name, image in images.items()]),
                    Row('', [Panel('map', f'disparity of the {name}', found, range_note(found))
                             for name, found in disparities.items()])],
                   {name: {'mean': float(found.mean())} for name, found in disparities.items()})]
