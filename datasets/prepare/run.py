"""Preparation of a dataset from raw videos: clips of heads at 25 fps in FOMM's folders, and a manifest of all clips.

    videos + metadata (datasets/prepare/metadata.py), or videos alone (datasets/prepare/track.py)
      -> root/train, root/test: person#video#start#end.mp4, a video or a folder of stills
      -> root/manifest.jsonl  (datasets/manifest.py)

One video is one job of one process; datasets/prepare/parts.py distributes them. A clip appears complete or not at all,
and finished clips are not made again: rerun the same command to resume; it ends with the same files.

VoxCeleb: Nagrani et al., INTERSPEECH 2017, arXiv 1706.08612. CelebV-HQ: Zhu et al., ECCV 2022, arXiv 2207.12393.
"""

import logging
import os
import signal
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median

from tqdm import tqdm

from datasets.face_tracker import FaceDetector
from datasets.frame_folder import has_stills
from datasets.manifest import (
    CLIP_FPS, DUPLICATE, FAILED, LEFT_OUT, OK, PARTITIONS, Record, check_clip_name)
from datasets.prepare import crops
from datasets.prepare.download import check_command
from datasets.prepare.job import FORMATS, Job, do_job
from datasets.prepare.metadata import SOURCES, in_test
from datasets.prepare.parts import Part, merge, taking_part
from datasets.video import is_video
from support import distributed
from support.errors import UserError
from support.files import make_folder
from support.processes import end_with_parent

DATASETS = (*SOURCES, 'folder')
CROPS = ('square', 'legacy')
TEST_ONE_IN = 10                     # of a folder without a split

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DatasetSettings:
    """Settings of a dataset to be made, or of the part that is made here."""
    dataset: str                              # one of DATASETS
    root: Path                                # its folder
    videos: Path                              # with metadata, named by YouTube id: 'id.mp4', 'title [id].webm'
    metadata: Path | None = None              # the published file of the dataset; None for 'folder'
    crop: str = 'square'                      # the box grows to a square; 'legacy' is the published crop
    size: int = 256                           # side of the clips, pixels
    format: str = 'mp4'                       # one of FORMATS
    command: tuple[str, ...] | None = None    # yt-dlp and its options, to download missing videos
    keep_shared_people: bool = False          # keep test clips of people who are in training too
    min_face: int = 0                         # leave out clips whose crop has a shorter side, in pixels of the video
    rule: Callable | None = None              # of `crop`: (box, frame size) -> integer box, pixels; set by `prepare`
    work: Path | None = None                  # of the part: its manifest and unfinished clips; set by `prepare`

    def check(self):
        for name, known in (('dataset', DATASETS), ('crop', CROPS), ('format', FORMATS)):
            if getattr(self, name) not in known:
                raise UserError(f'--{name} {getattr(self, name)}: expected one of {", ".join(known)}')
        if self.size < 8:
            raise UserError(f'--size {self.size} must be at least 8')
        if self.min_face < 0:
            raise UserError(f'--min_face {self.min_face} must not be negative')
        if self.dataset == 'folder':
            if self.crop == 'legacy' or self.command or self.metadata:
                raise UserError('--dataset folder finds its crops itself: no --metadata, --download or --crop legacy')
        elif self.metadata is None:
            raise UserError(f'--dataset {self.dataset} needs --metadata: {SOURCES[self.dataset].url}')
        elif self.command:
            check_command(self.command)
        root, videos = self.root.resolve(), self.videos.resolve()
        inside = videos.is_relative_to(root) and videos.relative_to(root).parts[:1] in ((), ('train',), ('test',))
        if inside or self.dataset == 'folder' and root.is_relative_to(videos):
            raise UserError(f'{self.root}: the dataset would mix with its raw videos in {self.videos}; choose another '
                            '--out')


