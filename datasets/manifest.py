"""The manifest of a prepared dataset: a record of every clip, one JSON object per line.

    <root>/manifest.jsonl

It lists the clips of a dataset, their people, and the reasons for missing clips. During preparation each part
(datasets/prepare/parts.py) has its own manifest and adds a line per finished clip, so a killed run loses at most the
current clip. Of lines with the same id the last one counts.

Clips are named and timed as those of VoxCeleb (Nagrani et al., INTERSPEECH 2017, arXiv 1706.08612) in FOMM's
preparation of them: https://github.com/AliaksandrSiarohin/video-preprocessing
"""

import dataclasses
import errno
import json
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from support.errors import UserError
from support.files import read_text, write_bytes, writing

NAME = 'manifest.jsonl'
CLIP_FPS = Fraction(25)      # of all clips, and of the frame numbers in their names, as in VoxCeleb

OK = 'ok'                    # the clip is there
FAILED = 'failed'            # could not be made
DUPLICATE = 'duplicate'      # has the same frames as another clip, which is kept
LEFT_OUT = 'left_out'        # of a person who is in the other partition too, or cut from too few pixels
STATUSES = (OK, FAILED, DUPLICATE, LEFT_OUT)
PARTITIONS = ('train', 'test')
LONGEST_NAME = 240           # bytes of a clip's name: file systems take 255, and a suffix follows


@dataclass(frozen=True)
class Record:
    """One clip of the manifest."""
    id: str                       # person#video#start#end, start and end in frames at 25 fps; the name of the clip
    person: str                   # the part of the name before the first '#'
    partition: str                # 'train' or 'test'
    status: str                   # one of STATUSES
    error: str | None = None      # why the clip is missing, one line
    source: str | None = None     # name of its video
    start: float | None = None    # seconds from the first frame of that video
    frames: int | None = None     # number of frames, at `fps`
    fps: int | None = None
    crop: str | None = None       # 'square', 'legacy' or 'face': how `box` was chosen
    box: tuple[int, int, int, int] | None = None    # x0, y0, x1, y1, pixels of the upright video or beyond its border
    size: int | None = None       # side of the clip's frames, pixels
    format: str | None = None     # 'mp4', 'png' or 'jpeg'
    hash: str | None = None       # SHA-256 of all frames in order, uint8 RGB, before they were encoded

    def __post_init__(self):
        """ValueError for fields that no clip can have: the manifest may have been written by others."""
        for field in dataclasses.fields(self):
            value, kinds = getattr(self, field.name), field.type
            if field.name == 'box':
                fits = value is None or len(value) == 4 and all(type(side) is int for side in value)
            else:
                fits = isinstance(value, kinds | int if field.name == 'start' else kinds) and type(value) is not bool
            if not fits:
                raise ValueError(f'{field.name} is {value!r}')
        check_clip_name(self.id)
        if self.status not in STATUSES or self.partition not in PARTITIONS:
            raise ValueError(f'status {self.status!r}, partition {self.partition!r}')

    @property
    def crop_side(self):
        """Shorter side of `box`: of a clip whose `size` is more, that much was enlarged."""
        return min(self.box[2] - self.box[0], self.box[3] - self.box[1])

    @property
    def file(self):
        """Path of the clip below the root. A folder of stills ends in .mp4 too, as in FOMM's VoxCeleb."""
        return f'{self.partition}/{self.id}.mp4'


def check_clip_name(name):
    """ValueError for a name that leads out of the dataset's folder, or is hidden in it."""
    if not name or name.startswith('.') or '/' in name or not name.isprintable() \
            or len(name.encode('utf-8', 'surrogatepass')) > LONGEST_NAME:
        raise ValueError(f'{name!r} cannot be the name of a clip')


def read_manifest(root):
    """{id: Record} in the order of the file; None if the dataset has no manifest.

    A last line that an interruption has truncated is skipped. Raises UserError for any other line that is no record.
    """
    path = Path(root) / NAME
    if not path.exists():
        return None
    records, lines = {}, read_text(path).split('\n')
    for number, line in enumerate(lines[:-1], 1):     # a complete line ends in a line break, so the last part is empty
        try:
            fields = json.loads(line)
            record = Record(**fields | {'box': fields.get('box') and tuple(fields['box'])})
        except (TypeError, ValueError, AttributeError, RecursionError) as error:
            raise UserError(f'{path}: line {number} is no record of a clip ({error}); correct or remove it, '
                            'or prepare the data again') from error
        records[record.id] = record
    return records


def append(root, records):
    """Append records to the manifest in one write, so that several processes may do so. Raises UserError."""
    path, lines = Path(root) / NAME, _lines(records)
    with writing(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            if os.write(descriptor, lines) < len(lines):      # the disk is full: the rest would not fit either
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)


def rewrite(root, records):
    """Replace the manifest by one with these records, sorted by id; UserError where it cannot be written."""
    write_bytes(Path(root) / NAME, _lines(sorted(records, key=lambda record: record.id)))


def _lines(records):
    return ''.join(json.dumps(dataclasses.asdict(record), ensure_ascii=False) + '\n' for record in records).encode()
