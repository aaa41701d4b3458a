"""UserError, for mistakes that the user can correct, and helpers for its messages."""

import difflib
import functools
import sys
from pathlib import Path


class UserError(Exception):
    """A mistake in what the user gave: a config, a path, a file, a flag.

    The message is one line that says what is wrong, where, and what to do. `run.py` prints it
    without a traceback and exits with code 2; everything else is a bug and keeps its traceback.
    """


LONGEST = 1500         # characters of a message; names and values that others wrote may be longer


def one_line(error):
    """The message of a UserError, as one line of a terminal, whatever the names and values in it hold."""
    # From a data loading process it arrives behind that process's traceback: what follows our name is the message, of
    # other errors the last line.
    _, ours, text = str(error).rpartition(f'{UserError.__module__}.{UserError.__name__}: ')
    text = text.strip()
    if not ours and 'Traceback (most recent call last)' in text:
        text = text.splitlines()[-1]
    text = ''.join(sign if sign.isprintable() else sign.encode('unicode_escape').decode() for sign in text)
    return text if len(text) <= LONGEST else f'{text[:LONGEST - 400]} ... {text[-390:]}'


def program(main):
    """Decorator of a program's main function: its UserErrors are printed as one line and give exit code 2."""
    @functools.wraps(main)
    def run(arguments=None):
        try:
            return main(arguments) or 0
        except UserError as error:
            print(f'error: {one_line(error)}', file=sys.stderr)
            return 2
    return run


def nearest(name, known, cutoff=0.5):
    """The most similar of the `known` names; None where no similarity reaches `cutoff`, in [0, 1]."""
    return next(iter(difflib.get_close_matches(str(name), list(known), 1, cutoff)), None)


def did_you_mean(name, known, cutoff=0.5):
    """'; did you mean X?' with the nearest of the `known` names, or '' without one."""
    close = nearest(name, known, cutoff)
    return f'; did you mean {close}?' if close else ''


def did_you_mean_or_known(name, known, cutoff=0.5):
    """As `did_you_mean`, or '; known: ...' with all `known` names."""
    return did_you_mean(name, known, cutoff) or f'; known: {", ".join(known)}'


def check_config_path(path):
    """Raise a UserError that names the nearest config unless `path` is a file. Here, as it must not import PyTorch."""
    path = Path(path)
    if not path.is_file():
        known = sorted(str(p) for p in path.parent.glob('*.yaml')) if path.parent.is_dir() else []
        raise UserError(f'config {path} does not exist{did_you_mean(path, known)}')