def prepare(options, workers=1, part=Part()):
    """Make the dataset or a part of it, or resume; processes of torchrun share the videos.

    workers: number of processes, one video each
    returns: {id: Record}; None while other parts are unfinished
    raises:  UserError if nothing can be made, or the dataset in `root` was made with other settings
    """
    if workers < 1:
        raise UserError(f'--workers {workers} must be at least 1')
    options.check()
    if options.dataset == 'folder':
        crop, rule = 'face', crops.as_listed
        jobs, left_out = folder_jobs(options.videos)
        FaceDetector().close()       # a missing package is reported once, not for every video
    else:
        source = SOURCES[options.dataset]
        if options.command:
            make_folder(options.videos)
        crop, rule = options.crop, source.legacy if options.crop == 'legacy' else crops.square
        jobs, left_out = metadata_jobs(source.read(options.metadata), options.videos, options.keep_shared_people)
    distributed.check_shared(make_folder(options.root))
    distributed.agree({'videos to prepare': distributed.digest([job.name for job in jobs])})
    part = part.divided(distributed.rank(), distributed.world())
    settings = replace(options, crop=crop, rule=rule, work=part.folder(options.root))

    with taking_part(part, jobs, left_out, settings) as (todo, progress):
        _run(todo, settings, workers, progress)
    return merge(part, jobs, left_out, settings)


# ---------------------------------------------------------------------------- jobs

def metadata_jobs(listed, videos, keep_shared_people):
    """(list of Job, records of left out clips) of {video id: list of Clip}."""
    present = _by_video_id(videos)
    people = {partition: {clip.person for clips in listed.values() for clip in clips if clip.partition == partition}
              for partition in PARTITIONS}
    shared = people['train'] & people['test']
    jobs, left_out, again = [], [], 0
    for video, clips in sorted(listed.items()):
        kept = {}
        for clip in sorted(clips, key=lambda clip: PARTITIONS.index(clip.partition)):
            again += clip.id in kept         # in both partitions: train has it, as in the published set
            kept.setdefault(clip.id, clip)
        out = [clip for clip in kept.values() if clip.partition == 'test' and clip.person in shared
               and not keep_shared_people]
        left_out += [Record(clip.id, clip.person, clip.partition, LEFT_OUT,
                            f'{clip.person} is in train too; --keep_shared_people keeps the clip') for clip in out]
        jobs.append(Job(video, present.get(video), tuple(clip for clip in kept.values() if clip not in out)))
    if unlisted := sorted(set(present.values()) - {present.get(video) for video in listed}):
        log.warning('%s: %d videos are not listed and left out, such as %s', videos, len(unlisted), unlisted[0].name)
    if again:
        log.info('%d clips are listed twice; they are made once', again)
    if shared:
        fate = 'kept in both' if keep_shared_people else f'their {len(left_out)} test clips are left out'
        log.warning('in train and in test: %s; %s', ', '.join(sorted(shared)), fate)
    return [job for job in jobs if job.clips], left_out


def folder_jobs(videos):
    """(a Job for every video below a folder, and for every folder of stills; records of all other files).

    The first folder below is the person, else the video's name up to '#'. Folders `train` and `test` are a split; else
    one person in ten, chosen by name, is for testing, at least one of two or more.
    Raises UserError if there is no video.
    """
    found = []                               # (partition or None, person, video, path), videos before others
    paths, others = _files_below(videos)
    if not paths:
        raise UserError(f'{videos}: no videos; expected files that FFmpeg reads or folders of PNG or JPEG frames'
                        + (f', found {len(others)} other files' if others else ''))
    for path in paths + others:
        *folders, name = path.relative_to(videos).parts
        partition = folders.pop(0) if folders and folders[0] in PARTITIONS else None
        stem = name if path.is_dir() else Path(name).stem
        person, separator, rest = stem.partition('#')
        if folders:
            person, video = folders[0], '_'.join((*folders[1:], stem))
        else:
            video = rest if separator else stem
        found.append((partition, person.replace('#', '_'), video.replace('#', '_'), path))
    to_split = sorted({person for partition, person, *_ in found[:len(paths)] if partition is None})
    testers = {person for person in to_split if in_test(person, TEST_ONE_IN)}
    if not testers and len(to_split) > 1:
        testers = {to_split[-1]}
    jobs, taken = [], Counter()
    for partition, person, video, path in found:
        taken[person, video] += 1
        if taken[person, video] > 1:         # a.mp4 and a.mov
            video = f'{video}-{taken[person, video]}'
        name = str(path.relative_to(videos))
        try:
            check_clip_name(f'{person}#{video}#{0:06d}#{0:06d}')
        except ValueError as error:
            raise UserError(f'{path}: {error}; rename the file') from None
        partition = partition or ('test' if person in testers else 'train')
        jobs.append(Job(name, path, None, Record(f'{person}#{video}', person, partition, FAILED, source=name)))
    return jobs[:len(paths)], [replace(job.failure, error=f'{job.path} is not a video') for job in jobs[len(paths):]]


