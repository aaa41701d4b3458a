"""One animation, from files to a file: a portrait, still or moving, follows a video or a motion template.

What `--mode animate` makes of one pair, and the page of `--mode web` of what was put into it.
"""

import logging
from dataclasses import dataclass, fields
from pathlib import Path

from support.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Portrait:
    """What to make; each field is the flag of that name (`--mode animate --help`). UserError where they do not fit."""
    source_image: str | None = None
    source_video: str | None = None
    source_end: str = 'loop'
    driving_video: str | None = None
    driving_motion: str | None = None
    save_motion: str | None = None
    result_video: str | None = None
    relative: bool = True
    adapt_scale: bool = False
    find_best_frame: bool = False
    smooth: float = 0
    crop: str = 'none'
    face_index: tuple[int, ...] = (0,)
    paste_back: bool = False
    side_by_side: bool = False

    def __post_init__(self):
        if self.source_image and self.source_video:
            raise UserError('--source_image and --source_video exclude each other: choose one')
        if self.driving_video and self.driving_motion:
            raise UserError('--driving_video and --driving_motion exclude each other: choose one')
        if not self.driving or not self.source and not (self.save_motion and self.driving_video):
            raise UserError('a source (--source_image, --source_video) and what it follows (--driving_video, '
                            '--driving_motion) belong together: give one of each, or none for pairs')
        if self.driving_motion and (self.save_motion or self.side_by_side):
            raise UserError(f'{"--save_motion" if self.save_motion else "--side_by_side"} needs --driving_video: '
                            'a motion template has no pictures')
        if self.paste_back and self.side_by_side:
            raise UserError('--paste_back and --side_by_side exclude each other: choose one')
        if len(self.face_index) > 2 or min(self.face_index) < 0:
            raise UserError('--face_index: expected the number of a face in the source and, if wanted, one in the '
                            'driving, counted from 0')
        if self.crop == 'none' and (self.paste_back or any(self.face_index)):
            raise UserError(f'{"--paste_back" if self.paste_back else "--face_index"} needs --crop auto')

    @property
    def source(self):
        return self.source_image or self.source_video

    @property
    def driving(self):
        return self.driving_video or self.driving_motion

    @property
    def preview(self):
        """Path of the picture that shows the crops."""
        made = Path(self.result_video or self.save_motion)
        return made.with_name(f'{made.stem}_crop.png')

    def arguments(self):
        """The flags that say the same, without those at their defaults: list of words of a command line."""
        words = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value == field.default:
                continue
            flag = f'--{field.name}' if field.name != 'relative' else '--absolute'
            values = () if isinstance(value, bool) else value if isinstance(value, tuple) else (value,)
            words += [flag, *map(str, values)]
        return words


def bring_to_life(portrait, renderer, size, watch=None):
    """Make the files that the Portrait names, `result_video` and `save_motion`; returns the clip that drove.

    renderer: inference.Renderer
    size:     of the model's images, pixels
    watch:    function of nothing, called before each frame is written; what it raises ends the animation
    raises:   UserError that names the file or flag
    """
    from animate import animate
    from inference import Motion, find_best_frame, first_frame
    from modules import motion_template
    motion = Motion.of_flags(portrait.relative, portrait.adapt_scale, portrait.find_best_frame, portrait.smooth)
    source, driving, show = _open(portrait, renderer.model, size)
    anchor = driving.anchor if portrait.driving_motion and motion.start == 'first' else None
    if portrait.save_motion:
        if source is not None and motion.relative and motion.start != 'first':
            anchor = find_best_frame(renderer, first_frame(source), driving)
        motion_template.save(motion_template.record(renderer, driving, anchor or 0), portrait.save_motion)
    if source is not None:
        def watched(*frames):
            if watch is not None:
                watch()
            return show(*frames)
        sound = portrait.driving_video if portrait.driving_video and Path(portrait.driving_video).is_file() else None
        animate(renderer, source, driving, portrait.result_video, motion, anchor=anchor, show=watched, audio_from=sound)
    return driving


def _open(portrait, model, size):
    """What `animate` takes: (source image, EndlessClip or None; driving clip or template; show)."""
    from datasets.constant_rate import open_constant_rate
    from datasets.endless import EndlessClip
    from datasets.still import Still
    from modules import motion_template
    from visualizer import beside
    files = {}
    if portrait.source:
        files['source'] = (Still if portrait.source_image else open_constant_rate), portrait.source
    if portrait.driving_video:
        files['driving'] = open_constant_rate, portrait.driving_video
    clips, paste = (_cropped if portrait.crop == 'auto' else _squeezed)(portrait, files, size)
    source, driving = clips.get('source'), clips.get('driving')
    if driving is None:
        driving = motion_template.load(portrait.driving_motion, model)
    if portrait.source_image:
        source = source.read([0])[0]
    elif portrait.source_video:
        if source.fps != driving.fps:
            log.warning('%s has %.6g fps and its driver %.6g: frame follows frame, so the source plays at the rate of '
                        'the driver', portrait.source, source.fps, driving.fps)
        source = EndlessClip(source, portrait.source_end)
    return source, driving, paste or (beside if portrait.side_by_side else lambda source, driving, frame: frame)


def _squeezed(portrait, files, size):
    """({role: clip of the model's size}, None): files as they are."""
    from animate import warn_of_squeeze
    for opener, path in files.values():
        warn_of_squeeze(path, opener(path).read([0])[0])
    return {role: opener(path, size) for role, (opener, path) in files.items()}, None


def _cropped(portrait, files, size):
    """({role: clip of the model's size}, function that pastes back or None): cut around the faces."""
    from animate import find_faces, looked_at
    from datasets.face_crop import CroppedClip
    which = dict(zip(('source', 'driving'), (*portrait.face_index, 0)))
    clips = {role: opener(path) for role, (opener, path) in files.items()}
    crops = find_faces([looked_at(clip) for clip in clips.values()], [path for _, path in files.values()],
                       [which[role] for role in files], size, portrait.preview)
    squares = {role: crop.square for role, crop in zip(files, crops)}
    paste = _paste_back(portrait, clips['source'], squares['source']) if portrait.paste_back else None
    return {role: CroppedClip(clip, squares[role], size) for role, clip in clips.items()}, paste


def _paste_back(portrait, source, square):
    """A function as `show` of `animate`, that lays frames into the uncropped ones of the source, one after another."""
    from datasets.endless import EndlessClip
    from datasets.face_crop import PasteBack
    if portrait.source_image:
        paste = PasteBack(source.read([0])[0], square)
        return lambda source, driving, frame: paste(frame)
    whole = EndlessClip(source, portrait.source_end).frames()
    return lambda source, driving, frame: PasteBack(next(whole), square)(frame)
