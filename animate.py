"""Cross-identity animation: a source image or video follows a driving video or a motion template.

    from animate import animate, load
    model = load()                                                      # or load('model.pt')
    animate(model, 'me.jpg', 'clip.mp4', 'out.mp4', size=512, crop='auto')
    for frame in animate(model, image, video): ...                      # NumPy in, NumPy out

Frames stream: decode, render and encode run side by side, each in its thread, on batches. Memory does not grow with the
length of the clip, the source is encoded once, and the result has exactly the driver's frame rate.

How motion is transferred: FOMM, NeurIPS 2019, Sec. 3.4.
"""

import functools
import logging
from dataclasses import fields
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import ImageColor
from tqdm import tqdm

from datasets.constant_rate import open_constant_rate
from datasets.endless import EndlessClip
from datasets.face_crop import MOST_SEARCHED, READ_AT_ONCE, CroppedClip, PasteBack, find_crop, warn_of_small_faces
from datasets.face_tracker import FaceDetector
from datasets.still import FrameList, Still, resized
from datasets.video import is_still, open_any
from datasets.video_writer import VideoWriter
from inference import first_frame
from load import load  # noqa: F401
from motion import template as motion_template
from motion.best_frame import find_best_frame
from motion.settings import AnimationSettings, Motion, output_size
from support.errors import UserError
from support.files import make_folder
from support.streaming import spread, write_behind
from visualizer import beside, draw_crop, enlarge, save_png

PREVIEW = 480              # height of the picture that shows the crops, pixels

log = logging.getLogger(__name__)


# ---------------------------------------------------------------------------- the Python API

def animate(model, image, video, result=None, *, fps=25, **settings):
    """Animate `image` by `video`: frames (H, W, 3) uint8 one by one; with `result`, the number of frames in that file.

    model:    what `load` returned
    image:    path, or (H, W, 3) uint8
    video:    path of a video or of a folder of frames, or frames (H, W, 3) uint8 in order
    result:   path of an mp4 or gif to write; None to yield the frames
    fps:      frames per second of a `video` given as frames
    settings: fields of motion.settings.AnimationSettings and of its Motion: size=512, crop='auto', relative=False, ...
    raises:   UserError that names the file or setting
    """
    motion = Motion(**{field.name: settings.pop(field.name) for field in fields(Motion) if field.name in settings})
    if isinstance(image, np.ndarray):
        image = FrameList([image], 'image')
    if not isinstance(video, (str, Path)):
        if fps <= 0:
            raise UserError(f'fps={fps}: must be positive')
        video = FrameList(list(video), 'video', Fraction(fps))
    settings = AnimationSettings(source_image=image, driving_video=video, result_video=result, motion=motion,
                                 **settings)
    return animated_frames(settings, model) if result is None else len(animate_files(settings, model))


# ---------------------------------------------------------------------------- one animation

def animate_files(settings, renderer, watch=None):
    """Write the files that AnimationSettings name, `result_video` and `save_motion`; returns the driving clip.

    renderer: inference.Renderer
    watch:    function of nothing, called before each frame is written; what it raises ends the animation
    raises:   UserError that names the file or flag
    """
    motion = settings.motion
    source, driving, show, detail, anchor = _open(settings, renderer)
    if settings.save_motion:
        if source is not None and motion.relative and motion.start != 'first':
            anchor = find_best_frame(renderer, first_frame(source), driving)
        motion_template.save(motion_template.record(renderer, driving, anchor or 0), settings.save_motion)
    if source is not None:
        def watched(*frames):
            if watch is not None:
                watch()
            return show(*frames)
        write_animation(renderer, source, driving, settings.result_video, motion, anchor=anchor, detail=detail,
                        show=watched, audio_from=_sound_of(settings.driving_video))
    return driving


def animated_frames(settings, renderer):
    """Yields the frames (H, W, 3) uint8 of the AnimationSettings' result; no file is written."""
    source, driving, show, detail, anchor = _open(settings, renderer)
    driven = renderer.follow(source, driving, settings.motion, anchor, detail)
    for batch in driven.render(driving.frames()):
        yield from map(show, batch.source, batch.driving, batch.frames)


