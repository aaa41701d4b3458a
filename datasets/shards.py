"""Clips in tar shards: thousands of videos in a few files, for disks that open files slowly.

    root/train/00000.tar, 00001.tar, ...    plain tar files whose members are person#video#start#end.mp4

They are shards as of WebDataset (https://github.com/webdataset/webdataset), but not read as a stream: FFmpeg decodes a
member within its archive (https://ffmpeg.org/ffmpeg-protocols.html#subfile). Any frame of any clip can be read in any
order, the samples of a run are those of loose files, and a run resumes exactly.
datasets/prepare/pack.py makes them.
"""

import os
import tarfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from support.errors import UserError

SUFFIX = '.tar'


class Member(NamedTuple):
    """A file inside a tar archive: offset and size in bytes, with the Path attributes that readers use."""
    archive: Path
    inside: str      # its name there, folders included
    start: int
    size: int

    def __str__(self):
        return f'{self.archive}/{self.inside}'

    @property
    def name(self):
        return PurePosixPath(self.inside).name

    @property
    def stem(self):
        return PurePosixPath(self.inside).stem

    @property
    def suffix(self):
        return PurePosixPath(self.inside).suffix

    def is_dir(self):
        return False

    def exists(self):
        return True

    def stat(self):
        """stat() of the tar file, since members change only with it."""
        return self.archive.stat()


def address(path):
    """The name by which FFmpeg opens a Path or Member; absolute, since a colon in it would be read as a protocol."""
    if isinstance(path, Member):
        return f'subfile,,start,{path.start},end,{path.start + path.size},,:file:{os.path.abspath(path.archive)}'
    return os.path.abspath(path)


def stored_size(path):
    """Size in bytes of a Path or Member."""
    return path.size if isinstance(path, Member) else os.path.getsize(path)


def read_bytes(path, start, count):
    """At most `count` bytes of a Path or Member, from `start` on."""
    inside = isinstance(path, Member)
    with open(path.archive if inside else path, 'rb') as file:
        file.seek(start + path.start * inside if inside else start)
        return file.read(min(count, path.size - start) if inside else count)


def members(archive):
    """The files of a tar file as Members, in its order. Raises UserError for one that is damaged, or no tar file."""
    stored = os.path.getsize(archive)
    try:
        with tarfile.open(archive, 'r:') as tar:
            found = [Member(Path(archive), entry.name.removeprefix('./'), entry.offset_data, entry.size)
                     for entry in tar if entry.isfile() and not entry.issparse()]
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise UserError(f'{archive}: cannot be read as an uncompressed tar file ({error}); fetch it again') from error
    for member in found:
        if member.start + member.size > stored:
            raise UserError(f'{archive}: is truncated within {member.name}; download it again')
    return found
