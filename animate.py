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
import warnings
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from datasets.constant_rate import open_constant_rate
from datasets.face_crop import CroppedClip, PasteBack, find_crop, resized, spread, warn_of_small_faces
from datasets.face_tracker import FaceDetector
from datasets.video import STILL_SUFFIXES, open_clip, read_image
from datasets.video_writer import VideoWriter
from evaluation.store import weights_hash
from metrics.base import Unavailable
from metrics.face import face_alignment_network
from modules.motion_transfer import DrivenSource, OneEuroFilter, best_frame_by_keypoints, hull_area, pose_distance
from modules.talking_head import Keypoints
from support import distributed
from support.errors import UserError
from support.files import make_folder
from support.streaming import read_ahead, write_behind
from visualizer import ContactSheet, batches, beside, draw_crop, enlarge, save_png, to_tensor, to_uint8

MOST_CANDIDATES = 128      # frames looked at for the best one: landmarks take about a second each on a CPU
READ_AT_ONCE = 16          # of these: neighbours share the decoder's way from the last key frame
PREVIEW = 480              # height of the picture that shows the crops, pixels

log = logging.getLogger(__name__)


# One pair

def animate(model, source_image, driving, result, *, device, batch_size, relative, adapt_scale, anchor=None,
            smooth=0, audio_from=None, side_by_side=False, paste_back=None, precision='fp32'):
    """Let `source_image` follow `driving`, into the video file `result`; returns the number of frames.

    model:        TalkingHead on `device`; left in eval mode
    source_image: (H, W, 3) uint8
    driving:      clip as in datasets/video.py, at the model's image size
    result:       path; appears whole or not at all, its folder is made
    batch_size:   driving frames rendered at once
    relative:     add the driver's motion since its initial frame to the source, instead of taking its pose
    adapt_scale:  with `relative`, also scale that motion to the size of the source's face
    anchor:       index of the initial frame; None for the first. Only `relative` has an initial frame
    smooth:       strength of the OneEuroFilter on the driver's keypoints, seconds; 0 for none
    audio_from:   file whose sound goes with the result, or None
    side_by_side: write source | driving | result
    paste_back:   a PasteBack that lays every result into a larger picture, or None
    precision:    'fp32', or 'bf16' for autocast
    raises:       UserError for a clip that cannot be read, an anchor outside it, a result that cannot be written
    """
    result = Path(result)
    make_folder(result.parent)
    motion = dict(relative=relative, adapt_scale=adapt_scale, anchor=anchor, smooth=smooth)
    animated = _animated(model, source_image, driving, device, batch_size, precision, **motion)

    def compose(driving_frame, frame):
        frame = frame if paste_back is None else paste_back(frame)
        return beside(source_image, driving_frame, frame) if side_by_side else frame

    with tqdm(total=len(driving), unit='frame', desc=result.name, dynamic_ncols=True) as progress:
        _write(result, driving.fps, audio_from, animated, compose, lambda driven, made: progress.update(len(driven)))
    return progress.n


def _write(result, fps, audio_from, animated, compose, watch):
    """Write compose(driving frame, frame) of all that `_animated` yields to the file `result`; watch each batch."""
    def encode(driven, made):
        for frames in zip(driven, made):
            video.write(compose(*frames))

    with VideoWriter(result, fps, audio_from) as video, write_behind(encode) as encode_later:
        for driven, made in animated:
            encode_later(driven, made)
            watch(driven, made)


def _animated(model, source_image, driving, device, batch_size, precision, *, relative, adapt_scale, anchor, smooth=0):
    """Yields (driving frames, frames made of the source (B, H, W, 3) uint8), batch by batch."""
    model.eval()
    calm = OneEuroFilter(smooth, driving.fps) if smooth else None
    animated = DrivenSource(model, to_tensor([source_image], device), precision, calm)
    if relative:
        animated.follow_relative_to(to_tensor(_initial_frame(driving, anchor), device), adapt_scale)
    for driven, images in read_ahead(batches(driving.frames(), batch_size, device)):
        yield driven, to_uint8(animated(images))


def _initial_frame(driving, anchor):
    if anchor is not None and not 0 <= anchor < len(driving):
        raise UserError(f'{driving.name}: has no frame {anchor} to start from, only 0 to {len(driving) - 1}')
    return driving.read([anchor or 0])


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


# The best initial frame

def find_best_frame(model, source_image, driving, device):
    """The driving frame whose pose is nearest to the source's, as `anchor` for relative motion.

    By face landmarks where the face-alignment package and its weights are there and find a face, as
    in FOMM; else by the model's keypoints. The log says which, and what was missing. Of clips longer
    than MOST_CANDIDATES frames, that many evenly spread ones are looked at.

    source_image: (H, W, 3) uint8
    driving:      clip as in datasets/video.py
    returns:      index of the frame
    """
    try:
        best, by = _best_by_landmarks(source_image, driving, device), 'face landmarks'
    except Unavailable as reason:
        _warn_once(f'no face landmarks for the best frame, so the keypoints of the model serve: {reason}')
        best, by = _best_by_keypoints(model, source_image, driving, device), 'keypoints'
    log.info('best frame of %s: %d, by %s', driving.name, best, by)
    return best


@functools.cache
def _warn_once(message):
    log.warning(message)


