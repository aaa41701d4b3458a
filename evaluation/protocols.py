"""Evaluation protocols by name, and the lists of clips and pairs that they run over.

A list names clips by id and moments by time, so that it means the same on every machine: in whatever
order a folder is listed, wherever the clips lie, at whatever frame rate they were fetched. Its file is
a CSV with the columns

    source        clip id, or a still
    source_time   of the source image, in seconds from the clip's first frame; empty: the first frame
    driving       clip id; empty: the source clip itself
    driving_time  of the one frame that is driven; empty: all of them
    anchor_time   of the driving frame from which relative motion starts; empty: see `Protocol.relative`
    anchor        index of that frame, where a list counts frames of its driving clips; in place of its time

of which those that are empty in every row may be left out. All modes read it: evaluate, animate and study.
"""

import csv
import hashlib
import io
import os
from collections import defaultdict
from dataclasses import astuple, dataclass, fields
from pathlib import Path, PurePosixPath

from datasets.manifest import CLIP_FPS
from datasets.prepare.metadata import TEST_ONE_IN, in_test
from datasets.still import STILL_SUFFIXES
from datasets.video import VIDEO_SUFFIXES
from support.errors import UserError, did_you_mean_or_known
from support.files import written_whole

LISTS = Path(__file__).parent / 'lists'
LATE = 0.1                   # frames; a time that was rounded may fall this much before its frame


# ---------------------------------------------------------------------------- protocols

@dataclass(frozen=True)
class Protocol:
    """How a model is put to the test.

    text:           what is done, in words
    cross_identity: the source and the driver are different people
    include_first:  frame 0, which a same-identity source is taken from, is scored too
    relative:       the driver's motion since the anchor is added to the source's pose, else the pose is taken as it
                    is. The anchor is the list's; else the driving frame whose keypoints are nearest to the source's
    list:           the list it runs over where none is given; None for the whole test set
    tables:         of the paper (evaluation/published.py) whose rows may stand beside it
    """
    text: str
    cross_identity: bool = False
    include_first: bool = True
    relative: bool = False
    list: str | None = None
    tables: tuple[str, ...] = ()

    @property
    def first(self):
        """The first frame that is scored."""
        return 0 if self.include_first or self.cross_identity else 1

    @property
    def metrics(self):
        """Ids of the metrics that mean something here, in the order of the paper's tables."""
        ids = CROSS_IDENTITY_METRICS if self.cross_identity else SAME_IDENTITY_METRICS
        still = self.list is not None and self.list.startswith('pairs')
        return tuple(name for name in ids if not (still and name.startswith('jitter')))


# What identity is compared with: the driving frame, which is the truth, or the source, where that is another person.
SAME_IDENTITY_METRICS = ('fid.source_vs_generated', 'psnr.rgb', 'l1.mean_abs', 'ssim.gauss11', 'lpips.vgg',
                         'akd.mean_abs_xy', 'aed.openface_sq', 'csim.antelopev2_driving', 'ard.mediapipe',
                         'jitter.pixels', 'jitter.mediapipe')
CROSS_IDENTITY_METRICS = ('fid.source_vs_generated', 'csim.antelopev2', 'ard.mediapipe', 'aed.openface_sq_source',
                          'jitter.pixels', 'jitter.mediapipe')

_SAME = 'the first frame of each clip is the source, {} of the clip are rebuilt; absolute motion'
_VOX = ('Table 1, VoxCeleb1', 'Table 2', 'Table 4')

PROTOCOLS = {
    'same-identity': Protocol(_SAME.format('all frames, the first included,') + ' (FOMM)', tables=_VOX),
    'same-identity-no-first': Protocol(_SAME.format('all frames but the first'), include_first=False, tables=_VOX),
    'cross-identity-relative': Protocol(
        'a source follows another person; motion relative to an anchor frame, scaled to the source (SMAC)',
        cross_identity=True, relative=True, tables=('Table 3',)),
    'cross-identity-absolute': Protocol(
        'a source takes the poses of another person as they are', cross_identity=True, tables=('Table 3',)),
    'pairs-same': Protocol(
        '2,083 pairs of frames of 100 VoxCeleb1 clips, each pair from one clip; absolute motion (DaGAN, MCNet)',
        list='pairs-2083-same', tables=('Table 1, VoxCeleb1',)),
    'pairs-cross': Protocol(
        '2,083 pairs of frames of different people of VoxCeleb1; motion relative to an anchor frame (DaGAN, MCNet)',
        cross_identity=True, relative=True, list='pairs-2083-cross', tables=('Table 3',)),
    'celebv-hq': Protocol(
        _SAME.format('all frames, the first included,') + '; on 50 clips of CelebV-HQ that no VoxCeleb1 model has seen',
        list='celebv-hq-50', tables=('Table 1, CelebV-HQ',)),
}


def find_protocol(name):
    """The Protocol of this name; UserError that names the nearest one."""
    if name not in PROTOCOLS:
        raise UserError(f'there is no protocol {name}{did_you_mean_or_known(name, PROTOCOLS, 0.4)}')
    return PROTOCOLS[name]


