"""Reading video and stills: streaming, frame exact, loud about damaged files.

Every frame in this project is uint8 (H, W, 3), RGB, 0..255. A clip, whatever it is stored as, offers

    name      str, file or folder name without its suffix
    fps       Fraction, frames per second; 29.97 is 30000/1001
    len(clip) number of frames that decode
    times     (stamps, tick): frame i starts stamps[i] * tick seconds after the first; (T,) int64, Fraction
    read(indices) -> list of frames, random access
    frames()      -> iterator over all frames in order, in constant memory; frames(indices) over these alone

and read([i]) is bit-identical to the i-th of frames(). A clip that cannot give all its frames
raises `UserError`; it never gives fewer.
"""

import logging
import math
import os
import re
from bisect import bisect_right
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from PIL import Image, ImageOps

from datasets.manifest import CLIP_FPS
from support.errors import UserError

VIDEO_SUFFIXES = ('.mp4', '.mov', '.webm', '.gif', '.avi', '.mkv')
STILL_SUFFIXES = ('.png', '.jpg', '.jpeg')  # of the stills in a frame folder

# Decoding this many frames costs about as much as a seek, which also empties the decoder.
_WORTH_A_SEEK = 8

log = logging.getLogger(__name__)


# ---------------------------------------------------------------------------- stills

def read_image(path, size=None):
    """The still at `path` as uint8 (H, W, 3) RGB, upright; resized to (size, size) if given.

    Grey becomes three equal channels, 16 bits are scaled to 8, palettes are looked up, EXIF
    orientation is applied. Transparent pixels are laid over white, as a viewer shows them.
    Raises UserError if the file is missing, damaged or not an image.
    """
    return _resized(_still(Path(path)), size)


def _still(path):
    """uint8 (H, W, 3) RGB, upright."""
    with suppress(OSError, RuntimeError):     # PIL says better what is wrong
        data = np.fromfile(path, np.uint8)
        if _is_plain(data) and (decode := _fast_decoder()):
            return decode(torch.from_numpy(data)).permute(1, 2, 0).numpy()
    try:
        with Image.open(path) as image:
            return np.array(_to_rgb(ImageOps.exif_transpose(image)))
    except FileNotFoundError as error:
        raise UserError(f'{path}: no such image') from error
    # PIL answers damage with any of these, depending on the format.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = 'not an image, or empty' if isinstance(error, Image.UnidentifiedImageError) else error
        raise UserError(f'{path}: cannot be read as an image ({reason}); replace or remove the file') from error


@lru_cache(maxsize=1)
def _fast_decoder():
    """torchvision's; imported at the first still, as it takes half a second and 160 MiB. None: PIL reads all stills."""
    try:
        from torchvision.io import ImageReadMode, decode_image
    except ImportError:          # its end is announced for a later torchvision
        return None
    return partial(decode_image, mode=ImageReadMode.RGB, apply_exif_orientation=True)


def _is_plain(data):
    """Whether torchvision reads this file, uint8 (N,), as PIL does: JPEG in colour, PNG with 8 bits of RGB; not cut.

    It is 2.5 times as fast with JPEG, but drops transparency, keeps 16 bits, and fills what is cut off with grey.
    """
    head = data[:26].tobytes()
    if head.startswith(b'\xff\xd8\xff'):
        return data[-2:].tobytes() == b'\xff\xd9'
    if head.startswith(b'\x89PNG\r\n\x1a\n') and head[24:] == b'\x08\x02':
        return b'tRNS' not in data[:4096].tobytes().partition(b'IDAT')[0]
    return False


def _to_rgb(image):
    if image.mode.startswith('I'):
        # PIL's own conversion clips 16-bit grey at 255 and so turns it white.
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8)).convert('RGB')
    if image.mode == 'F':
        raise ValueError('floating-point pixels have no known range')
    if image.has_transparency_data:
        image = image.convert('RGBA')
        return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image).convert('RGB')
    return image.convert('RGB')


def _resized(image, size):
    """uint8 (H, W, 3) -> (size, size, 3). PIL's bicubic filter widens when it shrinks, so it does not alias."""
    if size is None or image.shape[:2] == (size, size):
        return image
    return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


# ---------------------------------------------------------------------------- frame folders

