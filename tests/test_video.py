"""Every frame is the right one, by whatever way it is read; damage is refused by name."""

import os
import pickle
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from datasets import video
from datasets.still import read_image
from datasets.video import VideoClip, open_clip
from datasets.video_writer import VideoWriter
from support.errors import UserError
from tests.support.video_files import (
    KINDS, SHARED, assert_exact, encode, needs_shared, number_in, numbered, plain_decode, titled, write_tone)
from web.limits import check_clip


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


def test_titles_in_any_encoding_are_read_over(tmp_path):
    """A title in Latin-1, as old cameras and converters write it, is no UTF-8."""
    path = titled(tmp_path / 'titled.mp4', b'caf\xe9 noir')
    assert [number_in(frame) for frame in open_clip(path).frames()] == [0, 1, 2]
    assert len(check_clip(path)) == 3
    with VideoWriter(tmp_path / 'out.mp4', 25, audio_from=path) as writer:
        writer.write(numbered(0))


def test_rates_and_times_are_fractions(make):
    """PyAV 19 gives them as a type that overflows and has no as_integer_ratio."""
    for kind in ('gop10.mp4', 'mpeg4.avi', 'moving.gif', 'vp9.webm'):
        clip = open_clip(make(kind))
        assert type(clip.fps) is Fraction and type(clip.times[1]) is Fraction


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


def test_a_fragment_that_is_cut_anywhere_is_noticed(make, tmp_path):
    """Also where it says what it holds; between fragments, a file that is cut is a shorter file."""
    whole, path = make('fragmented.mp4').read_bytes(), tmp_path / 'cut.mp4'
    last = whole.rindex(b'moof') - 4
    for end in (last + 8, last + 60, whole.index(b'mdat', last) + 5, last + 300):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match='cut short'):
            len(VideoClip(path))


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
    (tmp_path / 'notes.txt').write_text('notes on the recordings\n' * 9)
    for name, what in (('notes.txt', 'not a video'), ('gone.mp4', 'no such')):
        with pytest.raises(UserError, match=f'{name}.*{what}'):
            len(open_clip(tmp_path / name))


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