def write_animation(renderer, source, driving, result, motion=Motion(), *, show=None, audio_from=None, **how):
    """Let `source` follow `driving`, into the video file `result`; returns the number of frames.

    renderer:   inference.Renderer
    source:     (H, W, 3) uint8; or a clip, see datasets/endless.py, whose frame i follows the driver's frame i
    driving:    clip as in datasets/video.py, or motion.template.MotionTemplate
    result:     path; appears whole or not at all, its folder is made
    motion:     motion.settings.Motion
    show:       function of (source, driving, generated frame) that makes the written frame; None: the generated one
    audio_from: file whose sound goes with the result, or None
    how:        `anchor` and `detail` of `Renderer.follow`
    raises:     UserError for a clip that cannot be read, an anchor outside it, a result that cannot be written
    """
    result = Path(result)
    make_folder(result.parent)
    driven = renderer.follow(source, driving, motion, **how)
    with (tqdm(total=len(driving), unit='frame', desc=result.name, dynamic_ncols=True) as progress,
          VideoWriter(result, driving.fps, audio_from) as video):
        write_frames(video, driven, driving.frames(), show or _result_alone,
                     lambda made: progress.update(len(made.frames)))
    return progress.n


def _result_alone(source, driving, frame):
    return frame


def write_frames(video, driven, frames, show, watch):
    """Write show(source, driving, generated frame) for all driving frames to the video; watch(Rendered) each batch."""
    def encode(*batch):
        for shown in zip(*batch):
            video.write(show(*shown))

    with write_behind(encode) as encode_later:
        for batch in driven.render(frames):
            encode_later(batch.source, batch.driving, batch.frames)
            watch(batch)


def _open(settings, renderer):
    """The clips of AnimationSettings, ready for a model: (source, driving, show, detail, anchor).

    source:  (H, W, 3) uint8, or datasets.endless.EndlessClip, at the size of the result; None without a source
    driving: clip as in datasets/video.py, or motion.template.MotionTemplate
    show:    function of (source, driving, generated frame) that makes the frame of the result
    detail, anchor: see `Renderer.follow`
    raises:  UserError that names the file or flag
    """
    openers, background = {}, ImageColor.getrgb(settings.background)
    if settings.source is not None:
        kind = open_constant_rate if settings.source_image is None else Still
        openers['source'] = _opener(settings.source, functools.partial(kind, background=background))
    if settings.driving_video is not None:
        openers['driving'] = _opener(settings.driving_video, functools.partial(open_any, opener=open_constant_rate,
                                                                               background=background))
    squares = _face_squares(settings, openers, renderer.size)

    def frames(role, size):
        if squares is None:
            return openers[role](size)
        return CroppedClip(openers[role](), squares[role], size)

    driving = None if settings.driving_motion is None else motion_template.load(settings.driving_motion, renderer.model)
    if settings.source is None:
        return None, frames('driving', renderer.size), _result_alone, None, None
    own = squares['source'].side if squares else max(first_frame(openers['source']()).shape)
    size = output_size(settings.size, renderer.size, own)
    driving = driving or frames('driving', size if settings.side_by_side else renderer.size)
    if settings.motion.relative and len(driving) == 1:
        raise UserError(f'{settings.driving}: has one frame, and relative motion starts from it, so that the result '
                        'would be the source; give --absolute to take the pose of that frame')
    source = frames('source', size)
    if settings.source_image is not None:
        source = first_frame(source)
    else:
        if source.fps != driving.fps:
            log.warning('%s has %.6g fps and its driver %.6g: frame follows frame, so the source plays at the rate of '
                        'the driver', settings.source, source.fps, driving.fps)
        source = EndlessClip(source, settings.source_end)
    show = (_paste_back(settings, openers['source'](), squares['source']) if settings.paste_back
            else beside if settings.side_by_side else _result_alone)
    anchor = driving.anchor if settings.driving_motion and settings.motion.start == 'first' else None
    return source, driving, show, None if size == renderer.size else settings.detail == 'on', anchor


