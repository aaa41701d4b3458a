"""Packing of a dataset's videos into tar shards (datasets/shards.py)."""

import tarfile
from pathlib import Path

from tqdm import tqdm

from datasets.frames import clip_paths
from datasets.manifest import NAME as MANIFEST
from datasets.manifest import PARTITIONS
from datasets.shards import SUFFIX, Member
from support.errors import UserError
from support.files import make_folder, write_bytes, written_whole


def pack(root, out, megabytes):
    """Store the videos of root/train and root/test, or of one of them, in shards below `out`, with the manifest.

    Clips are ordered by name, byte for byte: the same clips give the same shards, which replace earlier ones. A shard
    exceeds `megabytes` only for a single larger clip. Returns the numbers of (clips, shards). Raises UserError, for
    folders of stills too.
    """
    root, out = Path(root), make_folder(out)
    clips, shards, there = 0, 0, [partition for partition in PARTITIONS if (root / partition).is_dir()]
    for partition in there or PARTITIONS:
        videos = _videos(root, partition)
        if other := next((path for path in (out / partition).glob('*') if path.suffix != SUFFIX), None):
            raise UserError(f'{other}: is no shard; choose another --out')
        with written_whole(out / partition, folder=True) as folder:
            batches = list(_batches(videos, megabytes * 10 ** 6))
            for number, batch in enumerate(tqdm(batches, unit='shard', dynamic_ncols=True)):
                _write(folder / f'{number:05d}{SUFFIX}', batch)
        clips, shards = clips + len(videos), shards + len(batches)
    if (root / MANIFEST).exists():
        write_bytes(out / MANIFEST, (root / MANIFEST).read_bytes())
    return clips, shards


def _videos(root, partition):
    """Paths of the video files of a partition, in order of their names."""
    paths = clip_paths(root, partition)
    for path in paths.values():
        if isinstance(path, Member) or path.is_dir():
            what = 'in a shard already' if isinstance(path, Member) else 'a folder of stills'
            raise UserError(f'{path}: is {what}; shards are made of video files, as --mode prepare --format mp4 makes '
                            'them')
    return [paths[name] for name in sorted(paths)]


def _batches(videos, limit):
    """The videos in order, in groups of at most `limit` bytes, or of one."""
    batch, size = [], 0
    for video in videos:
        if batch and size + video.stat().st_size > limit:
            yield batch
            batch, size = [], 0
        batch.append(video)
        size += video.stat().st_size
    if batch:
        yield batch


def _write(path, videos):
    with tarfile.open(path, 'w', format=tarfile.PAX_FORMAT) as tar:
        for video in videos:
            entry = tarfile.TarInfo(video.name)      # without owner and date: they are no part of the data
            entry.size = video.stat().st_size
            with open(video, 'rb') as file:
                tar.addfile(entry, file)
