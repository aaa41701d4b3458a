"""Every frame is the right one, damage is refused by name, what is written is whole or absent."""

import logging
import os
import pickle
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from datasets import still, video
from datasets.frame_folder import FrameFolder
from datasets.still import read_image
from datasets.video import VideoClip, open_clip
from datasets.video_writer import VideoWriter
from support.errors import UserError

SHARED = Path(__file__).parents[2] / 'shared'
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason='the real clips are not here')
BITS = 8


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


def encode(path, codec='libx264', count=50, size=(48, 64), pix_fmt='yuv420p', times=None, muxer=None, **options):
    height, width = size
    with av.open(str(path), 'w', options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=25, options={name: str(value) for name, value in options.items()})
        stream.height, stream.width, stream.pix_fmt = height, width, pix_fmt
        for number in range(count):
            picture = av.VideoFrame.from_ndarray(numbered(number, height, width), format='rgb24')
            picture.pts, picture.time_base = (times[number] if times else number), Fraction(1, 25)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
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
    'moving.gif': dict(codec='gif', pix_fmt='rgb8'),
    'one.gif': dict(codec='gif', pix_fmt='rgb8', count=1),
}


@pytest.fixture(scope='module')
def make(tmp_path_factory):
    """Encodes each of KINDS once."""
    folder, made = tmp_path_factory.mktemp('kinds'), {}

    def path_of(kind):
        options = dict(KINDS[kind])
        if options.get('codec', 'libx264') not in av.codecs_available:
            pytest.skip(f'no encoder {options["codec"]}')
        if kind not in made:
            made[kind] = encode(folder / kind, **options)
        return made[kind]
    return path_of


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


# ---------------------------------------------------------------------------- reading

@pytest.mark.parametrize('kind', KINDS)
def test_frame_i_is_the_ith_that_was_written(make, kind):
    path = make(kind)
    frames = assert_exact(open_clip(path), picks=50)
    assert [number_in(frame) for frame in frames] == list(range(KINDS[kind].get('count', 50)))
    assert all(np.array_equal(a, b) for a, b in zip(frames, plain_decode(path), strict=True))


@pytest.mark.parametrize('kind', ['long_gop.mp4', 'moving.gif', 'mpeg4.avi', 'vp9.webm', 'h264.mkv'])
def test_the_rate_is_that_of_the_file(make, kind):
    assert open_clip(make(kind)).fps == 25


@pytest.mark.parametrize('kind, most', [('gop10.mp4', 10), ('h264.mkv', 10), ('hevc.mp4', 12)])
def test_a_late_frame_is_reached_from_its_key_frame(make, kind, most, monkeypatch):
    clip, decoded, real = open_clip(make(kind)), [], video._decoded
    monkeypatch.setattr(video, '_decoded',
                        lambda *args: (decoded.append(pair) or pair for pair in real(*args)))
    assert [number_in(frame) for frame in clip.read([45, 2])] == [45, 2]
    assert len(decoded) <= 3 + most


def test_resizing_does_not_depend_on_the_way_of_reading(make):
    frames = assert_exact(open_clip(make('gop10.mp4'), size=32))
    assert frames[0].shape == (32, 32, 3) and frames[0].dtype == np.uint8


@pytest.mark.parametrize('kind', ['gop10.mp4', 'vfr.mp4', 'mpeg4.avi', 'moving.gif'])
def test_times_and_chosen_frames(make, kind):
    clip = open_clip(make(kind))
    stamps, tick = clip.times
    expected = [Fraction(n, 25) for n in KINDS[kind].get('times', range(50))]
    assert [int(stamp) * tick for stamp in stamps] == expected
    chosen = [0, 1, 7, 30, 31, 49]
    assert [number_in(frame) for frame in clip.frames(chosen)] == chosen


