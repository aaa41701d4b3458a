"""The interface of all metrics: of single frames, of features of frames, of distributions of features."""

import functools
import os
import pickle
import weakref
from collections import Counter
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path

import torch

from support.errors import UserError
from support.files import file_hash
from support.weights import checkpoint_path

NETWORKS = 2      # that `shared` keeps of one kind: such as LPIPS with either backbone


class Unavailable(Exception):
    """Raised where an optional package cannot work; the message is one line: what is missing, and how to get it."""


@contextmanager
def optional(package, urls):
    """Import an optional package and load its weights in the body; raises Unavailable where that fails.

    package: name of its distribution
    urls:    of the weights it needs; the user downloads them, because the package would fetch up to half a gigabyte
    """
    absent = [f'download {url} to {checkpoint_path(url)}' for url in urls if not checkpoint_path(url).is_file()]
    if absent:
        if not list(distributions(name=package)):
            absent.append(f'pip install {package}')
        raise Unavailable('weights not found: ' + '; '.join(absent))
    try:
        with _tensors_only():
            yield
    except ImportError as error:
        raise Unavailable(f'{error}: pip install {package}') from error
    except torch.OutOfMemoryError:
        raise     # a RuntimeError too, but not caused by the weights
    except UserError as error:                 # of support.weights; the message is complete
        raise Unavailable(f'damaged weights: {error}') from error
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        files = ' or '.join(str(checkpoint_path(url)) for url in urls)
        raise Unavailable(f'damaged weights {files} ({type(error).__name__}): download again') from error


@contextmanager
def _tensors_only():
    """Force `weights_only=True` inside third-party loaders."""
    before = os.environ.get('TORCH_FORCE_WEIGHTS_ONLY_LOAD')
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    try:
        yield
    finally:
        if before is None:
            del os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD']
        else:
            os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = before


_LOADERS = []
_weights_hash = functools.cache(file_hash)


def shared(load):
    """Decorator of a function that loads a network: equal arguments return the network that is already loaded.

    The NETWORKS most recent ones stay in memory until `release_networks`.
    """
    _LOADERS.append(functools.lru_cache(maxsize=NETWORKS)(load))
    return _LOADERS[-1]


def release_networks():
    """Free the networks that `shared` keeps; metrics that exist keep theirs."""
    for load in _LOADERS:
        load.cache_clear()


class Cached:
    """A function of a batch of frames that is computed once per batch: several metrics use the same features.

    Frames are distinguished by identity. A result lives as long as its frames, which must not change in place.
    """

    def __init__(self, function):
        self.function, self.results = function, {}

    @torch.inference_mode()
    def __call__(self, frames):
        key = id(frames)
        if key not in self.results:
            self.results[key] = self.function(frames)
            weakref.finalize(frames, self.results.pop, key)
        return self.results[key]


class Metric:
    """Scores generated frames one by one, as they are generated; `id` stands for one definition only.

    The frames of a clip come in order, in batches of any size. Metrics on one device share networks and the features of
    a batch, so each network runs once per frame.

    misses:      Counter of frames of the current clip without a face, by 'generated', 'driving', 'source'
    weights:     {file name: SHA-256} of the weights in use
    """

    id = ''                   # what.how
    column = ''               # short name for tables
    unit = ''                 # '' for pure numbers
    direction = 'lower'       # which is better, 'lower' or 'higher'
    definition = ''           # the formula in words
    source = ''               # who defined it so
    decimals = 4              # in tables
    needs_source = False      # it compares with the source image; all scores are NaN without one
    weight_files = ()         # paths

    def __init__(self, device):
        """Raises Unavailable if a package or a file is missing, with its name, URL and expected path."""
        self.misses = Counter()

    def start_clip(self, source=None):
        """Call it before the frames of each clip.

        source: (3, H, W) in [0, 1], the source image, or None
        """
        self.misses = Counter()

    def __call__(self, generated, driving):
        """Score the next frames of the clip.

        generated: (B, 3, H, W) float32 in [0, 1], 8-bit values / 255; (1, 3, H, W) is compared with each driving frame
        driving:   (B, 3, H, W), the driving frames, likewise
        returns:   (B,) float64 on the CPU; NaN where no face was found or the metric is undefined
        """
        raise NotImplementedError

    def details(self):
        """{name: value} of the clip so far, besides its mean; a value is None where it is undefined."""
        return {}

    @property
    def weights(self):
        return {Path(path).name: _weights_hash(path) for path in self.weight_files}


class FeatureMetric(Metric):
    """Compares features of generated frames with those of their targets: the driving frames, or the source image."""

    def __init__(self, device):
        super().__init__(device)
        self.features = self.load(device)
        self.source_features = None

    def load(self, device):
        """A function from frames (B, 3, H, W) in [0, 1] to features (B, ...), NaN for frames without a face."""
        raise NotImplementedError

    def compare(self, generated, target):
        """Features (B, ...) of both sides, one of which may have batch size 1 -> (B,)."""
        raise NotImplementedError

    def start_clip(self, source=None):
        super().start_clip(source)
        self.source_features = None
        if self.needs_source and source is not None:
            self.source_features = self._counted(source[None], 'source')

    def __call__(self, generated, driving):
        if self.needs_source and self.source_features is None:
            return torch.full((len(driving),), torch.nan, dtype=torch.float64)
        target = self.source_features if self.needs_source else self._counted(driving, 'driving')
        return self.compare(self._counted(generated, 'generated'), target).cpu().double()

    def _counted(self, frames, side):
        features = self.features(frames)
        self.misses[side] += int(features.isnan().flatten(1).any(1).sum())
        return features


class DistributionMetric(Metric):
    """One value for all frames of all clips: a distance between two distributions of features.

    network:  names the features, which all metrics of one network share
    features: function from frames (B, 3, H, W) in [0, 1] to (B, D)
    """

    network = ''

    @classmethod
    def sides(cls):
        """Whose features it compares: the generated frames', and those of the reference."""
        return 'generated', 'source' if cls.needs_source else 'driving'

    @staticmethod
    def compute(clips):
        """The distance, a float; NaN for fewer than two frames.

        clips: list of pairs of the clips' features: (T, D) of the generated frames, (R, D) of the reference
        """
        raise NotImplementedError

