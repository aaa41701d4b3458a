"""Metadata of public datasets as their authors published them: clips, people and boxes.

The datasets hold no videos. The metadata name YouTube ids, and the times and boxes of the clips.
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from datasets.manifest import CLIP_FPS, check_clip_name
from datasets.prepare import crops
from support.errors import UserError
from support.files import read_text

# CelebV-HQ has no official split, and a share like VoxCeleb's is enough to test on: one video in 50, about 700 clips.
TEST_ONE_IN = 50

VIDEO_ID = re.compile(r'[A-Za-z0-9_-]{1,64}')


class NoClip(Exception):
    """A clip, or all clips of a video, cannot be made; the run continues. The message is one line with the reason."""


@dataclass(frozen=True)
class Clip:
    """A clip to be cut from a video."""
    id: str
    person: str
    partition: str
    start: Fraction                           # seconds from the first frame of the video
    frames: int                               # at 25 fps
    box: tuple[float, float, float, float]    # (x0, y0, x1, y1) of the head in a frame of size `frame`
    frame: tuple[int, int] = (1, 1)           # (width, height) in pixels; (1, 1) if `box` is relative, in [0, 1]

    def __post_init__(self):
        check_clip_name(self.id)
        if self.frames < 1:
            raise ValueError('a clip that is shorter than a frame')


class Source(NamedTuple):
    """A public dataset; read: path of the metadata -> {video id: list of Clip}; legacy: rule of its published crops."""
    read: Callable
    legacy: Callable
    url: str


def read_voxceleb(path):
    """`vox-metadata.csv` of FOMM's authors -> video id -> list of Clip.

    Columns video_id, start, end, bbox, fps, width, height, partition, person_id; start and end in frames at `fps`, bbox
    as left-top-right-bottom in pixels of a frame of width x height. Clips that are listed twice are returned twice.
    """
    videos = {}
    text = io.StringIO(read_text(path), newline='')
    with _explained(path):
        for number, row in enumerate(csv.DictReader(text), 2):
            with _explained(f'{path}: line {number}'):
                clip = _voxceleb_clip(row)
            videos.setdefault(row['video_id'], []).append(clip)
    return videos


def _whole(row, name):
    try:
        return int(row[name])
    except ValueError:
        raise ValueError(f'{name} is {row[name]!r}, expected a whole number') from None


def _voxceleb_clip(row):
    start, end, fps, width, height = (_whole(row, name) for name in ('start', 'end', 'fps', 'width', 'height'))
    left, top, right, bottom = box = tuple(int(side) for side in row['bbox'].split('-'))
    if not row['person_id']:
        raise ValueError('no person_id')
    if row['partition'] not in ('train', 'test'):
        raise ValueError(f'partition {row["partition"]!r}, expected train or test')
    if not (0 <= start < end and left < right and top < bottom and min(fps, width, height) > 0):
        raise ValueError('an empty clip, box or frame')
    return Clip(id=f'{row["person_id"]}#{_video_id(row["video_id"])}#{start:06d}#{end:06d}', person=row['person_id'],
                partition=row['partition'], start=Fraction(start, fps), frames=round((end - start) * CLIP_FPS / fps),
                box=box, frame=(width, height))


def read_celebvhq(path):
    """`celebvhq_info.json` of its authors -> video id -> list of Clip.

    {'clips': {'<video id>_<number>': {'ytb_id', 'duration': {'start_sec', 'end_sec'}, 'bbox': {'top', 'bottom', 'left',
    'right'} in 0..1}}}. It has no people and no split: a video counts as a person, and its id decides the partition
    (`in_test`).
    """
    text = read_text(path)
    with _explained(path):
        clips = json.loads(text)['clips'].items()
    videos = {}
    for name, entry in clips:
        with _explained(f'{path}: clip {name}'):
            clip = _celebvhq_clip(name, entry)
        videos.setdefault(entry['ytb_id'], []).append(clip)
    return videos


def _celebvhq_clip(name, entry):
    video = _video_id(entry['ytb_id'])
    start, end = (Fraction(entry['duration'][key]).limit_denominator(1000) for key in ('start_sec', 'end_sec'))
    box = tuple(entry['bbox'][side] for side in ('left', 'top', 'right', 'bottom'))
    if not (start < end and 0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
        raise ValueError('an empty clip or box, or one outside of the frame')
    first, last = round(start * CLIP_FPS), round(end * CLIP_FPS)
    return Clip(id=f'{video}#{name.removeprefix(video + "_")}#{first:06d}#{last:06d}', person=video,
                partition='test' if in_test(video) else 'train', start=start, frames=last - first, box=box)


def _video_id(text):
    """The text, if it can be a YouTube id: it becomes part of file names and of an address. ValueError."""
    if not VIDEO_ID.fullmatch(text):
        raise ValueError(f'{text!r} is no id of a YouTube video')
    return text


def in_test(person, one_in=TEST_ONE_IN):
    """Whether a person is for testing: a function of the name alone, the same for everybody at any time."""
    return int.from_bytes(hashlib.sha256(person.encode()).digest()[:8]) % one_in == 0


SOURCES = {
    'voxceleb1': Source(read_voxceleb, crops.as_listed,
                        'vox-metadata.csv of https://github.com/AliaksandrSiarohin/video-preprocessing'),
    'celebvhq': Source(read_celebvhq, crops.celebvhq_square,
                       'celebvhq_info.json of https://github.com/CelebV-HQ/CelebV-HQ'),
}


@contextmanager
def _explained(where):
    """Turn errors of the block into a UserError that names the place of the entry."""
    try:
        yield
    except KeyError as error:
        raise UserError(f'{where}: has no {error}; is this the published file?') from error
    except (ValueError, TypeError, ArithmeticError, AttributeError, RecursionError, csv.Error) as error:
        raise UserError(f'{where}: {error}; is this the published file?') from error
