"""Raw videos in, a data set out: right place, right time, nothing lost, and a reason for all that is missing."""

import hashlib
import json
import struct
import sys
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import replace
from fractions import Fraction
from functools import cache
from itertools import count

import numpy as np
import pytest
from PIL import Image

import run
from datasets.constant_rate import frames_at, indices_at
from datasets.face_tracker import FaceDetector, overlap
from datasets.frames import find_people
from datasets.manifest import NAME, OK, Record, append, read_manifest, rewrite
from datasets.prepare import crops, job
from datasets.prepare.metadata import in_test, read_celebvhq, read_voxceleb
from datasets.prepare.parts import Part, gather, parts_of
from datasets.prepare.progress import Progress
from datasets.prepare.run import DATASETS, DatasetSettings, folder_jobs, prepare, summary
from datasets.prepare.status import spelled, time_left
from datasets.prepare.status import status as status_of
from datasets.prepare.track import SceneCuts
from datasets.still import cut
from datasets.video import open_clip
from datasets.video_writer import VideoWriter
from evaluation.protocols import draw_celebv_hq
from support.errors import UserError
from tests.support.agents import Agents
from tests.support.tiny import SHARED
from tests.support.video_files import encode

SIZE, BITS = 128, 8
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason='the real clips are not here')


@pytest.fixture
def face_model(tmp_path_factory, monkeypatch):
    """MediaPipe with the shipped model."""
    pytest.importorskip('mediapipe')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path_factory.mktemp('torch')))


# ---------------------------------------------------------------------------- raw material

