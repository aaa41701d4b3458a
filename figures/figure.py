"""Descriptions of the figures of `--mode inspect`, and those that all methods share.

A description names tensors and their kind; figures/draw.py chooses colours, scales and layout.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from modules.warp import resize_flow, warp


class Panel(NamedTuple):
    """One picture of a figure.

    kind, value: image (1, 3, H, W) in [-1, 1]; flow (1, h, w, 2), positions in [-1, 1]; residual (1, h, w, 2), a
                 difference of flows; share (1, 1, h, w) in [0, 1]; heat (1, 1, h, w), at least 0; map (1, 1, h, w) of
                 any sign; feature (1, C, h, w); indices (1, h, w), integers; bars (K,), at least 0; code (), its index
                 in the book `basis`; picture (h, w, 3) uint8, drawn as it is
    """
    kind: str
    title: str
    value: Tensor
    note: str = ''                    # numbers to print below
    unit: str = ''                    # of a heat; those of one unit share a scale
    basis: str = ''                   # features of one basis share the three directions drawn as red, green and blue
    points: Tensor | None = None      # (K, 2) in [-1, 1], keypoints to draw on an image
    columns: int = 1                  # width, in panels


class Row(NamedTuple):
    """Panels side by side under a caption; None leaves a cell empty."""
    caption: str
    panels: list[Panel | None]


class Figure(NamedTuple):
    """One sheet: file name without suffix, title, explanation, rows, and numbers for JSON."""
    name: str
    title: str
    text: str
    rows: list[Row]
    numbers: dict


@dataclass
class Moment:
    """One driving frame and its rendering, the input of all figures. Batches of one."""
    source: Tensor                         # (1, 3, H, W) in [-1, 1]
    driving: Tensor                        # likewise
    state: Any                             # SourceState
    driving_keypoints: Any                 # of the driving image
    keypoints: Any                         # the rendered ones, after motion transfer
    generated: Any                         # the output of `render`
    same_identity: bool                    # the driving frame is the ground truth
    at: tuple[int, int] | None = None      # (x, y) in pixels of the image, the position whose attention is shown

    @property
    def size(self):
        """Side of the images, pixels."""
        return self.source.shape[-1]

    def token(self, grid):
        """Index of `at` in a grid of grid x grid tokens."""
        x, y = (min(int(place * grid / self.size), grid - 1) for place in self.at)
        return y * grid + x


# ---------------------------------------------------------------------------- measures

def pixels(residual, size):
    """Length of a difference of flows (1, h, w, 2) in pixels of an image of this size: (1, 1, h, w)."""
    return (residual.float() * (size - 1) / 2).norm(dim=-1)[:, None]


def psnr(image, target):
    """PSNR in dB of images (1, 3, H, W) in [-1, 1], clamped and rounded to 8 bits as they are saved."""
    image, target = (((x.float().clamp(-1, 1) + 1) * 127.5).round() for x in (image, target))
    return float(10 * torch.log10(255 ** 2 / (image - target).square().mean()))


def difference(image, other):
    """Mean absolute difference over colours of images in [-1, 1], as a fraction of the range: (1, 1, H, W)."""
    return (image.float().clamp(-1, 1) - other.float().clamp(-1, 1)).abs().mean(1, keepdim=True) / 2


def spread_note(heat, unit=''):
    """'mean 0.41, max 3.2 px' of a heat."""
    return f'mean {float(heat.mean()):.3g}, max {float(heat.max()):.3g} {unit}'.rstrip()


def range_note(values):
    """'-0.3 to 1.2' of a map."""
    return f'{float(values.min()):.3g} to {float(values.max()):.3g}'


# ---------------------------------------------------------------------------- common figures

def common_figures(model, moment):
    return [motion_figure(moment), *([ablation_figure(model, moment)] if model.parts else [])]


def motion_figure(moment):
    """Keypoints; every flow of `Generated` with its residual, occlusion, and the source warped by it."""
    generated, size = moment.generated, moment.size
    rows = [Row('inputs and result', [
        Panel('image', 'source', moment.source, points=moment.state.keypoints.value[0]),
        Panel('image', 'driving', moment.driving, points=moment.driving_keypoints.value[0]),
        Panel('image', 'result', generated.prediction, points=moment.keypoints.value[0])])]
    numbers, before = {}, None
    for i, flow in enumerate(generated.flows):
        warped = Panel('image', f'source warped by M{i}', warp(moment.source, flow))
        occlusion = ([Panel('share', f'visible {i}', generated.occlusions[i],
                            f'mean {generated.occlusions[i].mean():.3f}')]
                     if i < len(generated.occlusions) else [])
        panels = [Panel('flow', f'flow M{i}', flow), warped, *occlusion]
        if before is not None:
            residual = flow - resize_flow(before, flow.shape[1:3])
            change = pixels(residual, size)
            panels += [Panel('residual', f'residual {i}', residual),
                       Panel('heat', f'length of residual {i}', change, spread_note(change, 'px'), unit='px')]
            numbers[f'flow {i}'] = {'change_px_mean': float(change.mean()), 'change_px_max': float(change.max())}
        rows.append(Row(f'scale {i}' if i else 'coarse', panels))
        before = flow
    numbers |= {f'visible {i}': float(occlusion.mean()) for i, occlusion in enumerate(generated.occlusions)}
    return Figure('motion', 'Motion', 'A flow gives, for every pixel of the result, the position in the source that it '
                  'is sampled from. M0 is the coarse flow; each further one adds its residual. Lengths are in pixels '
                  'of the image.',
                  rows, numbers)


def coarse_figure(moment):
    """Parts of the coarse flow, for methods whose Generated holds FOMM's `dense_motion`."""
    motion = moment.generated.dense_motion
    return Figure('coarse', 'Coarse flow',
                  'M0 is a weighted sum of the motions around each keypoint and of a static background.',
                  [Row('', [Panel('flow', 'flow M0', motion.flow),
                            Panel('indices', 'candidate motion', motion.mask.argmax(1),
                                  'largest weight; one colour per keypoint'),
                            Panel('share', 'keypoint heat maps', motion.driving_heatmaps.amax(1, keepdim=True))])], {})


