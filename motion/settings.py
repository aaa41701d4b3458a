"""Settings of an animation, shared by `--mode animate`, the web page and the Python API.

Every field is also a flag of the same name, and its help text is here alone. Nothing slow is imported.
"""

import re
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from support.errors import UserError
from support.files import refuse_overwriting

STARTS = ('first', 'nearest', 'nearest-keypoints')
MOST_SIZE = 4096           # side of a result, pixels


def setting(default, help=None, **flag):
    """A field of a Settings class.

    help, flag: arguments of `ArgumentParser.add_argument`; `constants` is {flag: (value, help)} for a field that is
                chosen by flags without a value
    """
    return field(default=default, metadata=flag if help is None else {'help': help} | flag)


def switch(flag, help):
    """A field that is False unless its flag is given."""
    return setting(False, constants={flag: (True, help)})


def parse_size(text):
    """'source' or pixels, of `AnimationSettings.size`; UserError."""
    if text != 'source' and not text.isdecimal():
        raise UserError(f'--size {text}: expected pixels, or source')
    return text if text == 'source' else int(text)


def output_size(size, model, source):
    """Side of a result in pixels; UserError for one below the model's.

    size:   'source', pixels, or None for the model's
    model:  side of the model's images, pixels
    source: side of the source's own pixels
    """
    if size == 'source':
        return min(max(source, model), MOST_SIZE)
    if size is not None and not model <= size <= MOST_SIZE:
        raise UserError(f"--size {size}: must be {model}, the size of the model's images, to {MOST_SIZE}")
    return size or model


class Settings:
    """Base of the settings classes: frozen dataclasses whose fields are `setting`s, or settings classes themselves."""

    @classmethod
    def add_flags(cls, parser):
        """Add a flag for every field to an ArgumentParser."""
        for part in fields(cls):
            if is_dataclass(part.type):
                part.type.add_flags(parser)
            elif 'constants' in part.metadata:
                flags = parser.add_mutually_exclusive_group()
                for flag, (value, text) in part.metadata['constants'].items():
                    flags.add_argument(flag, dest=part.name, action='store_const', const=value, default=part.default,
                                       help=text)
            else:
                parser.add_argument(f'--{part.name}', default=part.default, **part.metadata)

    @classmethod
    def of(cls, options):
        """The settings that parsed flags describe; UserError where they exclude each other."""
        return cls(**{part.name: part.type.of(options) if is_dataclass(part.type) else getattr(options, part.name)
                      for part in fields(cls)})

    def arguments(self):
        """The command line that describes these settings, without flags at their defaults: list of words."""
        words = []
        for part in fields(self):
            value = getattr(self, part.name)
            if is_dataclass(value):
                words += value.arguments()
            elif value != part.default and 'constants' in part.metadata:
                words += [flag for flag, (chosen, _) in part.metadata['constants'].items() if chosen == value]
            elif value != part.default:
                words += [f'--{part.name}', *map(str, value if isinstance(value, tuple) else [value])]
        return words


@dataclass(frozen=True)
class Motion(Settings):
    """How a driver's motion is transferred to the source (FOMM, Sec. 3.4).

    relative:    add the driver's change since its initial frame to the source's pose. Otherwise the driver's pose is
                 taken as it is, which transfers its face shape, too
    adapt_scale: scale that change to the size of the source's face
    start:       which frame is the initial one: the 'first'; the 'nearest' to the source's pose by face landmarks, or
                 by keypoints where there are none; 'nearest-keypoints', by the model's keypoints over all frames
    smooth:      strength of the OneEuroFilter on the driver's keypoints, seconds; 0 for none
    raises:      UserError for settings that exclude each other
    """
    relative: bool = setting(True, constants={
        '--relative': (True, "add the driver's motion to the source's pose (default)"),
        '--absolute': (False, "take the driver's pose as it is")})
    adapt_scale: bool = switch('--adapt_scale', "scale relative motion to the source's face")
    start: str = setting('first', constants={
        '--find_best_frame': ('nearest', "start relative motion from the driving frame nearest to the source's pose")})
    smooth: float = setting(0, 'smooth the keypoints of a jittery driver; 1 is strong, 0 (default) is off', type=float,
                            metavar='STRENGTH')

    def __post_init__(self):
        assert self.start in STARTS, f'start is {self.start!r}, must be one of {STARTS}'
        if self.smooth < 0:
            raise UserError(f'--smooth {self.smooth:g}: must not be negative')
        if not self.relative and (self.adapt_scale or self.start != 'first'):
            raise UserError(f'{"--adapt_scale" if self.adapt_scale else "--find_best_frame"} is not read with '
                            '--absolute, which has no initial frame; leave one out')


