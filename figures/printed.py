"""The printed figure of a comparison at 300 dpi, PNG and PDF: rows of frames under column titles."""

from dataclasses import dataclass, field
from textwrap import wrap

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from support.errors import UserError
from support.files import write_picture, written_whole
from visualizer import FULL_ERROR, heat_to_rgb

DPI = 300
GAP, EDGE = 6, 12                # between cells, around the figure; pixels
FONT, TITLE, NOTE = 'DejaVu Sans', 7.5, 6     # heights of text in points
LINE, LETTER = 1.35, 0.6         # height of a line and mean width of a letter, in heights of its text
MOST_CM, LEAST_CELL = 200, 60    # widths: of a figure in cm, of a cell in pixels
MOST_PIXELS = 2 ** 15            # height of all frames; Matplotlib draws 2^16 with all that stands below them
# background, text, faint text
COLOURS = {'white': ('#ffffff', '#141414', '#5a5a5a'), 'dark': ('#181818', '#ebebeb', '#969696')}
BOX = (225, 30, 30)              # colour of the frame around a region that is enlarged below


@dataclass
class Cell:
    """One cell of the figure.

    frame: (H, W, 3) uint8
    zoom:  (x, y, w, h) in pixels of the frame, a region to enlarge below it, or None
    error: (H, W, 3) uint8, an error map to show below, or None
    notes: lines of text below
    """
    frame: np.ndarray
    zoom: tuple[int, int, int, int] | None = None
    error: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class FigureStyle:
    """Width in print, and background: one of COLOURS."""
    width_cm: float = 17.5
    background: str = 'white'

    def check(self, columns, shape, rows):
        """UserError for an unknown background, or for more columns or rows of frames (H, W, 3) than fit."""
        if self.background not in COLOURS:
            raise UserError(f'--background {self.background}: expected {" or ".join(COLOURS)}')
        if not 0 < self.width_cm <= MOST_CM or self.cell(columns) < LEAST_CELL:
            raise UserError(f'--width_cm {self.width_cm:g}: {columns} columns do not fit, or it exceeds {MOST_CM}')
        if rows * self.cell(columns) * shape[0] / shape[1] > MOST_PIXELS:
            raise UserError(f'{rows} rows do not fit in one figure; give fewer --pairs or --frames')

    @property
    def width(self):
        """Pixels."""
        return round(self.width_cm / 2.54 * DPI)

    def cell(self, columns):
        """Width of a cell in pixels."""
        return (self.width - 2 * EDGE - (columns - 1) * GAP) // columns


