"""How far the preparation of a data set is, over all its parts, for the user."""

import time
from collections import Counter

from datasets.manifest import read_manifest
from datasets.prepare.parts import Part, gather, is_alive, parts_of
from datasets.prepare.progress import Progress
from datasets.prepare.run import summary
from support.errors import UserError


def status(root):
    """Counters of all parts, what each is doing, and the time that is left: lines of text.

    Raises UserError where there is no data set and none is being made.
    """
    folders = parts_of(root)
    if not folders:
        records = read_manifest(root)
        if records is None:
            raise UserError(f'{root}: no data set is being made here; say where with --out')
        return f'{root}: done\n{summary(records)}'
    parts = {part: (Progress.read(folder), is_alive(folder)) for part, folder in folders.items()}
    count = next(iter(parts)).count
    return '\n'.join([_head(root, parts, count), _clips(root),
                      *(_line(Part(index, count), *parts.get(Part(index, count), (None, False)))
                        for index in range(count))])


def _head(root, parts, count):
    known = [(progress, alive) for progress, alive in parts.values() if progress is not None]
    listed = known[0][0].listed if known else 0
    complete = sum(progress.complete for progress, _ in known)
    at_work = sum(alive for _, alive in parts.values())
    if complete == listed and known and not at_work:
        then = 'all parts have ended; the command of any of them once more makes one data set of them'
    else:
        left = time_left([progress for progress, alive in known if alive], listed - complete)
        then = f'{at_work} of {count} parts at work, ' + ('time left not known yet' if left is None
                                                          else f'{spelled(left)} left')
    return f'{root}: {complete:,} of {listed:,} videos done; {then}'


def time_left(at_work, videos):
    """Seconds until so many `videos` are done, from the Progress of the parts at work; None where it is not known.

    Not less than the slowest part needs, nor than all of them would if they shared evenly what nobody has begun.
    """
    unfinished = [progress for progress in at_work if progress.complete < progress.videos]
    if not all(progress.rate for progress in unfinished) or videos and not unfinished:
        return None
    slowest = max(((progress.videos - progress.complete) / progress.rate for progress in unfinished), default=0)
    return max(slowest, videos / sum(progress.rate for progress in unfinished) if videos else 0)


def _clips(root):
    counts = Counter(record.status.replace('_', ' ') for record in gather(root).values())
    return 'clips: ' + (', '.join(f'{number:,} {name}' for name, number in sorted(counts.items())) or 'none yet')


def _line(part, progress, alive):
    if progress is None:
        return f'{part!s:>9}  ' + ('begins' if alive else 'has not begun')
    done = f'{part!s:>9}  {progress.complete:,} of {progress.videos:,} videos'
    if alive:
        left = time_left([progress], 0)
        return (f'{done}, at work on {progress.host}, last video {spelled(time.time() - progress.updated)} ago'
                + ('' if left is None else f', {spelled(left)} left'))
    if progress.complete == progress.videos:
        return f'{done}, ended'
    return f'{done}, ended early on {progress.host}: give its command again'


def spelled(seconds):
    """A duration for people, in its two largest units."""
    minutes, seconds = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours} h {minutes:02d} min' if hours else f'{minutes} min {seconds:02d} s' if minutes else f'{seconds} s'
