"""Videos as clips: streaming and frame-exact reading, errors for damaged files; opening of any path as a clip.

Every frame in this project is uint8 (H, W, 3), RGB, 0..255. A clip, whatever it is stored as, offers

    name      str, file or folder name without its suffix
    fps       Fraction, frames per second; 29.97 is 30000/1001
    len(clip) number of frames that decode
    times     (stamps, tick): frame i starts stamps[i] * tick seconds after the first; (T,) int64, Fraction
    read(indices) -> list of frames, random access
    frames()      -> iterator over all frames in order, in constant memory; frames(indices) over these alone

and read([i]) is bit-identical to the i-th of frames(). A clip that cannot give all its frames raises `UserError`.
"""

from bisect import bisect_right
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.stream import Disposition

from datasets.frame_folder import FrameFolder, check_indices
from datasets.manifest import CLIP_FPS
from datasets.shards import Member, address, read_bytes, stored_size
from datasets.pixels import Pictures, axes_of, shape_of
from datasets.still import STILL_SUFFIXES, WHITE, Still, resized
from support.errors import UserError

# Of the files in a folder, those that count as videos; a file that is named is read whatever its suffix.
VIDEO_SUFFIXES = ('.mp4', '.mov', '.webm', '.gif', '.avi', '.mkv', '.m4v', '.mpg', '.mpeg', '.ts', '.mts', '.m2ts',
                  '.wmv', '.flv', '.3gp')

ASF_FILE_PROPERTIES = bytes.fromhex('a1dcab8c47a9cf118ee400c00c205365')        # the id of this object of a wmv

# Decoding this many frames costs about as much as a seek, which also empties the decoder.
_WORTH_A_SEEK = 8


@dataclass(frozen=True)
class _Index:
    """Index of a video from one pass over its packets, without decoding."""
    fps: Fraction
    timed: bool           # stamps are presentation times, else plain numbers of frames
    stamps: np.ndarray    # (T,) ascending: frame i in the decoder's output
    keys: list            # ascending indices of the frames at which decoding can start; the first is 0
    tick: Fraction        # seconds that stamps count in


class VideoClip:
    """A video file as a clip; frames are as players show them (datasets/pixels.py).

    Exact for variable frame rate, where `fps` is the average. Each call opens the file and closes it, so thousands of
    clips can be held and pickled; the index of the packets is made at first use and kept.
    Every method raises UserError if the file is missing, truncated, damaged or not a video.
    """

    def __init__(self, path, size=None, background=WHITE):
        self.path, self.size, self.background = path if isinstance(path, Member) else Path(path), size, background
        self.name = self.path.stem

    @property
    def fps(self):
        return self._index.fps

    @property
    def times(self):
        return self._index.stamps - self._index.stamps[0], self._index.tick

    def __len__(self):
        return len(self._index.stamps)

    def read(self, indices):
        """Frames at `indices` (any order; repeats share one array), decoded in one forward pass.

        Raises UserError, IndexError. One thread: this serves data loader workers, which are parallel already.
        """
        check_indices(self, indices)
        wanted = sorted(set(indices))
        frame_at = dict(zip(wanted, self._decode(wanted, threads=1)))
        return [frame_at[i] for i in indices]

    def frames(self, indices=None, threads=0):
        """All frames in order, or those at the ascending `indices`; threads=0 lets the decoder choose. UserError."""
        return self._decode(range(len(self)) if indices is None else indices, threads)

    @cached_property
    def _index(self):
        with _opened(self.path) as (container, stream):
            return _build_index(self.path, container, stream)

    @cached_property
    def _first_shape(self):
        """`shape_of` the first frame; the header may hold that of a later one."""
        with _opened(self.path) as (container, stream):
            first = next(container.decode(stream))
            return shape_of(first, axes_of(first))

    def _decode(self, wanted, threads):
        index = self._index
        only = None if len(wanted) == len(self) else {int(index.stamps[i]) for i in wanted}
        with _opened(self.path) as (container, stream):
            pictures = Pictures(self.path, stream, self.background, self._first_shape)
            stream.thread_type = 'AUTO'
            stream.codec_context.thread_count = threads
            decoded, position = _decoded(container, stream, index.timed, only), 0
            for i in wanted:
                key = index.keys[bisect_right(index.keys, i) - 1]       # the last one at or before frame i
                if key > position + _WORTH_A_SEEK:
                    container.seek(int(index.stamps[key]), stream=stream)
                    decoded = _decoded(container, stream, index.timed, only)
                stamp, frame = next((pair for pair in decoded if pair[0] >= index.stamps[i]), (None, None))
                if stamp != index.stamps[i]:
                    raise UserError(f'{self.path}: frame {i} of {len(self)} does not decode; the file is damaged, '
                                    f're-encode or remove it')
                yield resized(pictures(frame), self.size)
                position = i


