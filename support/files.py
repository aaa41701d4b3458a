"""Files and folders that a user asked for: written whole or not at all, refused in one line."""

import os
import shutil
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


def is_there(path):
    """Whether there is a file or folder; False, too, for what no file can be called: lists name files, in any words."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def remove(path):
    """Removes a file or a folder with all that is in it, if it is there."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def written_whole(path, aside=None):
    """Yields another name for a file, or for a folder to be made; afterwards what was written there becomes `path`.

    It replaces what was at `path` before. If anything goes wrong, it is removed and `path` stays as it was.

    aside:  folder on the same disk to write in; None for that of `path`
    raises: UserError where `path` cannot be written
    """
    path = Path(path)
    unfinished = Path(aside or path.parent) / f'.{path.name}.{os.getpid()}.partial'
    try:
        yield unfinished
        if unfinished.is_dir():       # other than a file, a folder does not replace what is there
            remove(path)
        unfinished.replace(path)
    except OSError as error:
        raise UserError(f'{path}: cannot be written ({error.strerror})') from error
    finally:
        remove(unfinished)