class FrameFolder:
    """A folder of PNG or JPEG stills, one per frame, as a clip at 25 fps.

    Sorted naturally (frame 10 after frame 9). The folder's name may end in `.mp4`, as in FOMM's
    VoxCeleb; `name` is without it. A gap in the numbering is logged once and the clip simply
    has fewer frames. Stills of different sizes are refused by name, even if `size` is given: a
    crop that changes its size within a clip is no clip of one head.
    """

    fps = CLIP_FPS      # stills do not carry a rate
    has_audio = False

    def __init__(self, path, size=None):
        self.path = Path(path)
        self.size = size
        self.name = self.path.name.removesuffix('.mp4')

    def __len__(self):
        return self._names.count('/') + 1

    def read(self, indices):
        """Frames at `indices` (any order, repeats allowed). Raises UserError, IndexError."""
        _check_indices(self, indices)
        names = self._names.split('/')
        return [self._frame(names[i]) for i in indices]

    def frames(self, indices=None, threads=1):
        """All frames in order, or those at `indices`, one in memory at a time; `threads` is for videos. UserError."""
        names = self._names.split('/')
        return (self._frame(names[i]) for i in (range(len(names)) if indices is None else indices))

    @property
    def times(self):
        return np.arange(len(self)), 1 / self.fps

    @cached_property
    def _names(self):
        # One string: a data set of 4 million frames must fit in every worker, as str objects it does not.
        names = sorted(_still_names(self.path), key=_natural_order)
        if not names:
            raise UserError(f'{self.path}: no PNG or JPEG frames in this folder')
        stems = [Path(name).stem for name in names]
        twice = next((b for a, b in zip(stems, stems[1:]) if a == b), None)
        if twice is not None:
            raise UserError(f'{self.path}: frame {twice} is there twice, with different suffixes; remove one')
        _report_gap(self.path, stems)
        return '/'.join(names)

    @cached_property
    def _stored_shape(self):
        """(H, W, 3) of the first still, which the others must have."""
        return _still(self.path / self._names.split('/', 1)[0]).shape

    def _frame(self, name):
        image = _still(self.path / name)
        if image.shape != self._stored_shape:
            raise UserError('{}: is {}x{} but the first frame of the folder is {}x{}; all must have one size'.format(
                self.path / name, *image.shape[1::-1], *self._stored_shape[1::-1]))
        return _resized(image, self.size)


def has_stills(path):
    """Whether the folder holds at least one PNG or JPEG still; stops at the first."""
    return any(True for _ in _still_names(path))


def _still_names(path):
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.lower().endswith(STILL_SUFFIXES) and not entry.name.startswith('.'):
                    yield entry.name
    except OSError as error:
        raise UserError(f'{path}: cannot be read as a folder of frames ({error.strerror})') from error


def _natural_order(name):
    # The name itself breaks the tie of 1.png and 01.png, so the order never depends on the listing.
    return [int(part) if part.isdecimal() else part for part in re.split(r'(\d+)', Path(name).stem)], name


def _report_gap(path, stems):
    """Logs where the frame numbers jump; a constant step (every 5th frame kept) is no gap."""
    endings = [re.search(r'\d+$', stem) for stem in stems]
    if len(stems) < 3 or not all(endings):
        return
    numbers = [int(ending.group()) for ending in endings]
    steps = [b - a for a, b in zip(numbers, numbers[1:])]
    jumps = [number for number, step in zip(numbers, steps) if step != min(steps)]
    if jumps:
        log.warning('%s: %d gap(s) in the frame numbers, the first after %d; the clip goes on across it',
                    path, len(jumps), jumps[0])


# ---------------------------------------------------------------------------- video files

@dataclass(frozen=True)
class _Index:
    """What one pass over the packets tells about a video, without decoding it.

    stamps: (T,) ascending; tells frame i in the decoder's output: its presentation time, or its
            plain number where `timed` is False
    keys:   ascending indices of the frames at which decoding can start; the first is 0
    tick:   seconds that stamps count in
    """
    fps: Fraction
    has_audio: bool
    timed: bool
    stamps: np.ndarray
    keys: list
    tick: Fraction

    def key_before(self, i):
        """The last of `keys` that is not after frame i."""
        return self.keys[bisect_right(self.keys, i) - 1]


