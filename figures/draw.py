"""Drawing of the panels of figures/figure.py, with one colour scale per quantity and sheet."""

import colorsys
import math

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from figures.figure import pixels
from modules.warp import identity_grid
from visualizer import BACKGROUND, INK, draw_keypoints, enlarge, heat_to_rgb, motion_to_rgb, occlusion_to_rgb, to_uint8

EMPTY, FAINT, BAR = (52, 52, 52), (150, 150, 150), (99, 199, 207)
QUANTILE = 0.995             # of a quantity, at the end of its scale; larger values are clipped
LEAST_PX = 1                 # smallest full scale of lengths, so that less than a pixel does not look like motion
ARROWS = 12                  # along each side of a picture
BLEND = 0.65                 # opacity of index colours over the image
GOLDEN = 0.618034            # of the hue circle between neighbouring indices, so that they are far apart


# ---------------------------------------------------------------------------- scales of a sheet

class Scales:
    """Colour scales of one sheet, shared by all its panels of one kind.

    panels: those of the sheet; size: side of the images, pixels
    windows: {(book, code): (w, w, 3) uint8}, image windows that stand for codes
    least:  smallest full scale of lengths, pixels
    motion: {'flow' and 'residual': image pixels drawn fully saturated}; separate, as residuals are much smaller
    heat:   {unit: value drawn white}
    maps:   {unit: (value drawn black, value drawn white)}
    bases:  {basis: Basis}
    """

    def __init__(self, panels, size, windows=None, least=LEAST_PX):
        self.size, self.windows = size, windows or {}
        lengths, heats, maps, features = {}, {}, {}, {}
        for panel in panels:
            if panel.kind in ('flow', 'residual'):
                lengths.setdefault(panel.kind, []).append(pixels(residual(panel), size).flatten())
            elif panel.kind == 'heat':
                heats.setdefault(panel.unit, []).append(panel.value.float().flatten())
            elif panel.kind == 'map' and panel.unit:
                maps.setdefault(panel.unit, []).append(panel.value.float().flatten())
            elif panel.kind == 'feature':
                features.setdefault(panel.basis, []).append(panel.value)
        self.motion = {kind: round_up(max(_largest(values), least)) for kind, values in lengths.items()}
        self.heat = {unit: round_up(max(_largest(values), least if unit == 'px' else 0))
                     for unit, values in heats.items()}
        self.maps = {unit: (float(torch.cat(values).min()), float(torch.cat(values).max()))
                     for unit, values in maps.items()}
        self.bases = {name: Basis(values) for name, values in features.items()}

    def as_json(self):
        return {'full_colour_px': self.motion, 'heat_white': self.heat, 'map_black_white': self.maps}


class Basis:
    """The three directions in which features vary most, drawn as red, green and blue.

    features: tensors (1, C, h, w) of one C, of any size
    """

    def __init__(self, features):
        vectors = torch.cat([_vectors(feature) for feature in features])                    # (N, C)
        self.mean = vectors.mean(0)
        directions = torch.linalg.svd(vectors - self.mean, full_matrices=False).Vh[:3]
        # The sign of a principal direction is arbitrary: make its largest entry positive, so that colours repeat.
        self.directions = directions * directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()
        projected = (vectors - self.mean) @ self.directions.T
        self.low, self.high = projected.quantile(0.01, 0), projected.quantile(0.99, 0)

    def colours(self, feature):
        """(1, C, h, w) -> (h, w, 3) uint8; grey without variation."""
        projected = (_vectors(feature) - self.mean) @ self.directions.T
        span = self.high - self.low
        share = torch.where(span > 1e-6, (projected - self.low) / span.clamp(min=1e-6), 0.5).clamp(0, 1)
        rgb = torch.full((len(share), 3), 0.5)
        rgb[:, :share.shape[1]] = share
        return (255 * rgb).round().byte().view(*feature.shape[2:], 3).numpy()


def _vectors(feature):
    return feature[0].detach().float().cpu().flatten(1).T


def _largest(amounts):
    """The QUANTILE of tensors of values."""
    amounts = torch.cat(amounts).float().cpu().sort().values
    return float(amounts[math.ceil(QUANTILE * (len(amounts) - 1))])


def residual(panel):
    """(1, h, w, 2) float32: the displacement of a flow, or a residual unchanged."""
    value = panel.value.detach().float().cpu()
    return value - identity_grid(value.shape[1:3], value) if panel.kind == 'flow' else value


def round_up(value):
    """Round up to 1, 1.5, 2, 3, 5 or 7 times a power of ten, for readable legends; 0 becomes 1."""
    if not value > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(float(f'{step * power:.3g}') for step in (1, 1.5, 2, 3, 5, 7, 10) if value <= step * power * (1 + 1e-6))


# ---------------------------------------------------------------------------- panels

def draw_panel(panel, scales, cell, arrows=False):
    """One panel as a picture (cell, W, 3) uint8."""
    return DRAWN_AS[panel.kind](panel, scales, cell, arrows)


def _image(panel, scales, cell, arrows):
    picture = enlarge(to_uint8(panel.value)[0], cell)
    return picture if panel.points is None else draw_keypoints(picture, panel.points.detach().float().cpu().numpy())


def _flow(panel, scales, cell, arrows):
    motion = (residual(panel) * (scales.size - 1) / 2).permute(0, 3, 1, 2).numpy()           # in pixels of the image
    picture = enlarge(motion_to_rgb(motion / scales.motion[panel.kind])[0], cell)
    return draw_arrows(picture, motion[0] * cell / scales.size) if arrows else picture


