"""Cross-identity animation: a source image or video follows a driving video or a motion template.

Frames stream: decode, render and encode run side by side, each in its thread, on batches. Memory does not grow with the
length of the clip, the source is encoded once, and the result has exactly the driver's frame rate.

How motion is transferred: FOMM, NeurIPS 2019, Sec. 3.4.
"""

import logging
from functools import partial
from pathlib import Path

from PIL import ImageColor
from tqdm import tqdm

from datasets.constant_rate import open_constant_rate
from datasets.endless import EndlessClip
from datasets.face_crop import MOST_SEARCHED, READ_AT_ONCE, CroppedClip, PasteBack, find_crop, warn_of_small_faces
from datasets.face_tracker import FaceDetector
from datasets.still import Still, resized
from datasets.video_writer import VideoWriter
from inference import first_frame
from motion.best_frame import find_best_frame
from motion import template as motion_template
from motion.settings import Motion
from support.files import make_folder
from support.streaming import spread, write_behind
from visualizer import beside, draw_crop, enlarge, save_png

PREVIEW = 480              # height of the picture that shows the crops, pixels

log = logging.getLogger(__name__)


# ---------------------------------------------------------------------------- one animation

def animate_files(settings, renderer, watch=None):
    """Write the files that AnimationSettings name, `result_video` and `save_motion`; returns the driving clip.

    renderer: inference.Renderer
    watch:    function of nothing, called before each frame is written; what it raises ends the animation
    raises:   UserError that names the file or flag
    """
    motion = settings.motion
    source, driving, show = _open(settings, renderer.model)
    anchor = driving.anchor if settings.driving_motion and motion.start == 'first' else None
    if settings.save_motion:
        if source is not None and motion.relative and motion.start != 'first':
            anchor = find_best_frame(renderer, first_frame(source), driving)
        motion_template.save(motion_template.record(renderer, driving, anchor or 0), settings.save_motion)
    if source is not None:
        def watched(*frames):
            if watch is not None:
                watch()
            return show(*frames)
        sound = settings.driving_video if settings.driving_video and Path(settings.driving_video).is_file() else None
        write_animation(renderer, source, driving, settings.result_video, motion, anchor=anchor, show=watched,
                        audio_from=sound)
    return driving


def write_animation(renderer, source, driving, result, motion=Motion(), *, anchor=None, show=None, audio_from=None):
    """Let `source` follow `driving`, into the video file `result`; returns the number of frames.

    renderer:     inference.Renderer
    source:       (H, W, 3) uint8; or a clip, see datasets/endless.py, whose frame i follows the driver's frame i
    driving:      clip as in datasets/video.py, at the model's image size, or motion.template.MotionTemplate
    result:       path; appears whole or not at all, its folder is made
    motion:       inference.Motion
    anchor:       index of the initial frame of relative motion; None for the one that `motion` names
    show:         function of (source, driving, generated frame) that makes the written frame; None: the generated one
    audio_from:   file whose sound goes with the result, or None
    raises:       UserError for a clip that cannot be read, an anchor outside it, a result that cannot be written
    """
    result = Path(result)
    make_folder(result.parent)
    driven = renderer.follow(source, driving, motion, anchor)
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


def _open(settings, model):
    """What `write_animation` takes: (source image, EndlessClip or None; driving clip or template; show)."""
    files, background = {}, ImageColor.getrgb(settings.background)
    if settings.source is not None:
        opener = Still if settings.source_image else open_constant_rate
        files['source'] = partial(opener, background=background), settings.source
    if settings.driving_video:
        files['driving'] = partial(open_constant_rate, background=background), settings.driving_video
    prepare = _cropped if settings.crop == 'auto' else _squeezed
    clips, paste = prepare(settings, files, model.params.image_size)
    source, driving = clips.get('source'), clips.get('driving')
    if driving is None:
        driving = motion_template.load(settings.driving_motion, model)
    if settings.source_image:
        source = source.read([0])[0]
    elif settings.source_video:
        if source.fps != driving.fps:
            log.warning('%s has %.6g fps and its driver %.6g: frame follows frame, so the source plays at the rate of '
                        'the driver', settings.source, source.fps, driving.fps)
        source = EndlessClip(source, settings.source_end)
    return source, driving, paste or (beside if settings.side_by_side else _result_alone)


# ---------------------------------------------------------------------------- crops

def _squeezed(settings, files, size):
    """({role: clip of the model's size}, None): whole frames."""
    for opener, path in files.values():
        warn_of_squeeze(path, opener(path).read([0])[0])
    return {role: opener(path, size) for role, (opener, path) in files.items()}, None


def _cropped(settings, files, size):
    """({role: clip of the model's size}, function that pastes back or None): cut around the faces."""
    which = dict(zip(('source', 'driving'), (*settings.face_index, 0)))
    clips = {role: opener(path) for role, (opener, path) in files.items()}
    crops = find_faces([looked_at(clip) for clip in clips.values()], [path for _, path in files.values()],
                       [which[role] for role in files], size, settings.preview)
    squares = {role: crop.square for role, crop in zip(files, crops)}
    paste = _paste_back(settings, clips['source'], squares['source']) if settings.paste_back else None
    return {role: CroppedClip(clip, squares[role], size) for role, clip in clips.items()}, paste


def _paste_back(settings, source, square):
    """A function as `show` of `write_animation`: pastes frames into the uncropped frames of the source, in order."""
    if settings.source_image:
        paste = PasteBack(source.read([0])[0], square)
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
    """Where to cut each file: list of FaceCrops.

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
    for indices in tqdm(spread(len(clip), MOST_SEARCHED, READ_AT_ONCE), desc='faces', leave=False, dynamic_ncols=True):
        yield from clip.read(indices)
