"""Protocols and lists: portable, drawn alike everywhere, loud about mistakes."""

import csv
import random
from collections import defaultdict
from fractions import Fraction

import pytest

from datasets.prepare.metadata import in_test
from evaluation.protocols import (LISTS, PROTOCOLS, RULES, Item, as_csv, draw_celebv_hq,
                                  draw_pairs, find_protocol, fingerprint, frame_at, load_list)
from evaluation.published import TABLES
from metrics.catalogue import CATALOGUE
from support.errors import UserError
from tests.support.tiny import SHARED

PUBLISHED = SHARED / 'facts' / 'lists'
needs_published = pytest.mark.skipif(not PUBLISHED.is_dir(), reason='the published lists are not here')


def shuffled(values, seed=0):
    values = list(values)
    random.Random(seed).shuffle(values)
    return values


def vox_rows():
    with open(PUBLISHED / 'vox-metadata.csv', newline='') as file:
        return list(csv.DictReader(file))


# Protocols

def test_everything_a_protocol_names_exists():
    for protocol in PROTOCOLS.values():
        assert set(protocol.metrics) <= set(CATALOGUE)
        # defined for frames of one person
        assert not (protocol.cross_identity and 'jitter.pixels' in protocol.metrics)
        assert protocol.list is None or protocol.list in RULES or (LISTS / f'{protocol.list}.csv').is_file()
    assert {name for table in TABLES.values() for row in table.values() for name in row} <= set(CATALOGUE)


def test_an_unknown_protocol_or_list_is_met_with_the_nearest_one():
    with pytest.raises(UserError, match='did you mean cross-identity-relative'):
        find_protocol('cross-identity-relativ')
    with pytest.raises(UserError, match='did you mean voxceleb1-50'):
        load_list('voxceleb-50')


# Lists that are drawn: the order in which things are listed never matters

@needs_published
def test_the_voxceleb1_list_is_of_test_clips_alone():
    partitions = defaultdict(set)
    for row in vox_rows():
        partitions[f'{row["person_id"]}#{row["video_id"]}'].add(row['partition'])
    shipped = load_list('voxceleb1-50')
    assert len(shipped) == len(set(shipped)) == 50
    assert {partition for item in shipped for partition in partitions[item.source.rsplit('#', 2)[0]]} == {'test'}


def test_the_cross_identity_list_pairs_the_same_50_clips():
    clips = [item.source for item in load_list('voxceleb1-50')]
    shipped = load_list('voxceleb1-50-cross')
    assert shipped == draw_pairs(clips) == draw_pairs(shuffled(clips))
    assert sorted(item.source for item in shipped) == sorted(item.driving for item in shipped) == sorted(clips)
    assert all(item.source.split('#')[0] != item.driving.split('#')[0] for item in shipped)


def test_random_pairs_depend_on_names_and_seed_alone():
    clips = [f'id{i // 3}#clip{i}' for i in range(30)]
    assert draw_pairs(clips, count=8) == draw_pairs(shuffled(clips), count=8) != draw_pairs(clips, count=8, seed=1)
    with pytest.raises(UserError, match='at least 2'):
        draw_pairs(clips[:3])


def test_celebv_hq_is_split_by_video_and_drawn_alike_from_any_listing():
    videos = [f'{i:011d}' for i in range(6000)]
    clips = [f'{video}_{n}' for video in videos for n in range(2)]
    drawn = draw_celebv_hq(clips)
    assert all(in_test(item.source[:11]) for item in drawn)
    prepared = [f'{video}#{n}#000010#000030' for video in videos for n in range(2)]
    assert [item.source[:13].replace('#', '_') for item in draw_celebv_hq(prepared)] == [item.source for item in drawn]
    assert drawn == draw_celebv_hq(shuffled(clips)) and len({item.source[:11] for item in drawn}) == 50
    lost = drawn[7].source                         # a video that is gone is replaced, the others stay
    again = draw_celebv_hq([clip for clip in clips if clip[:11] != lost[:11]])
    assert len(set(drawn) - set(again)) == 1
    with pytest.raises(UserError, match='YouTube id'):
        draw_celebv_hq([])


# List files

def test_a_list_survives_its_file_and_has_one_fingerprint(tmp_path):
    items = [Item('a', 0.4333, 'b', 2.0, 1.28), Item('c'), Item('d', driving='e'), Item('f', driving='g', anchor=7)]
    path = tmp_path / 'list.csv'
    path.write_text(as_csv(items))
    assert load_list(path) == items and fingerprint(load_list(path)) == fingerprint(items) != fingerprint(items[:2])
    assert len({item.name for item in items}) == 4 and items[1].name == 'c' and items[2].name == 'd--e'
    assert as_csv([Item('c')]) == 'source\nc\n'


@pytest.mark.parametrize('text', ['source;driving\na;b\n', 'source\tdriving\r\na\tb\r\n',
                                  '"Source" , Driving\n\na, b\n'])
def test_lists_of_spreadsheets_are_read(tmp_path, text):
    (tmp_path / 'list.csv').write_bytes(text.encode('utf-8-sig'))
    assert [(item.source, item.driving) for item in load_list(str(tmp_path / 'list.csv'))] == [('a', 'b')]


def test_a_time_finds_its_frame_at_any_rate():
    for fps in (Fraction(25), Fraction(30), Fraction(30000, 1001)):
        assert [frame_at(round(float(i / fps), 4), fps) for i in range(500)] == list(range(500))
    assert frame_at(1.6, Fraction(25)) == 40 and frame_at(1.6, Fraction(30)) == 48


@needs_published
@pytest.mark.parametrize('shipped', ['pairs-2083-same', 'pairs-2083-cross'])
def test_the_2083_pairs_lie_within_their_clips(shipped):
    items = load_list(shipped)
    lengths = {f'{row["person_id"]}#{row["video_id"]}#{row["start"]:0>6}#{row["end"]:0>6}':
               (int(row['end']) - int(row['start'])) / 25 for row in vox_rows()}
    assert len(items) == 2083
    for item in items:
        assert item.source_time < lengths[item.source] + 0.05 and item.driving_time < lengths[item.driver] + 0.05
    cross = shipped.endswith('cross')
    assert all((item.source.split('#')[0] != item.driver.split('#')[0]) == cross for item in items)
    assert all((item.anchor_time is not None) == cross for item in items)
