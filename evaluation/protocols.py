"""Evaluation protocols by name, and lists of clips and pairs.

A list contains clip ids and times, so it is the same on every machine, whatever the order of a folder, the place of the
clips, or the frame rate of the download. Its file is a CSV with the columns

    source        clip id, or a still
    source_time   time of the source image, in seconds from the clip's first frame; empty: the first frame
    driving       clip id; empty: the source clip itself
    driving_time  time of the one driving frame; empty: all frames
    anchor_time   time of the driving frame from which relative motion starts; empty: see `Protocol.relative`
    anchor        index of that frame, instead of its time, in lists that count frames of their driving clips

A column that is empty in every row may be left out. The modes evaluate, animate and study read lists. The two lists of
2,083 pairs are DaGAN's and MCNet's, with times instead of the frame numbers of the downloaded videos.
"""

import csv
import hashlib
import io
from dataclasses import astuple, dataclass, fields
from pathlib import Path, PurePosixPath

from datasets.prepare.metadata import TEST_ONE_IN, in_test
from datasets.video import VIDEO_SUFFIXES
from support.errors import UserError, did_you_mean_or_known
from support.files import read_text

LISTS = Path(__file__).parent / 'lists'
LATE = 0.1                   # frames; a rounded time may fall this much before its frame


# ---------------------------------------------------------------------------- protocols

@dataclass(frozen=True)
class Protocol:
    """How a model is evaluated.

    Relative motion is added to the source's pose from an anchor frame on: the list's, or the driving frame with the
    keypoints nearest to the source's.
    """
    text: str                          # the procedure in words
    cross_identity: bool = False       # source and driver are different people
    include_first: bool = True         # score frame 0 too, which is the source image of same-identity protocols
    relative: bool = False             # otherwise take the driver's pose
    adapt_scale: bool = False          # scale relative motion by the ratio of the two faces' sizes
    list: str | None = None            # the default list; None for the whole test set

    @property
    def first(self):
        return 0 if self.include_first or self.cross_identity else 1

    @property
    def metrics(self):
        """Ids of the default metrics, in the order of the paper's tables."""
        ids = CROSS_IDENTITY_METRICS if self.cross_identity else SAME_IDENTITY_METRICS
        still = self.list is not None and self.list.startswith('pairs')
        return tuple(name for name in ids if not (still and name.startswith('jitter')))


# Identity is compared with the driving frame (same person) or the source image (another person). jitter.pixels is
# defined for frames of one person.
SAME_IDENTITY_METRICS = ('fid.source_vs_generated', 'psnr.rgb', 'l1.mean_abs', 'ssim.gauss11', 'lpips.vgg',
                         'akd.mean_abs_xy', 'aed.openface_sq', 'csim.antelopev2_driving', 'ard.mediapipe',
                         'akd.mediapipe', 'expression.mediapipe', 'jitter.pixels', 'jitter.mediapipe')
CROSS_IDENTITY_METRICS = ('fid.source_vs_generated', 'csim.antelopev2', 'ard.mediapipe', 'expression.mediapipe',
                          'aed.openface_sq_source', 'jitter.mediapipe')

_SAME = 'the first frame of each clip is the source, {} of the clip are reconstructed; absolute motion'

PROTOCOLS = {
    'same-identity': Protocol(_SAME.format('all frames, the first included,') + ' (FOMM)'),
    'same-identity-no-first': Protocol(_SAME.format('all frames but the first'), include_first=False),
    # Scaled as by the flags of the paper's released demo.
    'cross-identity-relative': Protocol(
        'a source follows another person; motion relative to an anchor frame, scaled to the source',
        cross_identity=True, relative=True, adapt_scale=True),
    'cross-identity-absolute': Protocol('a source takes the poses of another person unchanged', cross_identity=True),
    'pairs-same': Protocol(
        '2,083 pairs of frames of 100 VoxCeleb1 clips, each pair from one clip; absolute motion (DaGAN, MCNet)',
        list='pairs-2083-same'),
    # use_relative_movement: True, adapt_movement_scale: False in the only config of either repository:
    # https://github.com/harlanhong/ICCV2023-MCNET/blob/fb6bd7a/config/vox-256.yaml
    # https://github.com/harlanhong/CVPR2022-DaGAN/blob/b2c1361/config/vox-adv-256.yaml
    'pairs-cross': Protocol(
        '2,083 pairs of frames of different people of VoxCeleb1; motion relative to an anchor frame, not scaled '
        '(DaGAN, MCNet)', cross_identity=True, relative=True, list='pairs-2083-cross'),
    'celebv-hq': Protocol(
        _SAME.format('all frames, the first included,') + '; on 50 clips of CelebV-HQ, unseen by VoxCeleb1 models',
        list='celebv-hq-50'),
}


