"""Small videos of many kinds, each frame of which shows its number."""

from fractions import Fraction

import av
import numpy as np
import pytest

from datasets.video_writer import VideoWriter
from tests.support.tiny import SHARED

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason='the real clips are not here')
BITS, TICK = 8, Fraction(1, 25)


def numbered(number, height=48, width=64):
    """A frame that shows its number as BITS black or white columns, and moves a little."""
    frame = np.zeros((height, width, 3), np.uint8)
    for bit in range(BITS):
        frame[:, width * bit // BITS:width * (bit + 1) // BITS] = 235 if number >> bit & 1 else 20
    frame[number % (height - 8):][:8, ::2] //= 2
    return frame


def number_in(frame):
    width = frame.shape[1]
    return sum((frame[:, width * bit // BITS:width * (bit + 1) // BITS].mean() > 110) << bit for bit in range(BITS))


def encode(path, codec='libx264', count=50, size=(48, 64), pix_fmt='yuv420p', times=None, tick=TICK, muxer=None,
           title=None, frames=None, tags={}, **options):
    """A video of numbered frames, which are shown at `times`, by default one by one, in units of tick seconds.

    frames: VideoFrames or uint8 RGB instead of numbered ones
    tags:   attributes of the codec context
    """
    times = times or range(len(frames) if frames else count)
    frames = frames or [numbered(number, *size) for number in range(len(times))]
    pictures = [frame if isinstance(frame, av.VideoFrame) else av.VideoFrame.from_ndarray(frame, format='rgb24')
                for frame in frames]
    with av.open(str(path), 'w', options=muxer or {}) as container:
        container.metadata.update({'title': title} if title else {})
        stream = container.add_stream(codec, rate=25, options={name: str(value) for name, value in options.items()})
        if tick != TICK:
            stream.codec_context.time_base = stream.time_base = tick
        stream.width, stream.height, stream.pix_fmt = pictures[0].width, pictures[0].height, pix_fmt
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for picture, time in zip(pictures, times, strict=True):
            picture.pts, picture.time_base = time, tick
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def write_video(path, frames, fps=25, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, fps, **options) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def write_tone(path, seconds, codec='aac', rate=44100, video_offset=None):
    """A file with `seconds` of noise, and a few frames starting at video_offset seconds if that is given."""
    with av.open(str(path), 'w') as container:
        stream = container.add_stream(codec, rate=rate, layout='mono')
        if video_offset is not None:
            frames = container.add_stream('libx264', rate=25)
            frames.height, frames.width, frames.pix_fmt = 48, 64, 'yuv420p'
        noise = np.random.default_rng(0).uniform(-0.3, 0.3, (1, int(seconds * rate))).astype(np.float32)
        sound = av.AudioFrame.from_ndarray(noise, format='fltp', layout='mono')
        sound.sample_rate, sound.pts, sound.time_base = rate, 0, Fraction(1, rate)
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
        if video_offset is not None:
            for number in range(5):
                picture = av.VideoFrame.from_ndarray(numbered(number), format='rgb24')
                picture.pts, picture.time_base = number + round(25 * video_offset), TICK
                container.mux(frames.encode(picture))
            container.mux(frames.encode(None))
    return path


def titled(path, title):
    """A video whose title, bytes, is in no encoding that UTF-8 could be taken for."""
    plain = bytes(title.replace(b'\xe9', b'e')).decode()
    data = encode(path, count=3, title=plain).read_bytes()
    assert data.count(plain.encode()) == 1
    path.write_bytes(data.replace(plain.encode(), title))
    return path


def plain_decode(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format='rgb24') for frame in container.decode(video=0)]


KINDS = {
    'long_gop.mp4': dict(g=250, bf=3),
    'gop10.mp4': dict(g=10, bf=3),
    'gop2.mp4': dict(g=2, bf=3),
    'intra.mp4': dict(g=1),
    'open_gop.mp4': {'x264-params': 'open-gop=1:keyint=12:bframes=3'},
    'vfr.mp4': dict(g=10, times=[n + n // 3 * 4 for n in range(50)]),
    'odd.mp4': dict(size=(49, 65), pix_fmt='yuv444p'),
    'one.mp4': dict(count=1),
    'fragmented.mp4': dict(g=12, muxer={'movflags': 'frag_keyframe+empty_moov'}),
    'mpeg4.mov': dict(codec='mpeg4', g=12, bf=2),
    'hevc.mp4': dict(codec='libx265', g=12, **{'x265-params': 'log-level=none'}),
    'h264.mkv': dict(g=10, bf=3),
    'vp9.webm': dict(codec='libvpx-vp9', g=20, cpu_used=8, deadline='realtime'),
    'mpeg4.avi': dict(codec='mpeg4', g=12, bf=2),
    'h264.avi': dict(g=250, bf=3),
    'mpeg2.mpg': dict(codec='mpeg2video', g=12, bf=2),
    'wmv2.wmv': dict(codec='wmv2', g=12),
    'moov_first.mp4': dict(muxer={'movflags': 'faststart'}),
    'moving.gif': dict(codec='gif', pix_fmt='rgb8'),
    'one.gif': dict(codec='gif', pix_fmt='rgb8', count=1),
}


def assert_exact(clip, picks=12):
    """Sequential reading gives what the decoder gives; random reading gives the same, bit by bit."""
    frames = list(clip.frames())
    assert len(frames) == len(clip)
    order = np.random.default_rng(0).permutation(len(clip)).tolist()
    for i in order[:picks]:
        assert np.array_equal(clip.read([i])[0], frames[i]), f'frame {i} read alone'
    mixed = order[:picks] + order[:2]
    assert all(np.array_equal(a, frames[i]) for a, i in zip(clip.read(mixed), mixed, strict=True))
    return frames
