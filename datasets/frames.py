"""Training pairs and test clips from FOMM's folder layout (NeurIPS 2019, arXiv 2003.00196).

    root/train/person#video#start#end.mp4    a video file, or a folder of PNG or JPEG frames,
    root/test/...                            whose name may or may not end in .mp4
    root/train/00000.tar                     a tar file of such video files (datasets/shards.py)
    root/manifest.jsonl                      of prepared data: which clips count, and who is in them
"""

import logging
import multiprocessing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from datasets.frame_folder import has_stills
from datasets.manifest import NAME as MANIFEST
from datasets.manifest import OK, read_manifest
from datasets.shards import SUFFIX as SHARD_SUFFIX
from datasets.shards import members
from datasets.video import VIDEO_SUFFIXES, open_clip
from support.errors import UserError

log = logging.getLogger(__name__)

_LAYOUT = '<root>/train and <root>/test, each with video files or folders of PNG or JPEG frames'


# ---------------------------------------------------------------------------- finding clips

def find_people(root, partition, id_sampling, size):
    """The clips of each person: dict of person -> list of clips, both sorted by name.

    root:        folder that holds train/ and test/
    id_sampling: the person is the one of the manifest, without a manifest the part of a clip's
                 name before the first '#'; otherwise every clip is a person of its own
    size:        frames are resized to (size, size)
    Clips that a manifest does not list are left out. Clips are not opened: damage shows at their first use. Raises
    UserError if folder or clips are missing or names do not fit.
    """
    folder, paths = Path(root, partition), clip_paths(root, partition)
    records, people = read_manifest(root), {}
    if records is not None:
        paths = _listed(paths, folder, {name for name, record in records.items()
                                        if record.status == OK and record.partition == partition})
    for name, path in sorted(paths.items()):
        person = records[name].person if records and id_sampling else _person(name, path, id_sampling)
        people.setdefault(person, []).append(open_clip(path, size))
    return dict(sorted(people.items()))


def _listed(paths, folder, names):
    """Those of `paths` that are in the manifest, `names`; logs how many are in one of the two only."""
    unlisted, absent = paths.keys() - names, names - paths.keys()
    for what, found in (('not listed and left out', unlisted), ('listed but not there', absent)):
        if found:
            log.warning('%s: %d clip(s) are %s, such as %s; see %s', folder, len(found), what, min(found), MANIFEST)
    if not paths.keys() & names:
        raise UserError(f'{folder}: none of its {len(paths)} clips is in {MANIFEST}; prepare the data again, '
                        f'or remove {MANIFEST} to use what is there')
    return {name: paths[name] for name in paths.keys() & names}


def clip_paths(root, partition):
    """Clip name -> Path, or Member of a shard, for all that can be a clip; UserError where there is none.

    Other entries of the folder are logged in one line.
    """
    paths, others = sort_entries(root, partition)
    folder = Path(root, partition)
    if not paths:
        found = f', but {_example(others)}' if others else ''
        raise UserError(f'{folder}: has no clips{found}; expected folders of frames, or files ending in '
                        f'{", ".join((*VIDEO_SUFFIXES, SHARD_SUFFIX))}')
    if others:
        log.warning('%s: %d clips, and %s', folder, len(paths), _example(others))
    return paths


def _example(others):
    name, reason = next(iter(others.items()))
    return f'entries that are no clips: {len(others)}, such as {name} ({reason})'


def sort_entries(root, partition):
    """({clip name: Path or Member}, {name: why it is no clip}) of all visible entries of a partition.

    Raises UserError if the folder is missing or empty, or if two entries have one name.
    """
    root, folder = Path(root), Path(root, partition)
    if not root.is_dir():
        raise UserError(f'{root}: no such data folder; expected {_LAYOUT}; --mode prepare makes it, see docs/data.md')
    if not folder.is_dir():
        raise UserError(f'{root}: has no folder {partition}; expected {_LAYOUT}')
    visible = sorted(path for path in folder.iterdir() if not path.name.startswith('.'))
    if not visible:
        raise UserError(f'{folder}: is empty; expected {_LAYOUT}')
    paths, others = {}, {}
    shards = {path: members(path) for path in visible if path.suffix == SHARD_SUFFIX and path.is_file()}
    for path in chain.from_iterable(shards.get(path, [path]) for path in visible):
        if path.name.startswith('.'):
            continue
        if reason := _no_clip(path):
            others[path.name] = reason
            continue
        name = path.name.removesuffix('.mp4') if path.is_dir() else path.stem
        if name in paths:
            raise UserError(f'{folder}: {paths[name].name} and {path.name} are both clip {name}; remove or rename one')
        paths[name] = path
    return paths, others


