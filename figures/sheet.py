"""Layout of a sheet by Matplotlib, from top to bottom: paragraphs, and pictures side by side with titles and notes."""

from textwrap import wrap
from typing import NamedTuple

import matplotlib
import matplotlib.figure
import numpy as np

LETTERS = 125                # of one point per inch
BAR, DEAD, EMPTY = '#63c7cf', '#c83c28', '#343434'


class Look(NamedTuple):
    """Colours of background, text and secondary text; resolution; inches between pictures; points of a letter."""
    ground: str
    ink: str
    faint: str
    dpi: int = 100
    gap: float = 0.12
    points: float = 8
    align: str = 'left'


class Cell(NamedTuple):
    """A picture (h, w, 3) uint8, or bars (K,), at least 0; a title above, a note below, its width in columns."""
    picture: np.ndarray
    title: str = ''
    note: str = ''
    columns: int = 1


class Sheet:
    """A sheet of `width` inches and so many columns; `y`: where the next part starts, inches from the top."""

    def __init__(self, width, columns, look):
        self.figure = matplotlib.figure.Figure((width, 1), dpi=look.dpi, facecolor=look.ground)
        self.width, self.look, self.y = width, look, look.gap
        self.step = (width - look.gap) / columns      # from a column to the next

    def text(self, text, colour=None, points=None):
        lines, points = wrap(text, int(self.width * LETTERS / self.look.points)), points or self.look.points
        self.figure.text(self.look.gap, self.y, '\n'.join(lines), color=colour or self.look.faint, fontsize=points,
                         va='top', linespacing=1.2, parse_math=False)
        self.y += len(lines) * points / 72 * 1.4

    def row(self, cells):
        """Append Cells side by side; None leaves a column empty."""
        look, line, left, ends = self.look, self.look.points / 72 * 1.3, self.look.gap, []
        titles = [wrap(cell.title, self._letters(cell.columns)) if cell else [] for cell in cells]
        top = self.y + max(map(len, titles)) * line
        for cell, title in zip(cells, titles):
            if cell:
                width, note = cell.columns * self.step - look.gap, wrap(cell.note, self._letters(cell.columns))
                axes, height = self._draw(cell, left, top, width)
                axes.set_title('\n'.join(title), color=look.ink, fontsize=look.points, loc=look.align, pad=3,
                               parse_math=False)
                axes.set_xlabel('\n'.join(note), color=look.faint, fontsize=look.points - 0.5, loc=look.align,
                                labelpad=3, parse_math=False)
                ends.append(top + height + (len(note) + 0.3 * bool(note)) * line)
            left += self.step * (cell.columns if cell else 1)
        self.y = max(ends) + look.gap

    def _letters(self, columns):
        return max(int((columns * self.step - self.look.gap) * LETTERS / self.look.points), 1)

    def _draw(self, cell, left, top, width):
        """(axes with the picture or the bars, their height)."""
        if cell.picture.ndim == 1:
            height = width if cell.columns == 1 else width / (2 * cell.columns)
            axes = self.figure.add_axes((left, top, width, height), facecolor=EMPTY)
            axes.bar(np.arange(len(cell.picture)), cell.picture, 1, color=BAR)
            dead = np.flatnonzero(cell.picture == 0)
            axes.plot(dead, np.zeros(len(dead)), '|', color=DEAD)
            axes.margins(x=0)
        else:
            height = width * cell.picture.shape[0] / cell.picture.shape[1]
            axes = self.figure.add_axes((left, top, width, height))
            axes.imshow(cell.picture, aspect='auto')
        axes.set_xticks([]), axes.set_yticks([])
        axes.spines[:].set_visible(False)
        return axes, height

    def finished(self):
        """The matplotlib Figure, cut to its height."""
        for text in self.figure.texts:
            left, top = text.get_position()
            text.set_position((left / self.width, 1 - top / self.y))
        for axes in self.figure.axes:
            left, top, width, height = axes.get_position().bounds
            axes.set_position((left / self.width, 1 - (top + height) / self.y, width / self.width, height / self.y))
        self.figure.set_size_inches(self.width, self.y)
        return self.figure
