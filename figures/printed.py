"""The printed figure of a comparison at 300 dpi, PNG and PDF: rows of frames under column titles."""

from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from figures.sheet import Cell, Look, Sheet
from support.errors import UserError
from support.files import encoded, write_bytes
from visualizer import FULL_ERROR

DPI = 300
LOOK = Look('#ffffff', '#141414', '#5a5a5a', dpi=DPI, gap=0.03, points=6.5, align='center')
MOST_CM, LEAST_CM = 200, 0.5     # widths of a figure and of a column
MOST_PIXELS = 2 ** 15            # height of all frames; Matplotlib draws 2^16 with all that stands below them
BOX = (225, 30, 30)              # colour of the frame around a region that is enlarged below


class Shown(NamedTuple):
    """A frame of the figure."""
    frame: np.ndarray                                  # (H, W, 3) uint8
    zoom: tuple[int, int, int, int] | None = None      # (x, y, w, h) in pixels of the frame, a region to enlarge below
    error: np.ndarray | None = None                    # (H, W, 3) uint8, an error map to show below
    note: str = ''                                     # text below


def check_size(width_cm, columns, shape, rows):
    """UserError for more columns or rows of frames (H, W, 3) than fit a figure of this width."""
    if not LEAST_CM * columns <= width_cm <= MOST_CM:
        raise UserError(f'--width_cm {width_cm:g}: {columns} columns do not fit, or it exceeds {MOST_CM}')
    if rows * width_cm / 2.54 * DPI / columns * shape[0] / shape[1] > MOST_PIXELS:
        raise UserError(f'{rows} rows do not fit in one figure; give fewer --pairs or --frames')


def print_figure(path, width_cm, titles, rows, caption):
    """Write PATH.png and PATH.pdf, each whole or not at all; rows: lists of Shown, all of one shape in a row."""
    sheet = Sheet(width_cm / 2.54, len(titles), LOOK)
    for i, row in enumerate(rows):
        sheet.row([Cell(_marked(shown), '' if i else title, shown.note) for shown, title in zip(row, titles)])
        zoomed = [shown.zoom and Cell(_cut(shown.frame, *shown.zoom)) for shown in row]
        errors = [None if shown.error is None else Cell(shown.error) for shown in row]
        for below in (zoomed, errors):
            if any(below):
                sheet.row(below)
    if any(shown.error is not None for row in rows for shown in row):
        sheet.text(f'Error maps: mean absolute error over RGB, from 0 (black) to {FULL_ERROR:g} of the range (white).')
    sheet.text(caption)
    figure = sheet.finished()
    with matplotlib.rc_context({'pdf.fonttype': 42}):         # text as text, in the font's own outlines
        for kind, metadata in (('png', None), ('pdf', {'CreationDate': None})):
            write_bytes(path.with_name(f'{path.name}.{kind}'),
                        encoded(figure.savefig, format=kind, dpi=DPI, metadata=metadata))


def _cut(frame, x, y, w, h):
    return frame[y:y + h, x:x + w]


def _marked(shown):
    """The frame, enlarged, with a box around the region that is enlarged below."""
    if shown.zoom is None:
        return shown.frame
    times = max(1, round(512 / shown.frame.shape[1]))
    picture = Image.fromarray(shown.frame.repeat(times, 0).repeat(times, 1))
    x, y, w, h = (side * times for side in shown.zoom)
    line = max(2, picture.width // 150)
    ImageDraw.Draw(picture).rectangle((x - line, y - line, x + w + line - 1, y + h + line - 1), outline=BOX, width=line)
    return np.asarray(picture)