def test_a_clip_survives_pickling_before_and_after_use(make):
    clip = open_clip(make('gop10.mp4'), size=32)
    for _ in range(2):
        copy = pickle.loads(pickle.dumps(clip))
        assert np.array_equal(copy.read([17])[0], clip.read([17])[0])
    next(clip.frames())
    pickle.dumps(clip)


def test_an_index_outside_the_clip_is_an_error_not_another_frame(make):
    for wrong in (-1, 50):
        with pytest.raises(IndexError, match='only 0 to 49'):
            open_clip(make('gop10.mp4')).read([wrong])


@pytest.mark.parametrize('matrix, turns', [((0, 1, -1, 0), -1), ((0, -1, 1, 0), 1), ((-1, 0, 0, -1), 2)])
def test_the_display_matrix_turns_the_picture_upright(tmp_path, matrix, turns):
    path = encode(tmp_path / 'phone.mp4', count=4)
    stored = open_clip(path).read([2])[0]
    data = bytearray(path.read_bytes())
    at = data.find(b'tkhd') + 44                    # the track header's matrix: a b u c d v, 16.16 fixed point
    for place, value in zip((0, 4, 12, 16), matrix):
        data[at + place:at + place + 4] = int(value * 65536).to_bytes(4, 'big', signed=True)
    path.write_bytes(data)
    assert np.array_equal(open_clip(path).read([2])[0], np.rot90(stored, turns))


def test_a_copied_cut_shows_what_players_show(tmp_path, make):
    """A cut without re-encoding hides the frames between key frame and cut in an edit list."""
    tool = pytest.importorskip('imageio_ffmpeg').get_ffmpeg_exe()
    for kind in ('gop10.mp4', 'hevc.mp4', 'long_gop.mp4'):
        cut = tmp_path / kind
        subprocess.run([tool, '-v', 'error', '-ss', '0.6', '-i', make(kind), '-c', 'copy', cut], check=True)
        frames = assert_exact(open_clip(cut), picks=40)
        assert [number_in(frame) for frame in frames] == list(range(15, 50)), kind


def test_streaming_keeps_memory_flat_both_ways(tmp_path):
    def resident():
        return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2**20
    if not Path('/proc/self/statm').exists():
        pytest.skip('no /proc here')
    path, side, count, seen = tmp_path / 'long.mp4', 192, 500, []
    with VideoWriter(path, 25) as writer:
        for number in range(count):
            writer.write(numbered(number % 256, side, side))
            seen.append(resident())
    assert seen[-1] - seen[150] < 15                # the remaining frames together are 37 MB
    seen = [resident() for _ in open_clip(path).frames()]
    assert len(seen) == count and seen[-1] - seen[150] < 15


# ---------------------------------------------------------------------------- damage

@pytest.mark.parametrize('kind', ['long_gop.mp4', 'fragmented.mp4', 'mpeg4.mov', 'h264.mkv', 'vp9.webm', 'h264.avi',
                                  'moving.gif', 'moov_first.mp4'])
@pytest.mark.parametrize('kept', [0.02, 0.4, 0.7, 0.97])
def test_a_cut_file_never_gives_fewer_frames(make, tmp_path, kind, kept):
    if kind == 'moov_first.mp4':
        whole = encode(tmp_path / 'whole.mp4', muxer={'movflags': 'faststart'}).read_bytes()
    else:
        whole = make(kind).read_bytes()
    path = tmp_path / kind
    path.write_bytes(whole[:int(len(whole) * kept)])
    if (kind, kept) == ('fragmented.mp4', 0.97):    # only the table of fragments at its end is missing
        assert len(list(VideoClip(path).frames())) == len(VideoClip(path)) == 50
        return
    for use in (len, lambda clip: list(clip.frames()), lambda clip: clip.read([0])):
        with pytest.raises(UserError, match=kind):
            use(VideoClip(path))


