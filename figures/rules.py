"""What a comparison can be asked for in words. Imports nothing slow: the command line checks words against it."""

import re
from fractions import Fraction
from typing import NamedTuple

from support.errors import UserError

RULES = ('largest_pose', 'worst', 'best')
BY_SCORE = RULES[1:]                 # they need the truth, and all frames
PARTS = ('mouth', 'eyes')            # of a face, to enlarge


class Time(NamedTuple):
    """A moment of every driving video, from its beginning."""
    seconds: Fraction


def parse_frames(words):
    """One of RULES, or a tuple of frames, by number or Time. UserError."""
    if len(words) == 1 and words[0] in RULES:
        return words[0]
    if not words or not all(re.fullmatch(r'[0-9]+|[0-9]+(\.[0-9]+)?s', word) for word in words):
        raise UserError(f'--frames {" ".join(words)}: expected {", ".join(RULES)}, or numbers of frames, counted from '
                        '0, or times as 1.5s')
    frames = (Time(Fraction(word[:-1])) if word.endswith('s') else int(word) for word in words)
    return tuple(dict.fromkeys(frames))


def parse_zoom(words):
    """A region (x, y, w, h), one of PARTS, or None. UserError."""
    if len(words) == 4 and all(word.isdecimal() for word in words):
        return tuple(map(int, words))
    if not words or len(words) == 1 and words[0] in PARTS:
        return words[0] if words else None
    raise UserError(f'--zoom {" ".join(words)}: expected x y w h in pixels, mouth, or eyes')


def indices_of(frames, fps):
    """Numbers of the frames, by number or Time, of a video; at a time that which is on display then."""
    return [int(frame.seconds * fps) if isinstance(frame, Time) else frame for frame in frames]


def rule_text(rule, methods, rendered):
    """How frames were chosen; rule: of RULES, or frames; methods, rendered: names of all, and of those that render."""
    if rule not in RULES:
        times = [f'at {float(frame.seconds):g} s' for frame in rule if isinstance(frame, Time)]
        numbers = [str(frame) for frame in rule if not isinstance(frame, Time)]
        said = ', '.join(numbers + times)
        return f'Frame{"s" * (len(rule) > 1)} {said} of each driving video{", counted from 0" * bool(numbers)}.'
    if rule in BY_SCORE:
        return (f'Of each pair the frame at which {methods[0]} has its {"lowest" if rule == "worst" else "highest"} '
                'PSNR.')
    what = f'keypoints, by {rendered[0]}, lie' if rendered else 'pixels are'
    return f"Of each pair the driving frame whose {what} farthest from those of the driving video's first frame."
