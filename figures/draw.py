"""Drawing of a Figure as one sheet, with one colour scale per quantity."""

import colorsys
import math

import numpy as np
import torch

from figures.figure import pixels
from figures.sheet import Cell, Look, Sheet
from modules.warp import identity_grid
from support.files import encoded
from visualizer import draw_keypoints, enlarge, heat_to_rgb, motion_to_rgb, occlusion_to_rgb, to_uint8

LOOK = Look('#181818', '#ebebeb', '#969696')
CELL = 1.9                   # width of a panel, inches
COLUMNS = 4                  # least width of a sheet, in panels
QUANTILE = 0.995             # of a quantity, at the end of its scale; larger values are clipped
LEAST_PX = 1                 # smallest full scale of lengths, so that less than a pixel does not look like motion
GOLDEN = 0.618034            # of the hue circle between neighbouring indices, so that they are far apart


# ---------------------------------------------------------------------------- scales of a sheet

class Scales:
    """Colour scales of one sheet, shared by all its panels of one kind.

    panels:  those of the sheet; size: side of the images, pixels
    windows: {(book, code): (w, w, 3) uint8}, image windows that stand for codes

    motion:  {'flow' and 'residual': image pixels drawn fully saturated}; separate, as residuals are much smaller
    heat:    {unit: value drawn white}
    bases:   {basis: Basis}
    """

    def __init__(self, panels, size, windows=None):
        self.size, self.windows = size, windows or {}
        lengths, heats, features = {}, {}, {}
        for panel in panels:
            if panel.kind in ('flow', 'residual'):
                lengths.setdefault(panel.kind, []).append(pixels(residual(panel), size).flatten())
            elif panel.kind == 'heat':
                heats.setdefault(panel.unit, []).append(panel.value.float().flatten())
            elif panel.kind == 'feature':
                features.setdefault(panel.basis, []).append(panel.value)
        self.motion = {kind: round_up(max(_largest(values), LEAST_PX)) for kind, values in lengths.items()}
        self.heat = {unit: round_up(max(_largest(values), LEAST_PX if unit == 'px' else 0))
                     for unit, values in heats.items()}
        self.bases = {name: Basis(values) for name, values in features.items()}

    def as_json(self):
        return {'full_colour_px': self.motion, 'heat_white': self.heat}

    def legend(self):
        """Sentences on the colours of the sheet."""
        if self.motion:
            full = ', '.join(f'{kind} {amount:g} px' for kind, amount in self.motion.items())
            yield ('Flow: hue is the direction in which the source is sampled, red to the right, green down; white '
                   f'does not move; full colour at {full}')
        if self.heat:
            yield 'Black is 0; white is ' + ', '.join(f'{full:g} {unit}' for unit, full in self.heat.items())
        if self.bases:
            yield 'Features: red, green and blue are the principal directions shared by the panels of a row'


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
    """The QUANTILE of all values: the upper end of a colour scale."""
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

def picture_of(panel, scales):
    """One panel as a picture (h, w, 3) uint8; bars as they are, (K,)."""
    value = panel.value.detach().cpu()
    if panel.kind in ('picture', 'bars'):
        return value.numpy()
    if panel.kind == 'image':
        image = to_uint8(value)[0]
        return image if panel.points is None else draw_keypoints(enlarge(image), panel.points.float().cpu().numpy())
    if panel.kind in ('flow', 'residual'):
        motion = residual(panel).permute(0, 3, 1, 2).numpy() * (scales.size - 1) / 2         # in pixels of the image
        return motion_to_rgb(motion / scales.motion[panel.kind])[0]
    if panel.kind == 'share':
        return occlusion_to_rgb(value)[0]
    if panel.kind == 'heat':
        return heat_to_rgb(value[0, 0].float().numpy() / scales.heat[panel.unit])
    if panel.kind == 'map':
        return occlusion_to_rgb((value - value.min()) / (value.max() - value.min()).clamp(min=1e-12))[0]
    if panel.kind == 'feature':
        return scales.bases[panel.basis].colours(value)
    if panel.kind == 'indices':
        return index_colours(value[0].numpy())
    return scales.windows.get((panel.basis, int(value)), np.zeros((1, 1, 3), np.uint8))       # 'code'


def index_colours(indices):
    """Integers (...) -> (..., 3) uint8: equal colours for equal numbers, distant ones for neighbours."""
    numbers, places = np.unique(indices, return_inverse=True)
    colours = [colorsys.hsv_to_rgb(i * GOLDEN % 1, 0.45 + 0.55 * (i * 0.37 % 1), 0.55 + 0.45 * (i * 0.23 % 1))
               for i in numbers.tolist()]
    return (255 * np.array(colours)).round().astype(np.uint8)[places.reshape(indices.shape)]


# ---------------------------------------------------------------------------- the sheet

def draw(figure, size, windows=None):
    """(PNG of a Figure as bytes, its Scales).

    size:    side of the model's images, pixels
    windows: {(book, code): (w, w, 3) uint8}, image windows that stand for codes
    """
    scales = Scales([panel for row in figure.rows for panel in row.panels if panel], size, windows)
    columns = max(COLUMNS, *(sum(panel.columns if panel else 1 for panel in row.panels) for row in figure.rows))
    sheet = Sheet(columns * (CELL + LOOK.gap) + LOOK.gap, columns, LOOK)
    sheet.text(figure.title, LOOK.ink, 13)
    sheet.text(figure.text)
    for row in figure.rows:
        sheet.y += LOOK.gap
        sheet.text(row.caption, LOOK.ink)
        sheet.row([panel and Cell(picture_of(panel, scales), panel.title, panel.note, panel.columns)
                   for panel in row.panels])
    for sentence in scales.legend():
        sheet.text(f'{sentence}.')
    return encoded(sheet.finished().savefig, format='png'), scales
