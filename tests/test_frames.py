"""A sample depends on its number and the seed alone, from shards too; damage is passed over loudly."""

import io
import logging
import tarfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from datasets.frames import Augmentation, PairDataset, Stream, find_people
from datasets.manifest import NAME as MANIFEST
from datasets.prepare.pack import pack
from datasets.shards import members
from datasets.synthetic.clips import synthetic_people
from datasets.video import open_clip
from support.errors import UserError
from support.processes import loading_context, worker_start
from tests.support.command_line import refused
from tests.support.video_files import KINDS, write_video

PLAIN = Augmentation(time_flip=False, horizontal_flip=False, brightness=0, contrast=0, saturation=0, hue=0)
FULL = Augmentation(time_flip=True, horizontal_flip=True, brightness=0.1, contrast=0.1, saturation=0.1, hue=0.1)


class Painted:
    """A clip in memory: red is the clip, green the frame, blue rises from left to right."""
    fps = Fraction(25)

    def __init__(self, name, value=0, length=20):
        self.name, self.value, self.length = name, value, length

    def __len__(self):
        return self.length

    def read(self, indices):
        frames = np.zeros((len(indices), 8, 8, 3), np.uint8)
        frames[..., 0] = self.value
        frames[..., 1] = np.reshape(indices, (-1, 1, 1)) * 10
        frames[..., 2] = np.arange(8) * 30
        return list(frames)


class Broken(Painted):
    def read(self, indices):
        raise UserError(f'{self.name}.mp4: is cut short')


def crowd(num_people=5, clips_each=3):
    return {f'id{p}': [Painted(f'id{p}#{c}', 10 * p + c) for c in range(clips_each)] for p in range(num_people)}


def level(image, channel):
    return round(float((image[channel, 0, 0] + 1) * 127.5))


def same(a, b):
    return a['index'] == b['index'] and a['skipped'] == b['skipped'] \
        and torch.equal(a['source'], b['source']) and torch.equal(a['driving'], b['driving'])


# ---------------------------------------------------------------------------- samples

def test_a_sample_is_two_frames_of_one_clip_in_order_of_time():
    dataset = PairDataset(crowd(), seed=3, augmentation=PLAIN)
    distances = set()
    for i in range(60):
        sample = dataset[i]
        source, driving = sample['source'], sample['driving']
        assert source.shape == (3, 8, 8) and source.dtype == torch.float32 and source.min() >= -1
        assert level(source, 0) == level(driving, 0)
        distances.add(level(driving, 1) - level(source, 1))
        assert sample['index'] == i and sample['skipped'] == 0
    assert min(distances) >= 0 and max(distances) >= 150