ABSOLUTE = Motion(relative=False)


@dataclass(frozen=True)
class AnimationSettings(Settings):
    """One animation: its files, how they are cropped, and what the result shows.

    The Python API also accepts clips (datasets/video.py) instead of the paths of a source and of a driving video.
    raises: UserError for settings that exclude each other
    """
    source_image: Any = setting(None, 'source image; without source and driver, the pairs of the config or random '
                                'pairs of the test set are animated')
    source_video: Any = setting(None, 'source video, a file or a folder of frames: its frame i follows driving frame i')
    source_end: str = setting('loop', 'where --source_video is shorter than the driver: start again (default) or hold '
                              'the last frame', choices=('loop', 'hold'))
    driving_video: Any = setting(None, 'driving video, a file or a folder of frames')
    driving_motion: str | None = setting(None, 'motion template instead of a driving video', metavar='FILE.npz')
    save_motion: str | None = setting(None, 'save the keypoints of the driving video as a motion template; needs no '
                                      'source', metavar='FILE.npz')
    result_video: str | None = setting(None, 'result, mp4 or gif; default: in the run folder')
    motion: Motion = Motion()
    size: int | str | None = setting(None, f'side of the result in pixels, up to {MOST_SIZE}, or "source": the size of '
                                     "the source image; default: the size of the model's images, "
                                     "or source with --paste_back",
                                     type=parse_size, metavar='N|source')
    detail: str = setting('on', "if the result is larger than the model's images: add detail of the source, warped "
                          'along the flow (on, default), or only enlarge (off)', choices=('on', 'off'))
    crop: str = setting('none', 'auto: crop source and driver to a square around the face; RESULT_crop.png shows both '
                        'crops', choices=('none', 'auto'))
    face_index: tuple[int, ...] = setting((0,), 'with --crop auto: number of the face in source and driver; 0 '
                                          '(default) is the largest', type=int, nargs='+',
                                          metavar=('SOURCE', 'DRIVING'))
    background: str = setting('white', 'colour behind transparent pixels: white (default), black or #rrggbb',
                              metavar='COLOR')
    paste_back: bool = switch('--paste_back', 'with --crop auto: composite the result into the whole source image')
    side_by_side: bool = switch('--side_by_side', 'show source | driving | result')

    def __post_init__(self):
        object.__setattr__(self, 'face_index', tuple(self.face_index))
        if self.source_image is not None and self.source_video is not None:
            raise UserError('--source_image and --source_video exclude each other: choose one')
        if self.driving_video is not None and self.driving_motion is not None:
            raise UserError('--driving_video and --driving_motion exclude each other: choose one')
        if self.driving is None or self.source is None and (self.save_motion is None or self.driving_video is None):
            raise UserError('a source (--source_image, --source_video) and what it follows (--driving_video, '
                            '--driving_motion) belong together: give one of each, or none for pairs')
        if self.driving_motion and (self.save_motion or self.side_by_side):
            raise UserError(f'{"--save_motion" if self.save_motion else "--side_by_side"} needs --driving_video: '
                            'a motion template has no pictures')
        if self.paste_back and self.side_by_side:
            raise UserError('--paste_back and --side_by_side exclude each other: choose one')
        if len(self.face_index) > 2 or min(self.face_index) < 0:
            raise UserError('--face_index: expected the number of a face in the source and, optionally, one in the '
                            'driver, counted from 0')
        if self.size is None and self.paste_back:
            object.__setattr__(self, 'size', 'source')
        if self.crop == 'none' and (self.paste_back or any(self.face_index)):
            raise UserError(f'{"--paste_back" if self.paste_back else "--face_index"} needs --crop auto')
        if not re.fullmatch('white|black|#[0-9a-fA-F]{6}', self.background):
            raise UserError(f'--background {self.background}: expected white, black or #rrggbb')
        crops = (self.preview, Path(self.preview).parent) if self.crop == 'auto' and self.preview else ()
        refuse_overwriting((self.result_video, self.save_motion, *crops), (self.source, self.driving))

    @property
    def source(self):
        return self.source_video if self.source_image is None else self.source_image

    @property
    def driving(self):
        return self.driving_motion if self.driving_video is None else self.driving_video

    @property
    def preview(self):
        """Path of the picture that shows the crops; None where no file is written."""
        made = self.result_video or self.save_motion
        return made and Path(made).with_name(f'{Path(made).stem}_crop.png')