# ---------------------------------------------------------------------------- lists

@dataclass(frozen=True)
class Item:
    """One row of a list: what drives what. Fields as in the module's docstring; None where the column is empty."""
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
        """Tells the row from the others, for people and as a file name."""
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
    """The list as text: what is shipped, written beside results, and hashed."""
    rows = [astuple(item) for item in items]
    used = [i for i in range(len(COLUMNS)) if i == 0 or any(row[i] is not None for row in rows)]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow([COLUMNS[i] for i in used])
    writer.writerows([f'{row[i]:g}' if isinstance(row[i], float) else row[i] for i in used] for row in rows)
    return file.getvalue()


def write_list(path, items):
    """Write the list to `path`, whole or not at all."""
    with written_whole(path) as unfinished:
        unfinished.write_text(as_csv(items), encoding='utf-8')


def fingerprint(items):
    """SHA-256 of the list, equal wherever the list is equal."""
    return hashlib.sha256(as_csv(items).encode()).hexdigest()


def load_list(name, clip_ids=()):
    """The items of a list; see `load_rows`."""
    return [item for _, item in load_rows(name, clip_ids)]


def load_rows(name, clip_ids=()):
    """The items of a list, each with the words that name its row in a message: [(where, Item)].

    name:     one of this project's, or the path of a CSV file, ours or of DaGAN's and MCNet's format
    clip_ids: clips at hand; the lists that are a rule (celebv-hq-50) choose among them
    raises:   UserError that names the file and the row, or the nearest list
    """
    if name in RULES:
        return [(name, item) for item in RULES[name](clip_ids)]
    path = LISTS / f'{name}.csv'
    path = path if path.is_file() else Path(name)
    if not path.is_file():
        known = [*RULES, *sorted(file.stem for file in LISTS.glob('*.csv'))]
        raise UserError(f'there is no list {name}, nor a file of that name{did_you_mean_or_known(name, known, 0.4)}')
    columns, rows = _read_csv(path)
    if 'source' not in columns:
        raise UserError(f'{path}: the first row must name the columns, at least "source"; it is {",".join(columns)!r}')
    if {'best_frame', 'frame'} & set(columns):
        return list(zip(_places(path, rows), import_pairs(path)))
    unknown = [column for column in columns if column not in COLUMNS]
    if unknown:
        raise UserError(f'{path}: unknown column {unknown[0]!r}; known: {", ".join(COLUMNS)}')
    if not rows:
        raise UserError(f'{path}: names nothing')
    return [(where, _item(row, where)) for where, (_, row) in zip(_places(path, rows), rows)]


def _places(path, rows):
    return [f'{path}, row {number}' for number, _ in rows]


