"""Figures of MCNet: channels of its memory (Fig. 1e of the paper), its conditioning, and what each scale recalls."""

from typing import NamedTuple

from torch import Tensor

from figures.figure import READ_CODES, Figure, Panel, Row, length, range_note
from modules.codebook import perplexity

CHANNELS = 6             # channels of a memory that are drawn, evenly spread


class MemoryUse(NamedTuple):
    """One scale of one frame: projected feature (1, C, h, w), memory conditioned on it (1, C, M, M), what attention
    recalls from it, and the refined feature."""
    feature: Tensor
    memory: Tensor
    recalled: NamedTuple
    refined: Tensor


def mcnet_figures(model, moment):
    """Figures of MCNet beyond the common ones."""
    compensation, uses = model.compensation, []
    for feature in moment.generated.features:
        memory = compensation.conditioned(feature, moment.state.keypoints.value)
        recalled = compensation.recall(feature, memory)
        uses.append(MemoryUse(feature, memory, recalled, compensation.refine(feature, recalled.found)))
    figures = [_memory(compensation.memory, uses), _recall(uses)]
    return figures if moment.at is None else [*figures, _reads(compensation, uses, moment)]


def _memory(memory, uses):
    """Fig. 1e: channels of the memory, before conditioning and for each scale."""
    chosen = [i * memory.shape[1] // CHANNELS for i in range(CHANNELS)]

    def row(caption, memory, basis):
        channels = [Panel('map', f'channel {i}', memory[:, i:i + 1], range_note(memory[:, i])) for i in chosen]
        return Row(caption, [Panel('feature', 'all channels', memory, basis=basis), *channels])

    rows = [row('the meta-memory, before conditioning', memory, 'memory')]
    rows += [row(f'scale {i}: conditioned on the source keypoints and the feature of {use.feature.shape[-1]} px',
                 use.memory, 'conditioned') for i, use in enumerate(uses, 1)]
    return Figure('memory', 'Memory', 'The memory of all faces, and conditioned on this one: some of its '
                  f'{memory.shape[1]} channels, each from its smallest value (black) to its largest. Conditioning is a '
                  'convolution, so equal numbers before and after it do not mean the same channel.', rows, {})


def _recall(uses):
    """What the feature of each scale recalls from the memory."""
    rows, numbers = [], {}
    for i, use in enumerate(uses, 1):
        basis, change = f'scale {i}', length(use.refined - use.feature)
        share = float(change.square().sum().sqrt() / use.feature.float().norm())
        numbers[f'memory {i}'] = {'relative_change': share, 'change_mean': float(change.mean())}
        rows.append(Row(f'scale {i}', [
            Panel('feature', 'warped feature', use.feature, basis=basis),
            Panel('feature', 'values in memory', use.recalled.value, basis=basis),
            Panel('feature', 'recalled', use.recalled.found, basis=basis),
            Panel('feature', 'refined feature', use.refined, basis=basis),
            Panel('heat', 'change', change, f'{100 * share:.1f} % of the feature', unit='of features')]))
    return Figure('recall', 'Effect of the memory', 'For each scale: half of the channels of the warped '
                  'feature, projected; the values of the conditioned memory, trained to resemble such features; what '
                  'attention recalls for each place; the refined feature.', rows, numbers)


def _reads(compensation, uses, moment):
    """Attention of the place `moment.at` over the memory."""
    panels, numbers = [Panel('image', 'result', moment.generated.prediction, points=moment.place)], {}
    for i, use in enumerate(uses, 1):
        side = use.memory.shape[-1]
        weights = compensation.weights(use.recalled)[0, moment.token(use.feature.shape[-1])]           # (M*M,)
        top = weights.topk(READ_CODES)
        numbers[f'memory {i}'] = [{'x': int(place) % side, 'y': int(place) // side, 'share': float(share)}
                                  for share, place in zip(*top)]
        panels.append(Panel('heat', f'scale {i}', 100 * weights.view(1, 1, side, side),
                            f'perplexity {perplexity(weights):.1f} of {side ** 2}', unit='% of attention'))
    x, y = moment.at
    return Figure('reads', f'Memory read for x {x}, y {y}', 'Share of attention of each place of the memory.',
                  [Row('', panels)], {'at': [x, y], 'places': numbers})
