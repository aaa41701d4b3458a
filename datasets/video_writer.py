"""Atomic writing of videos frame by frame: MP4 (H.264) with the sound of another file, or GIF."""

import logging
import os
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Callable, NamedTuple

import av
import numpy as np
from PIL import Image

from datasets.pixels import BT709, LIMITED, SWSCALE, matrix_of
from datasets.video import exact, open_container
from support.errors import UserError
from support.files import written_whole

SHORTEST_DELAY = 2          # of a GIF's frame, 1/100 s

log = logging.getLogger(__name__)


class VideoWriter:
    """Writes frames one by one to an mp4 (H.264, yuv420p) or a gif, in constant memory; a context manager.

    path:       must end in .mp4 or .gif; appears only when complete, nothing is left after an exception
    fps:        Fraction or int, kept exactly in an mp4. A gif counts in 1/100 s (GIF89a, Sec. 23), right on average;
                above 50 frames/s some are left out, as browsers slow down delays below 20 ms
    audio_from: a file whose first audio track, if any, is copied into the mp4 packet by packet as far as there are
                frames; it keeps its offset to that file's video
    crf:        quality of the mp4, 0 (lossless) to 51; 18 is hard to tell from the original
                (https://trac.ffmpeg.org/wiki/Encode/H.264)
    gop:        the mp4 has a key frame at least every so many frames; None leaves the encoder's 250
    threads:    of the encoder; 0 lets it choose
    aside:      folder on the same disk where it is written until it is complete; None for that of `path`

    An odd height or width, which yuv420p cannot have, is made even by repeating the last row or column. Raises
    UserError if the path cannot be written, if the sound cannot be copied and if no frame is written.
    """

    def __init__(self, path, fps, audio_from=None, crf=18, gop=None, threads=0, aside=None):
        self.path = Path(path)
        if self.path.is_dir():
            raise UserError(f'{path}: is a folder; give the name of a file to write')
        if self.path.suffix.lower() not in _ENCODERS:
            raise UserError(f'{path}: cannot write this kind of video; let the name end in {" or ".join(_ENCODERS)}')
        if not self.path.parent.is_dir():
            raise UserError(f'{path}: its folder does not exist; create it first')
        self.fps = Fraction(fps).limit_denominator(100_000)
        self._encoder = _ENCODERS[self.path.suffix.lower()]
        self._options, self._audio_from = {}, None
        if self._encoder.name == 'libx264':
            self._options, self._audio_from = {'crf': str(crf), **({'g': str(gop)} if gop else {})}, audio_from
        self._threads, self._aside = threads, aside
        self._output = self._video = self._audio = None
        self._shape, self._count, self._shown, self._left_out = None, 0, 0, False

    def __enter__(self):
        with ExitStack() as stack:
            unfinished = stack.enter_context(written_whole(self.path, self._aside))
            stack.callback(self._close)
            with self._writing():
                options = {}
                if self._encoder.ticks:     # FFmpeg's delay of the last frame is 10 ms, which browsers show as 100
                    delay = max(round(self._encoder.ticks / self.fps), SHORTEST_DELAY)
                    options['final_delay'] = str(min(delay, 65535))
                self._output = av.open(os.path.abspath(unfinished), 'w', format=self._encoder.format, options=options)
                self._video = self._output.add_stream(self._encoder.name, rate=self._encoder.ticks or self.fps,
                                                      options=self._options)
                self._video.pix_fmt = self._encoder.pix_fmt
                self._video.codec_context.thread_count = self._threads
            if self._audio_from is not None:
                self._audio = _AudioCopy(self._audio_from, self._output)
            stack.push(self._finish)
            self._leave = stack.pop_all().__exit__     # finish, close, rename: what fails spares nobody the rest
        return self

    def write(self, frame):
        """Appends one frame, uint8 (H, W, 3) RGB, of the same size as the first; ValueError for any other."""
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f'expected a uint8 frame (H, W, 3) but found {frame.dtype} {frame.shape}')
        if self._shape is None:
            self._set_size(frame.shape)
        if frame.shape != self._shape:
            raise ValueError(f'expected a frame {self._shape} as the first but found {frame.shape}')

        tick = self._tick()
        self._count += 1
        if tick is None:
            return
        picture = self._encoder.picture(frame)
        picture.pts, picture.time_base = tick, Fraction(1) / (self._encoder.ticks or self.fps)
        with self._writing():
            self._output.mux(self._video.encode(picture))
            if self._audio is not None:
                self._audio.copy_until(self._count / self.fps)

    def _tick(self):
        """When the next frame is shown, in ticks of the file; None to leave it out, as it follows too soon."""
        if not self._encoder.ticks:
            return self._count
        tick = round(self._count * self._encoder.ticks / self.fps)
        if self._count and tick - self._shown < SHORTEST_DELAY:
            if not self._left_out:
                log.warning('%s: a GIF shows at most 50 frames per second; of %.6g, some are left out', self.path,
                            float(self.fps))
            self._left_out = True
            return None
        self._shown = tick
        return tick

    def __exit__(self, *raised):
        return self._leave(*raised)

    def _set_size(self, shape):
        self._shape = shape
        self._video.height, self._video.width = (side + side % self._encoder.multiple_of for side in shape[:2])
        if self._encoder.pix_fmt == 'yuv420p':
            context, matrix = self._video.codec_context, matrix_of(shape[0])
            context.colorspace = context.color_primaries = matrix
            context.color_trc, context.color_range = BT709, LIMITED

    def _finish(self, kind, error, trace):
        """Writes what the encoder still holds, unless something was raised."""
        if kind is not None:
            return
        if not self._count:
            raise UserError(f'{self.path}: not written, there are no frames')
        with self._writing():
            self._output.mux(self._video.encode(None))
            self._output.close()

    def _close(self):
        for part in (self._audio, self._output):
            if part is not None:
                with suppress(av.error.FFmpegError):
                    part.close()

    @contextmanager
    def _writing(self):
        try:
            yield
        except (av.error.FFmpegError, OSError) as error:
            raise UserError(f'{self.path}: cannot be written ({error.strerror})') from error