def test_a_hole_in_the_data_is_refused_by_name(tmp_path):
    path = encode(tmp_path / 'hole.mp4', codec='mpeg4', g=5)
    with av.open(str(path)) as container:
        entry = container.streams.video[0].index_entries[20]
    data = bytearray(path.read_bytes())
    data[entry.pos:entry.pos + entry.size] = bytes(entry.size)
    path.write_bytes(data)
    with pytest.raises(UserError, match='hole.mp4'):
        list(open_clip(path).frames())


@pytest.mark.parametrize('content', [b'', b'this is text, not a video at all'])
def test_what_is_no_video_is_refused_by_name(tmp_path, content):
    path = tmp_path / 'text.mp4'
    path.write_bytes(content)
    for use in (len, lambda clip: list(clip.frames()), lambda clip: clip.read([0]), lambda clip: clip.fps):
        with pytest.raises(UserError, match='text.mp4'):
            use(open_clip(path))


def test_dispatch_names_what_it_cannot_open(tmp_path):
    (tmp_path / 'notes.txt').write_text('x')
    for name, what in (('notes.txt', 'not a known kind'), ('gone.mp4', 'no such')):
        with pytest.raises(UserError, match=f'{name}.*{what}'):
            open_clip(tmp_path / name)


def test_sound_alone_is_no_video(tmp_path):
    path = write_tone(tmp_path / 'sound.mp4', 1)
    with pytest.raises(UserError, match='no video track'):
        len(open_clip(path))


@pytest.mark.parametrize('name',
                         ['a b.mp4', 'id1#x#0#9.mp4', '100% %03d.mp4', 'café é中.mp4', 'a:b.mp4', "it's (2).mp4"])