def _read_csv(path):
    """(columns, [(row number as an editor counts, {column: text})])."""
    try:
        with open(path, encoding='utf-8-sig', newline='') as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns, rows = reader.fieldnames or [], [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
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
            raise UserError(f'{where}: {clip!r} is no name of a clip')
    if anchor and (not anchor.isdecimal() or time('anchor_time') is not None):
        raise UserError(f'{where}: anchor is {anchor!r}, must be the index of a frame, or empty; and so where there is '
                        'an anchor_time')
    return Item(source, time('source_time'), driving if driving not in ('', source) else None, time('driving_time'),
                time('anchor_time'), int(anchor) if anchor else None)


# ---------------------------------------------------------------------------- the peers' lists

def import_pairs(path):
    """Items of a CSV of DaGAN and MCNet: columns source, driving and best_frame or frame.

    Fields are frames CLIP.mp4/0000048.png, clips or stills, at paths of the machine they were made on.
    Their common folder is cut off, and frame numbers become times. The numbers count frames at the rate
    that each video had when it was fetched. A video some of whose numbers lie beyond its clips' ends
    (names end in #start#end, at 25 fps) had 30 fps, as the others show: they come up to 1.2 times the
    length, or never beyond it.
    """
    rows = _read_csv(path)[1]
    rows = list(zip(_places(path, rows), (row for _, row in rows)))
    anchors = 'best_frame' if rows and 'best_frame' in rows[0][1] else 'frame'
    cells = [[_moment(row.get(column), where) for column in ('source', 'driving')]
             + [_anchor(row.get(anchors), where)] for where, row in rows]
    if not cells:
        raise UserError(f'{path}: names nothing')

    named = [clip for row in cells for clip, _ in row if clip]
    try:
        root = os.path.commonpath([os.path.dirname(clip) for clip in named])
    except ValueError as error:
        raise UserError(f'{path}: {error}; let all begin with /, or none') from None
    fast = {_video(clip) for row in cells for clip, frame in row if clip and frame and frame >= _length(clip)}

    def portable(clip, frame):
        id_ = clip.removeprefix(root).lstrip('/').removesuffix('.mp4') if clip else None
        rate = 30 if clip and _video(clip) in fast else CLIP_FPS
        return id_, None if frame is None else round(float(frame / rate), 4)

    items = []
    for source, driving, (anchor_clip, anchor) in cells:
        driver, anchor_time = portable(driving[0], anchor)
        if anchor_clip and anchor_clip != driving[0]:
            raise UserError(f'{path}: the anchor {anchor_clip} is no frame of the driving clip {driving[0]}')
        items.append(Item(*portable(*source), driver if driving[0] != source[0] else None, portable(*driving)[1],
                          anchor_time))
    return items


def _moment(text, where):
    """'folder/CLIP.mp4/0000048.png' -> (folder/CLIP.mp4, 48); a clip or a still -> (its path, None)."""
    path = PurePosixPath((text or '').strip())
    if not path.name:
        raise UserError(f'{where}: source or driving is empty')
    if path.suffix.lower() in STILL_SUFFIXES and path.stem.isdecimal():
        return str(path.parent), int(path.stem)
    return str(path), None


def _anchor(text, where):
    """Of the same form, or a bare frame number of the driving clip."""
    text = (text or '').strip()
    try:
        return (None, int(float(text))) if text else (None, None)
    except (ValueError, OverflowError):      # 'inf'
        return _moment(text, where)


def _length(clip):
    """Frames at 25 fps of person#video#start#end.mp4; without limit for other names."""
    *_, start, end = ['', '', *PurePosixPath(clip).name.removesuffix('.mp4').split('#')]
    return int(end) - int(start) if start.isdecimal() and end.isdecimal() else float('inf')


def _video(clip):
    return PurePosixPath(clip).name.rsplit('#', 2)[0]


# ---------------------------------------------------------------------------- lists that are drawn

def _by_hash(names, salt):
    """Random order that depends on the names alone."""
    return sorted(names, key=lambda name: hashlib.sha256(f'{salt}:{name}'.encode()).digest())


def draw_voxceleb1(rows, count=50, seed=0):
    """voxceleb1-50: random clips of VoxCeleb1's test partition.

    rows:    dicts of vox-metadata.csv (https://github.com/AliaksandrSiarohin/video-preprocessing);
             videos that it lists in both partitions are left out
    returns: items, sorted by clip
    """
    partitions, clips = defaultdict(set), set()
    for row in rows:
        partitions[row['video_id']].add(row['partition'])
        if row['partition'] == 'test':
            clips.add('#'.join((row['person_id'], row['video_id'], row['start'].zfill(6), row['end'].zfill(6))))
    clean = [clip for clip in clips if partitions[clip.split('#')[1]] == {'test'}]
    return [Item(clip) for clip in sorted(_by_hash(clean, f'voxceleb1 {seed}')[:count])]


def draw_pairs(clips, person=lambda clip: clip.split('#')[0], count=None, seed=0):
    """Each of `count` clips (all by default) as a source, with a random driver of another person.

    A pure function of the names and the seed. Every clip drives about equally often: once, where people allow it.

    clips:  ids
    person: of a clip
    raises: UserError where there is one person only
    """
    clips = sorted(clips)
    if len({person(clip) for clip in clips}) < 2:
        raise UserError('cannot draw pairs of different people: at least 2 are needed')
    drives, items = dict.fromkeys(clips, 0), []
    for source in _by_hash(clips, f'source {seed}')[:count]:
        others = [clip for clip in _by_hash(clips, f'driving {seed} {source}') if person(clip) != person(source)]
        driver = min(others, key=drives.get)
        drives[driver] += 1
        items.append(Item(source, driving=driver))
    return sorted(items, key=lambda item: item.source)


def draw_celebv_hq(clips, count=50):
    """celebv-hq-50: of the test clips at hand, the first `count` in order of their hashes, one per video.

    The split is that of `--mode prepare` (datasets/prepare/metadata.py). Clips are <YouTube id>_<number>, as their
    authors name them, or <YouTube id>#<number>#..., as prepared; both give the same draw.
    """
    of_video = {}
    names = {_celebv_hq_name(clip): clip for clip in sorted(clips) if in_test(_celebv_hq_video(clip))}
    for name in _by_hash(names, 'celebv-hq'):
        of_video.setdefault(_celebv_hq_video(name), names[name])
    if not of_video:
        raise UserError('no clip here is in the test split of CelebV-HQ; their names must be <YouTube id>_<number>, '
                        f'and about 1 video in {TEST_ONE_IN} is for tests')
    return [Item(clip) for clip in sorted(list(of_video.values())[:count])]


def _celebv_hq_video(clip):
    """The YouTube id: the first 11 characters, which may be any of a-z, A-Z, 0-9, - and _."""
    return clip[:11]


def _celebv_hq_name(clip):
    """<YouTube id>_<number> of a clip under either name."""
    return f'{_celebv_hq_video(clip)}_{clip[12:].partition("#")[0]}'


RULES = {'celebv-hq-50': draw_celebv_hq}