class _AudioCopy:
    """Copies the packets of a file's audio track into an output, up to a time that moves on."""

    def __init__(self, path, output):
        """A file without an audio track adds none. Raises UserError."""
        self._path, self._output, self._waiting, self._packets = path, output, None, iter(())
        try:
            self._source = source = open_container(path)
        except av.error.FFmpegError as error:
            raise UserError(f'{path}: cannot be read for its sound ({error.strerror})') from error
        track, video = source.streams.best('audio'), source.streams.best('video')
        if track is None:
            return
        codec = track.codec_context.codec.canonical_name if track.codec_context else 'of an unknown kind'
        if codec not in output.supported_codecs:
            source.close()
            raise UserError(f'{path}: its sound ({codec}) cannot be copied into an mp4; convert it to AAC first')
        self._stream = output.add_stream_from_template(track)
        self._packets = (packet for packet in source.demux(track) if packet.pts is not None)
        # Frames are written from time 0 on, so sound moves by as much as the first frame does.
        self._shift = video.start_time * exact(video.time_base) if video and video.start_time else Fraction(0)

    def copy_until(self, end):
        """Writes the packets whose middle comes before `end` seconds, so the sound ends within half a packet of it."""
        while (packet := self._waiting or self._next()) is not None:
            tick = exact(packet.time_base)
            start, duration = packet.pts * tick - self._shift, (packet.duration or 0) * tick
            self._waiting = packet if start + duration / 2 > end else None
            if self._waiting is not None:
                return
            if start + duration >= 0:
                shift = round(self._shift / tick)
                packet.pts -= shift
                packet.dts = packet.pts if packet.dts is None else packet.dts - shift
                packet.stream = self._stream
                self._output.mux(packet)

    def _next(self):
        try:
            return next(self._packets, None)
        except av.error.FFmpegError as error:
            raise UserError(f'{self._path}: its sound cannot be read ({error.strerror})') from error

    def close(self):
        self._source.close()


def _even_picture(frame):
    """The frame in yuv420p, padded to even sides; PyAV 18's own conversion changes the bytes of one frame in 350."""
    height, width, _ = frame.shape
    frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode='edge')
    return av.VideoFrame.from_ndarray(frame, format='rgb24').reformat(format='yuv420p',
                                                                      dst_colorspace=SWSCALE[matrix_of(height)])


def _palette_picture(frame):
    """Each GIF frame has its own 256 colours, so that frames can be written one by one."""
    image = Image.fromarray(frame).quantize(256)
    palette = np.zeros((256, 4), np.uint8)  # alpha, red, green, blue
    colours = np.array(image.getpalette(), np.uint8).reshape(-1, 3)
    palette[:, 0] = 255
    palette[:len(colours), 1:] = colours
    return av.VideoFrame.from_ndarray((np.array(image), palette), format='pal8')


class _Encoder(NamedTuple):
    """How one kind of file is written; `picture` turns a frame into what the encoder takes.

    ticks: per second, in which the file counts; None for one a frame
    """
    format: str
    name: str
    pix_fmt: str
    multiple_of: int
    picture: Callable
    ticks: int | None = None


_ENCODERS = {
    '.mp4': _Encoder('mp4', 'libx264', 'yuv420p', 2, _even_picture),
    '.gif': _Encoder('gif', 'gif', 'pal8', 1, _palette_picture, ticks=100),
}
