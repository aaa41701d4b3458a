"""The renderer of all modes: encodes a source once and renders it for batches of driving frames.

    renderer = Renderer(model, device, batch_size=8, precision='fp32')
    driven = renderer.follow(source_image, clip, motion.settings.Motion())  # encoded here, once
    for batch in driven.render(clip.frames()):                              # or clip.read([3, 17]), or any frames
        batch.driving        # these frames of the driver; their keypoints where the clip is a MotionTemplate
        batch.frames         # the result, (B, H, W, 3) uint8
        batch.generated      # the model's output: Generated with flows, occlusions, ...

Frames stream: the driver is read ahead in a thread of its own, and memory does not grow with the clip's length.
"""

import functools
import logging
from collections import deque
from dataclasses import dataclass
from itertools import islice, repeat

import numpy as np
import torch
from torch import Tensor

from config.schema import PRECISIONS
from datasets.still import resized
from modules.talking_head import Generated, Keypoints, join
from motion.best_frame import find_best_frame
from motion.detail import large_frames
from motion.settings import ABSOLUTE
from motion.transfer import OneEuroFilter, RelativeMotion, absolute_motion, poses_differ
from support.errors import UserError
from support.streaming import read_ahead
from support.transfer import Transfer
from visualizer import from_bytes, to_bytes

log = logging.getLogger(__name__)


# ---------------------------------------------------------------------------- rendering

