"""Recordings and stills as players show them: square pixels, HDR in SDR, transparency, one size; folders."""

from fractions import Fraction
from itertools import count

import av
import av.filter
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from PIL import Image

from datasets import pixels
from datasets.frame_folder import FrameFolder
from datasets.still import read_image
from datasets.video import open_any, open_clip
from support.errors import UserError
from tests.support.video_files import (SHARED, assert_exact, encode, needs_shared, number_in, numbered, plain_decode,
    write_video)

WHITE, GREEN = (255, 255, 255), (0, 128, 0)
MATRICES = {pixels.BT709: 'bt709', pixels.BT601: 'smpte170m'}
WIDE = {'colorspace': pixels.BT2020, 'color_primaries': pixels.BT2020}
COLOURS = np.uint8([[200, 40, 30], [30, 160, 60], [40, 60, 190], [220, 170, 140], [128, 128, 128], [20, 20, 20]])


def bars(height, width, colours=COLOURS):
    """Vertical bars (H, W, 3) of the colours."""
    return np.ascontiguousarray(np.repeat(colours, width // len(colours), axis=0)[None].repeat(height, axis=0))


def write(path, frames, codec='libx264', pix_fmt='yuv420p', **options):
    return encode(path, codec, pix_fmt=pix_fmt, frames=frames, **options)


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
    path = write(tmp_path / 'a.mkv', [bars(48, 72)] * 3, tags={'sample_aspect_ratio': aspect})
    frames = assert_exact(open_clip(path), picks=3)
    assert frames[0].shape == (*shape, 3)
    assert np.abs(bar_colours(frames[0]) - COLOURS).max() < 10


# ---------------------------------------------------------------------------- colours

@pytest.mark.parametrize('height, matrix', [(64, pixels.BT601), (720, pixels.BT709)])
def test_colours_are_those_that_players_show_and_results_are_tagged(tmp_path, height, matrix):
    frame = as_yuv(av.VideoFrame.from_ndarray(bars(height, 96), format='rgb24'), 'yuv420p', MATRICES[matrix])
    made = write_video(tmp_path / 'made.mp4', [bars(height, 96)], crf=4)
    for path in (made, *(write(tmp_path / f'{len(tags)}.mp4', [frame], tags=tags, crf='4')
                         for tags in ({}, {'colorspace': matrix}))):
        assert np.abs(bar_colours(open_clip(path).read([0])[0]) - COLOURS).max() <= 2
    with av.open(str(made)) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_range) == (matrix, matrix, pixels.LIMITED)


# ---------------------------------------------------------------------------- HDR

DIM = (COLOURS * 0.7).astype(np.uint8)


def dim_light():
    """Bars (64, 96, 3) of DIM: their light on an SDR display, BT.2020 RGB."""
    return (bars(64, 96, DIM) / 255) ** 2.4 @ np.linalg.inv(pixels.TO_BT709).T.astype(float)


def signal_of(light, transfer):
    """What a camera of BT.2100 writes for display light in units of the reference white, BT.2020 RGB."""
    if transfer == pixels.PQ:
        power = (light * 203 / 10000) ** 0.1593017578125
        return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    luminance = (light * 203 / 1000) @ pixels.LUMINANCE
    scene = light * 203 / 1000 * np.maximum(luminance, 1e-9)[..., None] ** (1 / 1.2 - 1)
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene),
                    0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073)


def wide(path, signal, codec='libx264', pix_fmt='yuv420p10le', deep='rgb48le', **options):
    """A video of one frame of BT.2020 from a signal (H, W, 3 or 4) in [0, 1]."""
    frame = av.VideoFrame.from_ndarray(np.uint16(np.round(signal.clip(0, 1) * 65535)), format=deep)
    return write(path, [as_yuv(frame, pix_fmt, 'bt2020')], codec, pix_fmt, **options)


@pytest.mark.parametrize('transfer', [pixels.PQ, pixels.HLG])
def test_hdr_shows_midtones_as_sdr_does_and_keeps_highlights_apart(tmp_path, transfer):
    """Bars of BT.709 colours at the light of an SDR display; two highlights above its white differ and are bright."""
    light = dim_light()
    light[:8, :48], light[:8, 48:] = 1, 3                        # of white
    for tags in (WIDE, WIDE | {'colorspace': pixels.UNKNOWN}):
        path = wide(tmp_path / 'a.mp4', signal_of(light.clip(0), transfer), tags=tags | {'color_trc': transfer},
                    crf='2')
        found = open_clip(path).read([0])[0]
        assert np.abs(bar_colours(found) - DIM).max() <= 5
        assert 215 < found[3, 20].min() < found[3, 80].min() - 10


