"""Every frame is the right one, by whatever way it is read; what is written comes back, whole or not at all."""

import os
import pickle
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from datasets import video, video_writer
from datasets.video import VideoClip, open_clip
from datasets.video_writer import VideoWriter
from support.errors import UserError
from tests.support.video_files import (KINDS, SHARED, assert_exact, encode, needs_shared, number_in, numbered,
    plain_decode, titled, write_tone, write_video)
from web.limits import check_clip


# ---------------------------------------------------------------------------- reading

@pytest.mark.parametrize('kind', KINDS)
def test_frame_i_is_the_ith_that_was_written(make, kind):
    path = make(kind)
    frames = assert_exact(open_clip(path), picks=50)
    assert [number_in(frame) for frame in frames] == list(range(KINDS[kind].get('count', 50)))
    assert all(np.array_equal(a, b) for a, b in zip(frames, plain_decode(path), strict=True))


@pytest.mark.parametrize('kind, most', [('gop10.mp4', 10), ('h264.mkv', 10), ('hevc.mp4', 12)])
def test_a_late_frame_is_reached_from_its_key_frame(make, kind, most, monkeypatch):
    clip, decoded, real = open_clip(make(kind)), [], video._decoded
    monkeypatch.setattr(video, '_decoded', lambda *args: (decoded.append(pair) or pair for pair in real(*args)))
    assert [number_in(frame) for frame in clip.read([45, 2])] == [45, 2]
    assert len(decoded) <= 3 + most


@pytest.mark.parametrize('kind', ['long_gop.mp4', 'gop10.mp4', 'vfr.mp4', 'mpeg4.avi', 'moving.gif', 'vp9.webm',
                                  'h264.mkv'])
def test_rate_times_and_chosen_frames(make, kind):
    """PyAV 19 gives rates and times as a type that overflows and has no as_integer_ratio."""
    clip = open_clip(make(kind))
    stamps, tick = clip.times
    assert type(clip.fps) is type(tick) is Fraction and (clip.fps == 25 or kind == 'vfr.mp4')
    expected = [Fraction(n, 25) for n in KINDS[kind].get('times', range(50))]
    assert [int(stamp) * tick for stamp in stamps] == expected
    chosen = [0, 1, 7, 30, 31, 49]
    assert [number_in(frame) for frame in clip.frames(chosen)] == chosen
    for wrong in (-1, 50):
        with pytest.raises(IndexError, match='only 0 to 49'):
            clip.read([wrong])


def test_a_resized_clip_survives_pickling_before_and_after_use(make):
    clip = open_clip(make('gop10.mp4'), size=32)
    unused = pickle.loads(pickle.dumps(clip))
    frames = assert_exact(clip)
    assert frames[0].shape == (32, 32, 3) and frames[0].dtype == np.uint8
    next(clip.frames())
    for copy in (unused, pickle.loads(pickle.dumps(clip))):
        assert np.array_equal(copy.read([17])[0], frames[17])


def test_titles_in_any_encoding_are_read_over(tmp_path):
    """A title in Latin-1, as old cameras and converters write it, is no UTF-8."""
    path = titled(tmp_path / 'titled.mp4', b'caf\xe9 noir')
    assert [number_in(frame) for frame in open_clip(path).frames()] == [0, 1, 2]
    assert len(check_clip(path)) == 3
    write_video(tmp_path / 'out.mp4', [numbered(0)], audio_from=path)


@pytest.mark.parametrize('matrix, shown', [
    ((0, 1, -1, 0), lambda a: np.rot90(a, -1)), ((0, -1, 1, 0), np.rot90), ((-1, 0, 0, -1), lambda a: np.rot90(a, 2)),
    ((-1, 0, 0, 1), np.fliplr), ((1, 0, 0, -1), np.flipud), ((0, 1, 1, 0), lambda a: a.swapaxes(0, 1)),
    ((0, 0, 0, 0), lambda a: a)])
def test_the_display_matrix_turns_the_picture_upright(tmp_path, matrix, shown):
    """Or mirrors it, as that of a front camera; such a video was shown upside down."""
    path = encode(tmp_path / 'phone.mp4', count=4)
    stored = open_clip(path).read([2])[0]
    data = bytearray(path.read_bytes())
    at = data.find(b'tkhd') + 44                    # the track header's matrix: a b u c d v, 16.16 fixed point
    for place, value in zip((0, 4, 12, 16), matrix):
        data[at + place:at + place + 4] = int(value * 65536).to_bytes(4, 'big', signed=True)
    path.write_bytes(data)
    assert np.array_equal(open_clip(path).read([2])[0], shown(stored))


