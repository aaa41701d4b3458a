"""Status of a dataset's preparation over all its parts, as text for the user."""

import time
from collections import Counter

from datasets.manifest import read_manifest
from datasets.prepare.parts import Part, gather, is_alive, parts_of
from datasets.prepare.progress import Progress
from datasets.prepare.run import summary
from support.errors import UserError


def status(root):
    """Lines of text: counts over all parts, the state of each, and the time left.

    Raises UserError if there is no dataset and none is being made.
    """
    folders = parts_of(root)
    if not folders:
        records = read_manifest(root)
        if records is None:
            raise UserError(f'{root}: there is no dataset here, finished or unfinished; correct --out')
        return f'{root}: done\n{summary(records)}'
    parts = {part: (Progress.read(folder), is_alive(folder)) for part, folder in folders.items()}
    count = next(iter(parts)).count
    every = [Part(index, count) for index in range(count)]
    clips = Counter(record.status.replace('_', ' ') for record in gather(root).values())
    return '\n'.join([
        _head(root, parts, count),
        'clips: ' + (', '.join(f'{number:,} {name}' for name, number in sorted(clips.items())) or 'none'),
        *(_line(part, *parts.get(part, (None, False))) for part in every)])


def _head(root, parts, count):
    known = [(progress, alive) for progress, alive in parts.values() if progress is not None]
    listed = known[0][0].listed if known else 0
    complete = sum(progress.complete for progress, _ in known)
    at_work = sum(alive for _, alive in parts.values())
    if complete == listed and known and not at_work:
        then = 'all parts have ended; rerun the command of any part to merge them into one dataset'
    else:
        left = time_left([progress for progress, alive in known if alive], listed - complete)
        then = f'{at_work} of {count} parts at work, ' + ('time left unknown' if left is None
                                                          else f'{spelled(left)} left')
    return f'{root}: {complete:,} of {listed:,} videos done; {then}'


def time_left(at_work, videos):
    """Estimated seconds for `videos` more videos, from the Progress of the running parts; None if unknown.

    It is at least the time of the slowest part, and at least that of an even share of the remaining videos.
    """
    unfinished = [progress for progress in at_work if progress.complete < progress.videos]
    if not all(progress.rate for progress in unfinished) or videos and not unfinished:
        return None
    slowest = max(((progress.videos - progress.complete) / progress.rate for progress in unfinished), default=0)
    return max(slowest, videos / sum(progress.rate for progress in unfinished) if videos else 0)


def _line(part, progress, alive):
    if progress is None:
        return f'{part!s:>9}  ' + ('is starting' if alive else 'has not started')
    done = f'{part!s:>9}  {progress.complete:,} of {progress.videos:,} videos'
    if alive:
        left = time_left([progress], 0)
        return (f'{done}, at work on {progress.host}, last video {spelled(time.time() - progress.updated)} ago'
                + ('' if left is None else f', {spelled(left)} left'))
    if progress.complete == progress.videos:
        return f'{done}, ended'
    return f'{done}, ended early on {progress.host}: rerun its command'


def spelled(seconds):
    """A duration in its two largest units."""
    minutes, seconds = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours} h {minutes:02d} min' if hours else f'{minutes} min {seconds:02d} s' if minutes else f'{seconds} s'
