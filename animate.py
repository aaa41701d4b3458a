"""Cross-identity animation: a source image follows a driving clip; one pair, or many.

Frames stream: decode, render and encode run side by side, each in its thread, on batches. Memory does not
grow with the length of the clip, the source is encoded once, and the result has the clip's frame rate to the
fraction.

The paper's Table 3 scores such pairs; how motion is transferred: FOMM, NeurIPS 2019, Sec. 3.4.
"""

import hashlib
import json
import logging
from dataclasses import asdict, astuple, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets.constant_rate import open_constant_rate
from datasets.face_crop import CroppedClip, PasteBack, find_crop, spread, warn_of_small_faces
from datasets.face_tracker import FaceDetector
from datasets.still import resized
from datasets.video_writer import VideoWriter
from evaluation.cases import Case
from evaluation.protocols import write_list
from evaluation.videos import pair_name
from inference import Motion
from support import distributed
from support.errors import UserError
from support.files import make_folder, written_whole
from support.streaming import write_behind
from support.weights import weights_hash
from visualizer import Strip, beside, cells, contact_sheet, draw_crop, enlarge, rows_of_sheet, save_png

PREVIEW = 480              # height of the picture that shows the crops, pixels

log = logging.getLogger(__name__)


# One pair

def animate(renderer, source, driving, result, motion=Motion(), *, anchor=None, show=None, audio_from=None):
    """Let `source` follow `driving`, into the video file `result`; returns the number of frames.

    renderer:     inference.Renderer
    source:       (H, W, 3) uint8; or a clip, see datasets/endless.py, whose frame i follows the driver's frame i
    driving:      clip as in datasets/video.py, at the model's image size, or modules.motion_template.MotionTemplate
    result:       path; appears whole or not at all, its folder is made
    motion:       inference.Motion
    anchor:       index of the initial frame of relative motion; None for the one that `motion` says
    show:         function of (source, driving, generated frame) that makes what is written; None for the last alone
    audio_from:   file whose sound goes with the result, or None
    raises:       UserError for a clip that cannot be read, an anchor outside it, a result that cannot be written
    """
    result = Path(result)
    make_folder(result.parent)
    driven = renderer.follow(source, driving, motion, anchor)
    with (tqdm(total=len(driving), unit='frame', desc=result.name, dynamic_ncols=True) as progress,
          VideoWriter(result, driving.fps, audio_from) as video):
        _write(video, driven, driving.frames(), show or _result_alone, lambda made: progress.update(len(made.frames)))
    return progress.n


def _result_alone(source, driving, frame):
    return frame


def _write(video, driven, frames, show, watch):
    """Write show(source, driving, generated frame) for all that drives to the video; watch(Rendered) each batch."""
    def encode(*batch):
        for shown in zip(*batch):
            video.write(show(*shown))

    with write_behind(encode) as encode_later:
        for batch in driven.render(frames):
            encode_later(batch.source, batch.driving, batch.frames)
            watch(batch)


# Crops

def squeeze(source_image, driving, size, names):
    """Source and driving as they are, resized to (size, size) each; logs which of the files loses its proportions."""
    for name, frame in zip(names, (source_image, driving.read([0])[0])):
        warn_of_squeeze(name, frame)
    return resized(source_image, size), open_constant_rate(driving.path, size)


def warn_of_squeeze(name, frame):
    """Logs that a file with frames such as this one loses its proportions as a square."""
    height, width, _ = frame.shape
    if height != width:
        log.warning('%s: is %dx%d and gets squeezed into a square; --crop auto cuts one around the face',
                    name, width, height)


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
    source, driver = (crop.square for crop in find_faces([[source_image], looked_at(driving)], names, face_index, size,
                                                         preview))
    return source.cut(source_image, size), CroppedClip(driving, driver, size), PasteBack(source_image, source)


def find_faces(looks, names, face_index, size, preview):
    """Where to cut, of each file: list of FaceCrops.

    looks: of each file some frames (H, W, 3) uint8, uncropped
    The other arguments, and what is raised, as in `crop_to_faces`.
    """
    make_folder(Path(preview).parent)
    with FaceDetector() as detector:
        crops = [find_crop(detector, *file) for file in zip(looks, names, face_index)]
    for crop, name in zip(crops, names):
        warn_of_small_faces(crop, name, size)
    save_png(preview, beside(*(enlarge(draw_crop(crop.frame, crop.boxes, crop.square), PREVIEW) for crop in crops)))
    return crops


def looked_at(clip):
    """Yields the frames of a clip in which a face is searched, few of them in memory."""
    for indices in tqdm(spread(len(clip)), desc='faces', leave=False, dynamic_ncols=True):
        yield from clip.read(indices)


# Many pairs

