"""Videos of several methods for the same pairs: found by name, converted to the driving video's frame rate."""

import re
from collections import Counter
from fractions import Fraction
from itertools import repeat
from pathlib import Path

from datasets.constant_rate import open_constant_rate
from datasets.frame_folder import has_stills
from datasets.video import VIDEO_SUFFIXES
from evaluation.protocols import clip_name
from support.errors import UserError

SHORTEST = Fraction(9, 10)       # duration of a generated video, of the driving video's, at least


def pair_name(case):
    """Name of the results of a Case: SOURCE--DRIVING."""
    return f'{case.source.name}--{case.driving.name}'


def find_videos(folder, names, method):
    """{pair: clip} of a method: NAME.mp4, or 003_NAME.mp4 as `--mode animate` numbers them.

    Raises UserError for pairs without a video, or with two.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f'{method}: {folder} is not a folder')
    found = {name: [] for name in names}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in VIDEO_SUFFIXES or path.is_dir() and has_stills(path):
            stem = clip_name(path.name)
            name = stem if stem in found else re.sub(r'^\d+_', '', stem)
            if name in found:
                found[name].append(path)
    missing = [name for name, paths in found.items() if not paths]
    if missing:
        raise UserError(f'{method}: {folder} has no video for {len(missing)} of {len(names)} pairs; expected '
                        f'{missing[0]}.mp4' + (', ...' if missing[1:] else ''))
    twice = next((paths for paths in found.values() if len(paths) > 1), None)
    if twice:
        raise UserError(f'{method}: {twice[0]} and {twice[1].name} are of one pair; remove one')
    return {name: open_constant_rate(path) for name, (path,) in found.items()}


def seconds(clip):
    """Duration of a clip, a Fraction."""
    return len(clip) / Fraction(clip.fps)


def check_length(clip, driving, pair, method):
    """Duration of a method's clip in seconds; UserError where it is much shorter than the driving clip."""
    if seconds(clip) < seconds(driving) * SHORTEST:
        raise UserError(f'{pair}: lasts {float(seconds(clip)):.2f} s by {method} but {float(seconds(driving)):.2f} s '
                        'in the driving video; is it a video of this pair?')
    return seconds(clip)


def shown_at(clip, fps, tick):
    """Index of the frame shown at tick `tick` of `fps`: the last one that begins before the middle of the tick."""
    return min(int((tick + Fraction(1, 2)) * Fraction(clip.fps) / Fraction(fps)), len(clip) - 1)


def at_rate(clip, fps, count):
    """Yields the first `count` frames of the clip at `fps`, with one in memory at a time."""
    shown = Counter(shown_at(clip, fps, tick) for tick in range(count))
    for i, frame in enumerate(clip.frames()):
        yield from repeat(frame, shown[i])