class Renderer:
    """A model that is ready to make frames.

    model:      TalkingHead on `device`; left in eval mode, as batch statistics would tie frames together
    batch_size: driving frames rendered at once
    precision:  'fp32', or 'bf16' for autocast in the networks; keypoints are transferred in fp32 either way
    """

    def __init__(self, model, device, batch_size=8, precision='fp32'):
        assert precision in PRECISIONS, f'precision is {precision!r}, must be one of {PRECISIONS}'
        self.model, self.device = model.eval(), torch.device(device)
        self.batch_size, self.precision = batch_size, precision
        self.transfer = Transfer(self.device)

    @property
    def size(self):
        """Side of the model's images, pixels."""
        return self.model.params.image_size

    def in_fp32(self):
        """A Renderer of the same model at full precision."""
        return Renderer(self.model, self.device, self.batch_size)

    def autocast(self):
        """The context in which the networks run."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == 'bf16')

    def follow(self, source, driving=None, motion=ABSOLUTE, anchor=None, detail=None):
        """Encode `source` and prepare to follow the driver: a DrivenSource.

        Frames of any square size are resized to the model's.

        source:  (H, W, 3) uint8; or a clip, whose frame i then follows the driver's frame i
        driving: clip as in datasets/video.py, or MotionTemplate, for its initial frame and its rate; absolute motion
                 without smoothing needs none
        motion:  Motion
        anchor:  index of the initial frame; None for the one that `motion.start` names
        detail:  make frames of the source's size instead of the model's: True with the source's detail
                 (motion/detail.py), False by plain enlargement; None for the model's size
        raises:  UserError for an anchor outside of the clip, or a clip that cannot be read
        """
        image, initial = first_frame(source), None
        if motion.relative:
            if anchor is None and motion.start != 'first':
                anchor = find_best_frame(self, image, driving, landmarks=motion.start == 'nearest')
            initial = self.initial_frame(driving, anchor or 0)
        calm = OneEuroFilter(motion.smooth, driving.fps) if motion.smooth else None
        return DrivenSource(self, image, initial, motion.adapt_scale, smooth=calm,
                            clip=None if image is source else source, detail=detail)

    def images(self, frames):
        """Frames (H, W, 3) uint8 -> (B, 3, h, h) in [-1, 1] at the model's size; None for a template's Keypoints."""
        if isinstance(frames[0], Keypoints):
            return None
        return self.whole_images([resized(frame, self.size) for frame in frames])

    def whole_images(self, frames):
        """Frames (H, W, 3) uint8 of one size -> (B, 3, H, W) in [-1, 1]."""
        return from_bytes(self.transfer.up(np.stack(frames)))

    @torch.inference_mode()
    def keypoints(self, frames, images=None):
        """Keypoints (B, K, 2) of B frames (H, W, 3) uint8, or of Keypoints (1, K, 2); `images` if they are there."""
        if isinstance(frames[0], Keypoints):
            return join(frames).map(lambda part: part.to(self.device))
        with self.autocast():
            return self.model.keypoints(self.images(frames) if images is None else images)

    @staticmethod
    def initial_frame(driving, anchor):
        """Frame `anchor` of the clip; UserError where there is none."""
        if not 0 <= anchor < len(driving):
            raise UserError(f'{driving.name}: has no frame {anchor} to start from, only 0 to {len(driving) - 1}')
        return driving.read([anchor])[0]


def first_frame(source):
    """The source image (H, W, 3) uint8: the image itself, or the first frame of a source clip."""
    return source if isinstance(source, np.ndarray) else next(iter(source.frames()))


@dataclass
class Rendered:
    """A batch of driving frames and the result.

    source:    list of B frames (H, W, 3) uint8, the same one B times unless the source is a clip
    driving:   list of B frames (H, W, 3) uint8, or of their Keypoints
    images:    the frames as a tensor, (B, 3, h, h) in [-1, 1] at the model's size; None of Keypoints
    found:     Keypoints of the driving frames
    pose:      the Keypoints that were rendered, after smoothing and transfer
    generated: Generated
    coming:    functions that return the frames (B, H, W, 3) uint8, and whether the prediction is finite, once they are
               in main memory
    """
    source: list
    driving: list
    images: Tensor | None
    found: Keypoints
    pose: Keypoints
    generated: Generated
    coming: tuple

    @functools.cached_property
    def frames(self):
        """The result, (B, H, W, 3) uint8."""
        return self.coming[0]()

    def checked(self):
        """Returns itself; UserError where pixels are not finite."""
        check_finite(self.coming[1]())
        return self


class DrivenSource:
    """A source, still or moving, that follows a driver; made by `Renderer.follow`.

    source: (H, W, 3) uint8, the still, or the first frame of the clip
    image:  the same, (1, 3, h, h) in [-1, 1] at the model's size
    state:  the model's SourceState of it
    clip:   the moving source; None for a still
    detail: see `Renderer.follow`
    """

    def __init__(self, renderer, source, initial=None, adapt_scale=False, *, smooth=None, clip=None, detail=None):
        self.renderer, self.model, self.source, self.clip = renderer, renderer.model, source, clip
        self.smooth, self.detail = smooth, detail
        self.image, self.transfer = renderer.images([source]), absolute_motion
        self.large = None if detail is None else renderer.whole_images([source])
        with torch.inference_mode(), renderer.autocast():
            self.state = self.model.encode_source(self.image)
        if initial is not None:
            # FOMM plays a video forwards and backwards from its best frame. With a model that has no memory the order
            # of frames does not matter: it is enough to take the keypoints of that frame as the initial ones.
            initial = renderer.keypoints([initial])
            self.transfer = RelativeMotion(self.state.keypoints, initial, adapt_scale, self.model.landmarks)
            if self.model.landmarks and poses_differ(self.state.keypoints, initial):
                log.warning('the source image and the initial frame of the driver show different poses, which distorts '
                            'relative motion: choose another image, or try --find_best_frame')

    def render(self, driving):
        """Yields Rendered for an iterable of driving frames (H, W, 3) uint8, or Keypoints, in order, batch by batch.

        A moving source gives a frame for each, and ends the rendering where it ends first. Raises UserError where
        pixels are not finite: such a model has diverged, or its weights are damaged.
        """
        sources = repeat(self.source) if self.clip is None else self.clip.frames()
        made = deque()
        for batch in read_ahead(self._batches(zip(driving, sources))):
            made.append(self._rendered(*batch))      # in no variable of this frame: who reads frames need not keep more
            if len(made) > self.renderer.transfer.behind:
                yield made.popleft().checked()
        while made:
            yield made.popleft().checked()

    def _batches(self, pairs):
        """Yields (source, driving, images) of a Rendered, and the source's images where it moves, else None."""
        while batch := list(islice(pairs, self.renderer.batch_size)):
            driving, sources = map(list, zip(*batch))
            yield (sources, driving, self.renderer.images(driving),
                   None if self.clip is None else self.renderer.images(sources))

    def __call__(self, driving, images=None, source_images=None):
        """(found, pose, generated) of a Rendered; UserError where pixels are not finite.

        driving:       B frames (H, W, 3) uint8, or Keypoints
        images:        of the frames, (B, 3, H, W) in [-1, 1], if they are there
        source_images: (B, 3, H, W), of a source that moves
        """
        made = self._make(driving, images, source_images)
        check_finite(made[-1].prediction.isfinite().all())
        return made

    def _rendered(self, sources, driving, images, source_images):
        """The Rendered of a batch, on its way into main memory."""
        found, pose, generated = self._make(driving, images, source_images)
        down = self.renderer.transfer.down
        coming = down(self.pixels(generated, sources)), down(generated.prediction.isfinite().all())
        return Rendered(sources, driving, images, found, pose, generated, coming)

    @torch.inference_mode()
    def pixels(self, generated, sources):
        """The frames of a Generated, (B, H, W, 3) uint8 on the device; sources: the B frames that it was made of."""
        if self.detail is None:
            return to_bytes(generated.prediction)
        large = self.large if self.clip is None else self.renderer.whole_images(sources)
        return large_frames(generated, large, self.detail)

    @torch.inference_mode()
    def _make(self, driving, images, source_images):
        state, transfer = self.state, self.transfer
        if source_images is not None:
            with self.renderer.autocast():
                state = self.model.encode_source(source_images)
            transfer = transfer if transfer is absolute_motion else transfer.of(state.keypoints)
        found = self.renderer.keypoints(driving, images)
        pose = transfer(found if self.smooth is None else self.smooth(found))
        with self.renderer.autocast():
            generated = self.model.render(state, pose)
        return found, pose, generated


def check_finite(finite):
    """UserError unless `finite`, whether all pixels are finite, is true."""
    if not finite:
        raise UserError('the model makes pixels that are not finite: its checkpoint has diverged or is damaged; '
                        'use an earlier one, or fp32 if this was bf16')