def test_a_copied_cut_shows_what_players_show(tmp_path, make):
    """A cut without re-encoding hides the frames between key frame and cut in an edit list."""
    tool = pytest.importorskip('imageio_ffmpeg').get_ffmpeg_exe()
    for kind in ('gop10.mp4', 'hevc.mp4', 'long_gop.mp4'):
        cut = tmp_path / kind
        subprocess.run([tool, '-v', 'error', '-ss', '0.6', '-i', make(kind), '-c', 'copy', cut], check=True)
        frames = assert_exact(open_clip(cut), picks=40)
        assert [number_in(frame) for frame in frames] == list(range(15, 50)), kind


@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='no /proc here')
def test_streaming_keeps_memory_flat_both_ways(tmp_path):
    def resident():
        return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2**20
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
        with pytest.raises(UserError, match='is incomplete'):
            len(VideoClip(path))


# ---------------------------------------------------------------------------- damage

@pytest.mark.parametrize('kind', ['long_gop.mp4', 'fragmented.mp4', 'mpeg4.mov', 'h264.mkv', 'vp9.webm', 'h264.avi',
                                  'moving.gif', 'moov_first.mp4'])
@pytest.mark.parametrize('kept', [0.02, 0.4, 0.7, 0.97])
def test_a_cut_file_never_gives_fewer_frames(make, tmp_path, kind, kept):
    whole, path = make(kind).read_bytes(), tmp_path / kind
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


def test_what_is_no_video_is_refused_by_name(tmp_path):
    for name, content in (('empty.mp4', b''), ('notes.txt', b'notes on the recordings\n' * 9)):
        (tmp_path / name).write_bytes(content)
        for use in (len, lambda clip: list(clip.frames()), lambda clip: clip.read([0]), lambda clip: clip.fps):
            with pytest.raises(UserError, match=f'{name}.*not a video'):
                use(open_clip(tmp_path / name))
    with pytest.raises(UserError, match='gone.mp4: no such'):
        open_clip(tmp_path / 'gone.mp4')
    with pytest.raises(UserError, match='no video track'):
        len(open_clip(write_tone(tmp_path / 'sound.mp4', 1)))


@pytest.mark.parametrize('name',
                         ['a b.mp4', 'id1#x#0#9.mp4', '100% %03d.mp4', 'café é中.mp4', 'a:b.mp4', "it's (2).mp4"])
