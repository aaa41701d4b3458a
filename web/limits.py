"""What the page takes from strangers: how large, how long, how many pixels. For the worker, before it decodes."""

from pathlib import Path

from support.errors import UserError

MOST_BYTES = 100 * 2 ** 20         # of a file; the server stops reading there
MOST_PIXELS = 25_000_000           # of a picture or frame: a large photograph
MOST_FRAMES = 1500                 # of a clip: a minute at 25 frames per second


def check_picture(path):
    """UserError for a file that is no picture, or has too many pixels; reads its header alone."""
    from PIL import Image
    try:
        with Image.open(path) as image:
            width, height = image.size
    except Exception as error:      # PIL answers damage with half a dozen kinds
        raise UserError(f'{path}: is no picture that can be read') from error
    _check_pixels(path, width, height)


def check_clip(path):
    """The clip at a path, as datasets.constant_rate opens it; UserError for one that cannot be read, or is too much."""
    import av

    from datasets.constant_rate import open_constant_rate
    from datasets.video import VIDEO_SUFFIXES, open_container
    if Path(path).suffix.lower() not in VIDEO_SUFFIXES:
        raise UserError(f'{path}: is no video; expected one of {", ".join(VIDEO_SUFFIXES)}')
    try:
        with open_container(path) as container:
            for stream in container.streams.video:
                _check_pixels(path, stream.width, stream.height)
    except av.error.FFmpegError as error:
        raise UserError(f'{path}: is no video that can be read ({error.strerror})') from error
    clip = open_constant_rate(path)
    if len(clip) > MOST_FRAMES:
        raise UserError(f'{path}: has {len(clip)} frames; this page takes {MOST_FRAMES} at most, cut it')
    return clip


def _check_pixels(path, width, height):
    if width * height > MOST_PIXELS:
        raise UserError(f'{path}: has {width}x{height} pixels; this page takes {MOST_PIXELS:,} at most')