@cache
def content(name):
    """40 frames (256, 256, 3) of a real clip, with their number written into the lowest rows."""
    frames = open_clip(next((SHARED / 'real').glob(f'*/{name}#*'))).read(range(40))
    for number, frame in enumerate(frames):
        for bit in range(BITS):
            frame[240:, 256 * bit // BITS:256 * (bit + 1) // BITS] = 235 if number >> bit & 1 else 20
    return frames


def number_in(frame):
    strip = frame[-frame.shape[0] // 20:]
    width = strip.shape[1]
    return sum((strip[:, width * bit // BITS:width * (bit + 1) // BITS].mean() > 110) << bit for bit in range(BITS))


def raw_video(path, name, fps=Fraction(25), place=(40, 30, 160), canvas=(320, 240), turns=0, seconds=1.6):
    """`name` playing at 25 fps in a square of a larger video of another rate, stored with some quarter turns."""
    left, top, side = place
    background = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    background = np.array(Image.fromarray(background).resize(canvas, Image.Resampling.BICUBIC))
    with VideoWriter(path, fps, crf=10) as writer:
        for n in range(round(seconds * fps)):
            frame = background.copy()
            picture = Image.fromarray(content(name)[min(int(n / fps * 25), 39)])
            frame[top:top + side, left:left + side] = picture.resize((side, side), Image.Resampling.LANCZOS)
            writer.write(np.ascontiguousarray(np.rot90(frame, turns)))
    if turns:
        turn_display(path, turns)
    return path


def turn_display(path, turns):
    """Writes quarter turns clockwise into the display matrix of an mp4's track header."""
    matrix = {1: (0, 1, -1, 0), 2: (-1, 0, 0, -1), 3: (0, -1, 1, 0)}[turns]
    a, b, c, d = (value << 16 for value in matrix)
    data = path.read_bytes()
    identity = struct.pack('>9i', 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    at = data.index(identity, data.index(b'tkhd'))
    path.write_bytes(data[:at] + struct.pack('>9i', a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + len(identity):])


VIDEOS = {
    'aaaaaaaaaaa': dict(name='id00001', fps=Fraction(30000, 1001)),
    'bbbbbbbbbbb': dict(name='id00003', fps=Fraction(50), turns=1, place=(100, 60, 160)),
    'ccccccccccc': dict(name='id10003', fps=Fraction(20), place=(0, 40, 200)),
    'eeeeeeeeeee': dict(name='id10001', seconds=0.8),
}
TRAIN, TEST = 'train', 'test'
ROWS = [  # video, start, end, box, partition, person
    ('aaaaaaaaaaa', 5, 30, (40, 30, 200, 190), TRAIN, 'id1'),
    ('aaaaaaaaaaa', 5, 30, (40, 30, 200, 190), TRAIN, 'id1'),     # listed again
    ('aaaaaaaaaaa', 10, 30, (60, 30, 180, 190), TRAIN, 'id1'),    # higher than wide
    ('bbbbbbbbbbb', 0, 25, (100, 60, 260, 220), TRAIN, 'id2'),    # stored on its side
    ('ccccccccccc', 2, 22, (0, 40, 200, 240), TEST, 'id3'),
    ('copyofaaaaa', 5, 30, (40, 30, 200, 190), TRAIN, 'id4'),     # the same video under another id
    ('truncatedaa', 0, 25, (40, 30, 200, 190), TRAIN, 'id5'),
    ('notavideoaa', 0, 25, (40, 30, 200, 190), TRAIN, 'id5'),
    ('missingaaaa', 0, 25, (40, 30, 200, 190), TRAIN, 'id6'),
    ('eeeeeeeeeee', 0, 25, (40, 30, 200, 190), TRAIN, 'id6'),     # ends after the video
    ('eeeeeeeeeee', 0, 10, (40, 30, 200, 190), TRAIN, 'id6'),     # in train and, below, in test
    ('eeeeeeeeeee', 5, 15, (40, 30, 200, 190), TEST, 'id6'),
    ('wideaaaaaaa', 0, 10, (40, 30, 200, 190), TRAIN, 'id7'),     # of another shape than the boxes were made for
]


@pytest.fixture(scope='module')
def raw(tmp_path_factory):
    """Raw videos and their metadata as published: (folder, csv)."""
    folder = tmp_path_factory.mktemp('raw')
    for name, options in VIDEOS.items():
        raw_video(folder / f'{name}.mp4', **options)
    a = (folder / 'aaaaaaaaaaa.mp4').read_bytes()
    (folder / 'A title [copyofaaaaa].mp4').write_bytes(a)
    (folder / 'truncatedaa.mp4').write_bytes(a[:len(a) // 2])
    (folder / 'notavideoaa.mp4').write_text('this is no video')
    raw_video(folder / 'wideaaaaaaa.mp4', 'id00001', canvas=(320, 200), place=(0, 0, 160), seconds=0.5)
    lines = ['video_id,start,end,bbox,fps,width,height,partition,person_id']
    for video, start, end, box, partition, person in ROWS:
        # As if the published boxes had been made in a version of twice the size.
        lines.append(f'{video},{start},{end},{"-".join(str(2 * side) for side in box)},25,640,480,{partition},{person}')
    (folder / 'vox-metadata.csv').write_text('\n'.join(lines) + '\n')
    return folder, folder / 'vox-metadata.csv'


def make(raw, out, workers=1, **options):
    return prepare(DatasetSettings('voxceleb1', out, *raw, size=SIZE, **options), workers)


@pytest.fixture(scope='module')
def made(raw, tmp_path_factory):
    """The data set as mp4: (root, records)."""
    root = tmp_path_factory.mktemp('data') / 'vox'
    return root, make(raw, root)


def tree(root):
    """Every file below a folder and what is in it."""
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(root.rglob('*')) if path.is_file()}


# ---------------------------------------------------------------------------- clips

CLIPS = {'id1#aaaaaaaaaaa#000005#000030': ('id00001', 5, 30), 'id2#bbbbbbbbbbb#000000#000025': ('id00003', 0, 25),
         'id3#ccccccccccc#000002#000022': ('id10003', 2, 22)}


@pytest.mark.parametrize('name', CLIPS)
def test_frames_are_those_of_their_time(made, name):
    root, records = made
    _, start, end = CLIPS[name]
    record, clip = records[name], open_clip(root / records[name].file)
    assert record.status == OK and clip.fps == record.fps == 25
    assert len(clip) == record.frames == end - start and clip._index.keys[:2] == [0, 10]         # short GOPs
    numbers = [number_in(frame) for frame in clip.frames()]
    # A raw video of another rate shows a frame up to half a tick and one of its own frames late.
    assert all(abs(number - expected) <= 1 for number, expected in zip(numbers, range(start, end)))
    assert abs(np.mean(np.subtract(numbers, range(start, end)))) < 0.8 and numbers == sorted(numbers)


@pytest.mark.parametrize('name', CLIPS)
def test_crops_land_on_the_faces(made, name, face_model):
    root, records = made
    frames = list(open_clip(root / records[name].file).frames())
    errors = []
    with FaceDetector() as detector:
        for frame in frames[::6]:
            original = content(CLIPS[name][0])[number_in(frame)]
            found, expected = detector.detect(frame)[0], detector.detect(original)[0]
            errors.append(np.linalg.norm(found.landmarks - expected.landmarks * SIZE / 256, axis=1).mean())
    assert np.mean(errors) < 1.0 and max(errors) < 1.6, errors    # pixels of 128


def test_a_narrow_box_grows_to_a_square_or_is_squeezed_as_published(raw, made, tmp_path):
    name = 'id1#aaaaaaaaaaa#000010#000030'
    root, records = made
    assert records[name].box == (40, 30, 200, 190)
    legacy = make(raw, tmp_path / 'legacy', crop='legacy')
    assert legacy[name].box == (60, 30, 180, 190)
    for folder, found, part in ((root, records, slice(0, 256)), (tmp_path / 'legacy', legacy, slice(32, 224))):
        frame = open_clip(folder / found[name].file).read([3])[0].astype(int)
        number = number_in(open_clip(root / records[name].file).read([3])[0])
        expected = Image.fromarray(content('id00001')[number][:, part]).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        assert np.abs(frame - np.asarray(expected)).mean() < 5


def test_every_failure_has_its_reason(made):
    _, records = made
    expected = {
        'id4#copyofaaaaa#000005#000030': ('duplicate', 'same frames as id1#aaaaaaaaaaa#000005#000030'),
        'id5#truncatedaa#000000#000025': ('failed', 'truncatedaa.mp4: .*cannot be decoded|cut short'),
        'id5#notavideoaa#000000#000025': ('failed', 'notavideoaa.mp4: cannot be decoded'),
        'id6#missingaaaa#000000#000025': ('failed', 'no video missingaaaa in .*--download'),
        'id6#eeeeeeeeeee#000000#000025': ('failed', r'lasts 0\.80 s, but frames up to 1\.00 s'),
        'id6#eeeeeeeeeee#000005#000015': ('left_out', 'id6 is in train too; --keep_shared_people'),
        'id7#wideaaaaaaa#000000#000010': ('failed', 'is 320x200, but its boxes were made for 640x480'),
    }
    for name, (status, reason) in expected.items():
        assert records[name].status == status
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(records[name].error)
    assert Counter(record.status for record in records.values()) == dict(ok=5, failed=5, duplicate=1, left_out=1)
    assert len(records) == len(set(ROWS))


def test_the_manifest_and_the_folders_agree(made):
    root, records = made
    assert read_manifest(root) == records and list(records) == sorted(records)
    assert set(tree(root)) == {record.file for record in records.values() if record.status == OK} | {NAME}
    assert '5 failed' not in summary(records) and 'failed: 5, such as id5#notavideoaa' in summary(records)


def test_a_person_in_both_partitions_stays_in_test_where_asked(raw, tmp_path, caplog):
    records = make(raw, tmp_path / 'data', keep_shared_people=True)
    assert records['id6#eeeeeeeeeee#000005#000015'].status == OK and 'in train and in test: id6' in caplog.text
    again = make(raw, tmp_path / 'data')                 # and is taken out again where it is not
    assert again['id6#eeeeeeeeeee#000005#000015'].status == 'left_out'
    assert not (tmp_path / 'data' / again['id6#eeeeeeeeeee#000005#000015'].file).exists()


def test_crops_of_few_pixels_are_counted_and_left_out_where_asked(raw, made, tmp_path):
    """id3's crop is 200 px large, the others 160; the limit may come, go and move while a data set is made."""
    out = tmp_path / 'data'
    assert 'crops are 160 to 200 px large in the videos, median 160: 0 of 5 clips are enlarged' in summary(made[1])
    larger = {name: replace(record, size=256) for name, record in made[1].items() if record.status == OK}
    assert '5 of 5 clips are enlarged to 256 px; --min_face 256 leaves them out' in summary(larger)

    few = make(raw, out, min_face=161)
    kept, = (record for record in few.values() if record.status == OK)
    assert kept == made[1]['id3#ccccccccccc#000002#000022'] and set(tree(out)) == {kept.file, NAME}
    small = few['id1#aaaaaaaaaaa#000005#000030']
    assert (small.status, small.frames, small.hash) == ('left_out', None, None)
    assert small.error == 'its crop is 160 px large, less than --min_face 161'
    stamp = (out / kept.file).stat().st_mtime_ns
    assert make(raw, out) == made[1] and tree(out) == tree(made[0])             # gone: all are made, but none again
    assert make(raw, out, min_face=161) == few and set(tree(out)) == {kept.file, NAME}
    assert make(raw, out, min_face=170)[small.id].error.endswith('less than --min_face 170')
    assert (out / kept.file).stat().st_mtime_ns == stamp


@pytest.mark.parametrize('format, suffix', [('png', '.png'), ('jpeg', '.jpg')])
def test_stills(raw, made, tmp_path, format, suffix):
    records = make(raw, tmp_path / 'data', format=format)
    assert {name: record.hash for name, record in records.items()} == {n: r.hash for n, r in made[1].items()}
    record = records['id3#ccccccccccc#000002#000022']
    clip = open_clip(tmp_path / 'data' / record.file)
    assert len(clip) == 20 and (clip.path / f'0000019{suffix}').is_file()
    frames = list(clip.frames())
    if format == 'png':
        assert hashlib.sha256(np.stack(frames)).hexdigest() == record.hash
    video = open_clip(made[0] / record.file).read([7])[0].astype(int)
    assert np.abs(frames[7] - video).mean() < 4


# ---------------------------------------------------------------------------- interruption

class Killed(BaseException):
    pass


@contextmanager
def killed_after(frames):
    """Preparation within it ends before its n-th frame, and with it the block."""
    left = count(frames, -1)

    def countdown(*arguments):
        if next(left) == 1:
            raise Killed
        return cut(*arguments)
    with pytest.MonkeyPatch.context() as patch, suppress(Killed):
        patch.setattr(job, 'cut', countdown)
        yield


def test_killed_at_any_frame_or_record(raw, made, tmp_path):
    out, rng = tmp_path / 'data', np.random.default_rng()
    for _ in range(8):
        with killed_after(int(rng.integers(1, 60))):
            make(raw, out)
        if rng.random() < 0.5 and (manifest := Part().folder(out) / NAME).exists():
            manifest.write_bytes(manifest.read_bytes() + b'{"id": "id9#torn')     # a line that was not finished
    assert make(raw, out) == made[1] and tree(out) == tree(made[0])


def test_what_is_done_is_not_done_again(raw, made, tmp_path, monkeypatch):
    out = tmp_path / 'data'
    make(raw, out)
    lost = out / read_manifest(out)['id3#ccccccccccc#000002#000022'].file
    lost.unlink()
    before = {path: path.stat().st_mtime_ns for path in out.rglob('*.mp4')}
    assert make(raw, out) == made[1] and lost.exists()
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())


def test_two_processes_make_what_one_does(raw, made, tmp_path):
    assert make(raw, tmp_path / 'data', workers=2) == made[1] and tree(tmp_path / 'data') == tree(made[0])


def test_a_disk_that_is_full_ends_the_run_and_not_the_clips(raw, tmp_path, monkeypatch):
    def full(self, *arguments, **options):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(Image.Image, 'save', full)
    with pytest.raises(UserError, match='No space left on device'):
        make(raw, tmp_path / 'data', format='png')
    records = gather(tmp_path / 'data').values()
    assert not any('space' in record.error for record in records if record.error)


# ---------------------------------------------------------------------------- parts

def make_part(raw, out, index, count, **options):
    return prepare(DatasetSettings('voxceleb1', out, *raw, size=SIZE, **options), part=Part(index, count))


@pytest.mark.parametrize('order', [(0, 1, 2), (2, 0, 1)])
def test_parts_make_what_one_process_does(raw, made, tmp_path, order):
    out = tmp_path / 'data'
    *early, last = (make_part(raw, out, index, 3) for index in order)
    assert early == [None, None] and last == made[1] and tree(out) == tree(made[0])
    assert list(last) == list(made[1])


def stamps(root):
    return {path.name: path.stat().st_mtime_ns for path in root.rglob('id*.mp4')}


def test_a_killed_part_does_only_what_is_missing(raw, made, tmp_path):
    out = tmp_path / 'data'
    make_part(raw, out, 1, 2)
    with killed_after(60):                      # in its second clip or later
        make_part(raw, out, 0, 2)
        pytest.fail('it was not killed')
    before = stamps(out)
    assert {record.source for record in gather(out).values()} >= {'aaaaaaaaaaa', 'bbbbbbbbbbb'}
    assert make_part(raw, out, 0, 2) == made[1] and tree(out) == tree(made[0])
    after = stamps(out)
    assert before and all(after.get(name, stamp) == stamp for name, stamp in before.items())
    assert make_part(raw, out, 1, 2) == made[1] and stamps(out) == after and tree(out) == tree(made[0])


def test_videos_may_be_divided_anew(raw, made, tmp_path):
    out = tmp_path / 'data'
    make_part(raw, out, 0, 2)
    before = stamps(out)
    assert [make_part(raw, out, index, 3) for index in range(3)][-1] == made[1] and tree(out) == tree(made[0])
    after = stamps(out)
    assert before and all(after.get(name, stamp) == stamp for name, stamp in before.items())


def test_the_same_part_twice_and_another_division_at_the_same_time_are_refused(raw, tmp_path, monkeypatch):
    refused = []

    def meanwhile(*arguments):
        if not refused:
            for part in ((0, 2), (0, 3)):
                with pytest.raises(UserError) as error:
                    make_part(raw, tmp_path / 'data', *part)
                refused.append(str(error.value))
            assert '1 of 2 parts at work' in status_of(tmp_path / 'data')
        return cut(*arguments)
    monkeypatch.setattr(job, 'cut', meanwhile)
    assert make_part(raw, tmp_path / 'data', 0, 2) is None
    assert 'another process is at work on part 1/2' in refused[0]
    assert 'part 1/2 of it is at work, so part 1/3 would be another division' in refused[1]


def test_parts_under_way_do_not_remove_what_others_have_in_hand(raw, made, tmp_path, monkeypatch):
    """One part begins, ends and looks for others while another has half a clip written."""
    out, results = tmp_path / 'data', []

    def meanwhile(*arguments):
        if not results:
            results.append(None)
            results.append(make_part(raw, out, 1, 2))
        return cut(*arguments)
    monkeypatch.setattr(job, 'cut', meanwhile)
    assert make_part(raw, out, 0, 2) == made[1] and results == [None, None] and tree(out) == tree(made[0])


def test_two_machines_share_the_videos(raw, made, tmp_path):
    with Agents(tmp_path, '--mode', 'prepare', '--dataset', 'voxceleb1', '--size', SIZE, '--out', tmp_path / 'data',
                '--videos', raw[0], '--metadata', raw[1]) as agents:
        assert agents.end() == [0, 0], agents.said(0)
    assert tree(tmp_path / 'data') == tree(made[0])
    assert sum(agents.said(number).count('train  ') for number in (0, 1)) == 1


@pytest.mark.parametrize('text', ['0/4', '5/4', '3', '1/0', '-1/3', 'a/b', '1/2/3'])
def test_parts_that_are_none(text):
    with pytest.raises(UserError, match='--part .*expected NUMBER/COUNT, such as 3/16'):
        Part.parse(text)


def test_every_video_is_in_exactly_one_part():
    jobs = list(range(103))
    parts = [Part.parse(f'{task}/4').divided(rank, 2) for task in range(1, 5) for rank in range(2)]
    assert sorted(sum((part.of(jobs) for part in parts), [])) == jobs
    assert {part.count for part in parts} == {8} and [part.index for part in parts] == list(range(8))


def test_status(raw, made, tmp_path, capsys):
    out = tmp_path / 'data'
    assert run.main(['--mode', 'prepare', '--status', '--out', str(out)]) == 2
    make_part(raw, out, 1, 3)
    assert list(parts_of(out)) == [Part(1, 3)]
    capsys.readouterr()
    assert run.main(['--mode', 'prepare', '--status', '--out', str(out)]) == 0
    head, clips, *parts = capsys.readouterr().out.splitlines()
    assert head == f'{out}: 3 of 9 videos done; 0 of 3 parts at work, time left unknown'
    assert clips.startswith('clips: ') and ' ok' in clips
    assert [' '.join(line.split()) for line in parts] == ['1/3 has not started', '2/3 3 of 3 videos, ended',
                                                          '3/3 has not started']
    make_part(raw, out, 0, 3), make_part(raw, out, 2, 3)
    assert status_of(out) == f'{out}: done\n{summary(made[1])}'
    assert run.main(['--mode', 'prepare', '--status', '--out', str(out), '--size', '64']) == 2


def test_time_left():
    def at(done, todo, seconds, videos=100):
        return Progress(None, 400, videos, todo, 1000, 1000 + seconds, 'here', done)
    assert at(10, 50, 20).complete == 60
    assert time_left([at(10, 50, 20)], 40) == pytest.approx(80)                     # 40 left, one in two seconds
    assert time_left([at(10, 50, 20), at(40, 50, 20)], 50) == pytest.approx(80)     # the slower of two
    assert time_left([at(10, 50, 20), at(40, 50, 20)], 250) == pytest.approx(100)   # 200 that nobody has begun
    assert time_left([at(0, 50, 0)], 50) is None and time_left([], 50) is None
    assert time_left([at(50, 50, 20)], 0) == 0 and time_left([at(50, 50, 20)], 9) is None
    assert [spelled(seconds) for seconds in (5, 65, 7384)] == ['5 s', '1 min 05 s', '2 h 03 min']


# ---------------------------------------------------------------------------- folder

def test_folder_finds_heads_and_cuts(tmp_path, face_model):
    videos = tmp_path / 'videos'
    (videos / 'anna').mkdir(parents=True)
    places = {'id00005': (20, 20, 180), 'id10003': (130, 40, 180)}
    with VideoWriter(videos / 'anna' / 'talk #1.mp4', 25) as writer:     # a cut from one head to another
        for name, (left, top, side) in places.items():
            clip = open_clip(next((SHARED / 'real').glob(f'*/{name}#*')), side)
            for picture in clip.read(range(70)):
                frame = np.full((240, 320, 3), 90 if name == 'id00005' else 160, np.uint8)
                frame[top:top + side, left:left + side] = picture
                writer.write(frame)
    (videos / 'bert').mkdir()
    (videos / 'bert' / 'no_face.mp4').symlink_to(SHARED / 'bad' / 'no_face.mp4')
    (videos / 'bert' / 'broken.mp4').write_text('x')
    (videos / 'bert' / 'notes.txt').write_text('x')
    records = prepare(DatasetSettings('folder', tmp_path / 'data', videos, size=SIZE))
    assert set(records) == {'anna#talk _1#000000#000070', 'anna#talk _1#000070#000140', 'bert#no_face', 'bert#broken',
                            'bert#notes'}
    assert 'no face in the' in records['bert#no_face'].error and 'cannot be decoded' in records['bert#broken'].error
    assert records['bert#broken'].partition != records['anna#talk _1#000000#000070'].partition
    with FaceDetector() as detector:
        for record, place in zip((records['anna#talk _1#000000#000070'], records['anna#talk _1#000070#000140']),
                                 places.values()):
            assert overlap(record.box, (place[0], place[1], place[0] + place[2], place[1] + place[2])) > 0.6
            clip = open_clip(tmp_path / 'data' / record.file)
            assert len(clip) == 70
            for frame in clip.read([0, 69]):
                (x0, y0, x1, y1), = (face.box for face in detector.detect(frame))
                assert 0 <= x0 < x1 <= SIZE and 0 <= y0 < y1 <= SIZE and 0.4 * SIZE < y1 - y0 < 0.8 * SIZE
    before = tree(tmp_path / 'data')
    assert prepare(DatasetSettings('folder', tmp_path / 'data', videos, size=SIZE)) == records
    assert tree(tmp_path / 'data') == before
    few = prepare(DatasetSettings('folder', tmp_path / 'data', videos, size=SIZE, min_face=500))
    assert [few[name].status for name in records if name.startswith('anna')] == ['left_out'] * 2
    assert tree(tmp_path / 'data').keys() == {NAME}


def test_a_folder_names_people_and_splits_them(tmp_path):
    for name in ('a.mp4', 'id1#x#0#9.mp4', 'bert/one/b #2.mp4', 'bert/b.mov', 'carl/c.mp4', 'carl/thumbnail.jpg',
                 'frames/0000.png', 'frames/0001.png', '.hidden/h.mp4', 'cover.jpg'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b'')
    encode(tmp_path / 'bert' / 'cam.ts', 'mpeg2video')
    (tmp_path / 'bert' / 'loop').symlink_to(tmp_path)
    jobs, others = folder_jobs(tmp_path)
    assert {record.id: record.error for record in others} == {
        name: f'{tmp_path / path} is not a video'
        for name, path in (('carl#thumbnail', 'carl/thumbnail.jpg'), ('cover#cover', 'cover.jpg'))}
    jobs = {job.name: job.failure for job in jobs}
    assert {name: record.id for name, record in jobs.items()} == {
        'a.mp4': 'a#a', 'id1#x#0#9.mp4': 'id1#x_0_9', 'bert/one/b #2.mp4': 'bert#one_b _2', 'bert/b.mov': 'bert#b',
        'carl/c.mp4': 'carl#c', 'frames': 'frames#frames', 'bert/cam.ts': 'bert#cam'}
    split = {record.person: record.partition for record in jobs.values()}
    assert set(split.values()) == {'train', 'test'} and all(split[r.person] == r.partition for r in jobs.values())
    (tmp_path / 'test').mkdir()
    (tmp_path / 'carl').rename(tmp_path / 'test' / 'carl')
    assert [job.failure.partition for job in folder_jobs(tmp_path)[0] if job.failure.person == 'carl'] == ['test']


def test_motion_is_no_cut():
    for name in ('id00008#d6#000000#000210.mp4', 'id00003#d11#000000#000225.mp4'):
        cuts = SceneCuts()
        assert not any(cuts.between(frame) for frame in open_clip(SHARED / 'real/train' / name).read(range(60)))


def test_small_faces_in_large_frames_are_found(face_model):
    frame = np.full((1080, 1920, 3), 90, np.uint8)
    frame[-256:, -256:] = open_clip(SHARED / 'real/test/id10003#tps#000000#000169.mp4').read([10])[0]
    with FaceDetector() as detector:
        face, = detector.detect(frame)
        assert face.landmarks.shape == (478, 2) and face.matrix.shape == (4, 4)
        assert face.box[0] > 1920 - 256 and face.box[1] > 1080 - 256
        assert detector.detect(np.zeros((50, 60, 3), np.uint8)) == []


def test_a_missing_face_model_is_named_with_its_place(tmp_path, monkeypatch, no_weights):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    message = r'face_landmarker\.task: no such file; download https://\S+/face_landmarker\.task'
    with pytest.raises(UserError, match=message):
        FaceDetector()
    with pytest.raises(UserError, match=message):        # for all videos, not for each of them
        prepare(DatasetSettings('folder', tmp_path / 'data', SHARED / 'bad'))
    folder = tmp_path / 'hub' / 'checkpoints'
    folder.mkdir(parents=True)
    (folder / 'face_landmarker.task').write_text('<html>not found</html>')
    pytest.importorskip('mediapipe')
    with pytest.raises(UserError, match='is not a face landmarker'):
        FaceDetector()


# ---------------------------------------------------------------------------- constant rate, boxes

@pytest.mark.parametrize('fps, expected', [(25, [0, 1, 2, 3, 4]), (50, [0, 2, 4, 6, 8]),
                                           (Fraction(25, 2), [0, 0, 1, 1, 2]), (30, [0, 1, 2, 4, 5])])
def test_resampling_by_time_stamp(tmp_path, fps, expected):
    path = tmp_path / 'video.mp4'
    with VideoWriter(path, fps) as writer:
        for n in range(12):
            writer.write(np.full((16, 16, 3), n * 20, np.uint8))
    clip = open_clip(path)
    assert indices_at(clip, 25, count=5).tolist() == expected
    assert [round(frame.mean() / 20) for frame in frames_at(clip, indices_at(clip, 25, count=5))] == expected
    assert len(indices_at(clip, 25)) == round(12 * 25 / fps)
    with pytest.raises(UserError, match='video.mp4: lasts'):
        indices_at(clip, 25, count=round(12 * 25 / fps) + 1)


def test_resampling_follows_a_variable_rate():
    clip = open_clip(SHARED / 'bad' / 'vfr.mp4')
    stamps, tick = clip.times
    indices = indices_at(clip, 25)
    times = [float(stamp * tick) for stamp in stamps]
    assert len(indices) == pytest.approx(25 * (times[-1] + 0.04), abs=2) and sorted(indices) == indices.tolist()
    for n, i in enumerate(indices):
        assert times[i] <= n / 25 + 0.02 and (i + 1 == len(times) or times[i + 1] >= n / 25 + 0.02 - 1e-9)


def test_squares_move_into_the_frame_before_they_leave_it():
    assert crops.square((10, 0, 30, 60), (100, 80)) == (0, 0, 60, 60)
    assert crops.square((40, 10, 60, 50), (100, 80)) == (30, 10, 70, 50)
    assert crops.square((0, 10, 100, 50), (100, 80)) == (0, -20, 100, 80)
    frame = np.arange(80 * 100 * 3).reshape(80, 100, 3).astype(np.uint8)
    part = cut(frame, (0, -20, 100, 80), 100)
    assert np.array_equal(part[20:], frame) and np.array_equal(part[0], frame[0])


# ---------------------------------------------------------------------------- metadata

def test_the_published_list_of_voxceleb_is_read():
    path = SHARED / 'facts' / 'lists' / 'vox-metadata.csv'
    videos = read_voxceleb(path)
    clips = [clip for listed in videos.values() for clip in listed]
    assert len(videos) == 3442 and len(clips) == 20075 and len({clip.id for clip in clips}) == 19764
    assert clips[0].id == 'id10005#WMh3ye5tBsE#003657#003994' and clips[0].frames == 337
    assert clips[0].start == Fraction(3657, 25)
    assert clips[0].box == (624, 48, 1018, 553) and clips[0].frame == (1280, 720)


def test_celebvhq(tmp_path):
    entry = {'ytb_id': 'aaa_aaaaaaa', 'duration': {'start_sec': 0.4, 'end_sec': 1.2}, 'version': 'v0.1',
             'bbox': {'top': 30 / 240, 'bottom': 190 / 240, 'left': 40 / 320, 'right': 200 / 320}}
    path = tmp_path / 'celebvhq_info.json'
    path.write_text(json.dumps({'meta_info': {}, 'clips': {'aaa_aaaaaaa_0': entry}}))
    raw_video(tmp_path / 'aaa_aaaaaaa.mp4', 'id00001', Fraction(30))
    clip, = read_celebvhq(path)['aaa_aaaaaaa']
    assert clip.id == 'aaa_aaaaaaa#0#000010#000030' and clip.person == 'aaa_aaaaaaa' and clip.frames == 20
    records = prepare(DatasetSettings('celebvhq', tmp_path / 'data', tmp_path, path, size=64))
    assert records[clip.id].box == (40, 30, 200, 190)
    assert number_in(open_clip(tmp_path / 'data' / records[clip.id].file).read([0])[0]) in (9, 10, 11)
    legacy = prepare(DatasetSettings('celebvhq', tmp_path / 'legacy', tmp_path, path, size=64, crop='legacy'))
    x0, y0, x1, y1 = legacy[clip.id].box      # grown by 2 %, then the smaller side
    assert x1 - x0 == y1 - y0 == 170 and abs(x0 - 35) <= 1 and abs(y0 - 25) <= 1


def test_what_is_prepared_for_training_is_never_a_test_clip_of_the_protocol(tmp_path):
    videos = [next(name for name in (f'{n:011d}' for n in range(1000)) if in_test(name) == test)
              for test in (True, False)]
    entry = {'duration': {'start_sec': 0.4, 'end_sec': 1.2},
             'bbox': {'top': 0.1, 'bottom': 0.8, 'left': 0.1, 'right': 0.6}}
    path = tmp_path / 'celebvhq_info.json'
    path.write_text(json.dumps({'clips': {f'{video}_0': entry | {'ytb_id': video} for video in videos}}))
    for video in videos:
        raw_video(tmp_path / f'{video}.mp4', 'id00001', Fraction(30))
    prepare(DatasetSettings('celebvhq', tmp_path / 'data', tmp_path, path, size=64))
    manifest = read_manifest(tmp_path / 'data')
    partitions = {record.id: record.partition for record in manifest.values()}
    assert sorted(partitions.values()) == ['test', 'train']
    drawn = [item.source for item in draw_celebv_hq(partitions)]
    assert drawn == [name for name, partition in partitions.items() if partition == 'test']


def test_the_split_of_celebvhq_is_one_in_fifty():
    share = np.mean([in_test(f'video{n:05d}') for n in range(5000)])
    assert 0.014 < share < 0.026 and in_test('video00001') == in_test('video00001')


@pytest.mark.parametrize('row, what', [('a,x,30,1-2-3-4,25,640,480,train,id1', 'invalid literal'),
                                       ('a,30,5,1-2-3-4,25,640,480,train,id1', 'empty'),
                                       ('a,5,30,1-2-3,25,640,480,train,id1', 'unpack'),
                                       ('a,5,30,1-2-3-4,25,640,480,dev,id1', "partition 'dev'")])
def test_a_wrong_line_is_named(tmp_path, row, what):
    path = tmp_path / 'list.csv'
    path.write_text(f'video_id,start,end,bbox,fps,width,height,partition,person_id\n{row}\n')
    with pytest.raises(UserError, match=f'list.csv: line 2: .*{what}'):
        read_voxceleb(path)


def test_another_file_is_no_metadata(tmp_path):
    for read, text in ((read_voxceleb, 'a,b\n1,2\n'), (read_celebvhq, '{"x": 1}'), (read_celebvhq, 'no json')):
        (tmp_path / 'file').write_text(text)
        with pytest.raises(UserError, match='file.*published file'):
            read(tmp_path / 'file')


# ---------------------------------------------------------------------------- download

YT_DLP = '''
import pathlib, shutil, sys
arguments = sys.argv[1:]
video = arguments[-1].rpartition('=')[2]
folder = pathlib.Path(arguments[arguments.index('-P') + 1])
assert '--cookies' in arguments and arguments[-2] == '--'
if video != 'aaaaaaaaaaa':
    print('[youtube] Extracting URL', file=sys.stderr)
    print(f'WARNING: something else', file=sys.stderr)
    sys.exit(f'ERROR: [youtube] {video}: Video unavailable. This video is private')
shutil.copy(RAW, folder / f'{video}.mp4')
'''


def test_downloads_keep_the_words_of_the_program(raw, tmp_path, capsys):
    program = tmp_path / 'yt_dlp.py'
    program.write_text(YT_DLP.replace('RAW', repr(str(raw[0] / 'aaaaaaaaaaa.mp4'))))
    metadata = tmp_path / 'list.csv'
    lines = raw[1].read_text().splitlines()
    metadata.write_text('\n'.join(line for line in lines if line.startswith(('video_id', 'aaaaaaaaaaa', 'missing'))))
    arguments = ['--mode', 'prepare', '--dataset', 'voxceleb1', '--metadata', str(metadata), '--size', '64',
                 '--videos', str(tmp_path / 'videos'), '--out', str(tmp_path / 'data'),
                 '--download', f'{sys.executable} {program} --cookies x']
    assert run.main(arguments) == 0
    assert '2 clips of 1 people' in capsys.readouterr().out
    records = read_manifest(tmp_path / 'data')
    assert 'ERROR: [youtube] missingaaaa: Video unavailable. This video is private' in \
        records['id6#missingaaaa#000000#000025'].error
    assert sum(record.status == OK for record in records.values()) == 2


# ---------------------------------------------------------------------------- the command line, the loader

def test_the_user_is_told_what_is_missing(raw, made, tmp_path, capsys):
    def refused(*arguments):
        assert run.main(['--mode', 'prepare', *map(str, arguments)]) == 2
        error, = (line for line in capsys.readouterr().err.splitlines() if line.startswith('error: '))
        return error
    videos = '--videos', raw[0]
    assert '--dataset voxceleb1|celebvhq|folder' in refused()
    assert all(name in refused('--dataset', 'vox', *videos) for name in DATASETS)
    assert 'vox-metadata.csv of https://' in refused('--dataset', 'voxceleb1', *videos)
    listed = '--dataset', 'voxceleb1', '--metadata', raw[1], *videos
    assert 'no program nothing' in refused(*listed, '--download', 'nothing')
    assert 'expected one of mp4, png, jpeg' in refused('--dataset', 'folder', '--format', 'avi', *videos)
    assert 'finds its crops itself' in refused('--dataset', 'folder', '--crop', 'legacy', *videos)
    assert 'must not be negative' in refused('--dataset', 'folder', '--min_face', -1, *videos)
    assert 'no such folder' in refused('--dataset', 'folder', '--videos', tmp_path / 'gone', '--out', tmp_path / 'data')
    other = refused(*listed, '--out', made[0], '--size', 64)
    assert 'size=128' in other and 'size=64' in other and 'another --out' in other


def test_the_loader_takes_clips_and_people_from_the_manifest(made, caplog):
    root, records = made
    people = find_people(root, 'train', id_sampling=True, size=32)
    assert {person: len(clips) for person, clips in people.items()} == {'id1': 2, 'id2': 1, 'id6': 1}
    assert list(find_people(root, 'test', True, 32)) == ['id3'] and not caplog.text
    assert people['id2'][0].read([24])[0].shape == (32, 32, 3)


def test_clips_and_manifest_that_differ(tmp_path, caplog):
    for name in ('a#b', 'c#d'):
        (tmp_path / 'train' / f'{name}.mp4').mkdir(parents=True)
        Image.new('RGB', (8, 8)).save(tmp_path / 'train' / f'{name}.mp4' / '0.png')
    blank = dict(partition='train', status=OK)
    rewrite(tmp_path, [Record('a#b', 'anna', **blank), Record('e#f', 'e', **blank)])
    assert list(find_people(tmp_path, 'train', True, 8)) == ['anna']
    assert '1 clip(s) are not listed and left out, such as c#d' in caplog.text
    assert '1 clip(s) are listed but not there, such as e#f' in caplog.text
    append(tmp_path, [Record('a#b', 'anna', 'train', 'failed', 'gone')])
    with pytest.raises(UserError, match='none of its 2 clips is in manifest.jsonl'):
        find_people(tmp_path, 'train', True, 8)
    with open(tmp_path / NAME, 'a') as file:
        file.write('nonsense\n')
    with pytest.raises(UserError, match='manifest.jsonl: line 4 is no record'):
        find_people(tmp_path, 'train', True, 8)
