"""Packing of a dataset's videos into tar shards (datasets/shards.py)."""

import shutil
import tarfile
from pathlib import Path

from tqdm import tqdm

from datasets.frames import clip_paths
from datasets.manifest import NAME as MANIFEST
from datasets.manifest import PARTITIONS, check_clip_name
from datasets.shards import SUFFIX, Member, members
from support.errors import UserError
from support.files import make_folder, written_whole


def pack(root, out, megabytes):
    """Store the videos of root/train and root/test, or of one of them, in shards below `out`, with the manifest.

    Returns the numbers of (clips, shards).

    Clips are ordered by name, byte for byte: the same clips give the same shards, and an interrupted command resumes.
    A shard exceeds `megabytes` only for a single larger clip. Raises UserError, for folders of stills too.
    """
    root, out = Path(root), Path(out)
    if out.resolve() == root.resolve():
        raise UserError(f'{out}: the shards would lie among their own clips; choose another --out')
    shards, there = {}, [partition for partition in PARTITIONS if (root / partition).is_dir()]
    for partition in there or PARTITIONS:
        batches = _batches(_videos(root, partition), megabytes * 10 ** 6)
        shards |= {out / partition / f'{number:05d}{SUFFIX}': batch for number, batch in enumerate(batches)}
        for path in make_folder(out / partition).iterdir():
            if path not in shards:
                raise UserError(f'{path}: is no shard of these clips at --shard_mb {megabytes}; remove it, or choose '
                                'another --out')
    for path, batch in tqdm(shards.items(), unit='shard', dynamic_ncols=True):
        if not (path.exists() and [(member.name, member.size) for member in members(path)]
                == [(video.name, video.stat().st_size) for video in batch]):
            _write(path, batch)
    if (root / MANIFEST).exists():
        with written_whole(out / MANIFEST) as path:
            shutil.copyfile(root / MANIFEST, path)
    return sum(map(len, shards.values())), len(shards)


def _videos(root, partition):
    """Paths of the video files of a partition, in order of their names."""
    paths = clip_paths(root, partition)
    for name, path in paths.items():
        if isinstance(path, Member) or path.is_dir():
            what = 'in a shard already' if isinstance(path, Member) else 'a folder of stills'
            raise UserError(f'{path}: is {what}; shards are made of video files, as --mode prepare --format mp4 makes '
                            'them')
        try:
            check_clip_name(name)
        except ValueError as error:
            raise UserError(f'{path}: {error}; rename it') from None
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
    with written_whole(path) as unfinished, tarfile.open(unfinished, 'w', format=tarfile.PAX_FORMAT) as tar:
        for video in videos:
            entry = tarfile.TarInfo(video.name)      # without owner and date: they are no part of the data
            entry.size = video.stat().st_size
            with open(video, 'rb') as file:
                tar.addfile(entry, file)
