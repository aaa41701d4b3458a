"""Division of a dataset's preparation into parts, one per process, on any number of machines.

    root/.parts/003-of-016/manifest.jsonl   records of the clips of this part's videos
                          /progress.json    datasets/prepare/progress.py
                          /unfinished/      incomplete clips
                          /alive            locked while its process runs

Part k of n makes every n-th video of the list, so processes run independently and share only the folder. The last part
to end merges their manifests into root/manifest.jsonl, the same to the bit for any number of parts. A single process
is part 1 of 1.
"""

import re
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import NamedTuple

from datasets.manifest import DUPLICATE, OK, PARTITIONS, read_manifest, rewrite
from datasets.prepare.job import too_small, unfinished
from datasets.prepare.progress import Progress
from support.errors import UserError
from support.files import is_locked, locked, make_folder, remove, writing

FOLDER, LOCK = '.parts', '.parts.lock'


class Part(NamedTuple):
    """Which share of the videos: number `index`, from 0, of `count` shares."""
    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text):
        """The Part that a text names: '3/16' is the third of sixteen. UserError for anything else."""
        found = re.fullmatch(r'(\d+)/(\d+)', text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise UserError(f'--part {text}: expected NUMBER/COUNT, such as 3/16, counted from 1')
        return cls(int(found[1]) - 1, int(found[2]))

    def divided(self, rank, world):
        """The share of process `rank` of the `world` that do this part together."""
        return Part(self.index * world + rank, self.count * world)

    def of(self, jobs):
        return jobs[self.index::self.count]

    def __str__(self):
        return f'{self.index + 1}/{self.count}'

    def folder(self, root):
        return root / FOLDER / f'{self.index + 1:03d}-of-{self.count:03d}'


def parts_of(root):
    """{Part: its folder} of all parts that have started, in order."""
    found = {}
    for path in (root / FOLDER).glob('*-of-*'):
        index, _, count = path.name.partition('-of-')
        if index.isdigit() and count.isdigit():
            found[Part(int(index) - 1, int(count))] = path
    return dict(sorted(found.items()))


def is_alive(folder):
    """Whether a process is at work on the part; False, too, where the file system has no locks."""
    return is_locked(folder / 'alive')


# ---------------------------------------------------------------------------- records of all parts, and missing clips

def gather(root):
    """{id: Record} of a dataset: of its manifest, overridden by those of its parts."""
    records = read_manifest(root) or {}
    for folder in parts_of(root).values():
        made = read_manifest(folder) or {}
        sources = {record.source for record in made.values()}
        records = {name: record for name, record in records.items() if record.source not in sources} | made
    return records


def _known(left_out, settings):
    """{id: Record} of all finished clips, overridden by the records `left_out` of clips that this run skips."""
    records = gather(settings.root)
    return records | _too_small(records, settings.min_face) | {record.id: record for record in left_out}


def _done(records, root, min_face):
    """The finished work, as two sets: (partition, clip id) of clips, (partition, name) of videos."""
    there = [record for record in records.values() if record.status == OK and (root / record.file).exists()]
    kept = {record.hash for record in there}
    there += [record for record in records.values() if record.status == DUPLICATE and record.hash in kept]
    there += _too_small(records, min_face).values()
    clips = {(record.partition, record.id) for record in there}
    videos = {(record.partition, record.source) for record in there}
    return clips, videos - {(record.partition, record.source) for record in records.values()
                            if (record.partition, record.id) not in clips}


def _too_small(records, min_face):
    """{id: Record} of the clips whose crops are smaller than this run's `min_face`, in pixels."""
    return {record.id: too_small(record, min_face) for record in records.values()
            if record.box is not None and record.crop_side < min_face}


def _undone(job, done_clips, done_videos):
    """The unfinished part of a job; None if it is complete."""
    if job.clips is None:
        return None if (job.failure.partition, job.name) in done_videos else job
    clips = tuple(clip for clip in job.clips if (clip.partition, clip.id) not in done_clips)
    return replace(job, clips=clips) if clips else None


def _all_recorded(jobs, records):
    sources = {record.source for record in records.values()}
    return all(job.name in sources if job.clips is None else all(clip.id in records for clip in job.clips)
               for job in jobs)


# ---------------------------------------------------------------------------- taking part

@contextmanager
def taking_part(part, jobs, left_out, settings):
    """Start or resume a part; yields (its unfinished jobs, Progress) and ends the part after the block.

    jobs:     of the complete dataset
    left_out: records of clips of the complete dataset that are not to be made
    settings: DatasetSettings, whose `work` is the part's folder
    Raises UserError if another process makes this part, if parts of another division are running, if the dataset was
    made with other settings, and if `root` cannot be written.
    """
    root, folder = settings.root, settings.work
    for made in (root, *(root / partition for partition in PARTITIONS)):
        make_folder(made)
    with ExitStack() as life:
        with _alone(root):
            records = _known(left_out, settings)
            _check_made_alike(records, settings)
            _take_in_other_divisions(part, root)
            make_folder(folder)
            try:
                life.enter_context(locked(folder / 'alive', wait=False))
            except BlockingIOError:
                raise UserError(f'{root}: another process is at work on part {part}') from None
            todo = _begin(part, jobs, records, settings)
        remove(unfinished(folder))
        make_folder(unfinished(folder))
        yield todo, Progress.begin(folder, len(jobs), len(part.of(jobs)), len(todo))


@contextmanager
def _alone(root):
    """A lock: inside, no other process starts or ends a part of the dataset."""
    with writing(root), locked(root / LOCK):
        yield


def _begin(part, jobs, records, settings):
    """The unfinished jobs of the part; its manifest receives the records of finished ones."""
    done, mine = _done(records, settings.root, settings.min_face), part.of(jobs)
    todo = [left for job in mine if (left := _undone(job, *done)) is not None]
    names = {job.name for job in mine}
    again = {job.failure.id for job in todo if job.failure}
    rewrite(settings.work, [record for record in records.values()
                            if record.source in names and record.id not in again])
    return todo


def _take_in_other_divisions(part, root):
    """Move the records of an earlier division's parts into the dataset's manifest."""
    others = {other: folder for other, folder in parts_of(root).items() if other.count != part.count}
    for other, folder in others.items():
        if is_alive(folder):
            raise UserError(f'{root}: part {other} of it is at work, so part {part} would be another division; '
                            'wait for it, or end it')
    if others:
        rewrite(root, gather(root).values())
        for folder in others.values():
            remove(folder)


def _check_made_alike(records, settings):
    wanted = dict(crop=settings.crop, size=settings.size, format=settings.format)
    for record in records.values():
        made = {name: getattr(record, name) for name in wanted}
        if record.status == OK and made != wanted:
            raise UserError(f'{settings.root}: its clips were made with {_spelled(made)}, not {_spelled(wanted)}; '
                            'give another --out, or remove the folder')


def _spelled(values):
    return ' '.join(f'{name}={value}' for name, value in values.items())


# ---------------------------------------------------------------------------- from parts to a dataset

def merge(part, jobs, left_out, settings):
    """Merge the parts into a dataset if this is the last one to end; returns {id: Record}, else None.

    The arguments are those of `taking_part`.
    """
    root = settings.root
    with _alone(root):
        folders = parts_of(root)
        if part not in folders or any(map(is_alive, folders.values())):
            return None
        records = _known(left_out, settings)
        return _finish(root, records) if _all_recorded(jobs, records) else None


def _finish(root, records):
    """Mark duplicates, write the manifest, remove the parts and the files of clips that are not kept."""
    records, first = dict(sorted(records.items())), {}
    # What is in train and in test under different names stays in test: it must not have been trained on.
    for record in sorted(records.values(), key=lambda record: (record.partition == 'train', record.id)):
        if record.status in (OK, DUPLICATE):
            original = first.setdefault(record.hash, record.id)
            records[record.id] = replace(record, status=OK if original == record.id else DUPLICATE,
                                         error=None if original == record.id else f'same frames as {original}')
    rewrite(root, records.values())
    remove(root / FOLDER)
    for record in records.values():
        for partition in PARTITIONS:
            if record.status != OK or partition != record.partition:
                remove(root / replace(record, partition=partition).file)
    return records