def _share(panel, scales, cell, arrows):
    return enlarge(occlusion_to_rgb(panel.value)[0], cell)


def _heat(panel, scales, cell, arrows):
    amount = panel.value[0, 0].detach().float().cpu().numpy() / scales.heat[panel.unit]
    return enlarge(heat_to_rgb(amount), cell)


def _map(panel, scales, cell, arrows):
    amount = panel.value[0, 0].detach().float().cpu().numpy()
    low, high = scales.maps.get(panel.unit) or (amount.min(), amount.max())
    share = (amount - low) / max(high - low, 1e-12)
    return enlarge(np.repeat((255 * share[..., None]).round().astype(np.uint8), 3, axis=-1), cell)


def _feature(panel, scales, cell, arrows):
    return enlarge(scales.bases[panel.basis].colours(panel.value), cell)


def _indices(panel, scales, cell, arrows):
    picture = enlarge(index_colours(panel.value[0].cpu().numpy()), cell)
    if panel.under is None:
        return picture
    below = enlarge(to_uint8(panel.under)[0], cell)
    return (BLEND * picture + (1 - BLEND) * below).round().astype(np.uint8)


def _bars(panel, scales, cell, arrows):
    return draw_bars(panel.value.detach().float().cpu().numpy(), cell, cell)


def _code(panel, scales, cell, arrows):
    window = scales.windows.get((panel.basis, int(panel.value)))
    if window is not None:
        return enlarge(window, cell)
    picture = Image.new('RGB', (cell, cell), EMPTY)
    ImageDraw.Draw(picture).text((cell / 2, cell / 2), str(int(panel.value)), INK, ImageFont.load_default(cell // 5),
                                 'mm')
    return np.asarray(picture)


DRAWN_AS = {'image': _image, 'flow': _flow, 'residual': _flow, 'share': _share, 'heat': _heat, 'map': _map,
            'feature': _feature, 'indices': _indices, 'bars': _bars, 'code': _code}


# ---------------------------------------------------------------------------- parts of pictures

def index_colours(indices):
    """Integers (...) -> (..., 3) uint8: equal colours for equal numbers, distant ones for neighbours."""
    numbers, places = np.unique(indices, return_inverse=True)
    colours = [colorsys.hsv_to_rgb(i * GOLDEN % 1, 0.45 + 0.55 * (i * 0.37 % 1), 0.55 + 0.45 * (i * 0.23 % 1))
               for i in numbers.tolist()]
    return (255 * np.array(colours)).round().astype(np.uint8)[places.reshape(indices.shape)]


def draw_arrows(picture, motion):
    """A copy of `picture` (H, W, 3) with arrows of `motion` (2, h, w), x and y in pixels of the picture.

    An arrow points from a pixel to the position it is sampled from; motion below one pixel is a dot.
    """
    picture = Image.fromarray(picture)
    draw = ImageDraw.Draw(picture)
    for j in range(ARROWS):
        for i in range(ARROWS):
            x, y = (i + 0.5) * picture.width / ARROWS, (j + 0.5) * picture.height / ARROWS
            row, column = int(y / picture.height * motion.shape[1]), int(x / picture.width * motion.shape[2])
            dx, dy = motion[:, row, column].tolist()
            if math.hypot(dx, dy) < 1:
                draw.point((x, y), (90, 90, 90))
                continue
            tip, angle = (x + dx, y + dy), math.atan2(dy, dx)
            draw.line((x, y, *tip), (0, 0, 0))
            for turn in (2.6, -2.6):
                draw.line((*tip, tip[0] + 4 * math.cos(angle + turn), tip[1] + 4 * math.sin(angle + turn)), (0, 0, 0))
    return np.asarray(picture)


def draw_bars(values, width, height, marks=()):
    """A bar chart of `values` (K,), at least 0, over the whole width; zeros are marked in red at the bottom.

    marks: positions between bars to draw a thin line at
    """
    picture = Image.new('RGB', (width, height), EMPTY)
    draw = ImageDraw.Draw(picture)
    top, foot = max(float(values.max()), 1e-12), 4
    edges = np.linspace(0, width, len(values) + 1)
    for value, left, right in zip(values, edges, edges[1:]):
        left, right = int(left), max(int(right) - (right - left >= 3), int(left) + 1) - 1
        if value > 0:
            tall = max(1, round(float(value) / top * (height - foot - 4)))
            draw.rectangle((left, height - foot - tall, right, height - foot - 1), BAR)
        else:
            draw.rectangle((left, height - foot, right, height - 1), (200, 60, 40))
    for mark in marks:
        draw.line((edges[mark], 0, edges[mark], height), FAINT)
    return np.asarray(picture)


def colour_wheel(side):
    """(side, side, 3) uint8: the colours of displacements around the centre, up to full saturation."""
    axis = (np.arange(side) + 0.5) / side * 2 - 1
    x, y = np.meshgrid(axis, axis)
    wheel = motion_to_rgb(np.stack([x, y])[None])[0]
    wheel[np.hypot(x, y) > 1] = BACKGROUND
    return wheel


def heat_scale(width, height):
    """(height, width, 3) uint8: the colours of a heat from 0 to white."""
    return np.repeat(heat_to_rgb(np.linspace(0, 1, width))[None], height, axis=0)


def wrapped(text, font, width):
    """`text` as lines of at most `width` pixels; longer words are broken."""
    lines = []
    for word in text.split():
        if lines and font.getlength(f'{lines[-1]} {word}') <= width:
            lines[-1] += f' {word}'
            continue
        while font.getlength(word) > width and len(word) > 1:
            fits = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
            lines.append(word[:fits])
            word = word[fits:]
        lines.append(word)
    return lines