def _no_clip(path):
    """Why an entry of a partition, a Path or Member, is no clip; None if it can be one. Files are not opened."""
    if path.is_dir():
        try:
            return None if has_stills(path) else 'a folder without PNG or JPEG frames'
        except UserError:
            return 'a folder that cannot be read'
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        return 'not a video'
    return None if path.exists() else 'a link to nothing'


def _person(name, path, id_sampling):
    if not id_sampling:
        return name
    person, separator, _ = name.partition('#')
    if not separator or not person:
        raise UserError(f'{path}: this name has no person in it, expected person#video#start#end.mp4; '
                        f'rename the clips or set id_sampling: false')
    return person


# ---------------------------------------------------------------------------- pairs

@dataclass(frozen=True)
class Augmentation:
    """Random augmentation of a pair, the same for both frames; the config holds the ranges."""
    time_flip: bool             # swap source and driving, probability 1/2
    horizontal_flip: bool       # mirror, probability 1/2 where time was not flipped, as FOMM has it
    brightness: float           # factors are drawn from [max(0, 1 - x), 1 + x]; 0 leaves them
    contrast: float
    saturation: float
    hue: float                  # shift drawn from [-x, x] turns of the colour wheel, x <= 0.5

    def __call__(self, pair, rng):
        """pair: (2, 3, H, W) float32 in [0, 1], earlier frame first; returns the same shape and range."""
        from torchvision.transforms.v2 import functional as TF      # here: half a second and 160 MiB
        if self.time_flip and rng.random() < 0.5:
            pair = pair.flip(0)
        elif self.horizontal_flip and rng.random() < 0.5:
            pair = pair.flip(-1)
        # In random order, as FOMM and torchvision have it, since adjustments do not commute:
        # https://docs.pytorch.org/vision/stable/generated/torchvision.transforms.v2.ColorJitter.html
        adjustments = ((TF.adjust_brightness, 1, self.brightness), (TF.adjust_contrast, 1, self.contrast),
                       (TF.adjust_saturation, 1, self.saturation), (TF.adjust_hue, 0, self.hue))
        for n in rng.permutation(len(adjustments)):
            adjust, neutral, strength = adjustments[n]
            if strength:
                # Hue is a shift and may be negative; the others are factors and may not.
                lowest = neutral - strength if neutral == 0 else max(0, neutral - strength)
                pair = adjust(pair, float(rng.uniform(lowest, neutral + strength)))
        return pair


def read_frames(clip, indices, rng):
    """The frames of a clip at `indices`, and nothing else for the sample; `rng` is for readers that vary them."""
    return clip.read(indices), {}