class _Job(NamedTuple):
    """A pair, its files, and the stamp of a strip that was made with these weights, settings and files."""
    name: str
    case: Case
    result: Path
    strip: Path
    stamp: str

    def finished(self):
        return self.result.is_file() and _stamp_of(self.strip) == self.stamp

    @property
    def crop(self):
        """Path of the picture of both crops."""
        return self.strip.with_name(f'{self.name}_crop.png')


def animate_pairs(renderer, cases, folder, motion=Motion(), *, crop_size=None, made_by=''):
    """Animate every Case into `folder`: NUMBER_SOURCE--DRIVING.mp4 (source | driving | result), contact_sheet.png and
    list.csv, which `--mode evaluate --list` and this mode read.

    Several processes (torchrun) share the pairs. What is finished is not made again by the same call: moments/
    keeps a strip of pictures per video, written after it, which says of which weights, settings and files it was made.

    crop_size: cut source and driving to this size around their faces first; None where they are crops already
    made_by:   whatever else makes this model differ from another one with the same weights
    The other arguments, and what is raised, as in `animate`.
    returns: paths of the videos, in the order of the pairs
    """
    if not cases:
        raise UserError('no pairs to animate')
    folder = make_folder(folder)
    distributed.check_shared(folder)
    moments = make_folder(folder / 'moments')
    made_by = [made_by, weights_hash(renderer.model), asdict(motion), crop_size, renderer.precision]
    names = [f'{i:03d}_{pair_name(case)}' for i, case in enumerate(cases)]
    jobs = [_Job(name, case, folder / f'{name}.mp4', moments / f'{name}.png', _stamp(made_by, case))
            for name, case in zip(names, cases)]
    distributed.agree({'weights and pairs to animate': distributed.digest([job.stamp for job in jobs])})
    todo = [job for job in jobs[distributed.rank()::distributed.world()] if not job.finished()]
    with tqdm(total=sum(len(job.case.moments()[1]) for job in todo), unit='frame', desc='animation', dynamic_ncols=True,
              disable=distributed.rank() > 0) as progress:
        for job in todo:
            progress.set_postfix_str(job.name[:40])
            _animate_pair(renderer, job, motion, crop_size, progress)
    shown = [jobs[i] for i in rows_of_sheet(len(jobs))]
    if all(job.finished() for job in shown):      # else another process has not come so far, and draws it
        sheet = contact_sheet([cells(np.asarray(Image.open(job.strip))) for job in shown],
                              [job.name.partition('_')[2] for job in shown])
        save_png(folder / 'contact_sheet.png', sheet)
        write_list(folder / 'list.csv', [case.item for case in cases])
    return [job.result for job in jobs]


def animate_alone(renderer, cases, folder, motion=Motion(), made_by=''):
    """The result alone of every Case as SOURCE--DRIVING.mp4 in `folder`, silent: first frames follow whole clips.

    What is finished is not made again by the same call: NAME.stamp, written after each video, says of which weights,
    settings and files it was made. Arguments, and what is raised, as in `animate_pairs`.
    """
    folder = make_folder(folder)
    made_by = [made_by, weights_hash(renderer.model), asdict(motion), renderer.precision]
    for case in cases:
        result, stamp = folder / f'{pair_name(case)}.mp4', _stamp(made_by, case)
        kept = result.with_suffix('.stamp')
        if result.is_file() and kept.is_file() and kept.read_text(encoding='utf-8') == stamp:
            continue
        kept.unlink(missing_ok=True)
        animate(renderer, case.source.read([0])[0], case.driving, result, motion, anchor=case.anchor)
        with written_whole(kept) as path:
            path.write_text(stamp, encoding='utf-8')


def _animate_pair(renderer, job, motion, crop_size, progress):
    """Write the video of a pair, then its strip."""
    case, (at_source, moments) = job.case, job.case.moments()
    job.strip.unlink(missing_ok=True)
    image = case.source.read([at_source])[0]
    if crop_size is not None:
        image, driving, _ = crop_to_faces(image, case.driving, crop_size, job.crop,
                                          names=[_file(clip) for clip in (case.source, case.driving)])
        case = replace(case, driving=driving)
    strip, driven = Strip(image, len(moments)), renderer.follow(image, case.driving, motion, case.anchor)

    def watch(made):
        strip.add(made.driving, made.frames)
        progress.update(len(made.frames))

    with VideoWriter(job.result, case.driving.fps, job.case.sound) as video:
        _write(video, driven, case.frames(moments), beside, watch)
    save_png(job.strip, beside(*strip.row()), stamp=job.stamp)


def _stamp(made_by, case):
    """Tells whether a result on disk is the one that would be made now."""
    files = [[_file(clip), *_state_of(clip)] for clip in (case.source, case.driving)]
    return hashlib.sha256(json.dumps([made_by, files, astuple(case.item)]).encode()).hexdigest()


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
