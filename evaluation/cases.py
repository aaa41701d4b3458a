"""From a list to clips: what is there of it, under which names, in which folders."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from datasets.frame_folder import has_stills
from datasets.still import STILL_SUFFIXES, Still
from datasets.video import VIDEO_SUFFIXES, open_any, open_clip
from evaluation.protocols import Item, clip_name, draw_pairs, frame_at, load_list, load_rows
from support.errors import UserError
from support.files import is_there


# ---------------------------------------------------------------------------- clips

def clips_in(folder, size=None):
    """The videos, folders of frames and stills of a folder, as clips by name; in the order of their names.

    Hidden files and those of other kinds are passed over. Raises UserError where there is none, or two of one name.
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
        raise UserError(f'{folder}: holds no videos, folders of frames or stills')
    return clips


class ClipFinder:
    """Where the clips of a list lie.

    clips:    {name: clip} at hand
    path_map: ['PREFIX=FOLDER' or 'FOLDER']: ids that begin with PREFIX, or all, are looked for in FOLDER,
              with or without the suffix of a video
    size:     frames are resized to (size, size); None leaves them
    folders:  where else ids are looked for that are paths, such as the folder of the list
    opener:   what opens a video or a folder of frames
    """

    def __init__(self, clips, path_map, size, folders=(), opener=open_clip):
        self.clips, self.size, self.folders, self.opener = clips, size, list(map(Path, folders)), opener
        self.places = [(prefix.strip('/'), Path(folder)) for prefix, _, folder in
                       (text.rpartition('=') for text in path_map)]
        for _, folder in self.places:
            if not folder.is_dir():
                raise UserError(f'--path_map: {folder} is no folder')

    def __call__(self, clip_id):
        """The clip of this id, None if it is not there."""
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
    """The path, as it is or with the suffix of a video; None where nothing is."""
    paths = (Path(f'{path}{suffix}') for suffix in ('', *VIDEO_SUFFIXES))
    return next((path for path in paths if is_there(path)), None)


# ---------------------------------------------------------------------------- cases

@dataclass(frozen=True)
class Case:
    """An item of a list with its clips at hand.

    source:    clip that the source image is taken from, or None where it is not known
    generated: clip that was made elsewhere; None where the model makes it
    """
    item: Item
    source: Any
    driving: Any
    generated: Any = None

    def moments(self, first=0):
        """(index of the source frame, indices of the driving frames); UserError where the clips are too short.

        first: of the driving frames, where the item names none
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
        """Index of the driving frame from which relative motion starts; None where the item names none. UserError."""
        time = self.item.anchor_time
        return self.item.anchor if time is None else frame_index(self.driving, time)

    @property
    def sound(self):
        """The file whose sound goes with what is made, or None."""
        path = getattr(self.driving, 'path', None)
        return path if path is not None and path.is_file() else None

    def frames(self, moments):
        """The driving frames at the moments, streaming."""
        if isinstance(moments, range):
            return islice(self.driving.frames(), moments.start, None)
        return iter(self.driving.read(moments))


@dataclass(frozen=True)
class Selection:
    """A list, and what is there of it.

    items:   the whole list
    cases:   those of the items whose clips are there
    missing: names of the others
    extra:   names of generated clips without an item
    """
    list_name: str
    items: list
    cases: list
    missing: list = ()
    extra: list = ()


def frame_index(clip, time):
    """Of the frame at `time` seconds; UserError if the clip is shorter."""
    index = frame_at(time, clip.fps)
    if index >= len(clip):
        raise UserError(f'{clip.name}: has no frame at {time:g} s, it is {float(len(clip) / clip.fps):.2f} s long')
    return index


def test_set(path_map, size):
    """{name: clip} of all FOLDERs of a path map that have no PREFIX."""
    return {name: clip for text in path_map if '=' not in text for name, clip in clips_in(text, size).items()}


def choose_items(protocol, list_name, clips, num_pairs=None, seed=0):
    """(name of the list, its items): the list that is asked for, else the protocol's, else all clips or random pairs.

    clips: names of the clips at hand
    """
    list_name = list_name or protocol.list
    if list_name is not None:
        return Path(list_name).name, load_list(list_name, clips)
    if protocol.cross_identity:
        items = draw_pairs(clips, count=num_pairs, seed=seed)
        return f'{len(items)} random pairs, seed {seed}', items
    return 'all clips', [Item(name) for name in sorted(clips)]


def find_cases(items, find):
    """The items whose clips are there, as cases, and the names of those whose clips are not."""
    cases, missing = [], []
    for item in items:
        source, driving = find(item.source), find(item.driver)
        if source is None or driving is None:
            missing.append(item.name)
        else:
            cases.append(Case(item, source, driving))
    return cases, missing


def cases_of_list(name, find, clip_ids=()):
    """A Case for every row of a list, whose clips must all be there; UserError that names the row."""
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


def match_cases(items, protocol, generated, driving, sources):
    """The same for videos that were made elsewhere; (cases, missing, extra).

    items:   of a list, or one per driving clip, whose name the generated clip and the source then share
    sources: {name: clip}, or None: then a same-identity source is taken from the driving clip
    """
    cases, missing = [], []
    for item in items:
        driver, made = driving.get(_stem(item.driver)), generated.get(item.name)
        if driver is None or made is None:
            missing.append(item.name)
            continue
        # A lone driving frame is no source: it would be compared with itself.
        own = None if protocol.cross_identity or isinstance(driver, Still) else driver
        source = own if sources is None else sources.get(_stem(item.source))
        if sources is not None and source is None:
            missing.append(item.name)
            continue
        cases.append(Case(item, source, driver, made))
    known = {item.name for item in items}
    return cases, missing, [name for name in generated if name not in known]


def _stem(clip_id):
    """The name by which `clips_in` knows the clip or still."""
    path = PurePosixPath(clip_id)
    return path.stem if path.suffix.lower() in STILL_SUFFIXES else clip_name(clip_id)
