"""Clips in tar shards are the clips themselves: same frames, same samples; damaged shards are refused by name."""

import io
import tarfile
from fractions import Fraction

import numpy as np
import pytest

import run
from datasets.frames import Augmentation, PairDataset, find_people
from datasets.manifest import NAME as MANIFEST
from datasets.prepare.pack import pack
from datasets.shards import members
from datasets.synthetic.clips import synthetic_people
from datasets.video import open_clip
from datasets.video_writer import VideoWriter
from support.errors import UserError
from tests.support.video_files import KINDS

FRAMES, SIZE = 6, 32
FULL = Augmentation(time_flip=True, horizontal_flip=True, brightness=0.1, contrast=0.1, saturation=0.1, hue=0.1)


@pytest.fixture(scope='module')
def loose(tmp_path_factory):
    """A data set of five people as mp4 files, two of them for testing."""
    root = tmp_path_factory.mktemp('data') / 'loose'
    for n, clips in enumerate(synthetic_people(5, 1, FRAMES, SIZE, seed=0).values()):
        folder = root / ('test' if n > 2 else 'train')
        folder.mkdir(parents=True, exist_ok=True)
        with VideoWriter(folder / f'id{n}#video#{n:06d}#{n + FRAMES:06d}.mp4', Fraction(25)) as writer:
            for frame in clips[0].frames():
                writer.write(frame)
    return root


@pytest.fixture
def packed(loose, tmp_path):
    pack(loose, tmp_path / 'packed', megabytes=1)
    return tmp_path / 'packed'


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob('*') if path.is_file()}


def test_training_sees_the_same_samples(loose, packed):
    datasets = [PairDataset(find_people(root, 'train', True, SIZE), 3, FULL) for root in (loose, packed)]
    for i in range(12):
        ours, theirs = (dataset[i] for dataset in datasets)
        assert (ours['source'] == theirs['source']).all() and (ours['driving'] == theirs['driving']).all()


@pytest.mark.parametrize('kind', KINDS)
def test_a_member_decodes_as_the_file_does(make, tmp_path, kind):
    path = make(kind)
    with tarfile.open(tmp_path / 'a.tar', 'w') as tar:
        tar.add(__file__, arcname='before.txt')
        tar.add(path, arcname=f'deep/{path.name}')
        tar.add(path, arcname='after.mp4')
    member = members(tmp_path / 'a.tar')[1]
    loose, inside = open_clip(path), open_clip(member)
    assert (inside.name, inside.fps, len(inside)) == (path.stem, loose.fps, len(loose))
    frames = list(loose.frames())
    assert all(map(np.array_equal, inside.frames(), frames))
    picks = [len(frames) - 1, 0, len(frames) // 2]
    assert all(np.array_equal(frame, frames[i]) for frame, i in zip(inside.read(picks), picks, strict=True))

    cut = member._replace(size=int(0.7 * member.size))      # whatever lies behind it
    with pytest.raises(UserError, match=f'a.tar/deep/{kind}'):
        list(open_clip(cut).frames())


def test_packing_goes_on_and_gives_the_same_files(loose, packed, tmp_path):
    whole = contents(packed)
    first, *_ = sorted(packed.rglob('*.tar'))
    untouched = {path: path.stat().st_mtime_ns for path in packed.rglob('*.tar') if path != first}
    first.unlink()
    assert pack(loose, packed, megabytes=1) == (5, len(list(packed.rglob('*.tar'))))
    assert contents(packed) == whole
    assert untouched == {path: path.stat().st_mtime_ns for path in untouched}
    assert MANIFEST not in [path.name for path in packed.iterdir()]


def test_shards_are_as_large_as_was_asked(tmp_path):
    for partition, sizes in (('train', [400, 500, 300, 1500, 100]), ('test', [10])):
        (tmp_path / 'in' / partition).mkdir(parents=True)
        for n, size in enumerate(sizes):
            (tmp_path / 'in' / partition / f'p#{n}.mp4').write_bytes(bytes(size * 1000))
    (tmp_path / 'in' / MANIFEST).write_text('')
    assert pack(tmp_path / 'in', tmp_path / 'out', megabytes=1) == (6, 5)
    shards = [[member.name for member in members(path)] for path in sorted((tmp_path / 'out/train').iterdir())]
    assert shards == [['p#0.mp4', 'p#1.mp4'], ['p#2.mp4'], ['p#3.mp4'], ['p#4.mp4']]
    assert (tmp_path / 'out' / MANIFEST).exists()


def test_what_is_no_shard_is_refused_by_name(packed):
    archive = packed / 'train' / '00000.tar'
    whole = archive.read_bytes()
    for damaged in (whole[:-11_000], whole[:300], b'', bytes(10_240), b'nonsense' * 2000):
        archive.write_bytes(damaged)
        with pytest.raises(UserError, match='00000.tar|no clips'):
            find_people(packed, 'train', True, SIZE)


def test_names_within_a_shard_lead_nowhere(tmp_path):
    (tmp_path / 'train').mkdir()
    with tarfile.open(tmp_path / 'train/a.tar', 'w') as tar:
        for name in ('../../p#1.mp4', '/etc/p#2.mp4', '.p#3.mp4', 'p#4.txt'):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
        link = tarfile.TarInfo('p#5.mp4')
        link.type, link.linkname = tarfile.SYMTYPE, '/etc/passwd'
        tar.addfile(link)
    people = find_people(tmp_path, 'train', True, SIZE)
    assert [clip.name for clip in people['p']] == ['p#1', 'p#2']


def test_mistakes_get_one_line(loose, packed, tmp_path, capsys):
    (tmp_path / 'stills/train/p#0').mkdir(parents=True)
    (tmp_path / 'stills/train/p#0/0.png').touch()
    for clips, out, what in ((loose, loose, 'among their own clips'), (packed, tmp_path / 'x', 'in a shard already'),
                             (tmp_path / 'stills', tmp_path / 'x', 'folder of stills'),
                             (tmp_path, tmp_path / 'x', 'has no folder train'),
                             (loose, tmp_path / 'stills', 'is no shard of these clips')):
        assert run.main(['--mode', 'pack', '--clips', str(clips), '--out', str(out)]) == 2
        assert what in capsys.readouterr().err
