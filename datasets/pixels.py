"""Decoded video frames as RGB, as a player shows them: upright, square pixels, SDR of BT.709, opaque, of one size.

Tags of a stream are numbers of ITU-T H.273 (colour primaries Table 2, transfer Table 3, matrix Table 4).
"""

import logging
from functools import lru_cache

import numpy as np

from datasets.still import opaque

log = logging.getLogger(__name__)

BT709, UNKNOWN, BT601, BT2020 = 1, 2, 6, 9                  # of matrix and primaries
SDR, PQ, HLG = 14, 16, 18                                   # transfer characteristics of BT.2020, and of its HDR
LIMITED = 1                                                 # range 16 to 235
SD_LINES = 576
SWSCALE = {BT709: 'ITU709', BT601: 'ITU601'}                # PyAV's names of the matrices

REFERENCE_WHITE, PEAK = 203, 1000                           # nits, ITU-R BT.2408 Sec. 2.2; of HLG's nominal display
LUMINANCE = np.float32([0.2627, 0.6780, 0.0593])            # of BT.2020 RGB
# Linear BT.2020 RGB -> BT.709 RGB: ITU-R BT.2087, Sec. 2, as numbers.
TO_BT709 = np.float32([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])
KNEE = 0.5                                                  # luminance up to which SDR shows what HDR does


class Pictures:
    """Converts the decoded frames of one video to uint8 (H, W, 3) RGB.

    background: (red, green, blue) behind transparent pixels
    first:      `shape_of` the first frame, which all pictures get
    """

    def __init__(self, path, stream, background, first):
        context = stream.codec_context
        self._path, self._background, self._first = path, background, first
        self._transfer = context.color_trc if context.color_trc in (PQ, HLG) else \
            SDR if BT2020 in (context.color_primaries, context.colorspace) else None
        width, height, turned = first
        width, height = square_pixels(width, height, stream.sample_aspect_ratio)
        self._size = (height, width) if turned else (width, height)
        self._axes = {}             # by rotation: reading a frame's matrix keeps the frame until garbage collection

    def __call__(self, frame):
        if frame.rotation not in self._axes:
            self._axes[frame.rotation] = axes_of(frame)
        axes = self._axes[frame.rotation]
        shape = shape_of(frame, axes)
        if shape != self._first:
            _warn_of_change(self._path, *_shown(*self._first), *_shown(*shape))
        return upright(self._rgb(frame, self._size[::-1] if shape[2] else self._size), *axes)

    def _rgb(self, frame, size):
        transparent = any(component.is_alpha for component in frame.format.components)
        if self._transfer is None and not transparent:
            return self._converted(frame, size, 'rgb24')
        if self._transfer is None:
            return opaque(self._converted(frame, size, 'rgba'), self._background)
        # Planar: FFmpeg of PyAV 17.0 converts to packed 16-bit RGB with wrong colours.
        picture = to_bt709(self._converted(frame, size, 'gbrp16le'), self._transfer)
        if transparent:
            picture = opaque(np.dstack([picture, self._converted(frame, size, 'rgba')[..., 3]]), self._background)
        return picture

    def _converted(self, frame, size, pixels):
        options = {}
        if (frame.width, frame.height) != size:
            options = dict(width=size[0], height=size[1], interpolation='BICUBIC')
        if frame.colorspace == UNKNOWN:
            frame.colorspace = BT2020 if self._transfer else matrix_of(frame.height)
        return frame.reformat(format=pixels, **options).to_ndarray()


def shape_of(frame, axes):
    """(width, height, whether upright it is shown with the two exchanged) of a decoded frame and `axes_of` it."""
    a, b, _, _ = axes
    return frame.width, frame.height, abs(b) > abs(a)


def _shown(width, height, turned):
    return (height, width) if turned else (width, height)


def axes_of(frame):
    """(a, b, c, d) of a frame's display matrix, ISO/IEC 14496-12, Sec. 6.2.2: (x, y) is shown at (ax + cy, bx + dy)."""
    matrix = frame.side_data.get('DISPLAYMATRIX')
    return (1, 0, 0, 1) if matrix is None else tuple(np.frombuffer(matrix, np.int32)[[0, 1, 3, 4]].tolist())


def upright(picture, a, b, c, d):
    """A picture (H, W, 3) in quarter turns and mirrored as its display matrix says; contiguous."""
    if abs(b) > abs(a):
        picture, a, d = picture.swapaxes(0, 1), c, b
    return np.ascontiguousarray(picture[::-1 if d < 0 else 1, ::-1 if a < 0 else 1])


@lru_cache(maxsize=1000)        # once, however often the file is read
def _warn_of_change(*where_from_to):
    log.warning('%s: the frame size changes from %dx%d to %dx%d; all frames are resized to the first size',
                *where_from_to)


def matrix_of(height):
    """The matrix that players assume of an untagged video: BT.709 above 576 lines, else BT.601."""
    return BT709 if height > SD_LINES else BT601


def square_pixels(width, height, aspect):
    """(width, height) of a picture with square pixels; no side gets smaller. aspect: width / height of a pixel."""
    aspect = float(aspect) if aspect else 1
    if not 0.25 < aspect < 4:               # no recorder makes such pixels: damaged, or unknown
        return width, height
    return (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))


def to_bt709(deep, transfer):
    """uint16 (H, W, 3) RGB of BT.2020 in PQ, HLG or SDR -> uint8 (H, W, 3) RGB of BT.709.

    Of HDR, luminance up to half of the reference white stays; what is brighter is compressed up to 1000 nits.
    OOTF of HLG: ITU-R BT.2100-2, Table 5; reference white: ITU-R BT.2408, Sec. 2.2.
    """
    linear = _linear(transfer)[deep]
    if transfer != SDR:
        luminance = linear @ LUMINANCE
        shown = luminance if transfer == PQ else np.float32(PEAK / REFERENCE_WHITE) * luminance ** np.float32(1.2)
        linear *= (_compressed(shown) / np.maximum(luminance, np.float32(1e-6)))[..., None]
    rgb = linear @ TO_BT709.T
    return (255 * rgb.clip(0, 1) ** np.float32(1 / 2.4) + np.float32(0.5)).astype(np.uint8)     # ITU-R BT.1886


def _compressed(luminance):
    """Luminance in units of the reference white -> [0, 1]: the same up to KNEE, then an extended Reinhard curve.

    https://www.cs.utah.edu/docs/techreports/2002/pdf/UUCS-02-001.pdf, Eq. 4
    """
    over = np.maximum((luminance - KNEE) / (1 - KNEE), 0)
    peak = (PEAK / REFERENCE_WHITE - KNEE) / (1 - KNEE)
    return np.minimum(luminance, KNEE) + (1 - KNEE) * np.minimum(over * (1 + over / peak ** 2) / (1 + over), 1)


@lru_cache
def _linear(transfer):
    """Light for every 16-bit value: of SDR in [0, 1], of PQ in units of the reference white, of HLG's scene in [0, 1].

    ITU-R BT.1886 and BT.2100, Tables 4 and 5.
    """
    signal = np.linspace(0, 1, 2 ** 16)
    if transfer == SDR:
        light = signal ** 2.4
    elif transfer == PQ:
        power = signal ** (1 / 78.84375)
        light = (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)
        light = 10000 / REFERENCE_WHITE * light
    else:
        light = np.where(signal <= 0.5, signal ** 2 / 3, (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12)
    return np.float32(light)