def _files_below(folder):
    """(videos, and folders that hold stills and no videos; all other files), paths below a folder, sorted.

    Links are followed. Hidden files are left out.
    """
    if not folder.is_dir():
        raise UserError(f'{folder}: no such folder of videos')
    found, others, seen = [], [], {os.path.realpath(folder)}

    def is_new(path):
        known, real = len(seen), os.path.realpath(path)
        seen.add(real)
        return len(seen) > known

    def explain(error):
        log.warning('%s: left out, this folder cannot be read (%s)', error.filename, error.strerror)

    for here, folders, files in os.walk(folder, onerror=explain, followlinks=True):
        folders[:] = [name for name in sorted(folders) if not name.startswith('.') and is_new(Path(here, name))]
        paths = [Path(here, name) for name in files if not name.startswith('.')]
        videos = [path for path in paths if is_video(path)]
        if not videos and Path(here) != folder and has_stills(here):
            videos, paths = [Path(here)], []
            folders.clear()
        found += videos
        others += [path for path in paths if path not in videos]
    return sorted(found), sorted(others)


def _by_video_id(folder):
    """{YouTube id: path} of files named 'id.mp4' or, as by yt-dlp, 'title [id].mp4'."""
    present = {}
    for path in _files_below(folder)[0]:
        present[path.stem] = path
        if path.stem.endswith(']'):
            present.setdefault(path.stem[:-1].rpartition('[')[2], path)
    return present


# ---------------------------------------------------------------------------- processes

def _run(jobs, settings, workers, progress):
    """Do the jobs in `workers` processes, in this one if that is 1, and count them in Progress."""
    with tqdm(total=len(jobs), unit='video', desc=str(settings.root), dynamic_ncols=True,
              disable=distributed.rank() > 0) as bar:
        counts = Counter()

        def count(records):
            counts.update(record.status for record in records)
            bar.set_postfix(counts)
            bar.update()
            progress.count()

        if workers == 1:
            for job in jobs:
                count(do_job(job, settings))
            return
        pool = ProcessPoolExecutor(workers, get_context('spawn'), initializer=_follow_parent)
        try:
            for done in as_completed([pool.submit(do_job, job, settings) for job in jobs]):
                count(done.result())
        except BrokenProcessPool:
            raise UserError('a process was killed, most often because memory was full; rerun the same command to '
                            'resume, with fewer --workers if it happens again') from None
        finally:
            pool.shutdown(cancel_futures=True)


def _follow_parent():
    """End a worker process immediately when it is interrupted, and when its parent ends."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    end_with_parent()


# ---------------------------------------------------------------------------- summary

def summary(records):
    """Summary for the user, a few lines: clips made, and clips missing with a reason."""
    lines = []
    for partition in PARTITIONS:
        clips = [record for record in records.values() if record.status == OK and record.partition == partition]
        frames = sum(record.frames for record in clips)
        lines.append(f'{partition:5}  {len(clips):,} clips of {len({record.person for record in clips}):,} people, '
                     f'{frames:,} frames, {frames / float(CLIP_FPS) / 3600:.2f} h')
    if clips := [record for record in records.values() if record.status == OK]:
        sides, size = sorted(record.crop_side for record in clips), clips[0].size
        enlarged = sum(side < size for side in sides)
        advice = f'; --min_face {size} leaves them out' if enlarged else ''
        lines.append(f'crops are {sides[0]:,} to {sides[-1]:,} px large in the videos, median {median(sides):,.0f}: '
                     f'{enlarged:,} of {len(clips):,} clips are enlarged to {size} px{advice}')
    for status in (DUPLICATE, LEFT_OUT, FAILED):
        missing = sorted(record.id for record in records.values() if record.status == status)
        if missing:
            why = records[missing[0]].error
            lines.append(f'{status.replace("_", " ")}: {len(missing):,}, such as {missing[0]}: {why}')
    return '\n'.join(lines)
