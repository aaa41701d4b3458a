"""Text files that people write, atomic writing of files and folders, locks, and one-line errors."""

import codecs
import errno
import hashlib
import io
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:          # not Unix: unfinished files of killed processes stay
    fcntl = None

from support.errors import UserError

UNFINISHED = '.partial'      # suffix of unfinished files


def make_folder(path):
    """Create the folder `path` if it is missing, delete unfinished files of killed processes in it, and return it.

    Raises UserError if it cannot be created or written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'{path}: cannot create this folder ({error.strerror}); choose another') from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f'{path}: no permission to write to this folder; choose another')
    for left in path.glob(f'.*{UNFINISHED}'):
        _remove_if_left(left)
    return path


def is_there(path):
    """exists(), but False for invalid names, which lists may hold."""
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


def read_text(path):
    """The text of a file that people write: UTF-8, with or without a byte order mark; UserError for anything else."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f'{path}: cannot be read ({error.strerror})') from error
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b'\0' in data[:4]:
        raise UserError(f'{path}: is UTF-16 text; save it as UTF-8')
    try:
        return data.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        line = data.count(b'\n', 0, error.start) + 1
        raise UserError(f'{path}: line {line} is not UTF-8 text; save the file as UTF-8') from error


def file_hash(path):
    """SHA-256 of a file, hexadecimal."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def refuse_overwriting(results, inputs):
    """UserError if a file to write is one of the `inputs`, by whatever path or link; None and clips are passed over."""
    def files(paths):
        there = (Path(path) for path in paths if isinstance(path, (str, Path)) and is_there(Path(path)))
        return {(path.stat().st_dev, path.stat().st_ino): path for path in there}
    results, inputs = files(results), files(inputs)
    if both := results.keys() & inputs.keys():
        same = both.pop()
        raise UserError(f'{results[same]}: the result would replace an input ({inputs[same]}); choose another name')


def check_inputs(paths):
    """UserError for the first of the files or folders that does not exist; None and clips are passed over."""
    for path in paths:
        if isinstance(path, (str, Path)) and not is_there(Path(path)):
            raise UserError(f'{path}: no such file or folder')


def remove(path):
    """Delete a file, or a folder with its contents, if it exists."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def writing(path):
    """Turns OSErrors of the body into UserErrors that name `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(f'{path}: cannot be written ({error.strerror or error}); correct this, or '
                        'choose another place') from error


def encoded(save, **options):
    """The bytes that save(file, **options) writes.

    save: method of a PIL image, which itself ignores that a full disk took only a part, or of a Matplotlib figure
    """
    picture = io.BytesIO()
    save(picture, **options)
    return picture.getvalue()


@contextmanager
def written_whole(path, aside=None, folder=False):
    """Yields a temporary file name, or an empty temporary folder, to fill; at the end it replaces `path`.

    After an exception it is deleted and `path` stays unchanged. If the process is killed, the next `make_folder` of its
    folder deletes it.

    aside:  folder on the same disk for the temporary file; None for that of `path`
    raises: UserError if `path` cannot be written
    """
    path = Path(path)
    unfinished = Path(aside or path.parent) / f'.{path.name}.{os.getpid()}{UNFINISHED}'
    old = unfinished.with_suffix(f'.old{UNFINISHED}')
    try:
        with writing(path), _held(unfinished, folder):
            yield unfinished
            if folder and path.exists():      # unlike a file, a folder cannot replace another
                path.replace(old)
            unfinished.replace(path)
    finally:
        remove(unfinished)
        remove(old)


def write_bytes(path, content):
    """Write a file, whole or not at all. UserError if it cannot be written."""
    with written_whole(path) as unfinished:
        unfinished.write_bytes(content)


def write_text(path, text):
    """Write a text file in UTF-8, whole or not at all. UserError if it cannot be written."""
    write_bytes(path, text.encode())


@contextmanager
def locked(path, wait=True):
    """A lock between processes: the file `path`, which exists only while it is held.

    It also holds between machines on network disks. On file systems without locks it has no effect.
    wait:   wait for another holder; otherwise raise BlockingIOError
    raises: OSError if the file cannot be created
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if _lock(descriptor, wait) is False:
            os.close(descriptor)
            raise BlockingIOError(errno.EAGAIN, 'another process holds it', str(path))
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            break
        os.close(descriptor)        # the previous holder has deleted it
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def is_locked(path):
    """Whether a process holds `locked(path)`; False on file systems without locks."""
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
    """Creates and locks a temporary file or folder: the lock shows that its process is alive."""
    while True:
        if folder:
            unfinished.mkdir(exist_ok=True)
        descriptor = os.open(unfinished, os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        _lock(descriptor)
        if unfinished.exists():
            break
        os.close(descriptor)        # another process has deleted it before it was locked
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
    """True if locked, False if another process holds it, None on file systems without locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        return True
    except BlockingIOError:
        return False
    except OSError:
        return None
