"""Limits of uploads, checked before anything is decoded."""

from pathlib import Path

from support.errors import UserError

MOST_BYTES = 100 * 2 ** 20         # of an upload; the server stops reading there
MOST_PIXELS = 25_000_000           # of a picture or frame: a large photograph
MOST_FRAMES = 1500                 # of a clip: a minute at 25 frames per second


def check_picture(path):
    """UserError for a file that is no picture or has too many pixels; reads only its header."""
    from PIL import Image
    try:
        with Image.open(path) as image:
            width, height = image.size
    except Exception as error:      # Pillow raises many types for damaged files
        raise UserError(f'{path}: is not a readable picture') from error
    _check_pixels(path, width, height)


def check_clip(path):
    """The clip of a video, opened at a constant rate. UserError if it is unreadable, too large or too long."""
    import av

    from datasets.constant_rate import open_constant_rate
    from datasets.video import VIDEO_SUFFIXES, open_container
    if Path(path).suffix.lower() not in VIDEO_SUFFIXES:
        raise UserError(f'{path}: is not a video; expected one of {", ".join(VIDEO_SUFFIXES)}')
    try:
        with open_container(path) as container:
            for stream in container.streams.video:
                _check_pixels(path, stream.width, stream.height)
    except av.error.FFmpegError as error:
        raise UserError(f'{path}: is not a readable video ({error.strerror})') from error
    clip = open_constant_rate(path)
    if len(clip) > MOST_FRAMES:
        raise UserError(f'{path}: has {len(clip)} frames; this page takes {MOST_FRAMES} at most, cut it')
    return clip


def _check_pixels(path, width, height):
    if width * height > MOST_PIXELS:
        raise UserError(f'{path}: has {width}x{height} pixels; this page takes {MOST_PIXELS:,} at most')
