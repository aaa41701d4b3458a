"""Files and folders that a user asked for: written whole or not at all, refused in one line."""

import errno
import io
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:          # not a Unix: what a killed process leaves unfinished stays there
    fcntl = None

from support.errors import UserError

UNFINISHED = '.partial'      # ends the names of what is not whole yet


def make_folder(path):
    """The folder `path`, made if need be; what a killed process left unfinished in it is removed.

    Raises UserError where it cannot be made or written in.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'{path}: cannot be made a folder ({error.strerror}); choose another') from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f'{path}: no permission to write in this folder; choose another')
    for left in path.glob(f'.*{UNFINISHED}'):
        _remove_if_left(left)
    return path


def is_there(path):
    """Whether there is a file or folder; False, too, for what no file can be called: lists name files, in any words."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def split_assignment(text):
    """'NAME=PATH' or 'PATH' -> (NAME or None, Path): the first reading whose path exists; paths may contain '='."""
    parts = text.split('=')
    readings = [('='.join(parts[:i]), Path('='.join(parts[i:]))) for i in range(len(parts))]
    missing = readings[0] if '/' in parts[0] else readings[min(1, len(parts) - 1)]
    name, path = next((reading for reading in readings if is_there(reading[1])), missing)
    return name or None, path


def refuse_overwriting(results, inputs):
    """UserError if a file to write is one of the `inputs`, by whatever path or link; None and clips are passed over."""
    def paths(files):
        return [Path(file) for file in files if isinstance(file, (str, Path)) and is_there(Path(file))]
    for result in paths(results):
        for given in paths(inputs):
            if result.samefile(given):
                raise UserError(f'{result}: the result would replace an input ({given}); choose another name')


def remove(path):
    """Removes a file or a folder with all that is in it, if it is there."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def writing(path):
    """Within it, what the system has against writing becomes a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(f'{path}: cannot be written ({error.strerror or error}); correct that, or '
                        'choose another place') from error


def write_picture(path, save, **options):
    """Fill the file `path` with what save(file, **options) writes: every byte, or OSError.

    save: of a PIL image or a Matplotlib figure. Left to write to a path, PIL takes no notice where a disk that is full
          takes only a part.
    """
    picture = io.BytesIO()
    save(picture, **options)
    Path(path).write_bytes(picture.getvalue())


@contextmanager
def written_whole(path, aside=None, folder=False):
    """Yields another name of a file, or of an empty folder, to fill; afterwards that becomes `path`.

    It replaces what was at `path` before. If anything goes wrong, it is removed and `path` stays as it was; where the
    process is killed, it is removed by the next `make_folder` of its folder.

    aside:  folder on the same disk to write in; None for that of `path`
    raises: UserError where `path` cannot be written
    """
    path = Path(path)
    unfinished = Path(aside or path.parent) / f'.{path.name}.{os.getpid()}{UNFINISHED}'
    old = unfinished.with_suffix(f'.old{UNFINISHED}')
    try:
        with writing(path), _held(unfinished, folder):
            yield unfinished
            if folder and path.exists():      # other than a file, a folder does not replace what is there
                path.replace(old)
            unfinished.replace(path)
    finally:
        remove(unfinished)
        remove(old)


@contextmanager
def locked(path, wait=True):
    """Within it, no other process is within that of the same `path`, a file that is there only meanwhile.

    On network disks, on no other machine either. File systems without locks have none to give: nobody waits there.
    wait:   for a process that is; otherwise BlockingIOError
    raises: OSError where the file cannot be made
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if _lock(descriptor, wait) is False:
            os.close(descriptor)
            raise BlockingIOError(errno.EAGAIN, 'another process has it', str(path))
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            break
        os.close(descriptor)        # who had it before has removed it
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def is_locked(path):
    """Whether a process is within `locked(path)`; False, too, where the file system has no locks."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        return _lock(descriptor, wait=False) is False
    finally:
        os.close(descriptor)


@contextmanager
def _held(unfinished, folder):
    """Within it, a file or folder of this name is there, and locked: a sign that its process is alive."""
    while True:
        if folder:
            unfinished.mkdir(exist_ok=True)
        descriptor = os.open(unfinished, os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        _lock(descriptor)
        if unfinished.exists():
            break
        os.close(descriptor)        # it was taken for one that is left, between two lines
    try:
        yield
    finally:
        os.close(descriptor)


def _remove_if_left(unfinished):
    try:
        descriptor = os.open(unfinished, os.O_RDONLY)
    except OSError:
        return
    try:
        if _lock(descriptor, wait=False):
            remove(unfinished)
    finally:
        os.close(descriptor)


def _lock(descriptor, wait=True):
    """True if the lock was had, False if another process has it, None if the file system has no locks to give."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        return True
    except BlockingIOError:
        return False
    except OSError:
        return None