# Up to PyAV 18 a title that is not UTF-8 made the whole file unreadable, unless told otherwise; from 19 on none does.
_ANY_TITLE = {} if int(av.__version__.partition('.')[0]) >= 19 else {'metadata_errors': 'ignore'}


def open_container(path):
    """PyAV's container of a Path or Member, whatever encoding its title and tags are in.

    Raises av.error.FFmpegError. PyAV gives rates and times as Fraction or, from 19 on, as a type of its own that
    overflows: `exact` makes them Fractions.
    """
    return av.open(address(path), **_ANY_TITLE)


def exact(rational):
    """A rate or time of PyAV as a Fraction."""
    return Fraction(rational.numerator, rational.denominator)


@contextmanager
def _opened(path):
    """(container, its video stream); what FFmpeg cannot read, here or in the body, becomes a UserError."""
    try:
        with open_container(path) as container:
            stream = container.streams.best('video')
            if stream is None:
                raise UserError(f'{path}: has no video track')
            if stream.codec_context is None:
                raise UserError(f'{path}: FFmpeg has no decoder for its video track; re-encode it, or the file is '
                                'damaged')
            yield container, stream
    except av.error.FileNotFoundError as error:
        raise UserError(f'{path}: no such video') from error
    except av.error.FFmpegError as error:
        raise UserError(f'{path}: cannot be decoded ({error.strerror}); the file is damaged or not a video, '
                        f're-encode or remove it') from error


def _decoded(container, stream, timed, only=None):
    """(stamp, frame) for every frame from the container's position on.

    timed: the stamp is the frame's presentation time, otherwise its number
    only:  stamps of the frames that matter; others that no frame is predicted from are not decoded: with B-frames,
           a quarter of the time
    """
    decoder, numbers = _decoder(stream), count()
    for packet in container.demux(stream):
        if only is not None and timed:
            decoder.skip_frame = 'DEFAULT' if packet.pts in only else 'NONREF'
        for frame in decoder.decode(packet):
            yield (frame.pts if timed else next(numbers)), frame


def _decoder(stream):
    """The codec context that decodes a stream; of VP8 and VP9, FFmpeg's own decoders drop the transparency."""
    name = {'vp8': 'libvpx', 'vp9': 'libvpx-vp9'}.get(stream.codec_context.name)
    if stream.metadata.get('alpha_mode') == '1' and name in av.codecs_available:
        return av.CodecContext.create(name, 'r')
    return stream.codec_context


def _build_index(path, container, stream):
    packets = [_Packet(packet.pts, packet.is_keyframe, not packet.is_discard, packet.is_corrupt)
               for packet in container.demux(stream) if packet.size]
    if _is_cut(path, container, stream) or any(packet.corrupt for packet in packets):
        raise UserError(f'{path}: is incomplete, its end is missing; fetch the file again or remove it')

    # AVI stores no presentation times (FFmpeg makes some up), so its frames have to be counted.
    times = {packet.pts for packet in packets}
    timed = container.format.name != 'avi' and None not in times and len(times) == len(packets) > 0
    stamps, keys = _timed_frames(packets) if timed else (np.arange(_count_frames(path)), [0])
    if not len(stamps):
        raise UserError(f'{path}: has no frames')
    if container.format.name in ('gif', 'mpegts', 'mpeg'):
        keys = [0]  # a gif builds each frame on the one before; the others have no index, so that a seek may miss
    fps = _rate(container, stream, stamps)
    tick = exact(stream.time_base) if timed else 1 / fps
    return _Index(fps, timed, stamps, keys, tick)


class _Packet(NamedTuple):
    pts: int
    key: bool
    shown: bool    # False where an edit list (ISO/IEC 14496-12, Sec. 8.6.6) cuts the frame away: decoded, then dropped
    corrupt: bool


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
    """The average frame rate, a Fraction, from the most reliable value in the container.

    gif: https://www.w3.org/Graphics/GIF/spec-gif89a.txt, Sec. 23
    avi: https://learn.microsoft.com/en-us/windows/win32/directshow/avi-riff-file-reference
    """
    if container.format.name == 'gif' and len(stamps) > 1:
        # Delays come in whole 1/100 s; FFmpeg takes 30 fps (3, 4, 3, 3, 4 ...) for 33.
        return Fraction(len(stamps) - 1, int(stamps[-1] - stamps[0])) / exact(stream.time_base)
    # AVI has no times to average over; its header states the rate.
    first = stream.base_rate if container.format.name == 'avi' else stream.average_rate
    usable = (exact(rate) for rate in (first, stream.guessed_rate) if rate and 0 < rate <= 1000)
    return next(usable, CLIP_FPS)


