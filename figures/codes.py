"""Figures of codebooks: usage counts, the image windows nearest to each code, decoded flows."""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

from figures.draw import EMPTY, FAINT, Scales, colour_wheel, draw_bars, draw_panel
from figures.figure import Panel
from figures.sheet import EDGE, GAP, TEXT, WHEEL, Writer
from modules.codebook import Codebook, Quantized, perplexity
from modules.synergy import Synergy
from visualizer import INK

WINDOWS = 6                  # kept per code: the nearest ones, each from another frame
CONTEXT = 3                  # side of the kept picture around a window, in windows
TILE, LARGE = 32, 72         # sides of a code in the map of all codes, and of a window in an atlas, pixels
COLUMNS = 32                 # of the map of all codes
SHOWN = 24                   # most used codes in an atlas
CHART = (1024, 96)           # size of a bar chart, pixels
BESIDE = 100                 # width of the text beside a row of windows, pixels


class Chosen(NamedTuple):
    """The codes that one codebook, named `book`, chose for a frame at one scale; scale 0 is the coarsest."""
    book: str
    scale: int
    codebook: Codebook
    quantized: Quantized

    @property
    def first(self):
        """Index in the whole codebook of the scale's code 0."""
        return self.codebook.slices[self.scale].start

    @property
    def count(self):
        """Number of codes of the scale."""
        return len(self.codebook.codes(self.scale))

    @property
    def distance(self):
        """(B, H, W) Euclidean distance of every feature from its code."""
        return (self.quantized.encoded.float() - self.quantized.vectors.float()).norm(dim=1)


def chosen_codes(model, generated, driving):
    """Codes of a rendered frame and of its driving image (1, 3, H, W): {'BOOK SCALE': Chosen}; {} without codebooks."""
    if not isinstance(model, Synergy):
        return {}
    pyramid, middle_tap = model.encoder.tapped(driving)
    model.learn_codes(generated, [middle_tap, *pyramid[1:]])
    return {f'{name} {scale + 1}': Chosen(name, scale, book, found)
            for name, book, quantized in model.codebooks(generated) for scale, found in enumerate(quantized)}


def motion_code_flows(motion):
    """The flow that each motion code decodes to, (K, p, p, 2): D_M of a 3 x 3 field of the code, middle token.

    motion: modules.motion_compensation.MotionCompensation
    """
    codes, size = motion.codebook.embedding, motion.retrieval.size[0]
    decoded = motion.decode(codes[:, :, None, None].expand(-1, -1, 3, 3)).float()                # (K, 2, 3p, 3p)
    patch = decoded.shape[-1] // 3
    middle = decoded[..., patch:2 * patch, patch:2 * patch]
    # In pixels of the flow, whose side is `size` tokens.
    return middle.permute(0, 2, 3, 1) * 2 / (size * patch - 1)


class CodeUse:
    """Usage counts of one codebook at one scale over many frames, and the image windows nearest to each code.

    counts:  (K_i,) number of places that chose each code
    nearest: (K_i, WINDOWS) distance from the code to the feature of each kept window, ascending; inf for none
    windows: (K_i, WINDOWS, w, w, 3) uint8, CONTEXT windows wide
    """

    def __init__(self, chosen, size):
        self.book, self.scale, self.first, self.count = chosen.book, chosen.scale, chosen.first, chosen.count
        side = CONTEXT * size // chosen.quantized.indices.shape[-1]
        self.counts = np.zeros(self.count, np.int64)
        self.nearest = np.full((self.count, WINDOWS), np.inf)
        self.windows = np.zeros((self.count, WINDOWS, side, side, 3), np.uint8)

    def add(self, chosen, frame):
        """Add one frame (H, W, 3) uint8 and its Chosen codes."""
        indices = chosen.quantized.indices[0].cpu().numpy()                                  # (h, w)
        distance = chosen.distance[0].cpu().numpy()
        self.counts += np.bincount(indices.ravel(), minlength=self.count)
        patch = len(frame) // len(indices)
        margin = (CONTEXT - 1) // 2 * patch
        padded = np.pad(frame, ((margin, margin), (margin, margin), (0, 0)), mode='edge')
        seen = set()
        for place in distance.ravel().argsort(kind='stable').tolist():    # one window per code and frame
            code = int(indices.flat[place])
            if code in seen or distance.flat[place] >= self.nearest[code, -1]:
                continue
            seen.add(code)
            row, column = (part * patch for part in divmod(place, indices.shape[1]))
            position = int(np.searchsorted(self.nearest[code], distance.flat[place]))
            for kept, new in ((self.nearest, distance.flat[place]),
                              (self.windows, padded[row:row + CONTEXT * patch, column:column + CONTEXT * patch])):
                kept[code, position + 1:] = kept[code, position:-1].copy()
                kept[code, position] = new

    def as_json(self):
        return {'codes': self.count, 'first': self.first, 'used': int((self.counts > 0).sum()),
                'perplexity': perplexity(torch.from_numpy(self.counts)),
                'dead': (np.flatnonzero(self.counts == 0) + self.first).tolist(), 'counts': self.counts.tolist()}


def count_codes(frames, uses, size):
    """Add pairs (frame (H, W, 3) uint8, {'BOOK SCALE': Chosen}) to `uses`, {'BOOK SCALE': CodeUse}."""
    for frame, chosen in frames:
        for name, found in chosen.items():
            if name not in uses:
                uses[name] = CodeUse(found, size)
            uses[name].add(found, frame)
    return uses


