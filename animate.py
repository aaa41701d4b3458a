"""Cross-identity animation: a source image follows a driving clip; one pair, or many.

Frames stream: decode, render and encode run side by side, each in its thread, on batches. Memory does not
grow with the length of the clip, the source is encoded once, and the result has the clip's frame rate to the
fraction.
"""

import bisect
import csv
import functools
import hashlib
import json
import logging
import random
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets.constant_rate import open_constant_rate
from datasets.face_crop import CroppedClip, PasteBack, find_crop, resized, spread, warn_of_small_faces
from datasets.face_tracker import FaceDetector
from datasets.video import open_any
from datasets.video_writer import VideoWriter
from evaluation.store import weights_hash
from inference import Motion
from support import distributed
from support.errors import UserError
from support.files import make_folder
from support.streaming import write_behind
from visualizer import Strip, beside, contact_sheet, draw_crop, enlarge, rows_of_sheet, save_png

PREVIEW = 480              # height of the picture that shows the crops, pixels

log = logging.getLogger(__name__)


# One pair

def animate(renderer, source_image, driving, result, motion=Motion(), *, anchor=None, show=None, audio_from=None):
    """Let `source_image` follow `driving`, into the video file `result`; returns the number of frames.

    renderer:     inference.Renderer
    source_image: (H, W, 3) uint8
    driving:      clip as in datasets/video.py, at the model's image size
    result:       path; appears whole or not at all, its folder is made
    motion:       inference.Motion
    anchor:       index of the initial frame of relative motion; None for the one that `motion` says
    show:         function of (source, driving, generated frame) that makes what is written; None for the last alone
    audio_from:   file whose sound goes with the result, or None
    raises:       UserError for a clip that cannot be read, an anchor outside it, a result that cannot be written
    """
    result = Path(result)
    make_folder(result.parent)
    driven = renderer.follow(source_image, driving, motion, anchor)

    def compose(driving_frame, frame):
        return frame if show is None else show(source_image, driving_frame, frame)

    with tqdm(total=len(driving), unit='frame', desc=result.name, dynamic_ncols=True) as progress:
        _write(result, driving, audio_from, driven, compose, lambda driven, made: progress.update(len(driven)))
    return progress.n


def _write(result, driving, audio_from, driven, compose, watch):
    """Write compose(driving frame, frame) for all that drives to the file `result`; watch(driving, made) each batch."""
    def encode(frames, made):
        for pair in zip(frames, made):
            video.write(compose(*pair))

    with VideoWriter(result, driving.fps, audio_from) as video, write_behind(encode) as encode_later:
        for batch in driven.render(driving.frames()):
            encode_later(batch.driving, batch.frames)
            watch(batch.driving, batch.frames)


# Crops

def squeeze(source_image, driving, size, names):
    """Source and driving as they are, resized to (size, size) each; logs which of the files loses its proportions."""
    for name, (height, width, _) in zip(names, (source_image.shape, driving.read([0])[0].shape)):
        if height != width:
            log.warning('%s: is %dx%d and gets squeezed into a square; --crop auto cuts one around the face',
                        name, width, height)
    return resized(source_image, size), open_constant_rate(driving.path, size)


def crop_to_faces(source_image, driving, size, preview, *, names, face_index=(0, 0)):
    """Source and driving, each cut to a square around one face, and the way back into the source.

    source_image: (H, W, 3) uint8, uncropped
    driving:      clip as in datasets/video.py, uncropped
    size:         of the crops, pixels
    preview:      path of a PNG that shows the faces by their numbers and the crops, source | driving
    names:        of the two files, for messages
    face_index:   which face of each, the largest is 0
    returns:      source (size, size, 3) uint8, CroppedClip, PasteBack
    raises:       UserError that names the file without such a face, or what the detector is missing
    """
    make_folder(Path(preview).parent)
    with FaceDetector() as detector:
        source = find_crop(detector, [source_image], names[0], face_index[0])
        looks = tqdm(spread(len(driving)), desc='faces', leave=False, dynamic_ncols=True)
        driver = find_crop(detector, (frame for indices in looks for frame in driving.read(indices)),
                           names[1], face_index[1])
    for crop, name in zip((source, driver), names):
        warn_of_small_faces(crop, name, size)
    save_png(preview, beside(*(enlarge(draw_crop(crop.frame, crop.boxes, crop.square), PREVIEW)
                               for crop in (source, driver))))
    return (source.square.cut(source_image, size), CroppedClip(driving, driver.square, size),
            PasteBack(source_image, source.square))


