"""Pairs of clips: drawn, listed, found and animated alike in all modes."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from animate_pairs import animate_pairs
from config.schema import DatasetParams
from datasets import build
from datasets.video import open_clip
from datasets.video_writer import VideoWriter
from evaluation.cases import Case, ClipFinder, choose_items, find_cases
from evaluation.pairs import find_pairs
from evaluation.protocols import PROTOCOLS, Item, as_csv, load_list
from motion.settings import Motion
from support.errors import UserError
from tests.support.tiny import tiny
from tests.support.toys import SIZE, ToyClip, names_in, renderer

pytestmark = pytest.mark.usefixtures('no_weights')


def case_of(source, driving, **moments):
    return Case(Item(source.name, driving=driving.name, **moments), source, driving)


def people():
    """Clips of three people by name."""
    names = ('id1#a', 'id1#b', 'id1#c', 'id2#a', 'id3#a', 'id3#b')
    return {name: ToyClip(name, 5, seed=i) for i, name in enumerate(names)}


def test_the_same_seed_gives_the_same_pairs_in_all_modes():
    config = tiny('dataset_params.synthetic_params.test_people=5')
    dataset, size = config.dataset_params, config.model_params.image_size
    names = [clip.name for clip in build.test_clips(dataset, size)]
    for seed in (0, 1):
        animated = [case.item for case in find_pairs(None, dataset, size, 4, seed)]
        assert animated == choose_items(PROTOCOLS['cross-identity-relative'], None, names[::-1], 4, seed)[1]
        assert len(animated) == 4 and all(item.source != item.driver for item in animated)


def test_a_list_that_one_mode_has_written_is_read_by_the_others(model, tmp_path):
    config = tiny('dataset_params.synthetic_params.test_people=4')
    dataset, size = config.dataset_params, config.model_params.image_size
    drawn = find_pairs(None, dataset, size, 3, 0)
    animate_pairs(renderer(model), drawn, tmp_path / 'animation')
    written = tmp_path / 'animation' / 'list.csv'
    assert load_list(written) == [case.item for case in drawn]                                  # --mode evaluate
    assert [case.item for case in find_pairs(written, dataset, size, 99, 5)] == load_list(written)    # --mode animate
    (tmp_path / 'timed.csv').write_text(as_csv([replace(drawn[0].item, source_time=0.08, anchor_time=0.2)]))
    case, = find_pairs(tmp_path / 'timed.csv', dataset, size, 99, 5)
    assert case.moments() == (2, range(12)) and case.anchor == 5


def test_pairs_are_animated_side_by_side_with_a_sheet(model, tmp_path):
    clips = people()
    cases = [case_of(clips['id1#a'], clips['id2#a']), case_of(clips['id3#b'], clips['id1#c'])]
    results = animate_pairs(renderer(model), cases, tmp_path, Motion(start='nearest'))
    assert [path.name for path in results] == ['000_id1#a--id2#a.mp4', '001_id3#b--id1#c.mp4']
    assert names_in(tmp_path) == sorted([path.name for path in results] + ['contact_sheet.png', 'list.csv'] +
                                        [f'moments/{path.stem}.png' for path in results])
    assert open_clip(results[0]).read([0])[0].shape == (SIZE, 3 * SIZE, 3)


def test_a_pair_may_name_its_moments(model, tmp_path):
    source, driving = ToyClip('a', seed=3), ToyClip('b')
    result, = animate_pairs(renderer(model), [case_of(source, driving, source_time=0.16, driving_time=0.4)], tmp_path)
    clip = open_clip(result)
    assert len(clip) == 1
    shown = clip.read([0])[0].astype(int)
    assert np.abs(shown[:, :SIZE] - source.frame(4)).mean() < 8                      # H.264 with subsampled colour
    assert np.abs(shown[:, SIZE:2 * SIZE] - driving.frame(10)).mean() < 8


def test_a_pair_may_name_its_anchor(model, tmp_path):
    with pytest.raises(UserError, match='no frame 99'):
        animate_pairs(renderer(model), [case_of(ToyClip('a'), ToyClip('b'), anchor=99)], tmp_path)
    assert names_in(tmp_path) == []


@pytest.fixture
def dataset(tmp_path):
    """Two clips in root/test, and an image beside the list of pairs: the DatasetParams of root."""
    root = tmp_path / 'root' / 'test'
    root.mkdir(parents=True)
    for name in ('id1#a.mp4', 'id2#b.mp4'):
        with VideoWriter(root / name, Fraction(25)) as video:
            for frame in ToyClip(num_frames=3).frames():
                video.write(frame)
    (tmp_path / 'lists').mkdir()
    Image.fromarray(ToyClip().frame(0)).resize((50, 50)).save(tmp_path / 'lists' / 'portrait.png')
    return DatasetParams(root_dir=str(root.parent))


def test_lists_that_count_frames_and_name_files_are_read_by_all_modes(model, dataset, tmp_path):
    path, root = tmp_path / 'lists' / 'pairs.csv', tmp_path / 'root' / 'test'
    path.write_text(f'\ufeffsource, driving, anchor\nid1#a.mp4, id2#b.mp4, 2\n\n'
                    f'portrait.png, {root}/id1#a.mp4,\n', encoding='utf-8')
    cases = find_pairs(path, dataset, SIZE, 99, 0)
    assert [(case.source.name, case.driving.name, case.anchor) for case in cases] == [
        ('id1#a', 'id2#b', 2), ('portrait', 'id1#a', None)]
    assert [case.sound for case in cases] == [root / 'id2#b.mp4', root / 'id1#a.mp4']
    assert len(animate_pairs(renderer(model), cases, tmp_path / 'out')) == 2

    # --mode evaluate, which knows the test set by name; and the videos that another one made
    clips = {clip.name: clip for clip in build.test_clips(dataset, SIZE)}
    _, items = choose_items(PROTOCOLS['cross-identity-relative'], str(path), clips)
    found, missing = find_cases(items, ClipFinder(clips, [], SIZE, [path.parent]))
    assert [(case.source.name, case.driving.name, case.anchor) for case in found] == [
        ('id1#a', 'id2#b', 2), ('portrait', 'id1#a', None)] and not missing
    assert found[0].item.name == 'id1#a--id2#b'
    assert load_list(tmp_path / 'out' / 'list.csv') == items


@pytest.mark.parametrize('text, message', [
    ('clip,driver\na,b\n', 'pairs.csv: the first row must name'),
    ('', 'pairs.csv: the first row must name'),
    ('source,driver\na,b\n', "pairs.csv: unknown column 'driver'"),
    ('source,driving\n', 'pairs.csv: has no rows'),
    ('source,driving\nid1#a.mp4,id2#b.mp4\n,id1#a.mp4\n', 'pairs.csv, row 3: source is empty'),
    ('source,driving\nid1#a.mp4,gone.mp4\n', "pairs.csv, row 2: driving 'gone.mp4' is not found in .*lists or .*test"),
    ('source,driving,anchor\nid1#a.mp4,id2#b.mp4,first\n', "pairs.csv, row 2: anchor is 'first'"),
    ('source,driving,anchor,anchor_time\nid1#a.mp4,id2#b.mp4,1,0.5\n', 'pairs.csv, row 2: anchor is .* anchor_time'),
    ('source,driving\nid1#a.mp4,id2,b.mp4\n', 'pairs.csv, row 2: has more fields'),
    ('source,driving\nid1#a.mp4,pairs.csv\n', 'pairs.csv, row 2: .*cannot be decoded'),
])
def test_mistakes_in_a_list_are_named_by_file_and_row(dataset, tmp_path, text, message):
    path = tmp_path / 'lists' / 'pairs.csv'
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        find_pairs(path, dataset, SIZE, 99, 0)
    assert '\n' not in str(error.value)


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(UserError, match='pairs.csv'):
        find_pairs(tmp_path / 'pairs.csv', None, SIZE, 99, 0)