def test_an_epoch_visits_everybody_once_and_clips_evenly():
    dataset = PairDataset(crowd(), seed=0, augmentation=PLAIN)
    values = [level(dataset[i]['source'], 0) for i in range(600)]
    orders = [tuple(value // 10 for value in values[n:n + 5]) for n in range(0, 600, 5)]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders) and len(set(orders)) > 50
    counts = np.bincount(values)[[10 * p + c for p in range(5) for c in range(3)]]
    assert counts.min() > 20                         # 40 are expected, standard deviation 5


def test_a_sample_depends_on_seed_and_index_alone():
    expected = [PairDataset(crowd(), 7, FULL)[i] for i in range(24)]
    dataset = PairDataset(dict(reversed(crowd().items())), 7, FULL)
    for i in np.random.default_rng(1).permutation(24).tolist():
        assert same(dataset[i], expected[i])


def test_another_seed_gives_other_persons_and_other_frames():
    for people, most in ((crowd(), 10), ({'a': [Painted('a')]}, 5)):
        one, other = (PairDataset(people, seed, PLAIN) for seed in (7, 8))
        assert sum(torch.equal(one[i]['source'], other[i]['source']) for i in range(24)) < most


def loaded(dataset, stop):
    return DataLoader(dataset, batch_sampler=Stream(4, stop=stop), num_workers=2,
                      multiprocessing_context=loading_context(), worker_init_fn=worker_start())


def test_workers_give_the_samples_of_the_main_process():
    people = crowd()
    people['id2'] = [Broken('id2#0')]
    dataset = PairDataset(people, 7, FULL)
    batches = list(loaded(dataset, 6))
    assert torch.cat([batch['index'] for batch in batches]).tolist() == list(range(24))
    expected = [dataset[i] for i in range(24)]
    for key in ('source', 'driving'):
        assert torch.equal(torch.cat([batch[key] for batch in batches]),
                           torch.stack([sample[key] for sample in expected]))
    assert torch.cat([batch['skipped'] for batch in batches]).tolist() == [sample['skipped'] for sample in expected]
    assert sum(sample['skipped'] for sample in expected) > 0


# ---------------------------------------------------------------------------- augmentation

def test_flips_happen_as_often_as_in_fomm_and_to_both_frames():
    dataset = PairDataset(crowd(), 0, Augmentation(True, True, 0, 0, 0, 0))
    swapped = mirrored = both = 0
    for i in range(400):
        source, driving = dataset[i]['source'], dataset[i]['driving']
        back = level(source, 1) > level(driving, 1)
        flipped = bool(source[2, 0, 0] > source[2, 0, -1])
        assert flipped == bool(driving[2, 0, 0] > driving[2, 0, -1])
        swapped, mirrored, both = swapped + back, mirrored + flipped, both + (back and flipped)
    assert 150 < swapped < 230 and 70 < mirrored < 130 and both == 0  # expected: 190 (10 are twice one frame), 100


def test_jitter_changes_both_frames_alike_and_stays_in_range():
    still = {'a': [Painted('a', 200, length=1)]}    # both frames of a pair are the same
    plain = PairDataset(still, 0, PLAIN)[0]['source']
    jittered = PairDataset(still, 0, Augmentation(False, False, 0.4, 0.4, 0.4, 0.2))
    for i in range(20):
        sample = jittered[i]
        assert torch.equal(sample['source'], sample['driving'])
        assert sample['source'].abs().max() <= 1 and not torch.allclose(sample['source'], plain, atol=0.02)


def test_each_strength_does_what_it_says():
    pair = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.5
    rng = np.random.default_rng(0)
    bright = Augmentation(False, False, 0.5, 0, 0, 0)(pair, rng)
    assert torch.allclose(bright / pair, (bright / pair).mean().expand_as(pair), atol=1e-4)
    assert 0.5 <= (bright / pair).mean() <= 1.5 and not torch.allclose(bright, pair)
    hue = Augmentation(False, False, 0, 0, 0, 0.5)(pair, rng)
    assert torch.allclose(hue.amax(1), pair.amax(1), atol=1e-5) and not torch.allclose(hue, pair)


# ---------------------------------------------------------------------------- damage

def test_a_broken_clip_is_passed_over_and_named_once(caplog):
    people = crowd()
    people['id1'][0] = Broken('id1#0')
    people['id3'] = [Broken('id3#0')]
    dataset = PairDataset(people, 0, PLAIN)
    samples = [dataset[i] for i in range(100)]
    assert sorted(record.getMessage().split(':')[0] for record in caplog.records) == \
        ['skipping clip id1#0', 'skipping clip id3#0']
    assert 20 < sum(sample['skipped'] for sample in samples) < 60
    # History plays no part: each sample comes out the same from a data set that has seen nothing.
    assert all(same(PairDataset(people, 0, PLAIN)[i], samples[i]) for i in range(0, 100, 7))
    # A damaged clip is replaced by one of the same person where there is one.
    honest = PairDataset(crowd(), 0, PLAIN)
    for i in range(100):
        intended = level(honest[i]['source'], 0) // 10
        assert intended == 3 or level(samples[i]['source'], 0) // 10 == intended


def test_workers_name_a_broken_clip_once_between_them(tmp_path):
    people = {f'id{n}': [Broken(f'id{n}#0') if n < 2 else Painted(f'id{n}#0')] for n in range(4)}
    handler = logging.FileHandler(tmp_path / 'log')
    handler.setFormatter(logging.Formatter('%(levelname)s: %(message)s'))
    logging.getLogger().addHandler(handler)
    try:
        list(loaded(PairDataset(people, 0, PLAIN), 8))
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
    lines = (tmp_path / 'log').read_text().splitlines()
    assert sorted(lines) == [f'WARNING: skipping clip {name}: {name}.mp4: is cut short' for name in ('id0#0', 'id1#0')]
    with pytest.raises(UserError, match='max_broken=1 clips cannot be read: id0#0, id1#0'):
        list(loaded(PairDataset(people, 0, PLAIN, max_broken=1), 8))


def test_nothing_readable_is_a_user_error_with_names_and_a_bug_is_not_taken_for_damage():
    with pytest.raises(UserError, match='a#0, a#1, b#0.*cut short'):
        PairDataset({'a': [Broken('a#0'), Broken('a#1')], 'b': [Broken('b#0')]}, 0, PLAIN)[0]
    buggy = Painted('a')
    buggy.read = lambda indices: {}['a bug']
    with pytest.raises(KeyError):
        PairDataset({'a': [buggy]}, 0, PLAIN)[0]


# ---------------------------------------------------------------------------- stream

def test_processes_share_every_step_and_any_step_can_be_started_from():
    single = list(Stream(6, stop=5))
    assert single == [list(range(6 * step, 6 * step + 6)) for step in range(5)]
    ranks = [list(Stream(2, 5, rank, world=3)) for rank in range(3)]
    assert [sum(parts, []) for parts in zip(*ranks)] == single
    assert list(Stream(6, stop=5, start=3)) == single[3:]


# ---------------------------------------------------------------------------- finding clips

def put_video(path):
    write_video(path, [np.full((16, 16, 3), 50, np.uint8)])


def put_folder(path):
    path.mkdir(parents=True)
    Image.new('RGB', (16, 16)).save(path / '0.png')


@pytest.fixture
def root(tmp_path):
    put_video(tmp_path / 'train' / 'id2#b c#0#1.mp4')
    put_video(tmp_path / 'train' / 'id1#é#5#6.gif')
    put_folder(tmp_path / 'train' / 'id1#a#0#2.mp4')
    put_folder(tmp_path / 'train' / 'id1#b#0#2')
    put_folder(tmp_path / 'train' / 'id10#a#0#1')
    put_video(tmp_path / 'test' / 'id9#100%#0#1.mp4')
    (tmp_path / 'train' / '.hidden.mp4').touch()
    (tmp_path / 'train' / 'list.csv').touch()
    return tmp_path


def names(people):
    return {person: [clip.name for clip in clips] for person, clips in people.items()}


@pytest.mark.parametrize('order', [sorted, lambda paths: sorted(paths, reverse=True)], ids=['forwards', 'backwards'])
def test_people_come_sorted_with_their_clips_of_any_kind_however_they_are_listed(root, monkeypatch, order):
    listing = Path.iterdir
    monkeypatch.setattr(Path, 'iterdir', lambda path: iter(order(listing(path))))
    people = find_people(root, 'train', id_sampling=True, size=8)
    assert list(names(people).items()) == [('id1', ['id1#a#0#2', 'id1#b#0#2', 'id1#é#5#6']),
                                           ('id10', ['id10#a#0#1']), ('id2', ['id2#b c#0#1'])]
    assert all(clip.read([0])[0].shape == (8, 8, 3) for clips in people.values() for clip in clips)
    assert names(find_people(str(root), 'test', True, 8)) == {'id9': ['id9#100%#0#1']}
    every_clip = [name for clips in names(people).values() for name in clips]
    assert names(find_people(root, 'train', False, 8)) == {name: [name] for name in every_clip}


def test_mistakes_in_the_layout_are_named(tmp_path):
    def expect(what, id_sampling=False):
        with pytest.raises(UserError, match=what) as caught:
            find_people(tmp_path / 'data', 'train', id_sampling, 8)
        assert '\n' not in str(caught.value)
    folder = tmp_path / 'data' / 'train'
    expect('data: no such data folder')
    (tmp_path / 'data').mkdir()
    expect('data: has no folder train; expected <root>/train')
    folder.mkdir()
    (folder / '.hidden').touch()
    expect('train: is empty')
    (folder / 'notes.txt').touch()
    expect(r'train: has no clips, but entries that are no clips: 1, such as notes.txt \(not a video\)')
    (folder / 'nothing').mkdir()
    expect(r'no clips: 2, such as notes.txt .*; expected folders of frames')
    (folder / 'nothing').rmdir()
    put_folder(folder / 'clip1')
    expect('clip1: this name has no person.*person#video#start#end.mp4.*id_sampling: false', id_sampling=True)
    (folder / 'clip1.mp4').touch()
    expect('clip1 and clip1.mp4 are both clip clip1')


@pytest.mark.parametrize('bad', ['empty', '__MACOSX', 'dangling.mp4', 'dangling folder', 'notes.txt'])
def test_one_entry_that_is_no_clip_does_not_spoil_the_others(tmp_path, caplog, bad):
    folder = tmp_path / 'train'
    for name in ('id1#a', 'id2#b'):
        put_folder(folder / name)
    if 'dangling' in bad:
        (folder / bad).symlink_to(tmp_path / 'gone')
    elif bad == 'notes.txt':
        (folder / bad).touch()
    else:
        (folder / bad).mkdir()
        (folder / bad / '._0000.png').touch()
    assert names(find_people(tmp_path, 'train', True, 8)) == {'id1': ['id1#a'], 'id2': ['id2#b']}
    line, = (record.getMessage() for record in caplog.records)
    assert f'2 clips, and entries that are no clips: 1, such as {bad}' in line


# ---------------------------------------------------------------------------- tar shards

FRAMES, SIZE = 6, 32


@pytest.fixture(scope='module')
def loose(tmp_path_factory):
    """A data set of five people as mp4 files, two of them for testing."""
    root = tmp_path_factory.mktemp('data') / 'loose'
    for n, clips in enumerate(synthetic_people(5, 1, FRAMES, SIZE, seed=0).values()):
        write_video(root / ('test' if n > 2 else 'train') / f'id{n}#video#{n:06d}#{n + FRAMES:06d}.mp4',
                    clips[0].frames())
    return root


@pytest.fixture
def packed(loose, tmp_path):
    pack(loose, tmp_path / 'packed', megabytes=1)
    return tmp_path / 'packed'


def test_training_sees_the_same_samples(loose, packed):
    ours, theirs = (PairDataset(find_people(root, 'train', True, SIZE), 3, FULL) for root in (loose, packed))
    assert all(same(ours[i], theirs[i]) for i in range(12))


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


def test_packing_gives_the_same_files_again(loose, packed, tmp_path):
    shards, again = sorted(packed.rglob('*.tar')), tmp_path / 'again'
    assert pack(loose, again, megabytes=1) == (5, len(shards))
    assert sorted(path for path in packed.rglob('*') if path.is_file()) == shards       # and no manifest
    assert all((again / path.relative_to(packed)).read_bytes() == path.read_bytes() for path in shards)


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
    for clips, out, what in ((loose, loose, 'is no shard'), (packed, tmp_path / 'x', 'in a shard already'),
                             (tmp_path / 'stills', tmp_path / 'x', 'folder of stills'),
                             (tmp_path, tmp_path / 'x', 'has no folder train')):
        assert what in refused(capsys, '--mode', 'pack', '--clips', clips, '--out', out)
