"""What is written comes back, with its sound, and is whole or absent."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from datasets import video_writer
from datasets.video import open_clip
from datasets.video_writer import VideoWriter
from support.errors import UserError
from tests.support.video_files import SHARED, needs_shared, number_in, numbered, write_tone


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


@pytest.mark.parametrize('suffix', ['.mp4', '.gif'])
def test_the_encoder_is_given_its_own_pixel_format(suffix):
    """Of 350 videos one had other bytes where PyAV converted: a run that was killed has to end as another one."""
    encoder = video_writer._ENCODERS[suffix]
    frame = encoder.picture(np.zeros((5, 6, 3), np.uint8))
    assert frame.format.name == encoder.pix_fmt


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


@pytest.mark.parametrize('fps', [50, Fraction(60000, 1001), 60, 120, 240])
def test_a_fast_gif_keeps_its_speed_without_delays_below_20_ms(tmp_path, fps, caplog):
    """Browsers show 10 ms as 100 ms; equal times could not be written at all."""
    count = int(2 * fps)
    path = write(tmp_path / 'out.gif', count, fps)
    with av.open(str(path)) as container:
        times = [float(packet.pts * packet.time_base) for packet in container.demux(video=0) if packet.size]
    assert np.diff(times).min() > 0.0199 and times[-1] == pytest.approx(2, abs=0.05)
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