class PrintedFigure:
    """Lays out rows of Cells from top to bottom, then draws them with Matplotlib.

    boxes: one list per row, with {'frame', 'zoom', 'error': (x0, y0, x1, y1) in pixels of the figure} per column
    """

    def __init__(self, style, titles):
        self.width, self.cell = style.width, style.cell(len(titles))
        self.ground, self.ink, self.faint = COLOURS[style.background]
        self.y, self.pictures, self.texts, self.boxes = EDGE, [], [], []
        lines = [_wrapped(title, TITLE, self.cell) for title in titles]
        most = max(map(len, lines))
        self._columns([[''] * (most - len(texts)) + texts for texts in lines], TITLE)

    def row(self, cells):
        """Append a row: a Cell for each column, all frames of one shape."""
        height = round(self.cell * cells[0].frame.shape[0] / cells[0].frame.shape[1])
        self.boxes.append([{} for _ in cells])
        self._strip('frame', [_marked(cell, self.cell, height) for cell in cells])
        self._strip('zoom', [cell.zoom and _enlarged(cell, self.cell) for cell in cells])
        self._strip('error', [None if cell.error is None else _resized(cell.error, self.cell, height)
                              for cell in cells])
        self._columns([[line for note in cell.notes for line in _wrapped(note, NOTE, self.cell)] for cell in cells],
                      NOTE)
        self.y += GAP

    def caption(self, text, left=EDGE):
        """Append a paragraph."""
        for line in _wrapped(text, NOTE, self.width - left - EDGE):
            self.texts.append((left, self.y, line, NOTE, self.faint, 'left'))
            self.y += _line(NOTE)

    def error_scale(self):
        """Append the legend of error maps."""
        bar = np.repeat(heat_to_rgb(np.linspace(0, 1, self.cell))[None], round(_line(NOTE) * 0.6), axis=0)
        self.pictures.append((bar, EDGE, self.y + (_line(NOTE) - len(bar)) // 2))
        self.caption(f'mean absolute error over RGB, 0 to {FULL_ERROR:g} of the range', EDGE + self.cell + 2 * GAP)

    def save(self, path):
        """Write PATH.png and PATH.pdf, each whole or not at all."""
        height = self.y + EDGE
        # A hundredth of a pixel more: the canvas is cut to whole pixels after a division.
        figure = Figure(((self.width + 0.01) / DPI, (height + 0.01) / DPI), facecolor=self.ground)

        def place(left, top, width=0, tall=0):
            return left / self.width, 1 - (top + tall) / height, width / self.width, tall / height

        for picture, left, top in self.pictures:
            axes = figure.add_axes(place(left, top, picture.shape[1], len(picture)))
            axes.imshow(picture, interpolation='none', aspect='auto')
            axes.set_axis_off()
        for left, top, text, points, colour, align in self.texts:
            x, y, _, _ = place(left, top + points * DPI / 72)
            figure.text(x, y, text, fontsize=points, color=colour, ha=align, fontfamily=FONT, parse_math=False)
        with matplotlib.rc_context({'pdf.fonttype': 42}):     # text as text, in the font's own outlines
            for kind, metadata in (('png', None), ('pdf', {'CreationDate': None})):
                with written_whole(path.with_name(f'{path.name}.{kind}')) as unfinished:
                    write_picture(unfinished, figure.savefig, format=kind, dpi=DPI, metadata=metadata)

    def _left(self, column):
        return EDGE + column * (self.cell + GAP)

    def _strip(self, name, pictures):
        """Pictures of the width of a cell, or None, side by side."""
        there = [(column, picture) for column, picture in enumerate(pictures) if picture is not None]
        for column, picture in there:
            left = self._left(column)
            self.pictures.append((picture, left, self.y))
            self.boxes[-1][column][name] = left, self.y, left + self.cell, self.y + len(picture)
        self.y += max((len(picture) + GAP for _, picture in there), default=0)

    def _columns(self, lines, points):
        """Lines of text centred in each column."""
        for column, texts in enumerate(lines):
            middle = self._left(column) + self.cell / 2
            self.texts += [(middle, self.y + i * _line(points), text, points, self.ink, 'center')
                           for i, text in enumerate(texts)]
        self.y += max(map(len, lines)) * _line(points)


def _marked(cell, width, height):
    """The frame at this size with a box around the region that is enlarged."""
    picture = _resized(cell.frame, width, height)
    if cell.zoom is None:
        return picture
    x, y, w, h = (side * width / cell.frame.shape[1] for side in cell.zoom)
    marked, line = Image.fromarray(picture), max(2, round(width / 150))
    ImageDraw.Draw(marked).rectangle((round(x) - line, round(y) - line, round(x + w) + line - 1,
                                      round(y + h) + line - 1), outline=BOX, width=line)
    return np.asarray(marked)


def _enlarged(cell, width):
    """The region at the width of a cell."""
    x, y, w, h = cell.zoom
    return _resized(cell.frame[y:y + h, x:x + w], width, round(width * h / w))


def _resized(picture, width, height):
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize((width, height), Image.Resampling.BICUBIC))


def _wrapped(text, points, width):
    """`text` as lines of about `width` pixels at most."""
    return wrap(text, max(int(width / (LETTER * points * DPI / 72)), 1))


def _line(points):
    """Height of a line in pixels."""
    return round(points * DPI / 72 * LINE)