def test_any_name_will_do(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with VideoWriter(Path(name), 25) as writer:
        writer.write(numbered(3))
    clip = open_clip(Path(name))
    assert clip.name == name.removesuffix('.mp4') and number_in(clip.read([0])[0]) == 3
    assert os.listdir('.') == [name]


# ---------------------------------------------------------------------------- real files

READABLE = ['anim.gif', 'my clip #2 (café) 100%.mp4', 'no_face.mp4', 'odd_255x257.mp4', 'one_frame.mp4',
            'rotated_phone.mp4', 'vfr.mp4', 'vp9.webm', 'frames_missing_index']


@needs_shared
@pytest.mark.parametrize('name', READABLE)
def test_odd_real_clips_read_exactly(name):
    expected = {'anim.gif': 31, 'vfr.mp4': 73, 'vp9.webm': 60, 'frames_missing_index': 9, 'rotated_phone.mp4': 60}
    clip = open_clip(SHARED / 'bad' / name)
    frames = assert_exact(clip, picks=5)
    assert len(frames) == expected.get(name, len(frames))
    if name == 'rotated_phone.mp4':
        assert frames[0].shape == (640, 360, 3)


@needs_shared
@pytest.mark.parametrize('path', sorted(SHARED.glob('real/t*/*.mp4')), ids=lambda path: path.stem)
def test_real_clips_read_exactly(path):
    clip = open_clip(path)
    start, end = (int(part) for part in clip.name.split('#')[-2:])
    assert len(assert_exact(clip, picks=3)) == end - start and clip.fps == 25
    assert clip.has_audio == ('id10001' in path.name)


@needs_shared
@pytest.mark.parametrize('name', ['truncated_moov_first.mp4', 'truncated_no_moov.mp4', 'text_file.mp4',
                                  'frames_mixed_size'])
def test_broken_real_clips_are_refused_by_name(name):
    with pytest.raises(UserError, match=name):
        list(open_clip(SHARED / 'bad' / name, size=64).frames())


@needs_shared
def test_odd_real_stills():
    folder = SHARED / 'bad'
    eight = read_image(SHARED / 'real/source/src02_glasses.png').astype(int)
    assert np.abs(read_image(folder / 'sixteen_bit.png') - eight).max() <= 1
    grey = read_image(folder / 'sixteen_bit_gray.png')
    assert np.abs(grey[..., 0] - eight @ [0.299, 0.587, 0.114]).max() <= 2
    assert read_image(folder / 'exif_rotated.jpg').shape == (600, 400, 3)
    for name in ('grayscale.png', 'rgba.png', 'palette.png'):
        assert read_image(folder / name).shape == (256, 256, 3)
    with pytest.raises(UserError, match='zero_byte.png'):
        read_image(folder / 'zero_byte.png')


@needs_shared
def test_the_fast_decoder_reads_what_pil_reads(monkeypatch):
    paths = sorted(path for path in SHARED.glob('*/*/*') if path.suffix in ('.png', '.jpg')) \
        + [path for path in sorted((SHARED / 'bad').iterdir()) if path.suffix in ('.png', '.jpg')
           and path.stat().st_size]
    fast = [read_image(path) for path in paths]
    monkeypatch.setattr(still, '_fast_decoder', lambda: None)
    assert len(paths) > 20 and all(np.array_equal(read_image(path), image) for path, image in zip(paths, fast))


# ---------------------------------------------------------------------------- stills

def test_stills_of_every_kind_are_pixel_right(tmp_path):
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


@pytest.mark.parametrize('orientation, undo', [(3, lambda a: np.rot90(a, 2)), (6, lambda a: np.rot90(a, -1)),
                                               (8, lambda a: np.rot90(a, 1)), (2, np.fliplr)])
def test_exif_orientation_is_applied(tmp_path, orientation, undo):
    rgb = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(rgb).save(tmp_path / 'turned.png', exif=exif)
    assert np.array_equal(read_image(tmp_path / 'turned.png'), undo(rgb))


def test_shrinking_a_still_averages_instead_of_skipping(tmp_path):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 254
    Image.fromarray(stripes).save(tmp_path / 'stripes.png')
    assert np.abs(read_image(tmp_path / 'stripes.png', 8)[1:-1, 1:-1].astype(int) - 127).max() < 4


@pytest.mark.parametrize('name', ['bad.png', 'bad.jpg'])
@pytest.mark.parametrize('content', [b'', b'text', None])
def test_damaged_stills_are_refused_by_name(tmp_path, content, name):
    path = tmp_path / name
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2] if content is None else content)
    with pytest.raises(UserError, match=name):
        read_image(path)
    with pytest.raises(UserError, match='gone.png'):
        read_image(tmp_path / 'gone.png')


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
    with caplog.at_level(logging.WARNING):
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


# ---------------------------------------------------------------------------- writing

def write_tone(path, seconds, codec='aac', rate=44100, video_offset=None):
    """A file with `seconds` of noise, and a few frames starting at video_offset seconds if that is given."""
    with av.open(str(path), 'w') as container:
        stream = container.add_stream(codec, rate=rate, layout='mono')
        frames = None
        if video_offset is not None:
            frames = container.add_stream('libx264', rate=25)
            frames.height, frames.width, frames.pix_fmt = 48, 64, 'yuv420p'
        noise = np.random.default_rng(0).uniform(-0.3, 0.3, (1, int(seconds * rate))).astype(np.float32)
        sound = av.AudioFrame.from_ndarray(noise, format='fltp', layout='mono')
        sound.sample_rate, sound.pts, sound.time_base = rate, 0, Fraction(1, rate)
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
        if frames is not None:
            for number in range(5):
                picture = av.VideoFrame.from_ndarray(numbered(number), format='rgb24')
                picture.pts, picture.time_base = number + round(25 * video_offset), Fraction(1, 25)
                container.mux(frames.encode(picture))
            container.mux(frames.encode(None))
    return path


def audio_packets(path):
    with av.open(str(path)) as container:
        track = container.streams.audio[0]
        return [(float(packet.pts * packet.time_base), bytes(packet)) for packet in container.demux(track)
                if packet.size]


