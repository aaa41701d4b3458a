"""Still images of any pixel format as uint8 (H, W, 3) RGB, and as clips of one frame."""

import io
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from support.errors import UserError

STILL_SUFFIXES = ('.png', '.jpg', '.jpeg')
WHITE = (255, 255, 255)
VIDEO = 'a video'


def read_image(path, size=None, background=WHITE):
    """The still at `path` as uint8 (H, W, 3) RGB, upright; resized to (size, size) if given.

    Grey becomes three equal channels, 16 bits are scaled to 8, palettes are resolved, EXIF
    orientation is applied. Transparent pixels show the `background` (red, green, blue).
    Raises UserError if the file is missing, damaged or not an image.
    """
    try:
        data = np.fromfile(path, np.uint8)
        with Image.open(io.BytesIO(data)) as image:     # refuses absurd sizes, before a pixel is decoded
            return resized(_to_rgb(ImageOps.exif_transpose(image), background), size)
    except FileNotFoundError as error:
        raise UserError(f'{path}: no such image') from error
    except IsADirectoryError as error:
        raise UserError(f'{path}: is a folder, not an image; name a file') from error
    # PIL answers damage with any of these, depending on the format.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        if not isinstance(error, Image.UnidentifiedImageError):
            raise UserError(f'{path}: cannot be read as an image ({error}); replace or remove the file') from error
        if kind := _unread_kind(data[:64].tobytes()):
            raise UserError(f'{path}: is a video, not an image; --source_video takes videos' if kind == VIDEO else
                            f'{path}: is {kind}, which the installed Pillow cannot read; convert it to PNG or JPEG, '
                            'for example with ImageMagick: magick IN OUT.png') from error
        raise UserError(f'{path}: is empty or not an image; replace or remove the file') from error


def _unread_kind(head):
    """The kind of an image that Pillow does not recognise, by the first bytes of the file; None if unknown.

    HEIC and AVIF are ISO/IEC 14496-12 files, Sec. 4.3, with the brands of ISO/IEC 23008-12, Annex B
    """
    if head[4:8] == b'ftyp':
        return 'AVIF' if b'avif' in head else 'HEIC' if b'hei' in head or b'mif1' in head else VIDEO
    signatures = {b'\x1aE\xdf\xa3': VIDEO, b'RIFF': VIDEO, b'\0\0\0\x0cjXL ': 'JPEG XL', b'\xff\x0a': 'JPEG XL',
                  b'<svg': 'SVG', b'<?xml': 'SVG'}
    return next((kind for start, kind in signatures.items() if head.startswith(start)), None)


def _to_rgb(image, background):
    if image.mode.startswith('I'):
        # PIL's own conversion clips 16-bit grey at 255 and so turns it white.
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        return ((grey * 255 + 32767) // 65535).astype(np.uint8)[..., None].repeat(3, axis=-1)
    if image.mode == 'F':
        raise ValueError('floating-point pixels have no known range')
    if image.has_transparency_data:
        return opaque(np.asarray(image.convert('RGBA')), background)
    return np.array(image.convert('RGB'))


def opaque(picture, background):
    """uint8 (H, W, 4) RGBA, not premultiplied, over a background (red, green, blue): uint8 (H, W, 3) RGB."""
    behind = Image.new('RGBA', picture.shape[1::-1], (*background, 255))
    return np.array(Image.alpha_composite(behind, Image.fromarray(picture)).convert('RGB'))


def resized(image, size):
    """uint8 (H, W, 3) at `size`: (height, width), the side of a square, or None to leave it.

    PIL's bicubic filter widens when it shrinks, so it does not alias:
    https://pillow.readthedocs.io/en/stable/handbook/concepts.html#filters
    """
    height, width = (size, size) if isinstance(size, int) else size or image.shape[:2]
    if image.shape[:2] == (height, width):
        return image
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def cut(frame, box, size):
    """The part of a frame, uint8 (H, W, 3), in a box (x0, y0, x1, y1) of integer pixels, resized to (size, size).

    Outside of the frame the border is repeated. A box that is not square is squeezed.
    """
    x0, y0, x1, y1 = box
    height, width, _ = frame.shape
    part = frame[max(y0, 0):y1, max(x0, 0):x1]
    outside = (max(-y0, 0), max(y1 - height, 0)), (max(-x0, 0), max(x1 - width, 0)), (0, 0)
    return resized(np.pad(part, outside, mode='edge'), size)


class Still:
    """A still image as a clip of one frame, read when needed; the interface is that of datasets/video.py."""

    fps = Fraction(1)

    def __init__(self, path, size=None, background=WHITE):
        self.path, self.size, self.name, self.background = Path(path), size, Path(path).stem, background

    def __len__(self):
        return 1

    def read(self, indices):
        return [read_image(self.path, self.size, self.background) for _ in indices]

    def frames(self):
        return iter(self.read([0]))


class FrameList:
    """Frames (H, W, 3) uint8 in memory as a clip; the interface is that of datasets/video.py."""

    def __init__(self, frames, name, fps=Fraction(1)):
        self.name, self.fps, self._frames = name, fps, frames
        if not frames or any(frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 for frame in frames):
            raise UserError(f'{name}: expected frames (H, W, 3) uint8, at least one')

    def resized(self, size):
        return FrameList([resized(frame, size) for frame in self._frames], self.name, self.fps)

    def __len__(self):
        return len(self._frames)

    def read(self, indices):
        return [self._frames[i] for i in indices]

    def frames(self):
        return iter(self._frames)