@pytest.mark.parametrize('transfer', [pixels.PQ, pixels.HLG, pixels.SDR])
def test_wide_colours_may_be_transparent_or_of_standard_range(tmp_path, transfer):
    """Transparency of HDR was lost, and BT.2020 without HDR looked washed out."""
    light = dim_light().clip(0)
    signal = light ** (1 / 2.4) if transfer == pixels.SDR else signal_of(light, transfer)
    alpha = np.ones((64, 96, 1))
    alpha[:, 80:] = 0
    path = wide(tmp_path / 'a.mov', np.concatenate([signal, alpha], -1), 'prores_ks', 'yuva444p10le', 'rgba64le',
                tags=WIDE | {'color_trc': transfer})
    found = bar_colours(open_clip(path, background=GREEN).read([0])[0])
    assert np.abs(found[:5] - DIM[:5]).max() <= 5 and np.abs(found[5] - GREEN).max() <= 2


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

def joined(path, parts, changes=('', '')):
    """The H.264 frames of the parts one after another in one file; `changes` are options of FFmpeg's h264_metadata."""
    with av.open(str(parts[0])) as template, av.open(str(path), 'w') as container:
        stream, numbers = container.add_stream_from_template(template.streams.video[0]), count()
        for part, how in zip(parts, changes, strict=True):
            with av.open(str(part)) as source:
                change = BitStreamFilterContext(f'h264_metadata{how}', source.streams.video[0])
                for packet in (packet for read in source.demux(video=0) if read.size for packet in change.filter(read)):
                    packet.pts = packet.dts = next(numbers)
                    packet.time_base, packet.stream = Fraction(1, 25), stream
                    container.mux(packet)
    return path


def test_a_size_that_changes_keeps_the_first(tmp_path, caplog):
    parts = [write(tmp_path / f'{size}.h264', [bars(size, size)] * 6, bf='0') for size in (96, 48)]
    frames = assert_exact(open_clip(joined(tmp_path / 'both.mkv', parts)), picks=12)
    assert {frame.shape for frame in frames} == {(96, 96, 3)} and len(frames) == 12
    assert np.abs(bar_colours(frames[-1]) - COLOURS).max() < 16
    assert [record.getMessage().count('from 96x96 to 48x48') for record in caplog.records] == [1]


def test_a_recorder_that_is_turned_midway_keeps_the_first_size(tmp_path, caplog):
    """H.264 may turn each frame by itself (Rec. ITU-T H.264, Sec. D.2.27)."""
    part = write(tmp_path / 'a.h264', [bars(96, 48)] * 4, bf='0')
    path = joined(tmp_path / 'turned.mkv', [part, part], ('', '=display_orientation=insert:rotate=90'))
    assert {frame.shape for frame in assert_exact(open_clip(path), picks=4)} == {(96, 48, 3)}
    assert [record.getMessage().count('from 48x96 to 96x48') for record in caplog.records] == [1]


# ---------------------------------------------------------------------------- stills and folders of them