def lengths(path):
    with av.open(str(path)) as container:
        return {stream.type: float(stream.duration * stream.time_base) for stream in container.streams}


def write(path, count, fps=25, **options):
    with VideoWriter(path, fps, **options) as writer:
        for number in range(count):
            writer.write(numbered(number))
    return path


@pytest.mark.parametrize('fps', [Fraction(30000, 1001), Fraction(25), Fraction(24000, 1001), Fraction(1825, 114), 60])
def test_rate_count_and_pictures_come_back(tmp_path, fps):
    clip = open_clip(write(tmp_path / 'out.mp4', 40, fps))
    assert clip.fps == fps and len(clip) == 40
    frames = list(clip.frames())
    assert [number_in(frame) for frame in frames] == list(range(40))
    smooth = np.add.outer(np.arange(48), np.arange(64))[..., None].repeat(3, -1).astype(np.uint8)
    with VideoWriter(tmp_path / 'smooth.mp4', fps) as writer:
        writer.write(smooth)
    assert np.abs(open_clip(tmp_path / 'smooth.mp4').read([0])[0].astype(int) - smooth).mean() < 2


def test_key_frames_come_as_often_as_asked(tmp_path):
    frame = numbered(5)
    for name, options, expected in (('short.mp4', dict(gop=8), [0, 8, 16, 24]), ('long.mp4', {}, [0])):
        with VideoWriter(tmp_path / name, 25, **options) as writer:
            for _ in range(30):
                writer.write(frame)
        assert open_clip(tmp_path / name)._index.keys == expected


def test_an_odd_size_is_made_even_at_the_border(tmp_path):
    with VideoWriter(tmp_path / 'odd.mp4', 25) as writer:
        writer.write(numbered(5, 47, 63))
    frame = open_clip(tmp_path / 'odd.mp4').read([0])[0]
    assert frame.shape == (48, 64, 3) and np.abs(frame[:47, :63].astype(int) - numbered(5, 47, 63)).mean() < 6


@pytest.mark.parametrize('fps', [25, 30])
def test_a_gif_keeps_rate_and_pictures(tmp_path, fps):
    clip = open_clip(write(tmp_path / 'out.gif', 31, fps))
    assert clip.fps == fps and [number_in(frame) for frame in clip.frames()] == list(range(31))
    assert np.abs(clip.read([9])[0].astype(int) - numbered(9)).mean() < 3


@pytest.mark.parametrize('fps', [25, Fraction(30000, 1001), 60])
@pytest.mark.parametrize('suffix, codec, rate', [('.m4a', 'aac', 44100), ('.webm', 'libopus', 48000)])
def test_sound_is_copied_and_ends_with_the_frames(tmp_path, fps, suffix, codec, rate):
    if codec not in av.codecs_available:
        pytest.skip(f'no encoder {codec}')
    tone = write_tone(tmp_path / f'tone{suffix}', 3, codec, rate)
    path = write(tmp_path / 'out.mp4', 31, fps, audio_from=tone)
    copied, original = audio_packets(path), audio_packets(tone)
    assert [data for _, data in copied] == [data for _, data in original][:len(copied)]
    length = lengths(path)
    assert length['video'] == pytest.approx(31 / fps, abs=1e-3)
    assert abs(length['audio'] - length['video']) <= 1 / fps


def test_sound_shorter_than_the_frames_is_copied_whole(tmp_path):
    tone = write_tone(tmp_path / 'tone.m4a', 0.5)
    path = write(tmp_path / 'out.mp4', 40, audio_from=tone)
    assert [data for _, data in audio_packets(path)] == [data for _, data in audio_packets(tone)]
    assert len(open_clip(path)) == 40 and open_clip(path).has_audio


