"""Cases of an evaluation: list entries with their clips on disk."""

import json
import logging
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path, PurePosixPath
from typing import Any

from datasets.frame_folder import has_stills, natural_order
from datasets.shards import Member
from datasets.still import STILL_SUFFIXES, Still
from datasets.video import VIDEO_SUFFIXES, open_any, open_clip
from evaluation.protocols import Item, clip_name, draw_pairs, frame_at, load_list, load_rows
from support import distributed
from support.errors import UserError
from support.files import is_there, make_folder, refuse_overwriting, split_assignment, write_text

log = logging.getLogger(__name__)


# ---------------------------------------------------------------------------- clips

def clips_in(folder, size=None):
    """{name: clip} of the videos, frame folders and stills in a folder, sorted by name.

    Hidden files and other kinds of files are ignored. Raises UserError for an empty folder, and for two clips of one
    name.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f'{folder}: no such folder of videos')
    clips = {}
    for path in sorted(folder.iterdir()):
        known = path.is_dir() and has_stills(path) or path.suffix.lower() in VIDEO_SUFFIXES + STILL_SUFFIXES
        if path.name.startswith('.') or not known:
            continue
        clip = open_any(path, size)
        if clip.name in clips:
            raise UserError(f'{folder}: {clips[clip.name].path.name} and {path.name} have one name; rename one')
        clips[clip.name] = clip
    if not clips:
        raise UserError(f'{folder}: contains no videos, frame folders or stills')
    return clips


def file_states(clip):
    """Name, size and time of a clip's files, which change when the clip does; None for no clip."""
    path = getattr(clip, 'path', None)
    if path is None:
        return None if clip is None else [clip.name, len(clip)]
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


class ClipFinder:
    """Finds the clip of an id of a list.

    clips:    {name: clip} that are open
    path_map: ['PREFIX=FOLDER' or 'FOLDER']: FOLDER is searched for ids that start with PREFIX, or for all ids, with or
              without the suffix of a video
    size:     frames are resized to (size, size); None leaves them
    folders:  searched for ids that are paths, such as the folder of the list
    opener:   function that opens a video or a frame folder
    """

    def __init__(self, clips, path_map, size, folders=(), opener=open_clip):
        self.clips, self.size, self.folders, self.opener = clips, size, list(map(Path, folders)), opener
        self.places = [((prefix or '').strip('/'), folder) for prefix, folder in map(split_assignment, path_map)]
        for _, folder in self.places:
            if not folder.is_dir():
                raise UserError(f'--path_map: {folder} is not a folder')

    def __call__(self, clip_id):
        """The clip of this id, or None."""
        for prefix, folder in self.places:
            if clip_id.startswith(prefix):
                name = clip_id.removeprefix(prefix).strip('/')
                if '..' in PurePosixPath(name).parts:
                    raise UserError(f'{folder}: the list names {clip_id!r}, which leads out of it')
                if path := _find(folder / name):
                    return open_any(path, self.size, self.opener)
        if clip_id in self.clips:
            return self.clips[clip_id]
        for folder in self.folders:      # an absolute path replaces the folder
            if path := _find(folder / clip_id):
                return open_any(path, self.size, self.opener)
        return self.clips.get(clip_name(clip_id))


def _find(path):
    """The path, or the path with the suffix of a video, whichever exists; or None."""
    paths = (Path(f'{path}{suffix}') for suffix in ('', *VIDEO_SUFFIXES))
    return next((path for path in paths if is_there(path)), None)


# ---------------------------------------------------------------------------- cases

RESULTS = ('metrics.json', 'list.csv')       # of an evaluation, of an animation of pairs
RESULTS_OF = 'results_of.json'


def own_folder(folder, cases, **made_with):
    """`folder`, or folder-2, folder-3, ...: the first without results of other clips, or made with something else.

    made_with: {what: value} of the weights and the list, JSON values. The folder keeps them in results_of.json.
    The first process decides, as paths of clips may differ between machines.
    Raises UserError if one of the clips lies in that folder.
    """
    found = None
    if distributed.rank() == 0:
        try:
            found = _own_folder(folder, cases, made_with)
        except UserError as error:
            found = error
    found = distributed.gather(found)[0]
    if isinstance(found, UserError):
        raise found
    return found


def _own_folder(folder, cases, made_with):
    clips = [clip for case in cases for clip in (case.source, case.driving, case.generated) if clip is not None]
    mine = json.dumps(made_with | {'clips in': sorted({_place(clip) for clip in clips})}, indent=1)
    places = (folder if number == 1 else folder.with_name(f'{folder.name}-{number}') for number in count(1))
    found = next(place for place in places if _holds(place) in (None, mine))
    if found != folder:
        log.warning('%s holds results of other weights, clips or another list; writing to %s', folder, found)
    refuse_overwriting((*found.glob('*'), *found.glob('*/*')), [getattr(clip, 'path', None) for clip in clips])
    write_text(make_folder(found) / RESULTS_OF, mine)
    return found


def _place(clip):
    """The folder or shard of a clip; name and length of a synthetic one."""
    path = getattr(clip, 'path', None)
    return f'{clip.name}, {len(clip)} frames' if path is None else str(
        path.archive if isinstance(path, Member) else path.resolve().parent)


def _holds(folder):
    """The description of the clips that a folder's results are of; '' if it is missing, None without results."""
    if (folder / RESULTS_OF).is_file():
        return (folder / RESULTS_OF).read_text(encoding='utf-8')
    return '' if any((folder / name).exists() for name in RESULTS) else None