def test_any_name_will_do(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clip = open_clip(write_video(Path(name), [numbered(3)]))
    assert clip.name == name.removesuffix('.mp4') and number_in(clip.read([0])[0]) == 3
    assert os.listdir('.') == [name]


# ---------------------------------------------------------------------------- real files

@needs_shared
@pytest.mark.parametrize('name, count', [
    ('anim.gif', 31), ('my clip #2 (café) 100%.mp4', None), ('no_face.mp4', None), ('odd_255x257.mp4', None),
    ('one_frame.mp4', 1), ('rotated_phone.mp4', 60), ('vfr.mp4', 73), ('vp9.webm', 60), ('frames_missing_index', 9)])
def test_odd_real_clips_read_exactly(name, count):
    frames = assert_exact(open_clip(SHARED / 'bad' / name), picks=5)
    assert len(frames) == count or count is None
    if name == 'rotated_phone.mp4':
        assert frames[0].shape == (640, 360, 3)


# ---------------------------------------------------------------------------- writing

def audio_packets(path):
    with av.open(str(path)) as container:
        track = container.streams.audio[0]
        return [(float(packet.pts * packet.time_base), bytes(packet)) for packet in container.demux(track)
                if packet.size]


def lengths(path):
    with av.open(str(path)) as container:
        return {stream.type: float(stream.duration * stream.time_base) for stream in container.streams}


def write(path, count, fps=25, **options):
    return write_video(path, map(numbered, range(count)), fps, **options)


@pytest.mark.parametrize('fps', [Fraction(30000, 1001), Fraction(25), Fraction(24000, 1001), Fraction(1825, 114), 60])
def test_rate_count_and_pictures_come_back(tmp_path, fps):
    clip = open_clip(write(tmp_path / 'out.mp4', 40, fps))
    assert clip.fps == fps and len(clip) == 40 and os.listdir(tmp_path) == ['out.mp4']
    frames = list(clip.frames())
    assert [number_in(frame) for frame in frames] == list(range(40))
    smooth = np.add.outer(np.arange(48), np.arange(64))[..., None].repeat(3, -1).astype(np.uint8)
    smoothly = open_clip(write_video(tmp_path / 'smooth.mp4', [smooth], fps))
    assert np.abs(smoothly.read([0])[0].astype(int) - smooth).mean() < 2


@pytest.mark.parametrize('suffix', ['.mp4', '.gif'])
def test_the_encoder_is_given_its_own_pixel_format(suffix):
    """Of 350 videos one had other bytes where PyAV converted: a run that was killed has to end as another one."""
    encoder = video_writer._ENCODERS[suffix]
    frame = encoder.picture(np.zeros((5, 6, 3), np.uint8))
    assert frame.format.name == encoder.pix_fmt


def test_an_odd_size_is_made_even_at_the_border(tmp_path):
    frame, = open_clip(write_video(tmp_path / 'odd.mp4', [numbered(5, 47, 63)])).frames()
    assert frame.shape == (48, 64, 3) and np.abs(frame[:47, :63].astype(int) - numbered(5, 47, 63)).mean() < 6


@pytest.mark.parametrize('fps', [25, 30])
def test_a_gif_keeps_rate_and_pictures(tmp_path, fps):
    clip = open_clip(write(tmp_path / 'out.gif', 31, fps))
    assert clip.fps == fps and [number_in(frame) for frame in clip.frames()] == list(range(31))
    assert np.abs(clip.read([9])[0].astype(int) - numbered(9)).mean() < 3


@pytest.mark.parametrize('fps', [50, Fraction(60000, 1001), 60, 120, 240])
def test_a_fast_gif_keeps_its_speed_without_delays_below_20_ms(tmp_path, fps, caplog):
    """Browsers show 10 ms as 100 ms; equal times could not be written at all."""
    count = int(2 * fps)
    path = write(tmp_path / 'out.gif', count, fps)
    with av.open(str(path)) as container:
        times = [float(packet.pts * packet.time_base) for packet in container.demux(video=0) if packet.size]
    assert np.diff(times).min() > 0.0199 and times[-1] == pytest.approx(2, abs=0.05)
    with Image.open(path) as image:
        image.seek(image.n_frames - 1)
        assert image.info['duration'] == 20
    shown = [number_in(frame) for frame in open_clip(path).frames()]
    assert np.abs(np.array(times) - np.array(shown) / float(fps)).max() <= 0.006 if count < 256 else shown
    assert [record.getMessage().count('left out') for record in caplog.records] == [1] * (fps > 50)


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


def test_sound_shorter_than_the_frames_is_copied_whole_and_none_adds_none(tmp_path):
    tone = write_tone(tmp_path / 'tone.m4a', 0.5)
    path = write(tmp_path / 'out.mp4', 40, audio_from=tone)
    assert [data for _, data in audio_packets(path)] == [data for _, data in audio_packets(tone)]
    assert len(open_clip(path)) == 40
    silent = write(tmp_path / 'silent.mp4', 3)
    assert lengths(write(tmp_path / 'out.mp4', 3, audio_from=silent)).keys() == {'video'}


def test_sound_keeps_its_offset_to_the_picture(tmp_path):
    late = write_tone(tmp_path / 'late.mkv', 2, video_offset=0.4)
    path = write(tmp_path / 'out.mp4', 25, audio_from=late)
    time_of = {data: time for time, data in audio_packets(late)}
    shared = [(time, time_of[data]) for time, data in audio_packets(path)]
    assert len(shared) > 30 and all(after == pytest.approx(before - 0.4, abs=0.003) for after, before in shared)


@pytest.mark.parametrize('name', ['out.mp4', 'out.gif'])
@pytest.mark.parametrize('frames', [0, 1, 30])
def test_a_failure_leaves_nothing_and_keeps_what_was_there(tmp_path, name, frames):
    (tmp_path / name).write_bytes(b'before')
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / name, 25) as writer:
        for number in range(frames):
            writer.write(numbered(number))
        assert (tmp_path / name).read_bytes() == b'before'
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_bytes() == b'before'


def test_paths_and_sounds_that_cannot_be_used_are_refused(tmp_path):
    (tmp_path / 'file').write_text('x')
    (tmp_path / 'dir.mp4').mkdir()
    (tmp_path / 'text.m4a').write_text('no sound here')
    for name, what in (('out.xyz', 'kind'), ('gone/out.mp4', 'folder'), ('file/out.mp4', 'folder'),
                       ('dir.mp4', 'folder')):
        with pytest.raises(UserError, match=what):
            VideoWriter(tmp_path / name, 25)
    with pytest.raises(UserError, match='no frames'):
        write(tmp_path / 'none.mp4', 0)
    for sound in ('text.m4a', 'gone.m4a'):
        with pytest.raises(UserError, match=sound):
            write(tmp_path / 'out.mp4', 1, audio_from=tmp_path / sound)
    assert sorted(os.listdir(tmp_path)) == ['dir.mp4', 'file', 'text.m4a']


@pytest.mark.skipif(not Path('/proc').exists(), reason='no /proc here, where not even root may write')
def test_a_folder_that_cannot_be_written_is_refused():
    with pytest.raises(UserError, match='out.mp4: cannot be written'):
        write(Path('/proc/out.mp4'), 1)


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
