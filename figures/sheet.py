"""Layout of a Figure as one sheet: title, rows of panels with texts, legends."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from figures.draw import FAINT, Scales, colour_wheel, draw_panel, heat_scale, wrapped
from visualizer import BACKGROUND, CELL, INK

LARGE_CELL = 256             # side of a cell for models of this size and above
HEADING, TEXT = 20, 14       # heights of text, pixels
LINE = TEXT + 6              # height of a line of text, pixels
GAP, EDGE = 12, 16           # between cells; around the sheet
WHEEL, BAR = 96, (160, 14)   # sizes of legends, pixels


def draw_sheet(figure, size, arrows=False, windows=None):
    """(the Figure as a picture (H, W, 3) uint8, its Scales).

    size:    side of the model's images, pixels
    arrows:  draw arrows over flows
    windows: {(book, code): (w, w, 3) uint8}, image windows that stand for codes
    """
    scales = Scales([panel for row in figure.rows for panel in row.panels if panel], size, windows)
    cell = CELL if size <= CELL else LARGE_CELL
    columns = max(len(row.panels) for row in figure.rows)
    width = max(2 * EDGE + columns * (cell + GAP) - GAP, 3 * CELL + 2 * EDGE)
    writer = Writer(width, figure.title, figure.text)
    for row in figure.rows:
        if row.caption:
            writer.text(row.caption, TEXT, INK)
        writer.row([panel and (panel.title, draw_panel(panel, scales, cell, arrows), panel.note)
                    for panel in row.panels], cell)
    _legend(writer, scales, any(panel and panel.kind == 'indices' for row in figure.rows for panel in row.panels))
    return writer.sheet(), scales


class Writer:
    """Lays out a sheet from top to bottom, under a title and a text, and draws it once its height is known.

    y: top of the next row, pixels
    """

    def __init__(self, width, title, text):
        self.width, self.y, self.parts = width, EDGE, []
        self.text(title, HEADING, INK)
        self.text(text, TEXT, FAINT)
        self.y += GAP

    def text(self, text, height, colour, left=EDGE, width=None):
        """Append a wrapped paragraph."""
        self.y = self.write(text, height, colour, left, self.y, width or self.width - left - EDGE)

    def row(self, cells, side):
        """Append cells (title, picture, note) or None, side by side: titles above, notes below the pictures."""
        font = ImageFont.load_default(TEXT)
        texts = [cell and (wrapped(cell[0], font, side), wrapped(cell[2], font, side)) for cell in cells]
        above, below = (max(len(text[i]) for text in texts if text) * LINE for i in range(2))
        for i, (cell, text) in enumerate(zip(cells, texts)):
            if cell is None:
                continue
            left = EDGE + i * (side + GAP)
            self._lines(text[0], TEXT, INK, left, self.y + above - LINE * len(text[0]))
            self.picture(cell[1], left, self.y + above)
            self._lines(text[1], TEXT, FAINT, left, self.y + above + side + 4)
        self.y += above + side + 4 + below + GAP

    def picture(self, picture, left, top):
        self.parts.append((Image.fromarray(picture), left, top))

    def write(self, text, height, colour, left, top, width):
        """Write a wrapped paragraph at a position; returns the top of the next line."""
        return self._lines(wrapped(text, ImageFont.load_default(height), width), height, colour, left, top)

    def _lines(self, lines, height, colour, left, top):
        for line in lines:
            self.parts.append((line, height, colour, left, top))
            top += height + 6
        return top

    def sheet(self):
        sheet = Image.new('RGB', (self.width, self.y + EDGE), BACKGROUND)
        draw = ImageDraw.Draw(sheet)
        for part in self.parts:
            if isinstance(part[0], str):
                text, height, colour, left, top = part
                draw.text((left, top), text, colour, ImageFont.load_default(height))
            else:
                sheet.paste(part[0], part[1:])
        return np.asarray(sheet)


def _legend(writer, scales, has_indices):
    """Append the legends of all colours."""
    top, left = writer.y + GAP, EDGE
    ends = [top]
    if scales.motion:
        writer.picture(colour_wheel(WHEEL), left, top)
        writer.y = top
        full = ', '.join(f'{kind} {amount:g} px' for kind, amount in scales.motion.items())
        writer.text('Hue: direction in which the source is sampled, from the centre of the wheel. White: no motion. '
                    f'Full colour at: {full}.', TEXT, FAINT,
                    left + WHEEL + GAP, min(300, writer.width - left - WHEEL - GAP - EDGE))
        ends += [writer.y, top + WHEEL]
        left += WHEEL + 300 + 3 * GAP
    if left + BAR[0] + 120 > writer.width:
        top, left = max(ends) + GAP, EDGE
    writer.y = top
    for unit, full in scales.heat.items():
        writer.picture(heat_scale(*BAR), left, writer.y + 3)
        writer.text(f'0 to {full:g} {unit}', TEXT, FAINT, left + BAR[0] + GAP)
    for unit, (low, high) in scales.maps.items():
        writer.text(f'{unit}: black {low:.3g}, white {high:.3g}', TEXT, FAINT, left)
    if scales.bases:
        writer.text('Features: red, green and blue are their three principal directions, shared by the panels of a '
                    'scale.', TEXT, FAINT, left)
    if has_indices:
        writer.text('Indices: one colour per number.', TEXT, FAINT, left)
    writer.y = max(*ends, writer.y)