def _sound_of(driving):
    """The file whose sound goes with the result: the driving video; None for stills, a clip, a template."""
    return driving if isinstance(driving, (str, Path)) and Path(driving).is_file() and not is_still(driving) else None


def _opener(file, opener):
    """A function of a size or None that opens a path by `opener`; or, of a clip, resizes it."""
    if isinstance(file, (str, Path)):
        return functools.partial(opener, file)
    return lambda size=None: file if size is None else file.resized(size)


# ---------------------------------------------------------------------------- crops

def _face_squares(settings, openers, size):
    """{role: Square} around the faces; None for whole frames, with a warning for those that are not square."""
    files = {role: getattr(settings, role) for role in openers}
    names = {role: file if isinstance(file, (str, Path)) else file.name for role, file in files.items()}
    if settings.crop == 'none':
        for role, opener in openers.items():
            warn_of_squeeze(names[role], first_frame(opener()))
        return None
    which = dict(zip(('source', 'driving'), (*settings.face_index, 0)))
    crops = find_faces([looked_at(opener()) for opener in openers.values()], list(names.values()),
                       [which[role] for role in openers], size, settings.preview)
    return {role: crop.square for role, crop in zip(openers, crops)}


def _paste_back(settings, source, square):
    """A function as `show` of `write_animation`: pastes frames into the uncropped frames of the source, in order."""
    if settings.source_image is not None:
        paste = PasteBack(first_frame(source), square)
        return lambda source, driving, frame: paste(frame)
    whole = EndlessClip(source, settings.source_end).frames()
    return lambda source, driving, frame: PasteBack(next(whole), square)(frame)


def squeeze(source_image, driving, size, names):
    """Source and driving as they are, resized to (size, size) each; logs which of the files loses its proportions."""
    for name, frame in zip(names, (source_image, driving.read([0])[0])):
        warn_of_squeeze(name, frame)
    return resized(source_image, size), open_constant_rate(driving.path, size)


def warn_of_squeeze(name, frame):
    """Log that a file with frames such as this one loses its proportions as a square."""
    height, width, _ = frame.shape
    if height != width:
        log.warning('%s: is %dx%d and gets squeezed into a square; --crop auto cuts one around the face',
                    name, width, height)


def crop_to_faces(source_image, driving, size, preview, *, names):
    """Source and driving, each cut to a square around its largest face, and the way back into the source.

    source_image: (H, W, 3) uint8, uncropped
    driving:      clip as in datasets/video.py, uncropped
    returns:      source (size, size, 3) uint8, CroppedClip, PasteBack
    The other arguments, and what is raised, as in `find_faces`.
    """
    source, driver = (crop.square for crop in find_faces([[source_image], looked_at(driving)], names, (0, 0), size,
                                                         preview))
    return source.cut(source_image, size), CroppedClip(driving, driver, size), PasteBack(source_image, source)


def find_faces(looks, names, face_index, size, preview):
    """Where to cut each file: list of FaceCrops.

    looks:      of each file some frames (H, W, 3) uint8, uncropped
    names:      of the files, for messages
    face_index: which face of each, the largest is 0
    size:       of the crops, pixels
    preview:    path of a PNG that shows the faces by their numbers and the crops, source | driving; or None
    raises:     UserError that names the file without such a face, or what the detector is missing
    """
    with FaceDetector() as detector:
        crops = [find_crop(detector, *file) for file in zip(looks, names, face_index)]
    for crop, name in zip(crops, names):
        warn_of_small_faces(crop, name, size)
    if preview is not None:
        make_folder(Path(preview).parent)
        save_png(preview, beside(*(enlarge(draw_crop(crop.frame, crop.boxes, crop.square), PREVIEW)
                                   for crop in crops)))
    return crops


def looked_at(clip):
    """Yields the frames of a clip in which a face is searched, few of them in memory."""
    for indices in tqdm(spread(len(clip), MOST_SEARCHED, READ_AT_ONCE), desc='faces', leave=False, dynamic_ncols=True):
        yield from clip.read(indices)