class VideoClip:
    """A video file (mp4, mov, webm, gif, avi, mkv) as a clip.

    Upright (the display matrix is applied), exact for variable frame rate, where `fps` is the
    average. The file is opened by each call and closed after it, so thousands of clips can be
    held and pickled; the index of the packets is made at first use and kept.
    Every method raises UserError if the file is missing, cut short, damaged or not a video.
    """

    def __init__(self, path, size=None):
        self.path = Path(path)
        self.size = size
        self.name = self.path.stem

    @property
    def fps(self):
        return self._index.fps

    @property
    def has_audio(self):
        return self._index.has_audio

    @property
    def times(self):
        return self._index.stamps - self._index.stamps[0], self._index.tick

    def __len__(self):
        return len(self._index.stamps)

    def read(self, indices):
        """Frames at `indices` (any order; repeats share one array), decoded in one forward pass.

        Raises UserError, IndexError. One thread: this serves data loader workers, which are parallel already.
        """
        _check_indices(self, indices)
        wanted = sorted(set(indices))
        frame_at = dict(zip(wanted, self._decode(wanted, threads=1)))
        return [frame_at[i] for i in indices]

    def frames(self, indices=None, threads=0):
        """All frames in order, or those at the ascending `indices`, in constant memory. Raises UserError.

        threads: of the decoder; 0 lets it choose
        """
        return self._decode(range(len(self)) if indices is None else indices, threads)

    @cached_property
    def _index(self):
        with _opened(self.path) as (container, stream):
            return _build_index(self.path, container, stream)

    def _decode(self, wanted, threads):
        """Yields the frames at the ascending indices `wanted`; threads=0 lets the decoder choose."""
        index = self._index
        only = None if len(wanted) == len(self) else {int(index.stamps[i]) for i in wanted}
        with _opened(self.path) as (container, stream):
            stream.thread_type = 'AUTO'
            stream.codec_context.thread_count = threads
            decoded, position = _decoded(container, stream, index.timed, only), 0
            for i in wanted:
                key = index.key_before(i)
                if key > position + _WORTH_A_SEEK:
                    container.seek(int(index.stamps[key]), stream=stream)
                    decoded = _decoded(container, stream, index.timed, only)
                yield self._picture(self._advance(decoded, i))
                position = i

    def _advance(self, decoded, i):
        """The i-th frame, from (stamp, frame) pairs that begin at or before it."""
        wanted = self._index.stamps[i]
        for stamp, frame in decoded:
            if stamp == wanted:
                return frame
            if stamp > wanted:
                break
        raise UserError(f'{self.path}: frame {i} of {len(self)} does not decode; the file is damaged, '
                        f're-encode or remove it')

    def _picture(self, frame):
        array = frame.to_ndarray(format='rgb24')
        array = np.rot90(array, frame.rotation // 90)  # counter-clockwise, as frame.rotation
        return _resized(np.ascontiguousarray(array), self.size)


@contextmanager
def _opened(path):
    """(container, its video stream); what FFmpeg cannot read, here or in the body, becomes a UserError."""
    try:
        # An absolute path, lest a colon in the name be taken for a protocol.
        with av.open(os.path.abspath(path), metadata_errors='ignore') as container:
            stream = container.streams.best('video')
            if stream is None:
                raise UserError(f'{path}: has no video track')
            yield container, stream
    except av.error.FileNotFoundError as error:
        raise UserError(f'{path}: no such video') from error
    except av.error.FFmpegError as error:
        raise UserError(f'{path}: cannot be decoded ({error.strerror}); the file is damaged or not a video, '
                        f're-encode or remove it') from error


def _decoded(container, stream, timed, only=None):
    """(stamp, frame) for every frame from the container's position on.

    timed: the stamp is the frame's presentation time, otherwise its number
    only:  stamps of the frames that matter; of the others, those that no frame is predicted
           from are not decoded, which saves a quarter of the time with B-frames
    """
    def frames():
        for packet in container.demux(stream):
            if only is not None and timed:
                stream.codec_context.skip_frame = 'DEFAULT' if packet.pts in only else 'NONREF'
            yield from packet.decode()
    return ((frame.pts, frame) for frame in frames()) if timed else enumerate(frames())


def _build_index(path, container, stream):
    packets = list(_packets(container, stream))
    if _is_cut(path, container, stream) or any(packet.corrupt for packet in packets):
        raise UserError(f'{path}: is cut short, its end is missing; fetch the file again or remove it')

    # AVI stores no presentation times (FFmpeg makes some up), so its frames have to be counted.
    times = {packet.pts for packet in packets}
    timed = container.format.name != 'avi' and None not in times and len(times) == len(packets) > 0
    stamps, keys = _timed_frames(packets) if timed else (np.arange(_count_frames(path)), [0])
    if not len(stamps):
        raise UserError(f'{path}: has no frames')
    if container.format.name == 'gif':
        keys = [0]  # it builds each frame on the one before
    fps = _rate(container, stream, stamps)
    return _Index(fps, bool(container.streams.audio), timed, stamps, keys, stream.time_base if timed else 1 / fps)


class _Packet(NamedTuple):
    pts: int
    key: bool
    shown: bool    # False where an edit list cuts the frame away: it is decoded and then dropped
    corrupt: bool


def _packets(container, stream):
    for packet in container.demux(stream):
        if packet.size:
            yield _Packet(packet.pts, packet.is_keyframe, not packet.is_discard, packet.is_corrupt)


def _timed_frames(packets):
    """(stamps, keys) of `_Index`, from the packets in decoding order."""
    # Nothing decodes before the first key frame, nor what is shown before it but refers to an earlier, missing one.
    start = next((n for n, packet in enumerate(packets) if packet.key), 0)
    shown = sorted(packet for packet in packets[start:] if packet.shown and packet.pts >= packets[start].pts)
    keys = [n for n, packet in enumerate(shown) if packet.key or n == 0]  # frame 0 may hang on a hidden key frame
    return np.array([packet.pts for packet in shown]), keys


def _count_frames(path):
    with _opened(path) as (container, stream):
        return sum(1 for _ in container.decode(stream))


def _rate(container, stream, stamps):
    """The average rate, as the container tells it best."""
    if container.format.name == 'gif' and len(stamps) > 1:
        # Delays come in whole 1/100 s; FFmpeg takes 30 fps (3, 4, 3, 3, 4 ...) for 33.
        return Fraction(len(stamps) - 1, int(stamps[-1] - stamps[0])) / stream.time_base
    # AVI has no times to average over; its header states the rate.
    first = stream.base_rate if container.format.name == 'avi' else stream.average_rate
    usable = (rate for rate in (first, stream.guessed_rate) if rate and 0 < rate <= 1000)
    return next(usable, CLIP_FPS)


def _is_cut(path, container, stream):
    """Whether the file is shorter than its own headers say, which a demuxer takes for a normal end."""
    stored = os.path.getsize(path)
    if 'mp4' in container.format.name:
        return any(entry.pos + entry.size > stored for entry in stream.index_entries)
    with open(path, 'rb') as file:
        if 'matroska' in container.format.name:
            return _matroska_size(file.read(4096)) > stored
        if container.format.name == 'avi':
            return int.from_bytes(file.read(8)[4:], 'little') + 8 > stored
        if container.format.name == 'gif':
            file.seek(-min(stored, 64), os.SEEK_END)
            return not file.read().rstrip(b'\0').endswith(b';')  # the trailer that ends every gif
    return False


def _matroska_size(head):
    """Bytes up to the end of the Segment element, which holds all frames; 0 where the header leaves it open."""
    at = head.find(b'\x18\x53\x80\x67') + 4  # the Segment's id; then a number whose leading zeros tell its length
    if at < 4 or at >= len(head) or not head[at]:
        return 0
    length = 9 - head[at].bit_length()
    bits = 7 * length
    size = int.from_bytes(head[at:at + length], 'big') & ((1 << bits) - 1)
    return 0 if size == (1 << bits) - 1 else at + length + size


# ---------------------------------------------------------------------------- constant rate

def indices_at(clip, fps, start=Fraction(0), count=None):
    """Which frame of a clip is on display at start, start + 1/fps, ...: (count,) ascending, with repeats.

    By time stamps, as FFmpeg's fps filter does it: the last frame that begins before the middle of the tick.
    start: seconds from the clip's first frame; count None goes on to the clip's end
    Raises UserError where the clip ends before `count` ticks are over.
    """
    stamps, tick = clip.times
    duration = stamps[-1] * tick + 1 / clip.fps
    available = int((duration - start) * fps + Fraction(1, 2))
    if count is None:
        count = available
    elif count > available:
        raise UserError(f'{clip.path}: lasts {float(duration):.2f} s, but frames up to '
                        f'{float(start + count / Fraction(fps)):.2f} s are asked for')
    middles = [math.ceil((start + Fraction(2 * n + 1, 2) / fps) / tick) for n in range(count)]
    return np.searchsorted(stamps, middles) - 1


def frames_at(clip, indices, threads=0):
    """Iterator over the frames at ascending `indices`, repeats allowed, one in memory at a time. Raises UserError."""
    indices, repeats = np.unique(indices, return_counts=True)
    for frame, count in zip(clip.frames(indices.tolist(), threads), repeats, strict=True):
        for _ in range(count):
            yield frame


# ---------------------------------------------------------------------------- dispatch

def open_clip(path, size=None):
    """The clip at `path`: a video file or a folder of stills; frames resized to (size, size) if given.

    Raises UserError if nothing is there or the suffix is unknown; damage shows at first use.
    """
    path = Path(path)
    if path.is_dir():
        return FrameFolder(path, size)
    if not path.exists():
        raise UserError(f'{path}: no such video or folder of frames')
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        raise UserError(f'{path}: not a known kind of video; expected a folder of PNG or JPEG frames '
                        f'or a file ending in {", ".join(VIDEO_SUFFIXES)}')
    return VideoClip(path, size)


def _check_indices(clip, indices):
    wrong = [i for i in indices if not 0 <= i < len(clip)]
    if wrong:
        raise IndexError(f'{clip.path}: has no frame {wrong[0]}, only 0 to {len(clip) - 1}')
