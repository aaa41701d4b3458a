"""Figures of codebooks: usage counts, the image windows nearest to each code, decoded flows."""

from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from figures.draw import round_up
from figures.figure import Figure, Panel, Row, pixels
from inference import Renderer
from modules.codebook import Codebook, Quantized, perplexity
from modules.synergy import Synergy
from visualizer import enlarge, motion_to_rgb

WINDOWS = 6                  # kept per code: the nearest ones, each from another frame
CONTEXT = 3                  # side of the kept picture around a window, in windows
TILE, LARGE = 32, 72         # sides of a code in the map of all codes, and of a window in an atlas, pixels
ACROSS = 32                  # codes in a row of that map
SHOWN = 24                   # most used codes in an atlas
WIDE = 4                     # width of charts and maps, in panels


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

    counts:  (K_i,) number of positions that chose each code
    nearest: (K_i, WINDOWS) distance from the code to the feature of each kept window, ascending; inf for none
    windows: (K_i, WINDOWS, w, w, 3) uint8, CONTEXT windows wide
    """

    def __init__(self, chosen, size):
        self.book, self.first, self.count = chosen.book, chosen.first, chosen.count
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
        order = distance.ravel().argsort(kind='stable')
        codes, first = np.unique(indices.ravel()[order], return_index=True)      # the nearest place of every code
        for code, place in zip(codes.tolist(), order[first].tolist()):
            if distance.flat[place] < self.nearest[code, -1]:
                row, column = (part * patch for part in divmod(place, indices.shape[1]))
                window = padded[row:row + CONTEXT * patch, column:column + CONTEXT * patch]
                position = np.searchsorted(self.nearest[code], distance.flat[place])
                for kept, new in ((self.nearest, distance.flat[place]), (self.windows, window)):
                    kept[code] = np.insert(kept[code], position, new, axis=0)[:-1]

    def as_json(self):
        return {'codes': self.count, 'first': self.first, 'used': int((self.counts > 0).sum()),
                'perplexity': perplexity(torch.from_numpy(self.counts)),
                'dead': (np.flatnonzero(self.counts == 0) + self.first).tolist(), 'counts': self.counts.tolist()}


@torch.inference_mode()
def count_codes(renderer, clips, limit=0):
    """{'BOOK SCALE': CodeUse} over `limit` evenly spread frames of the clips (0: all); {} for methods without codes.

    Each clip is reconstructed from its first frame.
    """
    uses, total, start = {}, sum(map(len, clips)), 0
    count = min(limit or total, total)
    wanted = {i * total // count for i in range(count)}
    renderer = Renderer(renderer.model, renderer.device, 1, renderer.precision)
    for clip in tqdm(clips, desc='codes', unit='clip', dynamic_ncols=True):
        indices = [i for i in range(len(clip)) if start + i in wanted]
        start += len(clip)
        if not indices:
            continue
        driven = renderer.follow(clip.read([0])[0])
        for made in driven.render(frame for index in indices for frame in clip.read([index])):
            with renderer.autocast():
                chosen = chosen_codes(renderer.model, made.generated, made.images)
            for name, found in chosen.items():
                uses.setdefault(name, CodeUse(found, len(made.driving[0]))).add(found, made.driving[0])
        if not uses:
            return {}
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


# ---------------------------------------------------------------------------- figures

def code_figures(model, uses, about):
    """Figures of all codebooks. about: the frames counted, in words."""
    figures = [_usage(uses, about)]
    for book in dict.fromkeys(use.book for use in uses.values()):
        own = {name: use for name, use in uses.items() if use.book == book}
        figures += [_all_codes(book, own, motion_code_flows(model.motion) if book == 'motion' else None,
                               model.params.image_size), *(_atlas(name, use) for name, use in own.items())]
    return figures


def _usage(uses, about):
    rows = []
    for name, use in uses.items():
        numbers, most = use.as_json(), 100 * use.counts.max() / use.counts.sum()
        rows.append(Row('', [Panel('bars', _readable(name), torch.from_numpy(use.counts), columns=WIDE, note=(
            f'{numbers["used"]} of {use.count} codes chosen, perplexity {numbers["perplexity"]:.1f}; the most frequent '
            f'code has {most:.1f} % of all places'))]))
    return Figure('codes-usage', 'Code usage', f'Number of places that chose each code, {about}. Red: codes never '
                  'chosen.', rows, {})


def _all_codes(book, uses, flows, size):
    """All codes of a book by index: the flow (p, p, 2) a motion code decodes to, else the nearest image window."""
    count = max(use.first + use.count for use in uses.values())
    live = sorted({code + use.first for use in uses.values() for code in np.flatnonzero(use.counts).tolist()})
    tiles = np.full((count, TILE, TILE, 3), 52, np.uint8)
    if flows is None:
        what, windows = 'the nearest image window', code_windows(uses)
        for code in live:
            side = len(windows[book, code]) // CONTEXT
            tiles[code] = enlarge(windows[book, code][side:2 * side, side:2 * side], TILE)
    else:
        flows = flows.detach().float().cpu()
        full = round_up(float(pixels(flows[live], size).max()))
        what = f'the flow it decodes to, full colour at {full:g} image pixels'
        motion = flows.permute(0, 3, 1, 2).numpy() * (size - 1) / 2 / full
        for code in live:
            tiles[code] = enlarge(motion_to_rgb(motion[[code]])[0], TILE)
    picture = Panel('picture', f'codes 0 to {count - 1}', torch.from_numpy(mosaic(tiles, ACROSS)), columns=WIDE)
    return Figure(f'codes-{book}', f'{book.capitalize()} codes', f'All {count} codes by index, {ACROSS} per row: {what}'
                  f'. Grey: {count - len(live)} codes never chosen.', [Row('', [picture])], {})


def _atlas(name, use):
    """The most used codes of a scale: number, share of all positions, nearest windows."""
    panels = []
    for code in np.argsort(-use.counts, kind='stable')[:SHOWN].tolist():
        windows = use.windows[code, np.isfinite(use.nearest[code])]
        if len(windows):
            share = f'{100 * use.counts[code] / use.counts.sum():.1f} %'
            tiles = np.stack([_outlined(window) for window in windows])
            panels.append(Panel('picture', f'code {code + use.first}: {share} of all places',
                                torch.from_numpy(mosaic(tiles, WINDOWS)), columns=WIDE // 2))
    return Figure(f'codes-{name.replace(" ", "-")}-windows', f'What codes stand for: {_readable(name)}',
                  f'The {SHOWN} most used codes and their nearest image windows, each from another frame. The outline '
                  'marks the window.', [Row('', panels[i:i + 2]) for i in range(0, len(panels), 2)], {})


def mosaic(tiles, across):
    """Tiles (N, h, w, 3) uint8, `across` in a row, with two dark pixels between them."""
    tiles = np.pad(tiles, ((0, -len(tiles) % across), (1, 1), (1, 1), (0, 0)), constant_values=24)
    count, height, width, _ = tiles.shape
    rows = tiles.reshape(-1, across, height, width, 3).swapaxes(1, 2)
    return rows.reshape(count // across * height, across * width, 3)


def _outlined(window):
    """A window and its context, enlarged, with an outline around the window."""
    picture, low, high = enlarge(window, LARGE).copy(), LARGE // CONTEXT, 2 * LARGE // CONTEXT - 1
    picture[low:high + 1, [low, high]] = picture[[low, high], low:high + 1] = 255
    return picture


def _readable(name):
    """'motion 1' -> 'motion, scale 1'."""
    return name.replace(' ', ', scale ')
