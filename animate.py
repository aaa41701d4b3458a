"""Cross-identity animation: a source image follows a driving clip; one pair, or many.

Frames stream: decode -> batch -> render -> encode. Memory does not grow with the length of the clip,
the source is encoded once, and the result has the clip's frame rate to the fraction.
"""

import bisect
import csv
import functools
import logging
import random
import warnings
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from config.errors import UserError
from datasets.video import STILL_SUFFIXES, VideoWriter, open_clip, read_image
from metrics.perceptual import Unavailable, optional
from modules.motion_transfer import DrivenSource, best_frame_by_keypoints, hull_area, pose_distance
from modules.talking_head import Keypoints
from visualizer import ContactSheet, batches, beside, make_folder, save_png, to_tensor, to_uint8

FACE_WEIGHTS = ['https://www.adrianbulat.com/downloads/python-fan/s3fd-619a316812.pth',
                'https://www.adrianbulat.com/downloads/python-fan/2DFAN4-11f355bf06.pth.tar']
MOST_CANDIDATES = 128      # frames looked at for the best one: landmarks take about a second each on a CPU
READ_AT_ONCE = 16          # of these: neighbours share the decoder's way from the last key frame

log = logging.getLogger(__name__)


# One pair

def animate(model, source_image, driving, result, *, device, batch_size, relative, adapt_scale, anchor=None,
            audio_from=None, side_by_side=False, precision='fp32'):
    """Let `source_image` follow `driving`, into the video file `result`; returns the number of frames.

    model:        TalkingHead on `device`; left in eval mode
    source_image: (H, W, 3) uint8
    driving:      clip as in datasets/video.py, at the model's image size
    result:       path; appears whole or not at all, its folder is made
    batch_size:   driving frames rendered at once
    relative:     add the driver's motion since its initial frame to the source, instead of taking its pose
    adapt_scale:  with `relative`, also scale that motion to the size of the source's face
    anchor:       index of the initial frame; None for the first. Only `relative` has an initial frame
    audio_from:   file whose sound goes with the result, or None
    side_by_side: write source | driving | result
    precision:    'fp32', or 'bf16' for autocast
    raises:       UserError for a clip that cannot be read, an anchor outside it, a result that cannot be written
    """
    result = Path(result)
    make_folder(result.parent)
    motion = dict(relative=relative, adapt_scale=adapt_scale, anchor=anchor)
    with (VideoWriter(result, driving.fps, audio_from) as video,
          tqdm(total=len(driving), unit='frame', desc=result.name, dynamic_ncols=True) as progress):
        for driven, made in _animated(model, source_image, driving, device, batch_size, precision, **motion):
            for driving_frame, frame in zip(driven, made):
                video.write(beside(source_image, driving_frame, frame) if side_by_side else frame)
            progress.update(len(driven))
    return progress.n


def _animated(model, source_image, driving, device, batch_size, precision, *, relative, adapt_scale, anchor):
    """Yields (driving frames, frames made of the source (B, H, W, 3) uint8), batch by batch."""
    model.eval()
    animated = DrivenSource(model, to_tensor([source_image], device), precision)
    if relative:
        animated.follow_relative_to(to_tensor(_initial_frame(driving, anchor), device), adapt_scale)
    for driven, images in batches(driving.frames(), batch_size, device):
        yield driven, to_uint8(animated(images))


def _initial_frame(driving, anchor):
    if anchor is not None and not 0 <= anchor < len(driving):
        raise UserError(f'{driving.name}: has no frame {anchor} to start from, only 0 to {len(driving) - 1}')
    return driving.read([anchor or 0])


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
    candidates = np.unique(np.linspace(0, len(driving) - 1, MOST_CANDIDATES).round().astype(int)).tolist()
    for start in tqdm(range(0, len(candidates), READ_AT_ONCE), desc='best frame', leave=False, dynamic_ncols=True):
        indices = candidates[start:start + READ_AT_ONCE]
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


@functools.cache
def _face_detector(device):
    with optional('face-alignment', FACE_WEIGHTS):
        import face_alignment     # slow to import, and optional

        # Compiled, which is the package's default, it takes minutes to start and is slower on a CPU.
        return face_alignment.FaceAlignment(face_alignment.LandmarksType.TWO_D, device=str(device),
                                            flip_input=False, compile=False)


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


def animate_pairs(model, pairs, folder, *, device, batch_size, relative, adapt_scale, best_frame=False,
                  precision='fp32'):
    """Animate every Pair into `folder`: NUMBER_SOURCE--DRIVING.mp4 (source | driving | result), contact_sheet.png.

    best_frame: with `relative`, start from find_best_frame where a pair names no anchor
    The other arguments, and what is raised, as in `animate`.
    returns: paths of the videos, in the order of the pairs
    """
    if not pairs:
        raise UserError('no pairs to animate')
    folder, sheet, results = make_folder(folder), ContactSheet(len(pairs)), []
    with tqdm(total=sum(len(pair.driving) for pair in pairs), unit='frame', desc='animation',
              dynamic_ncols=True) as progress:
        for i, (source, driving, anchor, audio_from) in enumerate(pairs):
            name = f'{source.name}--{driving.name}'
            progress.set_postfix_str(f'{i + 1}/{len(pairs)} {name[:40]}')
            image = next(iter(source.frames()))
            if best_frame and relative and anchor is None:
                anchor = find_best_frame(model, image, driving, device)
            sheet.begin(i, name, image, len(driving))
            motion = dict(relative=relative, adapt_scale=adapt_scale, anchor=anchor)

            results.append(folder / f'{i:03d}_{name}.mp4')
            with VideoWriter(results[-1], driving.fps, audio_from) as video:
                for driven, made in _animated(model, image, driving, device, batch_size, precision, **motion):
                    for frames in zip(driven, made):
                        video.write(beside(image, *frames))
                    sheet.add(driven, made)
                    progress.update(len(driven))
    save_png(folder / 'contact_sheet.png', sheet.draw())
    return results


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
    folder of the CSV file, or to `root`, in this order. Frames are resized to (size, size).

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
    return Pair(Still(source, size) if is_still else _open(source, where, size), _open(driving, where, size),
                None if anchor is None else int(anchor), driving if driving.is_file() else None)


def _find(text, column, where, folders):
    text = (text or '').strip()
    if not text:
        raise UserError(f'{where}: {column} is empty')
    for folder in folders:      # an absolute path replaces the folder
        if (folder / text).exists():
            return folder / text
    raise UserError(f'{where}: {column} {text!r} is not found in {" or ".join(map(str, folders))}')


def _open(path, where, size):
    try:
        return open_clip(path, size)
    except UserError as error:
        raise UserError(f'{where}: {error}') from error
