"""Clips of one video: open or download it, cut at 25 fps, crop, write complete files, add manifest records."""

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import count
from pathlib import Path

from PIL import Image

from datasets.constant_rate import frames_at, indices_at
from datasets.manifest import CLIP_FPS, FAILED, LEFT_OUT, OK, Record, append
from datasets.prepare.download import download
from datasets.prepare.metadata import Clip, NoClip
from datasets.prepare.track import find_heads
from datasets.still import cut
from datasets.video import open_clip
from datasets.video_writer import VideoWriter
from support.errors import UserError
from support.files import encoded, written_whole

GOP = 10                             # distance of key frames: files grow by half, sampling is five times faster
FORMATS = ('mp4', 'png', 'jpeg')
STILLS = {'png': ('.png', dict(format='PNG')), 'jpeg': ('.jpg', dict(format='JPEG', quality=95, subsampling=0))}


@dataclass(frozen=True)
class Job:
    """One video and its clips."""
    name: str                         # YouTube id, or path below the folder
    path: Path | None                 # of its file; None if it is missing
    clips: tuple[Clip, ...] | None    # to cut from it; None if they have to be found
    failure: Record | None = None     # if they have to be found, the record for a video without clips


def do_job(job, settings):
    """Make the clips of one video and add them to the manifest; returns their records.

    settings: DatasetSettings
    """
    try:
        video, clips = _open(job, settings)
    except NoClip as error:
        blank = [job.failure] if job.clips is None else [_blank(clip, job.name) for clip in job.clips]
        records = [replace(record, status=FAILED, error=str(error)) for record in blank]
        append(settings.work, records)
        return records
    records = []
    for clip in clips:
        records.append(_make(clip, job.name, video, settings))
        if job.clips is not None:
            append(settings.work, records[-1:])
    if job.clips is None:
        append(settings.work, records)       # in one write: a video that has records is done
    return records


def _open(job, settings):
    """(video, its clips)"""
    path = job.path
    if path is None:
        if settings.command is None:
            raise NoClip(f'no video {job.name} in {settings.videos}; --download fetches it')
        path = download(settings.command, job.name, settings.videos)
    with _reading():
        video = open_clip(path)
        if job.clips is not None:
            return video, job.clips
        return video, [_clip_of(head, job.failure) for head in find_heads(video, settings.size / 2)]


def _clip_of(head, video):
    """The Clip of a Head in a video, whose name, person and partition are those of its Record."""
    left, top, side = head.square.left, head.square.top, head.square.side
    height, width, _ = head.shape
    return Clip(id=f'{video.id}#{head.start:06d}#{head.stop:06d}', person=video.person, partition=video.partition,
                start=Fraction(head.start, CLIP_FPS), frames=head.stop - head.start,
                box=(left, top, left + side, top + side), frame=(width, height))


def _blank(clip, source):
    return Record(clip.id, clip.person, clip.partition, FAILED, source=source, start=float(clip.start))


def _make(clip, source, video, settings):
    record = _blank(clip, source)
    try:
        with _reading():
            indices = indices_at(video, CLIP_FPS, clip.start, clip.frames)
            height, width, _ = video.read([int(indices[0])])[0].shape
        box = _pixels(clip, (width, height), settings.rule)
        cropped = replace(record, crop=settings.crop, box=box)
        if cropped.crop_side < settings.min_face:
            return too_small(cropped, settings.min_face)
        digest = hashlib.sha256()
        with _written(record, settings) as write:
            for frame in _readable(frames_at(video, indices, threads=1)):
                if frame.shape != (height, width, 3):
                    raise NoClip(f'{source}: its frames change their size')
                picture = cut(frame, box, settings.size)
                digest.update(picture)
                write(picture)
    except NoClip as error:
        return replace(record, error=str(error))
    return replace(cropped, status=OK, frames=clip.frames, fps=int(CLIP_FPS), size=settings.size,
                   format=settings.format, hash=digest.hexdigest())


def too_small(record, min_face):
    """The Record of a clip that is left out because its crop has too few pixels; it keeps the box."""
    return replace(record, status=LEFT_OUT, frames=None, fps=None, size=None, format=None, hash=None,
                   error=f'its crop is {record.crop_side} px large, less than --min_face {min_face}')


def _pixels(clip, frame_size, rule):
    """The clip's box in a frame of this size."""
    width, height = frame_size
    across, down = width / clip.frame[0], height / clip.frame[1]
    if clip.frame != (1, 1) and abs(across / down - 1) > 0.02:
        raise NoClip(f'the video is {width}x{height}, but its boxes were made for '
                     f'{clip.frame[0]}x{clip.frame[1]}; is it another version?')
    x0, y0, x1, y1 = clip.box
    box = rule((x0 * across, y0 * down, x1 * across, y1 * down), frame_size)
    if min(box[2], width) - max(box[0], 0) < 1 or min(box[3], height) - max(box[1], 0) < 1:
        raise NoClip(f'the box {box} is not in the {width}x{height} video')
    return box


@contextmanager
def _reading():
    try:
        yield
    except UserError as error:
        raise NoClip(str(error)) from error


def _readable(frames):
    with _reading():
        yield from frames


@contextmanager
def _written(record, settings):
    """Yields a function that takes the frames; the clip appears when the block ends. Raises UserError."""
    path, aside = settings.root / record.file, unfinished(settings.work)
    if settings.format == 'mp4':
        with VideoWriter(path, CLIP_FPS, gop=GOP, threads=1, aside=aside) as writer:
            yield writer.write
    else:
        suffix, options = STILLS[settings.format]
        with written_whole(path, aside, folder=True) as folder:
            names = (folder / f'{number:07d}{suffix}' for number in count())
            yield lambda frame: next(names).write_bytes(encoded(Image.fromarray(frame).save, **options))


def unfinished(work):
    """The folder in which clips are written until they are complete."""
    return work / 'unfinished'
