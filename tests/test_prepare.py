"""Raw videos in, a data set out: right place, right time, nothing lost, and a reason for all that is missing."""

import hashlib
import json
import re
import sys
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import replace
from fractions import Fraction
from functools import cache, partial
from itertools import count
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

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
from evaluation.protocols import draw_celebv_hq
from support.errors import UserError
from tests.support import video_files
from tests.support.agents import run_in_two_processes
from tests.support.command_line import refused, succeeds
from tests.support.inputs import VOX
from tests.support.tiny import SHARED
from tests.support.video_files import encode, needs_shared, write_video

SIZE = 128
pytestmark = needs_shared


# ---------------------------------------------------------------------------- raw material

@cache
def content(name):
    """40 frames (256, 256, 3) of a real clip, with their number written into the lowest rows."""
    frames = open_clip(next((SHARED / 'real').glob(f'*/{name}#*'))).read(range(40))
    for number, frame in enumerate(frames):
        frame[240:] = video_files.numbered(number, 16, 256)
    return frames


def number_in(frame):
    return video_files.number_in(frame[-frame.shape[0] // 20:])


def raw_video(path, name, fps=Fraction(25), place=(40, 30, 160), canvas=(320, 240), seconds=1.6):
    """`name` playing at 25 fps in a square of a larger video of another rate."""
    left, top, side = place
    background = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    background = np.array(Image.fromarray(background).resize(canvas, Image.Resampling.BICUBIC))

    def frame(n):
        picture = Image.fromarray(content(name)[min(int(n / fps * 25), 39)])
        background[top:top + side, left:left + side] = picture.resize((side, side), Image.Resampling.LANCZOS)
        return background
    return write_video(path, map(frame, range(round(seconds * fps))), fps, crf=10)


VIDEOS = {
    'aaaaaaaaaaa': dict(name='id00001', fps=Fraction(30000, 1001)),
    'bbbbbbbbbbb': dict(name='id00003', fps=Fraction(50), place=(100, 60, 160)),
    'ccccccccccc': dict(name='id10003', fps=Fraction(20), place=(0, 40, 200)),
    'eeeeeeeeeee': dict(name='id10001', seconds=0.8),
}
TRAIN, TEST = 'train', 'test'
ROWS = [  # video, start, end, box, partition, person
    ('aaaaaaaaaaa', 5, 30, (40, 30, 200, 190), TRAIN, 'id1'),
    ('aaaaaaaaaaa', 5, 30, (40, 30, 200, 190), TRAIN, 'id1'),     # listed again
    ('aaaaaaaaaaa', 10, 30, (60, 30, 180, 190), TRAIN, 'id1'),    # higher than wide
    ('bbbbbbbbbbb', 0, 25, (100, 60, 260, 220), TRAIN, 'id2'),
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
    # As if the published boxes had been made in a version of twice the size.
    (folder / 'vox-metadata.csv').write_text(VOX + ''.join(
        f'{video},{start},{end},{"-".join(str(2 * side) for side in box)},25,640,480,{partition},{person}\n'
        for video, start, end, box, partition, person in ROWS))
    return folder, folder / 'vox-metadata.csv'


def make(raw, out, workers=1, part=Part(), **options):
    return prepare(DatasetSettings('voxceleb1', out, *raw, size=SIZE, **options), workers, part)


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
def test_crops_land_on_the_faces(made, name, landmarker):
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


def test_every_failure_has_its_reason_and_manifest_and_folders_agree(made):
    root, records = made
    expected = {
        'id4#copyofaaaaa#000005#000030': ('duplicate', 'same frames as id1#aaaaaaaaaaa#000005#000030'),
        'id5#truncatedaa#000000#000025': ('failed', 'truncatedaa.mp4: .*cannot be decoded|is incomplete'),
        'id5#notavideoaa#000000#000025': ('failed', 'notavideoaa.mp4: cannot be decoded'),
        'id6#missingaaaa#000000#000025': ('failed', 'no video missingaaaa in .*--download'),
        'id6#eeeeeeeeeee#000000#000025': ('failed', r'lasts 0\.80 s, but frames up to 1\.00 s'),
        'id6#eeeeeeeeeee#000005#000015': ('left_out', 'id6 is in train too; --keep_shared_people'),
        'id7#wideaaaaaaa#000000#000010': ('failed', 'is 320x200, but its boxes were made for 640x480'),
    }
    for name, (status, reason) in expected.items():
        assert records[name].status == status and re.search(reason, records[name].error)
    assert Counter(record.status for record in records.values()) == dict(ok=5, failed=5, duplicate=1, left_out=1)
    assert len(records) == len(set(ROWS)) and 'failed: 5, such as id5#notavideoaa' in summary(records)
    assert read_manifest(root) == records and list(records) == sorted(records)
    assert set(tree(root)) == {record.file for record in records.values() if record.status == OK} | {NAME}


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
    with done_once(out):
        assert make(raw, out) == made[1] and tree(out) == tree(made[0])         # gone: all are made, but none again
        assert make(raw, out, min_face=161) == few and set(tree(out)) == {kept.file, NAME}
        assert make(raw, out, min_face=170)[small.id].error.endswith('less than --min_face 170')


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

def kill():
    raise KeyboardInterrupt


@contextmanager
def before_frame(number, action=kill):
    """In preparation within it, action() is called before the n-th frame; `kill` ends the block."""
    left = count(number, -1)

    def countdown(*arguments):
        if next(left) == 1:
            action()
        return cut(*arguments)
    with pytest.MonkeyPatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(job, 'cut', countdown)
        yield


def test_killed_at_any_frame_or_record(raw, made, tmp_path):
    out, rng = tmp_path / 'data', np.random.default_rng()
    for _ in range(8):
        with before_frame(int(rng.integers(1, 60))):
            make(raw, out)
        if rng.random() < 0.5 and (manifest := Part().folder(out) / NAME).exists():
            manifest.write_bytes(manifest.read_bytes() + b'{"id": "id9#torn')     # a line that was not finished
    assert make(raw, out) == made[1] and tree(out) == tree(made[0])


@contextmanager
def done_once(root):
    """Clips that are there before the block are left as they are in it; but the duplicate may go."""
    def stamps():
        return {path.name: path.stat().st_mtime_ns for path in root.rglob('id*.mp4')}
    before = stamps()
    yield
    after = stamps()
    assert before and all(after.get(name) == stamp for name, stamp in before.items() if 'copyofaaaaa' not in name)


def test_two_processes_make_what_one_does_and_what_is_done_is_not_done_again(raw, made, tmp_path):
    out = tmp_path / 'data'
    assert make(raw, out, workers=2) == made[1] and tree(out) == tree(made[0])
    (out / read_manifest(out)['id3#ccccccccccc#000002#000022'].file).unlink()
    with done_once(out):
        assert make(raw, out) == made[1] and tree(out) == tree(made[0])


def test_a_disk_that_is_full_ends_the_run_and_not_the_clips(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(Image.Image, 'save', Mock(side_effect=OSError(28, 'No space left on device')))
    with pytest.raises(UserError, match='No space left on device'):
        make(raw, tmp_path / 'data', format='png')
    records = gather(tmp_path / 'data').values()
    assert not any('space' in record.error for record in records if record.error)


# ---------------------------------------------------------------------------- parts

def make_part(raw, out, index, count):
    return make(raw, out, part=Part(index, count))


def test_a_killed_part_does_only_what_is_missing(raw, made, tmp_path):
    out = tmp_path / 'data'
    make_part(raw, out, 1, 2)
    with before_frame(60):                      # in its second clip or later
        make_part(raw, out, 0, 2)
        pytest.fail('it was not killed')
    assert {record.source for record in gather(out).values()} >= {'aaaaaaaaaaa', 'bbbbbbbbbbb'}
    with done_once(out):
        assert make_part(raw, out, 0, 2) == made[1] and tree(out) == tree(made[0])


def test_videos_may_be_divided_anew(raw, made, tmp_path):
    out = tmp_path / 'data'
    make_part(raw, out, 0, 2)
    with done_once(out):
        assert [make_part(raw, out, index, 3) for index in range(3)][-1] == made[1] and tree(out) == tree(made[0])


def test_parts_at_the_same_time(raw, made, tmp_path):
    """The same part twice and another division are refused; the other part, which begins, ends and looks for others
    while this one has half a clip written, leaves that alone.
    """
    out, met = tmp_path / 'data', []

    def meanwhile():
        for part in ((0, 2), (0, 3)):
            with pytest.raises(UserError) as error:
                make_part(raw, out, *part)
            met.append(str(error.value))
        met.append(status_of(out))
        met.append(make_part(raw, out, 1, 2))
    with before_frame(5, meanwhile):
        assert make_part(raw, out, 0, 2) == made[1] and tree(out) == tree(made[0])
    same, other, status, last = met
    assert 'another process is at work on part 1/2' in same and '1 of 2 parts at work' in status and last is None
    assert 'part 1/2 of it is at work, so part 1/3 would be another division' in other


def test_ranks_share_the_videos(raw, made, tmp_path):
    said = run_in_two_processes('--mode', 'prepare', '--dataset', 'voxceleb1', '--size', SIZE, '--out',
                                tmp_path / 'data', '--videos', raw[0], '--metadata', raw[1])
    assert tree(tmp_path / 'data') == tree(made[0])
    assert sum(text.count('train  ') for text in said) == 1


def test_every_video_is_in_exactly_one_part():
    jobs = list(range(103))
    parts = [Part.parse(f'{task}/4').divided(rank, 2) for task in range(1, 5) for rank in range(2)]
    assert sorted(sum((part.of(jobs) for part in parts), [])) == jobs
    assert {part.count for part in parts} == {8} and [part.index for part in parts] == list(range(8))
    for text in ('0/4', '5/4', '3', '1/0', '-1/3', 'a/b', '1/2/3'):
        with pytest.raises(UserError, match='--part .*expected NUMBER/COUNT, such as 3/16'):
            Part.parse(text)


def test_parts_make_what_one_process_does_and_status_tells_how_far_they_are(raw, made, tmp_path, capsys):
    out = tmp_path / 'data'
    command = '--mode', 'prepare', '--status', '--out', out
    refused(capsys, *command)
    assert make_part(raw, out, 1, 3) is None
    assert list(parts_of(out)) == [Part(1, 3)]
    capsys.readouterr()
    head, clips, *parts = succeeds(capsys, *command).splitlines()
    assert head == f'{out}: 3 of 9 videos done; 0 of 3 parts at work, time left unknown'
    assert clips.startswith('clips: ') and ' ok' in clips
    assert [' '.join(line.split()) for line in parts] == ['1/3 has not started', '2/3 3 of 3 videos, ended',
                                                          '3/3 has not started']
    assert make_part(raw, out, 2, 3) is None
    last = make_part(raw, out, 0, 3)
    assert last == made[1] and tree(out) == tree(made[0]) and list(last) == list(made[1])
    assert status_of(out) == f'{out}: done\n{summary(made[1])}'
    refused(capsys, *command, '--size', 64, logged=True)


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

def test_folder_finds_heads_and_cuts(tmp_path, landmarker):
    videos = tmp_path / 'videos'
    places = {'id00005': (20, 20, 180), 'id10003': (130, 40, 180)}
    frames = np.full((140, 240, 320, 3), 90, np.uint8)                   # a cut from one head to another
    frames[70:] = 160
    for half, (name, (left, top, side)) in zip((frames[:70], frames[70:]), places.items()):
        half[:, top:top + side, left:left + side] = open_clip(
            next((SHARED / 'real').glob(f'*/{name}#*')), side).read(range(70))
    write_video(videos / 'anna' / 'talk #1.mp4', frames)
    (videos / 'bert').mkdir()
    (videos / 'bert' / 'no_face.mp4').symlink_to(SHARED / 'bad' / 'no_face.mp4')
    (videos / 'bert' / 'broken.mp4').write_text('x')
    (videos / 'bert' / 'notes.txt').write_text('x')
    settings = DatasetSettings('folder', tmp_path / 'data', videos, size=SIZE)
    records = prepare(settings)
    heads = 'anna#talk _1#000000#000070', 'anna#talk _1#000070#000140'
    assert set(records) == {*heads, 'bert#no_face', 'bert#broken', 'bert#notes'}
    assert 'no face in the' in records['bert#no_face'].error and 'cannot be decoded' in records['bert#broken'].error
    assert records['bert#broken'].partition != records[heads[0]].partition
    with FaceDetector() as detector:
        for name, (left, top, side) in zip(heads, places.values()):
            record = records[name]
            assert overlap(record.box, (left, top, left + side, top + side)) > 0.6
            clip = open_clip(tmp_path / 'data' / record.file)
            assert len(clip) == 70
            for frame in clip.read([0, 69]):
                (x0, y0, x1, y1), = (face.box for face in detector.detect(frame))
                assert 0 <= x0 < x1 <= SIZE and 0 <= y0 < y1 <= SIZE and 0.4 * SIZE < y1 - y0 < 0.8 * SIZE
    before = tree(tmp_path / 'data')
    assert prepare(settings) == records and tree(tmp_path / 'data') == before
    few = prepare(replace(settings, min_face=500))
    assert [few[name].status for name in heads] == ['left_out'] * 2
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


def test_small_faces_in_large_frames_are_found(landmarker):
    frame = np.full((1080, 1920, 3), 90, np.uint8)
    frame[-256:, -256:] = open_clip(SHARED / 'real/test/id10003#tps#000000#000169.mp4').read([10])[0]
    with FaceDetector() as detector:
        face, = detector.detect(frame)
        assert face.landmarks.shape == (478, 2) and face.matrix.shape == (4, 4)
        assert face.box[0] > 1920 - 256 and face.box[1] > 1080 - 256
        assert detector.detect(np.zeros((50, 60, 3), np.uint8)) == []


def test_a_missing_face_model_is_named_with_its_place(tmp_path, torch_home):
    message = r'face_landmarker\.task: no such file; download https://\S+/face_landmarker\.task'
    with pytest.raises(UserError, match=message):
        FaceDetector()
    with pytest.raises(UserError, match=message):        # for all videos, not for each of them
        prepare(DatasetSettings('folder', tmp_path / 'data', SHARED / 'bad'))
    (torch_home / 'face_landmarker.task').write_text('<html>not found</html>')
    pytest.importorskip('mediapipe')
    with pytest.raises(UserError, match='is not a face landmarker'):
        FaceDetector()


# ---------------------------------------------------------------------------- constant rate, boxes

@pytest.mark.parametrize('fps, expected', [(25, [0, 1, 2, 3, 4]), (50, [0, 2, 4, 6, 8]),
                                           (Fraction(25, 2), [0, 0, 1, 1, 2]), (30, [0, 1, 2, 4, 5])])
def test_resampling_by_time_stamp(tmp_path, fps, expected):
    clip = open_clip(write_video(tmp_path / 'video.mp4', (np.full((16, 16, 3), n * 20, np.uint8) for n in range(12)),
                                 fps))
    assert indices_at(clip, 25, count=5).tolist() == expected
    assert [round(frame.mean() / 20) for frame in frames_at(clip, indices_at(clip, 25, count=5))] == expected
    assert len(indices_at(clip, 25)) == round(12 * 25 / fps)
    with pytest.raises(UserError, match='video.mp4: lasts'):
        indices_at(clip, 25, count=round(12 * 25 / fps) + 1)


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


def write_celebvhq(folder, *videos):
    """celebvhq_info.json in `folder`, of one clip in each of the videos beside it."""
    entry = {'duration': {'start_sec': 0.4, 'end_sec': 1.2}, 'version': 'v0.1',
             'bbox': {'top': 30 / 240, 'bottom': 190 / 240, 'left': 40 / 320, 'right': 200 / 320}}
    for video in videos:
        raw_video(folder / f'{video}.mp4', 'id00001', Fraction(30))
    (folder / 'celebvhq_info.json').write_text(json.dumps(
        {'meta_info': {}, 'clips': {f'{video}_0': entry | {'ytb_id': video} for video in videos}}))
    return folder / 'celebvhq_info.json'


def test_celebvhq(tmp_path):
    path = write_celebvhq(tmp_path, 'aaa_aaaaaaa')
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
    path = write_celebvhq(tmp_path, *videos)
    records = prepare(DatasetSettings('celebvhq', tmp_path / 'data', tmp_path, path, size=64))
    partitions = {record.id: record.partition for record in records.values()}
    assert sorted(partitions.values()) == ['test', 'train']
    drawn = [item.source for item in draw_celebv_hq(partitions)]
    assert drawn == [name for name, partition in partitions.items() if partition == 'test']
    assert 0.014 < np.mean([in_test(f'video{n:05d}') for n in range(5000)]) < 0.026       # one in fifty


@pytest.mark.parametrize('row, what', [('a,x,30,1-2-3-4,25,640,480,train,id1', "start is 'x', expected a whole number"),
                                       ('a,30,5,1-2-3-4,25,640,480,train,id1', 'empty'),
                                       ('a,5,30,1-2-3,25,640,480,train,id1', 'unpack'),
                                       ('a,5,30,1-2-3-4,25,640,480,dev,id1', "partition 'dev'")])
def test_a_wrong_line_is_named_and_another_file_is_no_metadata(tmp_path, row, what):
    path = tmp_path / 'list.csv'
    path.write_text(f'video_id,start,end,bbox,fps,width,height,partition,person_id\n{row}\n')
    with pytest.raises(UserError, match=f'list.csv: line 2: .*{what}'):
        read_voxceleb(path)
    for read, text in ((read_voxceleb, 'a,b\n1,2\n'), (read_celebvhq, '{"x": 1}'), (read_celebvhq, 'no json')):
        path.write_text(text)
        with pytest.raises(UserError, match='list.csv.*published file'):
            read(path)


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
    lines = raw[1].read_text().splitlines()
    (tmp_path / 'list.csv').write_text(
        '\n'.join(line for line in lines if line.startswith(('video_id', 'aaaaaaaaaaa', 'missing'))))
    assert '2 clips of 1 people' in succeeds(
        capsys, '--mode', 'prepare', '--dataset', 'voxceleb1', '--metadata', tmp_path / 'list.csv', '--size', 64,
        '--videos', tmp_path / 'videos', '--out', tmp_path / 'data',
        '--download', f'{sys.executable} {program} --cookies x')
    records = read_manifest(tmp_path / 'data')
    assert 'ERROR: [youtube] missingaaaa: Video unavailable. This video is private' in \
        records['id6#missingaaaa#000000#000025'].error
    assert sum(record.status == OK for record in records.values()) == 2


# ---------------------------------------------------------------------------- the command line, the loader

def test_the_user_is_told_what_is_missing(raw, made, tmp_path, capsys):
    message = partial(refused, capsys, '--mode', 'prepare', logged=True)
    videos = '--videos', raw[0]
    assert '--dataset voxceleb1|celebvhq|folder' in message()
    assert all(name in message('--dataset', 'vox', *videos) for name in DATASETS)
    assert 'vox-metadata.csv of https://' in message('--dataset', 'voxceleb1', *videos)
    listed = '--dataset', 'voxceleb1', '--metadata', raw[1], *videos
    assert 'no program nothing' in message(*listed, '--download', 'nothing')
    assert 'expected one of mp4, png, jpeg' in message('--dataset', 'folder', '--format', 'avi', *videos)
    assert 'finds its crops itself' in message('--dataset', 'folder', '--crop', 'legacy', *videos)
    assert 'must not be negative' in message('--dataset', 'folder', '--min_face', -1, *videos)
    assert 'no such folder' in message('--dataset', 'folder', '--videos', tmp_path / 'gone', '--out', tmp_path / 'data')
    other = message(*listed, '--out', made[0], '--size', 64)
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