# Many pairs

class Pair(NamedTuple):
    """What to animate.

    source:     clip whose first frame is the source
    driving:    clip
    anchor:     initial frame for relative motion, None for the first
    audio_from: file whose sound goes with the result, or None
    """
    source: Any
    driving: Any
    anchor: int | None = None
    audio_from: Path | None = None


class _Job(NamedTuple):
    """A pair, its files, and the stamp of a strip that was made with these weights, settings and files."""
    name: str
    pair: Pair
    result: Path
    strip: Path
    stamp: str

    def finished(self):
        return self.result.is_file() and _stamp_of(self.strip) == self.stamp

    @property
    def crop(self):
        """Path of the picture of both crops."""
        return self.strip.with_name(f'{self.name}_crop.png')


def animate_pairs(renderer, pairs, folder, motion=Motion(), *, crop_size=None, made_by=''):
    """Animate every Pair into `folder`: NUMBER_SOURCE--DRIVING.mp4 (source | driving | result), contact_sheet.png.

    Several processes (torchrun) share the pairs. What is finished is not made again by the same call: moments/
    keeps a strip of pictures per video, written after it, which says of which weights, settings and files it was made.

    crop_size: cut source and driving to this size around their faces first; None where they are crops already
    made_by:   whatever else makes this model differ from another one with the same weights
    The other arguments, and what is raised, as in `animate`.
    returns: paths of the videos, in the order of the pairs
    """
    if not pairs:
        raise UserError('no pairs to animate')
    folder = make_folder(folder)
    moments = make_folder(folder / 'moments')
    made_by = [made_by, weights_hash(renderer.model), asdict(motion), crop_size, renderer.precision]
    names = [f'{i:03d}_{pair.source.name}--{pair.driving.name}' for i, pair in enumerate(pairs)]
    jobs = [_Job(name, pair, folder / f'{name}.mp4', moments / f'{name}.png', _stamp(made_by, pair))
            for name, pair in zip(names, pairs)]
    todo = [job for job in jobs[distributed.rank()::distributed.world()] if not job.finished()]
    with tqdm(total=sum(len(job.pair.driving) for job in todo), unit='frame', desc='animation', dynamic_ncols=True,
              disable=distributed.rank() > 0) as progress:
        for job in todo:
            progress.set_postfix_str(job.name[:40])
            _animate_pair(renderer, job, motion, crop_size, progress)
    shown = [jobs[i] for i in rows_of_sheet(len(jobs))]
    if all(job.finished() for job in shown):      # else another process has not come so far, and draws it
        sheet = contact_sheet([_cells(job.strip) for job in shown], [job.name.partition('_')[2] for job in shown])
        save_png(folder / 'contact_sheet.png', sheet)
    return [job.result for job in jobs]


def _animate_pair(renderer, job, motion, crop_size, progress):
    """Write the video of a pair, then its strip."""
    source, driving, anchor, audio_from = job.pair
    job.strip.unlink(missing_ok=True)
    image = next(iter(source.frames()))
    if crop_size is not None:
        image, driving, _ = crop_to_faces(image, driving, crop_size, job.crop,
                                          names=[_file(clip) for clip in (source, driving)])
    strip, driven = Strip(image, len(driving)), renderer.follow(image, driving, motion, anchor)

    def watch(frames, made):
        strip.add(frames, made)
        progress.update(len(frames))

    _write(job.result, driving, audio_from, driven, functools.partial(beside, image), watch)
    save_png(job.strip, beside(*strip.row()), stamp=job.stamp)


