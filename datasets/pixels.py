"""Decoded video frames as RGB, as a player shows them: square pixels, standard dynamic range, opaque, of one size.

Tags of a stream are numbers of ITU-T H.273 (colour primaries Table 2, transfer Table 3, matrix Table 4).
"""

import logging
from functools import lru_cache

import numpy as np

from datasets.still import opaque

log = logging.getLogger(__name__)

BT709, UNKNOWN, BT601 = 1, 2, 6                             # of matrix and primaries
PQ, HLG = 16, 18                                            # transfer characteristics of HDR
LIMITED = 1                                                 # range 16 to 235
SD_LINES = 576
SWSCALE = {BT709: 'ITU709', BT601: 'ITU601'}                # PyAV's names of the matrices

REFERENCE_WHITE, PEAK = 203, 1000                           # nits, ITU-R BT.2408 Sec. 2.2; of HLG's nominal display
LUMINANCE = np.float32([0.2627, 0.6780, 0.0593])            # of BT.2020 RGB
# Linear BT.2020 RGB -> BT.709 RGB: ITU-R BT.2087, Sec. 2, as numbers.
TO_BT709 = np.float32([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])
KNEE = 0.5                                                  # luminance up to which SDR shows what HDR does


class Pictures:
    """Converts the decoded frames of one video to uint8 (H, W, 3) RGB, not yet upright.

    background: (red, green, blue) behind transparent pixels
    stored:     (width, height) of the first frame, which all pictures get
    """

    def __init__(self, path, stream, background, stored):
        self._path, self._background, self._stored = path, background, stored
        self._transfer = stream.codec_context.color_trc
        self._size = square_pixels(*self._stored, stream.sample_aspect_ratio)
        self._resized = self._size != self._stored

    def __call__(self, frame):
        if (frame.width, frame.height) != self._stored:
            _warn_of_change(self._path, *self._stored, frame.width, frame.height)
        if self._transfer in (PQ, HLG):
            # Planar: FFmpeg of PyAV 17.0 converts to packed 16-bit RGB with wrong colors.
            return tone_mapped(self._converted(frame, 'gbrp16le'), self._transfer)
        if any(component.is_alpha for component in frame.format.components):
            return opaque(self._converted(frame, 'rgba'), self._background)
        return self._converted(frame, 'rgb24')

    def _converted(self, frame, pixels):
        options = {}
        if self._resized or (frame.width, frame.height) != self._size:
            options = dict(width=self._size[0], height=self._size[1], interpolation='BICUBIC')
        if frame.colorspace == UNKNOWN:
            options['src_colorspace'] = SWSCALE[matrix_of(frame.height)]
        return frame.reformat(format=pixels, **options).to_ndarray()


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


def tone_mapped(deep, transfer):
    """HDR to SDR: uint16 (H, W, 3) RGB of BT.2020 in PQ or HLG -> uint8 (H, W, 3) RGB of BT.709.

    Luminance up to half of the reference white stays; what is brighter is compressed up to 1000 nits.
    PQ, HLG and its OOTF: ITU-R BT.2100-2, Tables 4 and 5; reference white: ITU-R BT.2408, Sec. 2.2.
    """
    linear = _LINEAR[transfer]()[deep]
    luminance = linear @ LUMINANCE
    shown = luminance if transfer == PQ else np.float32(PEAK / REFERENCE_WHITE) * luminance ** np.float32(1.2)
    gain = _compressed(shown) / np.maximum(luminance, np.float32(1e-6))
    rgb = (linear * gain[..., None]) @ TO_BT709.T
    return (255 * rgb.clip(0, 1) ** np.float32(1 / 2.4) + np.float32(0.5)).astype(np.uint8)     # ITU-R BT.1886


def _compressed(luminance):
    """Luminance in units of the reference white -> [0, 1]: the same up to KNEE, then an extended Reinhard curve.

    https://www.cs.utah.edu/docs/techreports/2002/pdf/UUCS-02-001.pdf, Eq. 4
    """
    over = np.maximum((luminance - KNEE) / (1 - KNEE), 0)
    peak = (PEAK / REFERENCE_WHITE - KNEE) / (1 - KNEE)
    return np.minimum(luminance, KNEE) + (1 - KNEE) * np.minimum(over * (1 + over / peak ** 2) / (1 + over), 1)


@lru_cache(maxsize=1)
def _linear_pq():
    """Light of the display for every 16-bit value, in units of the reference white (BT.2100, Table 4)."""
    power = np.linspace(0, 1, 2 ** 16) ** (1 / 78.84375)
    light = (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)
    return np.float32(10000 / REFERENCE_WHITE * light)


@lru_cache(maxsize=1)
def _linear_hlg():
    """Light of the scene for every 16-bit value, in [0, 1] (BT.2100, Table 5)."""
    signal = np.linspace(0, 1, 2 ** 16)
    return np.float32(np.where(signal <= 0.5, signal ** 2 / 3, (np.exp((signal - 0.55991073) / 0.17883277)
                                                                + 0.28466892) / 12))


_LINEAR = {PQ: _linear_pq, HLG: _linear_hlg}