def code_windows(uses):
    """{(book, code): the nearest window of all scales, (w, w, 3) uint8} of all codes in use."""
    best = {}
    for use in uses.values():
        for code in np.flatnonzero(use.counts).tolist():
            name, distance = (use.book, code + use.first), use.nearest[code, 0]
            if name not in best or distance < best[name][0]:
                best[name] = distance, use.windows[code, 0]
    return {name: window for name, (_, window) in best.items()}


# ---------------------------------------------------------------------------- pictures

def draw_usage(uses, about):
    """Bar charts of code usage per book and scale, as one sheet (H, W, 3) uint8.

    about: the frames counted, in words
    """
    writer = Writer(CHART[0] + 2 * EDGE, 'Code usage',
                    f'Number of places that chose each code, {about}. Red: codes never chosen. Lines separate the '
                    'groups of codes that each scale adds.')
    for name, use in uses.items():
        numbers = use.as_json()
        most = 100 * use.counts.max() / use.counts.sum()
        writer.text(f'{_readable(name)}: {numbers["used"]} of {use.count} codes chosen, perplexity '
                    f'{numbers["perplexity"]:.1f}; the most frequent code has {most:.1f} % of all places', TEXT, INK)
        edges = {other.first + other.count - use.first for other in uses.values() if other.book == use.book}
        writer.picture(draw_bars(use.counts, *CHART, [edge for edge in sorted(edges) if 0 < edge < use.count]), EDGE,
                       writer.y)
        writer.y += CHART[1] + GAP
    return writer.sheet()


def draw_all_codes(book, uses, size, flows=None):
    """A sheet of all codes of a book by index: the flow a motion code decodes to, else the nearest image window.

    uses:  {'BOOK SCALE': CodeUse} of this book
    flows: (K, p, p, 2) residual flows of all codes, or None
    """
    stops = sorted({use.first + use.count for use in uses.values()})
    live = sorted({code + use.first for use in uses.values() for code in np.flatnonzero(use.counts).tolist()})
    what = 'the nearest image window' if flows is None else 'the flow it decodes to'
    writer = Writer(COLUMNS * (TILE + 2) + 2 * EDGE, f'{book.capitalize()} codes',
                    f'All {stops[-1]} codes by index, {COLUMNS} per row: {what}. Grey: {stops[-1] - len(live)} codes '
                    'never chosen.')
    if flows is None:
        windows = code_windows(uses)
        tiles = {code: _enlarged(_middle(windows[book, code]), TILE) for code in live}
    else:
        panels = {code: Panel('residual', '', flows[code][None]) for code in live}
        scales = Scales(panels.values(), size, least=0)
        tiles = {code: draw_panel(panel, scales, TILE) for code, panel in panels.items()}
    for start, stop in zip([0, *stops], stops):
        writer.text(f'codes {start} to {stop - 1}', TEXT, INK)
        for i in range(start, stop):
            row, column = divmod(i - start, COLUMNS)
            writer.picture(tiles.get(i, np.full((TILE, TILE, 3), EMPTY, np.uint8)), EDGE + column * (TILE + 2),
                           writer.y + row * (TILE + 2))
        writer.y += -(-(stop - start) // COLUMNS) * (TILE + 2) + GAP
    if flows is not None:
        writer.picture(colour_wheel(WHEEL), EDGE, writer.y)
        writer.text(f'Direction from the centre of the wheel; full colour: {scales.motion["residual"]:g} image pixels '
                    'or more.', TEXT, FAINT, EDGE + WHEEL + GAP)
        writer.y += WHEEL
    return writer.sheet()


def draw_atlas(name, use):
    """A sheet of the most used codes of a scale: number, share of all places, nearest windows."""
    side = BESIDE + WINDOWS * (LARGE + 4)
    writer = Writer(2 * (side + EDGE) + GAP, f'What codes stand for: {_readable(name)}',
                    f'The {SHOWN} most used codes, their share of all places, and their nearest image windows, each '
                    'from another frame. The outline marks the window.')
    codes = [code for code in np.argsort(-use.counts, kind='stable')[:SHOWN].tolist() if use.counts[code]]
    rows, top = -(-len(codes) // 2), writer.y
    for i, code in enumerate(codes):
        left, y = EDGE + i // rows * (side + GAP), top + i % rows * (LARGE + 4)
        writer.write(f'code {code + use.first}', TEXT, INK, left, y + LARGE // 2 - 20, BESIDE)
        writer.write(f'{100 * use.counts[code] / use.counts.sum():.1f} %', TEXT, FAINT, left, y + LARGE // 2, BESIDE)
        for rank in np.flatnonzero(np.isfinite(use.nearest[code])).tolist():
            writer.picture(_outlined(use.windows[code, rank]), left + BESIDE + rank * (LARGE + 4), y)
    writer.y = top + rows * (LARGE + 4)
    return writer.sheet()


def _readable(name):
    """'motion 1' -> 'motion, scale 1'."""
    return name.replace(' ', ', scale ')


def _middle(window):
    """The window without its context: (w, w, 3) -> (w / CONTEXT, w / CONTEXT, 3)."""
    side = len(window) // CONTEXT
    return window[(CONTEXT - 1) // 2 * side:][:side, (CONTEXT - 1) // 2 * side:][:, :side]


def _enlarged(window, side):
    return np.asarray(Image.fromarray(np.ascontiguousarray(window)).resize((side, side), Image.Resampling.NEAREST))


def _outlined(window):
    """A window and its context at the size of the atlas, with an outline around the window."""
    picture = Image.fromarray(_enlarged(window, LARGE))
    ImageDraw.Draw(picture).rectangle((LARGE // CONTEXT, LARGE // CONTEXT, 2 * LARGE // CONTEXT - 1,
                                       2 * LARGE // CONTEXT - 1), outline=(255, 255, 255))
    return np.asarray(picture)