def _cells(path):
    """The frames of a strip that `_animate_pair` saved, all as wide as they are high."""
    strip = np.asarray(Image.open(path))
    return np.split(strip, strip.shape[1] // strip.shape[0], axis=1)


def _stamp(made_by, pair):
    """Tells whether a result on disk is the one that would be made now."""
    files = [[_file(clip), *_state_of(clip)] for clip in (pair.source, pair.driving)]
    return hashlib.sha256(json.dumps([made_by, files, pair.anchor]).encode()).hexdigest()


def _file(clip):
    return str(getattr(clip, 'path', clip.name))


def _state_of(clip):
    """Size and time of change of the clip's file; nothing for a clip that is none."""
    if not hasattr(clip, 'path'):
        return ()
    state = clip.path.stat()
    return state.st_size, state.st_mtime_ns


def _stamp_of(strip):
    try:
        with Image.open(strip) as image:
            return image.info.get('stamp')
    except OSError:      # not there, or damaged
        return None


def draw_pairs(people, num_pairs, seed):
    """Different pairs of clips of different people, at random; all there are if `num_pairs` is more.

    A pure function of the names and the seed: neither the order of people nor that of clips matters.

    people:  {identity: clips}
    returns: list of Pair
    """
    people = sorted((name, sorted(clips, key=lambda clip: clip.name)) for name, clips in people.items())
    clips = [clip for _, group in people for clip in group]
    # Clip i can be driven by all but its own group, which lies at starts[i] : starts[i] + sizes[i].
    starts = [start for start, size in _groups(people) for _ in range(size)]
    sizes = [size for _, size in _groups(people) for _ in range(size)]
    ends = list(accumulate(len(clips) - size for size in sizes))
    if not ends or not ends[-1]:
        raise UserError(f'cannot draw pairs of different people: there are {len(people)}, at least 2 are needed')

    pairs = []
    # Numbers stand for pairs, so that a large test set needs no list of all its pairs.
    for number in random.Random(seed).sample(range(ends[-1]), min(num_pairs, ends[-1])):
        i = bisect.bisect_right(ends, number)
        j = number - (ends[i - 1] if i else 0)
        pairs.append(Pair(clips[i], clips[j if j < starts[i] else j + sizes[i]]))
    return pairs


def _groups(people):
    """(index of the first clip, number of clips) of every person."""
    sizes = [len(group) for _, group in people]
    return list(zip(accumulate(sizes, initial=0), sizes))


def read_pairs(csv_path, root, size):
    """Pairs from a CSV file with the columns source, driving and, if wanted, anchor (index of the initial frame).

    A source is an image or a clip, a driving is a clip; paths are absolute, or relative to the
    folder of the CSV file, or to `root`, in this order. Frames are resized to (size, size), or left if size is None.

    csv_path: UTF-8 file
    root:     folder of the test clips, or None
    returns:  list of Pair
    raises:   UserError that names the file and the row, rows counted as an editor does
    """
    csv_path = Path(csv_path)
    try:
        with open(csv_path, encoding='utf-8-sig', newline='') as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns = reader.fieldnames or []
            lines = [(reader.line_num, line) for line in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f'{csv_path}: cannot be read as a list of pairs ({error})') from error
    if not {'source', 'driving'} <= set(columns) <= {'source', 'driving', 'anchor'}:
        raise UserError(f'{csv_path}: the first row must name the columns source, driving and, if wanted, anchor; '
                        f'it is {",".join(columns)!r}')
    if not lines:
        raise UserError(f'{csv_path}: names no pairs')
    folders = [csv_path.parent] + ([] if root is None else [Path(root)])
    return [_pair(line, f'{csv_path}, row {number}', folders, size) for number, line in lines]


def _pair(line, where, folders, size):
    if None in line:
        raise UserError(f'{where}: has more fields than the first row; put names with commas in double quotes')
    source, driving = (_find(line[column], column, where, folders) for column in ('source', 'driving'))
    anchor = line.get('anchor') or None
    if anchor is not None and not anchor.strip().isdecimal():
        raise UserError(f'{where}: anchor is {anchor!r}, must be the index of a frame, or empty for the first')
    return Pair(_open(open_any, source, where, size), _open(open_constant_rate, driving, where, size),
                None if anchor is None else int(anchor),
                driving if driving.is_file() else None)


def _find(text, column, where, folders):
    text = (text or '').strip()
    if not text:
        raise UserError(f'{where}: {column} is empty')
    for folder in folders:      # an absolute path replaces the folder
        if (folder / text).exists():
            return folder / text
    raise UserError(f'{where}: {column} {text!r} is not found in {" or ".join(map(str, folders))}')


def _open(opener, path, where, size):
    try:
        return opener(path, size)
    except UserError as error:
        raise UserError(f'{where}: {error}') from error