@dataclass(frozen=True)
class Case:
    """An item of a list with its open clips."""
    item: Item
    source: Any                # clip of the source image, or None where it is unknown
    driving: Any
    generated: Any = None      # clip made elsewhere; None where a model generates it

    def moments(self, first=0):
        """(index of the source frame, indices of the driving frames); UserError where the clips are too short.

        first: index of the first driving frame, where the item names none
        """
        item, driving = self.item, self.driving
        source = 0 if self.source is None else frame_index(self.source, item.source_time or 0)
        if item.driving_time is not None:
            return source, [frame_index(driving, item.driving_time)]
        if len(driving) <= first:
            raise UserError(f'{driving.name}: has {len(driving)} frame(s), too few for this protocol')
        return source, range(first, len(driving))

    @property
    def anchor(self):
        """Index of the driving frame from which relative motion starts, or None; raises UserError."""
        time = self.item.anchor_time
        return self.item.anchor if time is None else frame_index(self.driving, time)

    @property
    def sound(self):
        """The file whose sound the result gets, or None."""
        path = getattr(self.driving, 'path', None)
        return path if path is not None and path.is_file() else None

    def frames(self, moments):
        """An iterator over the driving frames at these indices."""
        if isinstance(moments, range):
            return islice(self.driving.frames(), moments.start, None)
        return iter(self.driving.read(moments))


@dataclass(frozen=True)
class Selection:
    """A list, and which of its clips exist."""
    list_name: str
    items: list             # the whole list
    cases: list             # of the items whose clips exist
    missing: list = ()      # names of the other items
    extra: list = ()        # names of generated clips without an item


def frame_index(clip, time):
    """Index of the frame at `time` seconds; UserError if the clip is shorter."""
    index = frame_at(time, clip.fps)
    if index >= len(clip):
        raise UserError(f'{clip.name}: has no frame at {time:g} s, it is {float(len(clip) / clip.fps):.2f} s long')
    return index


def test_set(path_map, size):
    """{name: clip} of all FOLDERs of a path map that have no PREFIX."""
    folders = [folder for prefix, folder in map(split_assignment, path_map) if prefix is None]
    return {name: clip for folder in folders for name, clip in clips_in(folder, size).items()}


def choose_items(protocol, list_name, clips, num_pairs=None, seed=0):
    """(name of the list, its items) of `list_name`, else of the protocol's list, else all clips or random pairs.

    clips: names of the available clips
    """
    list_name = list_name or protocol.list
    if list_name is not None:
        return Path(list_name).name, load_list(list_name, clips)
    if protocol.cross_identity:
        items = draw_pairs(clips, count=num_pairs, seed=seed)
        return f'{len(items)} random pairs, seed {seed}', items
    return 'all clips', [Item(name) for name in sorted(clips)]


def find_cases(items, find):
    """(cases of the items whose clips exist, names of the other items)."""
    cases, missing = [], []
    for item in items:
        source, driving = find(item.source), find(item.driver)
        if source is None or driving is None:
            missing.append(item.name)
        else:
            cases.append(Case(item, source, driving))
    return cases, missing


def cases_of_list(name, find, clip_ids=()):
    """A Case for every row of a list; UserError with the row of a clip that does not exist."""
    cases = []
    for where, item in load_rows(name, clip_ids):
        clips = []
        for column, clip_id in (('source', item.source), ('driving', item.driver)):
            try:
                clips.append(find(clip_id))
            except UserError as error:
                raise UserError(f'{where}: {error}') from error
            if clips[-1] is None:
                raise UserError(f'{where}: {column} {clip_id!r} is not found'
                                + (f' in {" or ".join(map(str, find.folders))}' if find.folders else ''))
        cases.append(Case(item, *clips))
    return cases


def under_names(clips, driving, what):
    """{name: clip} under names of driving clips: the clips' own or, if none fits, by place in the order of the names.

    The second needs as many clips as driving clips, and is logged. what: the folder of the clips, for messages
    """
    if not clips or clips.keys() & driving.keys() or len(clips) != len(driving):
        return clips
    names, found = (sorted(named, key=natural_order) for named in (driving, clips))
    log.warning('%s: no name is that of a driving video; matched in order of the names, %s with %s and so on', what,
                found[0], names[0])
    return {name: clips[own] for name, own in zip(names, found)}


def match_cases(items, protocol, generated, driving, sources):
    """As `find_cases`, for videos made elsewhere: (cases, missing, extra).

    items:   of a list, or one per driving clip, with the name of its generated clip and source
    sources: {name: clip}; None: the driving clip is the source of same-identity protocols
    """
    cases, missing = [], []
    for item in items:
        driver, made = driving.get(_stem(item.driver)), generated.get(item.name)
        if driver is None or made is None:
            missing.append(item.name)
            continue
        # A single driving frame cannot be the source: it would be compared with itself.
        own = None if protocol.cross_identity or isinstance(driver, Still) else driver
        source = own if sources is None else sources.get(_stem(item.source))
        if sources is not None and source is None:
            missing.append(item.name)
            continue
        cases.append(Case(item, source, driver, made))
    known = {item.name for item in items}
    return cases, missing, [name for name in generated if name not in known]


def _stem(clip_id):
    """The clip's or still's name in `clips_in`."""
    path = PurePosixPath(clip_id)
    return path.stem if path.suffix.lower() in STILL_SUFFIXES else clip_name(clip_id)
