"""Sources of frames for a comparison: models that render here, and existing videos."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.constant_rate import open_constant_rate
from datasets.still import resized
from datasets.video import open_any
from evaluation.cases import Case
from evaluation.protocols import Item
from evaluation.videos import at_rate, check_length, pair_name, shown_at
from inference import Renderer
from motion.settings import Motion


def case_of_files(source, driving, size):
    """The Case of an image, or the first frame of a video, that follows a video, at `size` pixels. UserError.

    If both are one file, the driving frames are the ground truth.
    """
    same = Path(source).resolve() == Path(driving).resolve()
    return Case(Item(source, driving=None if same else driving), open_any(source, size, open_constant_rate),
                open_constant_rate(driving, size))


def largest_cases(methods):
    """The cases of the first RenderedMethod with the largest images; all methods are shown at that size."""
    return max(methods, key=lambda method: method.renderer.model.params.image_size).cases


@dataclass(frozen=True)
class RenderedMethod:
    """A method that renders its frames."""
    name: str
    renderer: Renderer
    cases: tuple                                 # those of the comparison, at the model's image size
    motion: Motion
    watch: Callable[[], None] | None = None      # called before each frame; an exception in it ends the comparison

    def frames(self, number, indices):
        """Yields the frames (H, W, 3) uint8 of a case for these driving frames, a list, or the range of all."""
        case = self.cases[number]
        driven = self.renderer.follow(case.source.read([0])[0], case.driving, self.motion, case.anchor)
        for batch in driven.render(case.frames(indices)):
            frames = batch.frames
            del batch              # frees the model's features before other methods render
            for frame in frames:
                if self.watch is not None:
                    self.watch()
                yield frame


@dataclass(frozen=True)
class VideoMethod:
    """A method with an existing video for each case.

    Raises UserError for a clip that is too short for its pair.
    """
    name: str
    clips: tuple
    cases: tuple

    def __post_init__(self):
        for clip, case in zip(self.clips, self.cases, strict=True):
            check_length(clip, case.driving, pair_name(case), self.name)

    def frames(self, number, indices):
        """Yields the frames on display at the times of the driving frames; as RenderedMethod."""
        clip, fps = self.clips[number], self.cases[number].driving.fps
        if isinstance(indices, range):
            yield from at_rate(clip, fps, len(indices))
        else:
            yield from clip.read([shown_at(clip, fps, i) for i in indices])


class ClipFrame(NamedTuple):
    """One driving frame, its index, and the frame of each method, all of one size."""
    index: int
    driving: np.ndarray
    made: list


def stream(case, number, methods, indices):
    """Yields a ClipFrame for each driving frame of case `number`; each method holds one batch in memory."""
    made = (method.frames(number, indices) for method in methods)
    for index, driving, *frames in zip(indices, case.frames(indices), *made, strict=True):
        yield ClipFrame(index, driving, [resized(frame, driving.shape[:2]) for frame in frames])