class PairDataset(Dataset):
    """An endless stream of training pairs: two frames of one clip of one person.

    Sample i depends on (seed, i) and the clips only, not on the order of reads or the number of workers, so a run that
    is resumed or spread over other processes sees the same pairs.

    As in FOMM (https://github.com/AliaksandrSiarohin/first-order-model, frames_dataset.py) an epoch
    (len(people) samples) visits every person once, in random order; the clip is uniform among the person's, the frames
    are uniform with replacement, the earlier first.

    people:     person -> clips; a clip has `name`, len() and read(indices) -> uint8 (H, W, 3) frames
    max_broken: number of damaged clips that are tolerated
    read:       function of clip, indices and rng -> (frames as above, dict of further arrays for the sample)

    A clip that raises UserError is logged once and replaced by another one of the same person, or of another person if
    none is left, drawn from the sample's own random numbers. UserError if no clip is left, or after more than
    `max_broken` damaged clips.
    """

    def __init__(self, people, seed, augmentation, max_broken=20, read=read_frames):
        if not people:
            raise UserError('the dataset has no clips to train on')
        self._people = [(person, list(clips)) for person, clips in sorted(people.items())]
        self._seed = seed
        self._augmentation = augmentation
        self._read = read
        self._max_broken = max_broken
        self._numbers = {(person, clip.name): n for n, (person, clip) in enumerate(
            (person, clip) for person, clips in self._people for clip in clips)}
        # Seen by all workers; for messages, never for choices.
        self._broken = torch.zeros(len(self._numbers), dtype=torch.bool).share_memory_()
        self._noting = multiprocessing.get_context('spawn').Lock()      # two workers may meet the same clip at once
        self._epoch, self._order = None, None

    def names(self):
        """'person/clip' of all clips, in order."""
        return [f'{person}/{name}' for person, name in self._numbers]

    def __getitem__(self, i):
        """dict(source, driving: (3, H, W) float32 in [-1, 1]; index: i; skipped: damaged clips drawn), and `read`'s."""
        rng = np.random.default_rng((self._seed, i))
        (frames, further), skipped = self._draw(i, rng)
        pair = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)       # (2, 3, H, W)
        pair = pair.float(memory_format=torch.contiguous_format).div_(255)
        source, driving = self._augmentation(pair, rng).mul_(2).sub_(1)
        return dict(source=source, driving=driving, index=i, skipped=skipped, **further)

    def _draw(self, i, rng):
        """Two frames of the first clip drawn that decodes, and how many did not."""
        # Damaged clips are tried in every draw: remembering them would make samples depend on earlier ones.
        for skipped, (person, clip) in enumerate(self._candidates(i, rng)):
            try:
                first, second = sorted(rng.integers(len(clip), size=2).tolist())
                return self._read(clip, [first, second], rng), skipped
            except UserError as error:
                self._note_broken(person, clip, error)
                last = error
        raise UserError(f'no clip of the data set can be read: {self._broken_names()}; the last: {last}')

    def _candidates(self, i, rng):
        """(person, clip) in the order in which sample i tries them; the first is the one it should be."""
        n = self._person_of(i)
        others = None
        while True:
            person, clips = self._people[n]
            clips = list(clips)
            while clips:
                yield person, clips.pop(rng.integers(len(clips)))
            others = [m for m in range(len(self._people)) if m != n] if others is None else others
            if not others:
                return
            n = others.pop(rng.integers(len(others)))

    def _person_of(self, i):
        epoch, position = divmod(i, len(self._people))
        if epoch != self._epoch:
            # The 1 keeps the epochs' random numbers apart from the samples'.
            order = np.random.default_rng((self._seed, epoch, 1)).permutation(len(self._people))
            self._epoch, self._order = epoch, order
        return int(self._order[position])

    def _note_broken(self, person, clip, error):
        number = self._numbers[person, clip.name]
        with self._noting:
            known = bool(self._broken[number])
            self._broken[number] = True
        if known:
            return
        log.warning('skipping clip %s: %s', clip.name, error)
        if self._broken.sum() > self._max_broken:
            raise UserError(f'more than max_broken={self._max_broken} clips cannot be read: {self._broken_names()}; '
                            f'the last: {error}')

    def _broken_names(self):
        return ', '.join(sorted(name for (_, name), n in self._numbers.items() if self._broken[n]))


class Stream(Sampler):
    """Batches of global sample indices for one process: the `batch_sampler` of its DataLoader.

    The processes share the samples of a step out among them, and any step can be started from.

    batch_size: samples per process and step
    rank:       of this process, 0 .. world - 1
    start:      first step; a resumed run gives the step it has reached
    stop:       step before which to stop
    """

    def __init__(self, batch_size, stop, rank=0, world=1, start=0):
        self._batch_size, self._rank, self._world, self._steps = batch_size, rank, world, range(start, stop)

    def __iter__(self):
        for step in self._steps:
            first = (step * self._world + self._rank) * self._batch_size
            yield list(range(first, first + self._batch_size))