def test_stills_of_every_kind_and_orientation_are_pixel_right(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    grey = rgb[..., 0]
    saved = {
        'rgb.png': (Image.fromarray(rgb), rgb),
        'grey.png': (Image.fromarray(grey), np.stack([grey] * 3, -1)),
        'grey16.png': (Image.fromarray(grey.astype(np.uint16) * 257), np.stack([grey] * 3, -1)),
        'palette.png': (Image.fromarray(rgb).quantize(256), rgb),
        'opaque.png': (Image.fromarray(np.dstack([rgb, np.full_like(grey, 255)])), rgb),
        'clear.png': (Image.fromarray(np.dstack([rgb, np.zeros_like(grey)])), np.full_like(rgb, 255)),
    }
    for name, (image, expected) in saved.items():
        image.save(tmp_path / name)
        assert np.array_equal(read_image(tmp_path / name), expected), name
    for orientation, undo in ((2, np.fliplr), (3, lambda a: np.rot90(a, 2)), (6, lambda a: np.rot90(a, -1)),
                              (8, np.rot90)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(rgb).save(tmp_path / 'turned.png', exif=exif)
        assert np.array_equal(read_image(tmp_path / 'turned.png'), undo(rgb)), orientation


@pytest.mark.parametrize('head, kind', [
    (b'\0\0\0\x18ftypheic', 'HEIC, which'), (b'\0\0\0\x1cftypmif1\0\0\0\0mif1heic', 'HEIC, which'),
    (b'\0\0\0\x20ftypisom', 'a video, not an image'), (b'<svg xmlns', 'SVG'), (b'', 'empty or not an image'),
    (b'some text', 'empty or not an image')])
def test_an_image_of_a_kind_that_cannot_be_read_is_named(tmp_path, head, kind):
    """HEIC is what phones take; it was called empty."""
    (tmp_path / 'a.jpg').write_bytes(head)
    with pytest.raises(UserError, match=rf'a.jpg: is {kind}.*; (convert it|replace|--source_video)'):
        read_image(tmp_path / 'a.jpg')


def test_an_animated_png_is_a_clip_of_all_its_frames(tmp_path):
    frames = [Image.fromarray(np.full((16, 16, 3), value, np.uint8)) for value in (0, 90, 200)]
    for name, length in (('still.png', 1), ('moving.png', 3)):
        frames[0].save(tmp_path / name, save_all=length > 1, append_images=frames[1:length], duration=40)
        assert len(open_any(tmp_path / name)) == length


def test_shrinking_a_still_averages_instead_of_skipping(tmp_path):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 254
    Image.fromarray(stripes).save(tmp_path / 'stripes.png')
    assert np.abs(read_image(tmp_path / 'stripes.png', 8)[1:-1, 1:-1].astype(int) - 127).max() < 4


@pytest.mark.parametrize('name', ['cut.png', 'cut.jpg', 'gone.png'])
def test_damaged_stills_are_refused_by_name(tmp_path, name):
    path = tmp_path / name
    if name != 'gone.png':
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    with pytest.raises(UserError, match=name):
        read_image(path)


def folder_of(path, names, side=16):
    path.mkdir()
    for number, name in enumerate(names):
        Image.fromarray(numbered(number, side, side)).save(path / name)
    return path


def test_a_folder_is_read_in_natural_order_and_ignores_other_files(tmp_path):
    folder = folder_of(tmp_path / 'id1#v#0#12.mp4', [f'frame{n}.png' for n in range(12)])
    (folder / '.hidden.png').write_text('x')
    (folder / 'notes.txt').write_text('x')
    clip = open_clip(folder)
    assert isinstance(clip, FrameFolder) and clip.name == 'id1#v#0#12' and clip.fps == 25 and len(clip) == 12
    assert [number_in(frame) for frame in assert_exact(clip)] == list(range(12))


def test_a_gap_is_reported_once_and_a_constant_step_is_none(tmp_path, caplog):
    gap = open_clip(folder_of(tmp_path / 'gap', [f'{n:07d}.png' for n in (0, 1, 2, 4, 5)]))
    step = open_clip(folder_of(tmp_path / 'step', [f'{n:07d}.png' for n in (0, 5, 10)]))
    for clip in (gap, gap, step):
        clip.read([0])
    assert [('gap' in record.getMessage(), 'after 2' in record.getMessage())
            for record in caplog.records] == [(True, True)]


def test_a_still_of_another_size_is_named_whatever_the_size_asked(tmp_path):
    folder = folder_of(tmp_path / 'mixed', ['0.png', '1.png', '2.png'])
    Image.fromarray(numbered(0, 20, 16)).save(folder / '1.png')
    for size in (None, 8):
        with pytest.raises(UserError, match=r'1\.png: is 16x20 but .* 16x16'):
            open_clip(folder, size).read([2, 1])


def test_folders_that_are_no_clip_are_refused(tmp_path):
    empty = folder_of(tmp_path / 'empty', [])
    twice = folder_of(tmp_path / 'twice', ['1.png', '1.jpg'])
    for folder, what in ((empty, 'no PNG'), (twice, 'twice')):
        with pytest.raises(UserError, match=f'{folder.name}.*{what}'):
            len(open_clip(folder))