def _candidates(driving):
    """Yields (indices, frames) of evenly spread frames, some at a time."""
    looks = spread(len(driving), MOST_CANDIDATES, READ_AT_ONCE)
    for indices in tqdm(looks, desc='best frame', leave=False, dynamic_ncols=True):
        yield indices, driving.read(indices)


def _best_by_landmarks(source_image, driving, device):
    """The nearest of the frames in which a face is found; raises Unavailable if that cannot be said."""
    detector = _face_detector(device)
    source = _landmarks(detector, source_image)
    if source is None:
        raise Unavailable(f'no face was found in the source for {driving.name}')
    distances = {}
    for indices, frames in _candidates(driving):
        for index, frame in zip(indices, frames):
            landmarks = _landmarks(detector, frame)
            if landmarks is not None:
                distances[index] = pose_distance(source, landmarks)
    if not distances:
        raise Unavailable(f'no face was found in {driving.name}')
    return min(distances, key=distances.get)


_face_detector = functools.cache(face_alignment_network)     # kept from pair to pair


def _landmarks(detector, image):
    """(68, 2) in pixels of the largest face, None if there is no face."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='No faces were detected')
        faces = detector.get_landmarks_from_image(image)
    return max(faces, key=hull_area) if faces else None


@torch.inference_mode()
def _best_by_keypoints(model, source_image, driving, device):
    model.eval()
    source = model.keypoints(to_tensor([source_image], device))
    indices, values = [], []
    for some, frames in _candidates(driving):
        indices += some
        values.append(model.keypoints(to_tensor(frames, device)).value)
    return indices[best_frame_by_keypoints(source, Keypoints(torch.cat(values)))]


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


class Still:
    """A still image as a clip of one frame; read when needed."""

    def __init__(self, path, size):
        self.path, self.size, self.name = path, size, path.stem

    def frames(self):
        return iter([read_image(self.path, self.size)])


def animate_pairs(model, pairs, folder, *, device, batch_size, relative, adapt_scale, smooth=0, best_frame=False,
                  crop_size=None, precision='fp32', made_by=''):
    """Animate every Pair into `folder`: NUMBER_SOURCE--DRIVING.mp4 (source | driving | result), contact_sheet.png.

    Several processes (torchrun) share the pairs. What is finished is not made again by the same call: moments/
    keeps a strip of pictures per video, written after it, which says of which weights, settings and files it was made.

    best_frame: with `relative`, start from find_best_frame where a pair names no anchor
    crop_size:  cut source and driving to this size around their faces first; None where they are crops already
    made_by:    whatever else makes this model differ from another one with the same weights
    The other arguments, and what is raised, as in `animate`.
    returns: paths of the videos, in the order of the pairs
    """
    if not pairs:
        raise UserError('no pairs to animate')
    folder = make_folder(folder)
    moments = make_folder(folder / 'moments')
    motion = dict(relative=relative, adapt_scale=adapt_scale, smooth=smooth)
    made_by = [made_by, weights_hash(model), motion, best_frame, crop_size, precision]
    names = [f'{i:03d}_{pair.source.name}--{pair.driving.name}' for i, pair in enumerate(pairs)]
    results, strips = [folder / f'{name}.mp4' for name in names], [moments / f'{name}.png' for name in names]
    stamps = [_stamp(made_by, pair) for pair in pairs]

    def finished(i):
        return results[i].is_file() and _stamp_of(strips[i]) == stamps[i]

    todo = [i for i in range(distributed.rank(), len(pairs), distributed.world()) if not finished(i)]
    with tqdm(total=sum(len(pairs[i].driving) for i in todo), unit='frame', desc='animation', dynamic_ncols=True,
              disable=distributed.rank() > 0) as progress:
        for i in todo:
            source, driving, anchor, audio_from = pairs[i]
            progress.set_postfix_str(names[i][:40])
            strips[i].unlink(missing_ok=True)
            image = next(iter(source.frames()))
            if crop_size is not None:
                image, driving, _ = crop_to_faces(image, driving, crop_size, moments / f'{names[i]}_crop.png',
                                                  names=[_file(clip) for clip in (source, driving)])
            if best_frame and relative and anchor is None:
                anchor = find_best_frame(model, image, driving, device)
            row = ContactSheet(1)
            row.begin(0, names[i], image, len(driving))
            animated = _animated(model, image, driving, device, batch_size, precision, anchor=anchor, **motion)

            def watch(driven, made):
                row.add(driven, made)
                progress.update(len(driven))

            _write(results[i], driving.fps, audio_from, animated, functools.partial(beside, image), watch)
            save_png(strips[i], beside(*row.rows[0]), stamp=stamps[i])

    sheet = ContactSheet(len(pairs))
    shown = sorted(sheet.chosen)
    if all(map(finished, shown)):      # else another process has not come so far, and draws it
        for i in shown:
            strip = np.asarray(Image.open(strips[i]))
            sheet.rows.append(np.split(strip, strip.shape[1] // strip.shape[0], axis=1))
            sheet.captions.append(names[i].partition('_')[2])
        save_png(folder / 'contact_sheet.png', sheet.draw())
    return results


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
    is_still = source.suffix.lower() in STILL_SUFFIXES
    return Pair(Still(source, size) if is_still else _open(open_clip, source, where, size),
                _open(open_constant_rate, driving, where, size), None if anchor is None else int(anchor),
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