def find_protocol(name):
    """The Protocol of this name; UserError that names the nearest one."""
    if name not in PROTOCOLS:
        raise UserError(f'there is no protocol {name}{did_you_mean_or_known(name, PROTOCOLS, 0.4)}')
    return PROTOCOLS[name]


# ---------------------------------------------------------------------------- lists

@dataclass(frozen=True)
class Item:
    """One row of a list: source and driver. Fields as in the module's docstring; None where the column is empty."""
    source: str
    source_time: float | None = None
    driving: str | None = None
    driving_time: float | None = None
    anchor_time: float | None = None
    anchor: int | None = None

    @property
    def driver(self):
        return self.driving or self.source

    @property
    def name(self):
        """Readable name of the row, unique within a list; also a file name."""
        source, driver = (clip_name(clip) for clip in (self.source, self.driver))
        moments = ['' if time is None else f'@{time:g}s' for time in (self.source_time, self.driving_time)]
        same = self.driver == self.source and not any(moments)
        return source if same else f'{source}{moments[0]}--{driver}{moments[1]}'


def clip_name(clip_id):
    """The last part of an id, without the suffix of a video."""
    path = PurePosixPath(clip_id)
    return path.stem if path.suffix.lower() in VIDEO_SUFFIXES else path.name


def frame_at(time, fps):
    """Index of the frame that is shown at `time` seconds."""
    return int(time * fps + LATE)


COLUMNS = tuple(field.name for field in fields(Item))


def as_csv(items):
    rows = [astuple(item) for item in items]
    used = [i for i in range(len(COLUMNS)) if i == 0 or any(row[i] is not None for row in rows)]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow([COLUMNS[i] for i in used])
    writer.writerows([f'{row[i]:g}' if isinstance(row[i], float) else row[i] for i in used] for row in rows)
    return file.getvalue()


def fingerprint(items):
    """SHA-256 of the list, equal wherever the list is equal."""
    return hashlib.sha256(as_csv(items).encode()).hexdigest()


def load_list(name, clip_ids=()):
    """The items of a list; see `load_rows`."""
    return [item for _, item in load_rows(name, clip_ids)]


def load_rows(name, clip_ids=()):
    """The items of a list, each with its place for messages: [(file and row, Item)].

    name:     a list of this project, or the path of a CSV file
    clip_ids: available clips, among which the lists in RULES (celebv-hq-50) choose
    raises:   UserError with the file and the row, or with the nearest list
    """
    if name in RULES:
        return [(name, item) for item in RULES[name](clip_ids)]
    path = LISTS / f'{name}.csv'
    path = path if path.is_file() else Path(name)
    if not path.is_file():
        known = [*RULES, *sorted(file.stem for file in LISTS.glob('*.csv'))]
        raise UserError(f'there is no list and no file {name}{did_you_mean_or_known(name, known, 0.4)}')
    columns, rows = _read_csv(path)
    if 'source' not in columns:
        raise UserError(f'{path}: the first row must name the columns, at least "source"; it is {",".join(columns)!r}')
    unknown = [column for column in columns if column not in COLUMNS]
    if unknown:
        raise UserError(f'{path}: unknown column {unknown[0]!r}; known: {", ".join(COLUMNS)}')
    if not rows:
        raise UserError(f'{path}: has no rows')
    return [(where, _item(row, where)) for where, row in ((f'{path}, row {number}', row) for number, row in rows)]


