"""Files and folders that a user asked for: written whole or not at all, refused in one line."""

import os
from contextlib import contextmanager
from pathlib import Path

from support.errors import UserError


def make_folder(path):
    """The folder `path`, made if need be. Raises UserError where it cannot be made or written in."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'{path}: cannot be made a folder ({error.strerror}); choose another') from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f'{path}: no permission to write in this folder; choose another')
    return path


@contextmanager
def written_whole(path):
    """Yields another name to write to; afterwards it becomes `path`, or vanishes if anything went wrong.

    Raises UserError where the file cannot be written.
    """
    path = Path(path)
    unfinished = path.with_name(f'.{path.name}.{os.getpid()}.partial')
    try:
        yield unfinished
        unfinished.replace(path)
    except OSError as error:
        raise UserError(f'{path}: cannot be written ({error.strerror})') from error
    finally:
        unfinished.unlink(missing_ok=True)