def _is_cut(path, container, stream):
    """Whether the file is shorter than its own headers say, which a demuxer takes for a normal end.

    mp4: places and sizes of the samples (ISO/IEC 14496-12, Sec. 8.7), and of fragments; avi: the size of its RIFF
    chunk; asf: the size in its File Properties Object (ASF Specification, Sec. 3.2); gif: its trailer (GIF89a,
    Sec. 27); Matroska: the size of its Segment
    """
    stored = stored_size(path)
    if 'mp4' in container.format.name:
        samples = (entry.pos + entry.size for entry in stream.index_entries)
        return any(end > stored for end in samples) or _ends_in_a_fragment(path, stored)
    if 'matroska' in container.format.name:
        return _matroska_size(read_bytes(path, 0, 4096)) > stored
    if container.format.name == 'avi':
        return int.from_bytes(read_bytes(path, 4, 4), 'little') + 8 > stored
    if container.format.name == 'asf':
        head = read_bytes(path, 0, 4096)
        at = head.find(ASF_FILE_PROPERTIES)
        return at >= 0 and int.from_bytes(head[at + 40:at + 48], 'little') > stored
    if container.format.name == 'gif':
        end = read_bytes(path, max(0, stored - 64), 64)
        return not end.rstrip(b'\0').endswith(b';')  # the trailer that ends every gif
    return False


def _ends_in_a_fragment(path, stored):
    """Whether an mp4 ends within a fragment's box, of frames or of their index (ISO/IEC 14496-12, 4.2).

    A whole file without fragments has a table of its samples, whatever size its boxes claim.
    """
    at, kind, fragmented = 0, None, False
    while at + 8 <= stored:
        head = read_bytes(path, at, 16)
        size, kind = int.from_bytes(head[:4], 'big'), head[4:8]
        if size == 1:                                # the size follows, in eight bytes
            size = int.from_bytes(head[8:], 'big')
        if size < 8:                                 # 0: up to the end
            return False
        fragmented |= kind == b'moof'
        at += size
    return at > stored and fragmented and kind in (b'moof', b'mdat')


def _matroska_size(head):
    """Bytes up to the end of the Segment element, which holds all frames; 0 where the header leaves it open.

    Matroska: RFC 9559, Sec. 5.1; how it writes numbers: EBML, RFC 8794, Sec. 4.
    """
    at = head.find(b'\x18\x53\x80\x67') + 4  # the Segment's id; then a number whose leading zeros tell its length
    if at < 4 or at >= len(head) or not head[at]:
        return 0
    length = 9 - head[at].bit_length()
    bits = 7 * length
    size = int.from_bytes(head[at:at + length], 'big') & ((1 << bits) - 1)
    return 0 if size == (1 << bits) - 1 else at + length + size


# ---------------------------------------------------------------------------- by path

def open_clip(path, size=None, background=WHITE):
    """The clip at `path`: a video file, also of a shard, or a folder of stills; frames of (size, size) if given.

    background: (red, green, blue) behind transparent pixels
    Raises UserError if nothing is there. Whether FFmpeg can read the file, whatever its suffix, shows at first use.
    """
    path = path if isinstance(path, Member) else Path(path)
    if not path.exists():
        raise UserError(f'{path}: no such video or folder of frames')
    return (FrameFolder if path.is_dir() else VideoClip)(path, size, background)


def is_video(path):
    """Whether a file is a video, by its suffix or else by what FFmpeg finds in it."""
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return True
    try:
        with open_container(path) as container:
            stream = container.streams.best('video')
            picture = container.format.name.endswith(('_pipe', 'image2'))
            return stream is not None and not picture and not stream.disposition & Disposition.attached_pic
    except (av.error.FFmpegError, OSError):
        return False


def is_still(path):
    """Whether a file is a still by its suffix, and no animated PNG: https://www.w3.org/TR/png-3/#acTL-chunk."""
    if Path(path).suffix.lower() not in STILL_SUFFIXES or not Path(path).is_file():
        return Path(path).suffix.lower() in STILL_SUFFIXES
    with open(path, 'rb') as file:
        return b'acTL' not in file.read(4096).partition(b'IDAT')[0]


def open_any(path, size=None, opener=open_clip, **options):
    """The still at `path`, or what `opener` makes of it; UserError where neither can be."""
    return (Still if is_still(path) else opener)(path, size, **options)