def _read_csv(path):
    """(columns, [(row number as an editor counts, {column: text})])."""
    text = read_text(path)
    separator = max(',;\t', key=text.partition('\n')[0].count)       # spreadsheets of some countries write semicolons
    try:
        reader = csv.DictReader(io.StringIO(text, newline=''), skipinitialspace=True, delimiter=separator)
        reader.fieldnames = columns = [name.strip().lower() for name in reader.fieldnames or []]
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise UserError(f'{path}: cannot be read as a list ({error})') from error
    for number, row in rows:
        if None in row:
            raise UserError(f'{path}, row {number}: has more fields than the first row; '
                            'put names with commas in double quotes')
    return columns, rows


def _item(row, where):
    def time(column):
        text = (row.get(column) or '').strip()
        try:
            seconds = float(text) if text else None
        except ValueError:
            seconds = -1.0
        if seconds is not None and not 0 <= seconds < float('inf'):
            raise UserError(f'{where}: {column} is {text!r}, must be seconds, 0 or more, or empty')
        return seconds

    source, driving, anchor = ((row.get(column) or '').strip() for column in ('source', 'driving', 'anchor'))
    if not source:
        raise UserError(f'{where}: source is empty')
    for clip in (source, driving):
        if clip and clip_name(clip) in ('', '..'):
            raise UserError(f'{where}: {clip!r} is not a valid clip name')
    if anchor and (not anchor.isdecimal() or time('anchor_time') is not None):
        raise UserError(f'{where}: anchor is {anchor!r}, must be the index of a frame; leave it empty where '
                        'anchor_time is given')
    return Item(source, time('source_time'), driving if driving not in ('', source) else None, time('driving_time'),
                time('anchor_time'), int(anchor) if anchor else None)


# ---------------------------------------------------------------------------- lists that are drawn

def _by_hash(names, salt):
    """The names in a random order that depends on names and salt only."""
    return sorted(names, key=lambda name: hashlib.sha256(f'{salt}:{name}'.encode()).digest())


def draw_pairs(clips, count=None, seed=0):
    """Each of `count` clips (all by default) as a source, with a random driver of another person.

    Depends on names and seed only. All clips drive about equally often: once, where the people permit it.

    clips:  ids, PERSON#...
    raises: UserError for clips of one person only
    """
    clips = sorted(clips)
    person = {clip: clip.split('#')[0] for clip in clips}
    if len(set(person.values())) < 2:
        raise UserError('cannot draw pairs of different people: at least 2 are needed')
    drives, items = dict.fromkeys(clips, 0), []
    for source in _by_hash(clips, f'source {seed}')[:count]:
        others = [clip for clip in _by_hash(clips, f'driving {seed} {source}') if person[clip] != person[source]]
        driver = min(others, key=drives.get)
        drives[driver] += 1
        items.append(Item(source, driving=driver))
    return sorted(items, key=lambda item: item.source)


def draw_celebv_hq(clips):
    """celebv-hq-50: the first 50 available test clips in the order of their hashes, one per video.

    The split is that of `--mode prepare` (datasets/prepare/metadata.py). Clips are named <YouTube id>_<number>, as
    published, or <YouTube id>#<number>#..., as prepared; both give the same list.
    """
    # The first 11 characters are the YouTube id, of any of a-z, A-Z, 0-9, - and _.
    of_video, names = {}, {f'{clip[:11]}_{clip[12:].partition("#")[0]}': clip
                           for clip in sorted(clips) if in_test(clip[:11])}
    for name in _by_hash(names, 'celebv-hq'):
        of_video.setdefault(name[:11], names[name])
    if not of_video:
        raise UserError('no clip is in the test split of CelebV-HQ; names must be <YouTube id>_<number>, '
                        f'and about 1 video in {TEST_ONE_IN} belongs to the split')
    return [Item(clip) for clip in sorted(list(of_video.values())[:50])]


RULES = {'celebv-hq-50': draw_celebv_hq}
