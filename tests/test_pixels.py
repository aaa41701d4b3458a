"""Recordings as players show them: square pixels, HDR in SDR, HD colours, transparency, one size."""

import logging
from fractions import Fraction

import av
import av.filter
import numpy as np
import pytest

from datasets import pixels
from datasets.still import read_image
from datasets.video import open_clip
from datasets.video_writer import VideoWriter
from tests.support.video_files import SHARED, assert_exact, needs_shared, plain_decode

WHITE, GREEN = (255, 255, 255), (0, 128, 0)
BT2020, MATRICES = 9, {pixels.BT709: 'bt709', pixels.BT601: 'smpte170m'}
COLOURS = np.uint8([[200, 40, 30], [30, 160, 60], [40, 60, 190], [220, 170, 140], [128, 128, 128], [20, 20, 20]])


def bars(height, width, colours=COLOURS):
    """Vertical bars (H, W, 3) of the colours."""
    return np.ascontiguousarray(np.repeat(colours, width // len(colours), axis=0)[None].repeat(height, axis=0))


def write(path, frames, codec='libx264', pix_fmt='yuv420p', aspect=None, tags={}, **options):
    """Frames, VideoFrames or uint8 RGB, as a video with a pixel aspect ratio and tags of its codec context."""
    frames = [frame if isinstance(frame, av.VideoFrame) else av.VideoFrame.from_ndarray(frame, format='rgb24')
              for frame in frames]
    with av.open(str(path), 'w') as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, pix_fmt
        for name, value in (tags | ({'sample_aspect_ratio': aspect} if aspect else {})).items():
            setattr(stream.codec_context, name, value)
        for number, frame in enumerate(frames):
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def as_yuv(frame, pix_fmt, matrix):
    """The frame converted by FFmpeg's own filter, which names all matrices."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 25))
    scale = graph.add('scale', f'out_color_matrix={matrix}:out_range=tv')
    pixel_format, sink = graph.add('format', pix_fmt), graph.add('buffersink')
    for one, other in ((source, scale), (scale, pixel_format), (pixel_format, sink)):
        one.link_to(other)
    graph.configure()
    source.push(frame)
    return sink.pull()


def bar_colours(frame):
    """The colour in the middle of each bar."""
    width = frame.shape[1] // len(COLOURS)
    return np.stack([frame[frame.shape[0] // 2, (2 * n + 1) * width // 2] for n in range(len(COLOURS))]).astype(int)


# ---------------------------------------------------------------------------- square pixels

@pytest.mark.parametrize('aspect, shape', [(Fraction(64, 45), (48, 102)), (Fraction(8, 9), (54, 72)),
                                           (Fraction(1), (48, 72)), (Fraction(1, 100), (48, 72))])
def test_pixels_become_square(tmp_path, aspect, shape):
    path = write(tmp_path / 'a.mkv', [bars(48, 72)] * 3, aspect=aspect)
    frames = assert_exact(open_clip(path), picks=3)
    assert frames[0].shape == (*shape, 3)
    assert np.abs(bar_colours(frames[0]) - COLOURS).max() < 10


# ---------------------------------------------------------------------------- colours

@pytest.mark.parametrize('height, matrix', [(64, pixels.BT601), (720, pixels.BT709)])
def test_results_are_tagged_and_come_back(tmp_path, height, matrix):
    with VideoWriter(tmp_path / 'a.mp4', 25, crf=4) as writer:
        writer.write(bars(height, 96))
    with av.open(str(tmp_path / 'a.mp4')) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_range) == (matrix, matrix, pixels.LIMITED)
    assert np.abs(bar_colours(open_clip(tmp_path / 'a.mp4').read([0])[0]) - COLOURS).max() <= 2


@pytest.mark.parametrize('height, matrix', [(64, pixels.BT601), (720, pixels.BT709)])
@pytest.mark.parametrize('tagged', [True, False])
def test_colours_are_those_that_players_show(tmp_path, height, matrix, tagged):
    frame = as_yuv(av.VideoFrame.from_ndarray(bars(height, 96), format='rgb24'), 'yuv420p', MATRICES[matrix])
    path = write(tmp_path / 'a.mp4', [frame], tags={'colorspace': matrix} if tagged else {}, crf='4')
    assert np.abs(bar_colours(open_clip(path).read([0])[0]) - COLOURS).max() <= 2


# ---------------------------------------------------------------------------- HDR

def signal_of(light, transfer):
    """What a camera of BT.2100 writes for display light in units of the reference white, BT.2020 RGB."""
    if transfer == pixels.PQ:
        power = (light * 203 / 10000) ** 0.1593017578125
        return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    luminance = (light * 203 / 1000) @ pixels.LUMINANCE
    scene = light * 203 / 1000 * np.maximum(luminance, 1e-9)[..., None] ** (1 / 1.2 - 1)
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene),
                    0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073)


@pytest.mark.parametrize('transfer', [pixels.PQ, pixels.HLG])
def test_hdr_shows_midtones_as_sdr_does_and_keeps_highlights_apart(tmp_path, transfer):
    """Bars of BT.709 colours at the light of an SDR display; two highlights above its white differ and are bright."""
    dim = (COLOURS * 0.7).astype(np.uint8)
    light = (bars(64, 96, dim) / 255) ** 2.4 @ np.linalg.inv(pixels.TO_BT709).T.astype(float)
    light[:8, :48], light[:8, 48:] = 1, 3                        # of white
    deep = np.uint16(np.round(signal_of(light.clip(0), transfer).clip(0, 1) * 65535))
    frame = as_yuv(av.VideoFrame.from_ndarray(deep, format='rgb48le'), 'yuv420p10le', 'bt2020')
    path = write(tmp_path / 'a.mp4', [frame], pix_fmt='yuv420p10le', crf='2', tags={
        'color_trc': transfer, 'colorspace': BT2020, 'color_primaries': BT2020})
    found = open_clip(path).read([0])[0]
    assert np.abs(bar_colours(found) - dim).max() <= 5
    assert 215 < found[3, 20].min() < found[3, 80].min() - 10


@needs_shared
def test_a_real_hlg_recording_looks_as_in_sdr():
    """The same frame was stored in SDR, too; decoded without tone mapping it is flat."""
    sdr = open_clip(SHARED / 'fails' / 'midres' / 'midres.mkv').read([0])[0].astype(int)
    path = SHARED / 'fails' / 'hdr' / 'hlg.mov'
    flat, found = (np.abs(frame - sdr).mean() for frame in (plain_decode(path)[0], open_clip(path).read([0])[0]))
    assert found < flat / 2


# ---------------------------------------------------------------------------- transparency

def transparent(height=32, width=48):
    """RGBA: left opaque red, right transparent, hiding blue."""
    picture = np.zeros((height, width, 4), np.uint8)
    picture[:, :width // 2] = 200, 30, 30, 255
    picture[:, width // 2:] = 10, 10, 200, 0
    return picture


@pytest.mark.parametrize('background', [WHITE, GREEN])
@pytest.mark.parametrize('kind', ['still.png', 'animated.png', 'a.gif', 'a.webm', 'a.mov'])
def test_what_is_transparent_shows_the_background(tmp_path, kind, background):
    from PIL import Image
    picture, path = transparent(), tmp_path / kind
    if kind.endswith(('.png', '.gif')):
        image = Image.fromarray(picture)
        image.save(path, **({} if kind == 'still.png' else dict(save_all=True, append_images=[image])))
    else:
        codec, pix_fmt = ('libvpx-vp9', 'yuva420p') if kind == 'a.webm' else ('prores_ks', 'yuva444p10le')
        frame = av.VideoFrame.from_ndarray(picture, format='rgba').reformat(format=pix_fmt)
        write(path, [frame] * 3, codec, pix_fmt)
    found = read_image(path, background=background) if kind.endswith('.png') else \
        open_clip(path, background=background).read([0])[0]
    assert np.abs(found[16, 40].astype(int) - background).max() <= 4
    assert np.abs(found[16, 8].astype(int) - (200, 30, 30)).max() <= 8


# ---------------------------------------------------------------------------- changing size

def test_a_size_that_changes_keeps_the_first(tmp_path, caplog):
    first, second = (write(tmp_path / f'{size}.h264', [bars(size, size)] * 6, bf='0') for size in (96, 48))
    path = tmp_path / 'both.mkv'
    with av.open(str(first)) as one, av.open(str(second)) as two, av.open(str(path), 'w') as container:
        stream = container.add_stream_from_template(one.streams.video[0])
        packets = (packet for source in (one, two) for packet in source.demux(video=0) if packet.size)
        for number, packet in enumerate(packets):
            packet.pts = packet.dts = number
            packet.time_base, packet.stream = Fraction(1, 25), stream
            container.mux(packet)
    clip = open_clip(path)
    with caplog.at_level(logging.WARNING):
        frames = assert_exact(clip, picks=12)
    assert {frame.shape for frame in frames} == {(96, 96, 3)} and len(frames) == 12
    assert np.abs(bar_colours(frames[-1]) - COLOURS).max() < 16
    assert [record.getMessage().count('from 96x96 to 48x48') for record in caplog.records] == [1]
