"""A comparison as one figure for print: columns of one width, each cell a frame with what belongs below it."""

from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from figures.draw import heat_scale, wrapped
from figures.pdf import as_pdf
from support.errors import UserError
from support.files import write_picture, written_whole
from visualizer import FULL_ERROR

DPI = 300                        # of print
GAP, EDGE = 6, 12                # between cells, around the figure; pixels
TITLE, NOTE, AIR = 8, 6.5, 0.35  # heights of text in points; air of a line, as a share of its height
MOST_CM = 200                    # of a figure's width
LEAST_CELL = 60                  # pixels; less is no picture
PAPERS = {'white': ((255, 255, 255), (20, 20, 20), (90, 90, 90)),        # background, text, faint text
          'dark': ((24, 24, 24), (235, 235, 235), (150, 150, 150))}
BOX = (225, 30, 30)              # of a region that is enlarged below


@dataclass
class Cell:
    """One place of the figure.

    frame: (H, W, 3) uint8
    zoom:  (x, y, w, h) in pixels of the frame, a region that is enlarged below it; None for none
    error: (H, W, 3) uint8, where it differs from the truth, or None
    notes: lines of text below
    """
    frame: np.ndarray
    zoom: tuple[int, int, int, int] | None = None
    error: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Paper:
    """width_cm: of the printed figure; background: one of PAPERS."""
    width_cm: float = 17.5
    background: str = 'white'

    def check(self, columns):
        """UserError where so many columns do not fit, or there is no such background."""
        if self.background not in PAPERS:
            raise UserError(f'--background {self.background}: expected {" or ".join(PAPERS)}')
        if not 0 < self.width_cm <= MOST_CM or self.cell(columns) < LEAST_CELL:
            raise UserError(f'--width_cm {self.width_cm:g}: {columns} columns do not fit, or it is more than {MOST_CM}')

    @property
    def width(self):
        """Pixels."""
        return round(self.width_cm / 2.54 * DPI)

    def cell(self, columns):
        """Width of a cell in pixels."""
        return (self.width - 2 * EDGE - (columns - 1) * GAP) // columns


class Plate:
    """Draws rows of Cells under the titles of their columns.

    boxes: of each row so far, for each column {'frame', 'zoom', 'error': (x0, y0, x1, y1) in pixels of the figure}
    """

    def __init__(self, paper, titles):
        self.paper, self.cell = paper, paper.cell(len(titles))
        self.background, self.ink, self.faint = PAPERS[paper.background]
        self.y, self.parts, self.boxes = EDGE, [], []
        lines = [wrapped(title, _font(TITLE), self.cell) for title in titles]
        below = self.y + max(map(len, lines)) * _line(TITLE)
        for column, texts in enumerate(lines):
            self._centred(texts, TITLE, self.ink, column, below - len(texts) * _line(TITLE))
        self.y = below

    def row(self, cells):
        """The next row: a Cell or None for each column."""
        height = round(self.cell * cells[0].frame.shape[0] / cells[0].frame.shape[1])
        boxes = [{} for _ in cells]
        self._strip('frame', [cell and (_marked(cell, self.cell, height), height) for cell in cells], boxes)
        self._strip('zoom', [cell and cell.zoom and _enlarged(cell, self.cell) for cell in cells], boxes)
        self._strip('error', [cell and cell.error is not None and (_resized(cell.error, self.cell, height), height)
                              for cell in cells], boxes)
        lines = [[line for note in cell.notes for line in wrapped(note, _font(NOTE), self.cell)] if cell else []
                 for cell in cells]
        for column, texts in enumerate(lines):
            self._centred(texts, NOTE, self.ink, column, self.y)
        self.y += max(map(len, lines)) * _line(NOTE) + GAP
        self.boxes.append(boxes)

    def _strip(self, name, pictures, boxes):
        """Pictures (array, height) side by side, where there are any."""
        if not any(pictures):
            return
        for column, picture in enumerate(pictures):
            if picture:
                left = EDGE + column * (self.cell + GAP)
                self.parts.append((picture[0], left, self.y))
                boxes[column][name] = left, self.y, left + self.cell, self.y + picture[1]
        self.y += max(height for _, height in filter(None, pictures)) + GAP

    def caption(self, text):
        """A paragraph over the whole width."""
        for line in wrapped(text, _font(NOTE), self.paper.width - 2 * EDGE):
            self.parts.append((line, NOTE, self.faint, EDGE, self.y))
            self.y += _line(NOTE)

    def error_scale(self):
        """What the colours of error maps mean."""
        height = round(_line(NOTE) * 0.6)
        self.parts.append((heat_scale(self.cell, height), EDGE, self.y + (_line(NOTE) - height) // 2))
        self.parts.append((f'mean absolute error over RGB, 0 to {FULL_ERROR:g} of the range', NOTE, self.faint,
                           EDGE + self.cell + 2 * GAP, self.y))
        self.y += _line(NOTE)

    def _centred(self, lines, points, colour, column, top):
        for line in lines:
            left = EDGE + column * (self.cell + GAP) + (self.cell - _font(points).getlength(line)) / 2
            self.parts.append((line, points, colour, round(left), top))
            top += _line(points)

    def picture(self):
        """The figure, (H, W, 3) uint8."""
        plate = Image.new('RGB', (self.paper.width, self.y + EDGE), self.background)
        draw = ImageDraw.Draw(plate)
        for part in self.parts:
            if isinstance(part[0], str):
                text, points, colour, left, top = part
                draw.text((left, top), text, colour, _font(points))
            else:
                plate.paste(Image.fromarray(part[0]), part[1:])
        return np.asarray(plate)


def save_for_print(path, picture):
    """Write PATH.png and PATH.pdf at DPI, each whole or not at all."""
    with written_whole(path.with_name(f'{path.name}.png')) as unfinished:
        write_picture(unfinished, Image.fromarray(picture).save, format='PNG', dpi=(DPI, DPI))
    with written_whole(path.with_name(f'{path.name}.pdf')) as unfinished:
        unfinished.write_bytes(as_pdf(picture, DPI))


# ---------------------------------------------------------------------------- parts

def _marked(cell, width, height):
    """The frame at the size of the figure, a box around the region that is enlarged."""
    picture = _resized(cell.frame, width, height)
    if cell.zoom is None:
        return picture
    x, y, w, h = (side * width / cell.frame.shape[1] for side in cell.zoom)
    marked, line = Image.fromarray(picture), max(2, round(width / 150))
    ImageDraw.Draw(marked).rectangle((round(x) - line, round(y) - line, round(x + w) + line - 1,
                                      round(y + h) + line - 1), outline=BOX, width=line)
    return np.asarray(marked)


def _enlarged(cell, width):
    """(the region, its height) at the width of a cell."""
    x, y, w, h = cell.zoom
    height = round(width * h / w)
    return _resized(cell.frame[y:y + h, x:x + w], width, height), height


def _resized(picture, width, height):
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize((width, height), Image.Resampling.BICUBIC))


def _font(points):
    return ImageFont.load_default(points * DPI / 72)


def _line(points):
    """Height of a line in pixels."""
    return round(points * DPI / 72 * (1 + AIR))
