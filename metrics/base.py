"""What a metric is, and what it says when it cannot work here."""

import functools
import hashlib
import os
import pickle
import weakref
from collections import Counter, OrderedDict
from contextlib import contextmanager
from pathlib import Path

import torch

from support.errors import UserError
from support.weights import checkpoint_path


class Unavailable(Exception):
    """An optional package cannot work here; the message is one line: what is missing, and how to get it."""


@contextmanager
def optional(package, urls):
    """Import an optional package and load its weights in the body; raises Unavailable where that cannot be done.

    package: name of its distribution
    urls:    of the weights it needs. The packages would fetch up to half a gigabyte by themselves; we ask instead
    """
    absent = [f'download {url} to {checkpoint_path(url)}' for url in urls if not checkpoint_path(url).is_file()]
    if absent:
        raise Unavailable('weights not found: ' + '; '.join(absent))
    try:
        with _tensors_only():
            yield
    except ImportError as error:
        raise Unavailable(f'{error}: pip install {package}') from error
    except torch.OutOfMemoryError:
        raise     # a RuntimeError too, but no fault of the weights
    except UserError as error:                 # of support.weights, which says what is wrong
        raise Unavailable(f'damaged weights: {error}') from error
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        files = ' or '.join(str(checkpoint_path(url)) for url in urls)
        raise Unavailable(f'damaged weights {files} ({type(error).__name__}): download again') from error


@contextmanager
def _tensors_only():
    """Files of weights cannot run code, whatever the package that loads them permits."""
    before = os.environ.get('TORCH_FORCE_WEIGHTS_ONLY_LOAD')
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    try:
        yield
    finally:
        if before is None:
            del os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD']
        else:
            os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = before


def shared(make):
    """Decorates what makes a network: equal arguments get the same one, as long as anybody holds it."""
    alive = weakref.WeakValueDictionary()

    @functools.wraps(make)
    def get(*key):
        made = alive.get(key)
        if made is None:
            made = alive[key] = make(*key)
        return made
    return get


class Metric:
    """Scores generated frames one by one, as they stream by; `id` names one definition and never another.

    The frames of a clip come in order, in batches of any size. Metrics of one device share their networks,
    and what these saw in the last batches, so that no frame is looked at twice; frames must not change in place.

    misses:      Counter of frames of the current clip without a face, by 'generated', 'driving', 'source'
    weights:     {file name: SHA-256} of the weights in use
    """

    id = ''                   # what.how
    column = ''               # short name for tables
    unit = ''                 # '' for pure numbers
    direction = 'lower'       # which is better, 'lower' or 'higher'
    definition = ''           # the formula in words
    source = ''               # who defined it so
    decimals = 4              # that a table shows
    needs_source = False      # it compares with the source image; all scores are NaN where there is none
    weight_files = ()         # paths

    def __init__(self, device):
        """Raises Unavailable if a package or a file is missing, and says which, from where and to which path."""
        self.misses = Counter()

    def start_clip(self, source=None):
        """Call it before the frames of each clip.

        source: (3, H, W) in [0, 1], the image that is animated, or None
        """
        self.misses = Counter()

    def __call__(self, generated, driving):
        """Score the next frames of the clip.

        generated: (B, 3, H, W) float32 in [0, 1], 8-bit values / 255
        driving:   likewise, the frames that drove them
        returns:   (B,) float64 on the CPU; NaN where no face was found or the metric is undefined
        """
        raise NotImplementedError

    @property
    def weights(self):
        return {Path(path).name: _sha256(path) for path in self.weight_files}


class Recognition(Metric):
    """Compares what a network recognises in generated frames with what it recognises in those they are to match."""

    def __init__(self, device):
        super().__init__(device)
        self.recognise = self.network(device)
        self.of_source = None

    def network(self, device):
        """Frames (B, 3, H, W) in [0, 1] -> (B, ...), NaN for frames in which there is nothing to recognise."""
        raise NotImplementedError

    def compare(self, generated, wanted):
        """Two answers of the network (B, ...) -> (B,)."""
        raise NotImplementedError

    def start_clip(self, source=None):
        super().start_clip(source)
        self.of_source = self._look(source[None], 'source') if self.needs_source and source is not None else None

    def __call__(self, generated, driving):
        if self.needs_source and self.of_source is None:
            return torch.full((len(generated),), torch.nan, dtype=torch.float64)
        made = self._look(generated, 'generated')
        wanted = self.of_source.expand_as(made) if self.needs_source else self._look(driving, 'driving')
        return self.compare(made, wanted).double().cpu()

    def _look(self, frames, side):
        answer = self.recognise(frames)
        self.misses[side] += int(answer.isnan().flatten(1).any(1).sum())
        return answer


class SetMetric(Metric):
    """One value for all frames of all clips, from sums that add up over clips and over processes."""

    def update(self, generated, driving):
        """Take in the next frames of the clip; arguments as for Metric.__call__."""
        raise NotImplementedError

    def state(self):
        """Sums over the current clip, {name: float64 tensor on the CPU}; add those of all clips name by name."""
        raise NotImplementedError

    @staticmethod
    def compute(state):
        """The value of the summed states, a float; NaN if there are too few frames."""
        raise NotImplementedError


class Remembered:
    """A function of one batch of frames that keeps its last answers: several metrics ask for the same."""

    def __init__(self, function, answers=2):     # to generated and driving frames
        self.function, self.limit, self.answers = function, answers, OrderedDict()

    @torch.inference_mode()
    def __call__(self, frames):
        # The frames are kept with the answer: as long as they live, no other tensor has their id.
        if id(frames) not in self.answers:
            self.answers[id(frames)] = frames, self.function(frames)
        self.answers.move_to_end(id(frames))
        while len(self.answers) > self.limit:
            self.answers.popitem(last=False)
        return self.answers[id(frames)][1]


@functools.cache
def _sha256(path):
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