def ablation_figure(model, moment):
    """The same frame with parts of the model switched off: all of one kind, then one by one."""
    kinds = {}
    for part in model.parts:
        kinds.setdefault(part.split()[0], []).append(part)

    full, numbers = moment.generated.prediction, {}

    def row(caption, without):
        panels = []
        for title, parts in without:
            made = model.render(model.without(moment.state, parts), moment.keypoints).prediction if parts else full
            change = difference(made, full)
            numbers[title] = {'change_mean': float(change.mean())}
            notes = [f'{100 * float(change.mean()):.2f} % changed'] if parts else []
            if moment.same_identity:
                numbers[title]['psnr'] = psnr(made, moment.driving)
                notes = [f'{numbers[title]["psnr"]:.2f} dB', *notes]
            panels.append((Panel('image', title, made, ', '.join(notes)),
                           Panel('heat', 'change', 100 * change, unit='% of range')))
        images, changes = zip(*panels)
        return [Row(caption, list(images)), Row('', list(changes))]

    rows = row('whole model, and without all parts of one kind',
               [('whole model', ()), *((f'no {kind}', parts) for kind, parts in kinds.items()),
                *([('none at all', model.parts)] if len(kinds) > 1 else [])])
    for kind, parts in kinds.items():
        if len(parts) > 1:
            rows += row(f'{kind}: without one scale', [(f'no {part}', (part,)) for part in parts])
    truth = 'PSNR with respect to the driving frame. ' if moment.same_identity else ''
    return Figure('ablation', 'Ablation at inference', f'The same frame without parts of the method. {truth}'
                  'Below: the difference from the whole model.', rows, numbers)


@contextmanager
def calls_of(module):
    """Yields a list to which every call of `module` in the body adds its positional arguments."""
    calls = []
    handle = module.register_forward_pre_hook(lambda _, arguments: calls.append(arguments))
    try:
        yield calls
    finally:
        handle.remove()