def test_sound_keeps_its_offset_to_the_picture(tmp_path):
    late = write_tone(tmp_path / 'late.mkv', 2, video_offset=0.4)
    path = write(tmp_path / 'out.mp4', 25, audio_from=late)
    time_of = {data: time for time, data in audio_packets(late)}
    shared = [(time, time_of[data]) for time, data in audio_packets(path)]
    assert len(shared) > 30 and all(after == pytest.approx(before - 0.4, abs=0.003) for after, before in shared)


@needs_shared
def test_real_sound_passes_through_bit_exact(tmp_path):
    driving = open_clip(SHARED / 'real/test/id10001#d12#000000#000183.mp4')
    path = write(tmp_path / 'out.mp4', len(driving), driving.fps, audio_from=driving.path)
    copied = audio_packets(path)
    assert len(copied) == 316 and copied == audio_packets(driving.path)


def test_a_source_without_sound_adds_none(tmp_path):
    silent = write(tmp_path / 'silent.mp4', 3)
    assert not open_clip(write(tmp_path / 'out.mp4', 3, audio_from=silent)).has_audio


class Stop(Exception):
    pass


@pytest.mark.parametrize('name', ['out.mp4', 'out.gif'])
@pytest.mark.parametrize('frames', [0, 1, 30])
def test_a_failure_leaves_nothing_and_keeps_what_was_there(tmp_path, name, frames):
    (tmp_path / name).write_bytes(b'before')
    with pytest.raises(Stop), VideoWriter(tmp_path / name, 25) as writer:
        for number in range(frames):
            writer.write(numbered(number))
        raise Stop
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_bytes() == b'before'


def test_the_file_appears_only_when_complete(tmp_path):
    with VideoWriter(tmp_path / 'out.mp4', 25) as writer:
        writer.write(numbered(0))
        assert 'out.mp4' not in os.listdir(tmp_path)
    assert os.listdir(tmp_path) == ['out.mp4']


def test_paths_and_sounds_that_cannot_be_used_are_refused(tmp_path):
    (tmp_path / 'file').write_text('x')
    (tmp_path / 'dir.mp4').mkdir()
    (tmp_path / 'text.m4a').write_text('no sound here')
    for name, what in (('out.xyz', 'kind'), ('gone/out.mp4', 'folder'), ('file/out.mp4', 'folder'),
                       ('dir.mp4', 'folder')):
        with pytest.raises(UserError, match=what):
            write(tmp_path / name, 1)
    with pytest.raises(UserError, match='no frames'):
        write(tmp_path / 'none.mp4', 0)
    for sound in ('text.m4a', 'gone.m4a'):
        with pytest.raises(UserError, match=sound):
            write(tmp_path / 'out.mp4', 1, audio_from=tmp_path / sound)
    assert sorted(os.listdir(tmp_path)) == ['dir.mp4', 'file', 'text.m4a']


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    folder = tmp_path if os.getuid() else Path('/proc')  # not even root may write there
    tmp_path.chmod(0o500)
    try:
        if not folder.exists():
            pytest.skip('this user may write anywhere')
        with pytest.raises(UserError, match='out.mp4: cannot be written'):
            write(folder / 'out.mp4', 1)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize('name', ['out.mp4', 'out.gif'])
def test_a_full_disk_is_a_user_error_and_leaves_nothing(tmp_path, name):
    resource = pytest.importorskip('resource')
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
    try:
        with pytest.raises(UserError, match=f'{name}: cannot be written'), VideoWriter(tmp_path / name, 25) as writer:
            for _ in range(40):
                writer.write(noise := np.roll(noise[::-1], 1, 1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize('frame',
                         [np.zeros((48, 64), np.uint8), np.zeros((48, 64, 3), np.float32), numbered(0, 50, 64)])
def test_a_frame_of_another_shape_or_type_is_an_error(tmp_path, frame):
    with pytest.raises(ValueError, match='expected'), VideoWriter(tmp_path / 'out.mp4', 25) as writer:
        writer.write(numbered(0))
        writer.write(frame)
    assert not os.listdir(tmp_path)
