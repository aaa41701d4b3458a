"""Schema of the YAML configs: loading, checking, overriding.

A dataclass defines every key with type, default, meaning and range (support/ranges.py): here for the loops, next
to each network for its parameters. Unknown keys, wrong types and impossible values raise a UserError.
"""

import dataclasses
import logging
import types
import typing
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml

from datasets.face_tracker import VERTICES
from datasets.synthetic.clips import LANDMARK_NAMES, MAX_PEOPLE
from modules.build import METHODS
from modules.objective import ObjectiveParams, check_weights
from support.errors import UserError, check_config_path, did_you_mean, did_you_mean_or_known
from support.files import read_text, write_text
from support.ranges import AtLeastOne, AtLeastZero, Decay, NotNegative, Positive, Range, Scale, Seed

PRECISIONS = ('fp32', 'bf16')
CLIP_NORMS = ('l2', 'inf')
People = Annotated[int, Range(1, MAX_PEOPLE)]

# {(section, key of earlier configs and checkpoints): its present name}
RENAMED = {('motion_codebook_params', 'scales'): 'num_scales', ('appearance_codebook_params', 'scales'): 'num_scales',
           ('loss_weights', 'coarse'): 'first_scale'}
# {(method, key of model_params that earlier configs and checkpoints lack): what these are}
LACKED = {('mrfa', 'prior_model'): "it is MRFA with FOMM's keypoint detector (prior_model: fomm); the published model: "
                                   'config/mrfa-vox-256.yaml'}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AugmentationParams:
    time_flip: bool = True         # swap source and driving, half of the time
    horizontal_flip: bool = True   # mirror both, half of the time if time was not flipped, as in FOMM
    brightness: NotNegative = 0.0  # colour jitter, the same for both frames; FOMM uses 0.1 for all four
    contrast: NotNegative = 0.0
    saturation: NotNegative = 0.0
    hue: Annotated[float, Range(0, 0.5)] = 0.0


@dataclass(frozen=True)
class SyntheticParams:
    train_people: People = 256        # identities to train on
    test_people: People = 8           # other identities, one clip each
    clips_per_person: AtLeastOne = 2  # training clips of each identity
    frames: AtLeastOne = 64           # per clip
    even: bool = False                # training frames with any pose and expression, and people of a wider range
    augment: bool = False             # training pairs in any light, on any background, from any camera
    landmarks: tuple[str, ...] = ()   # of the pairs, for objective_params; names in datasets/synthetic/mesh.py
    cache: str | None = None          # folder that keeps what is drawn with `augment`, 4 size^2 bytes a frame

    def __post_init__(self):
        for name in self.landmarks:
            if name not in LANDMARK_NAMES:
                raise ValueError(f'landmarks: unknown landmark {name}{did_you_mean_or_known(name, LANDMARK_NAMES)}')
        if self.augment and not self.landmarks:
            raise ValueError('augment: expected `landmarks`, those of the pairs')


@dataclass(frozen=True)
class DatasetParams:
    root_dir: str | None = None   # folder with train/ and test/; null: synthetic heads
    id_sampling: bool = True      # sample persons uniformly, not clips; names are person#...
    max_broken: AtLeastZero = 20  # unreadable training clips to skip before the run stops
    augmentation_params: AugmentationParams = AugmentationParams()
    synthetic_params: SyntheticParams = SyntheticParams()

    def __post_init__(self):
        flips = self.augmentation_params.time_flip or self.augmentation_params.horizontal_flip
        if self.synthetic_params.landmarks and flips:
            raise ValueError('synthetic_params.landmarks: landmarks are not flipped; set augmentation_params.time_flip '
                             'and horizontal_flip to false')


@dataclass(frozen=True)
class TrainParams:
    num_iterations: AtLeastOne = 250_000
    batch_size: AtLeastOne = 16         # over all processes and accumulation steps together
    accumulate: AtLeastOne = 1          # micro-batches per optimiser step; only batch norm depends on it
    motion_iterations: AtLeastZero = 0  # the first iterations, which train only keypoints and coarse flow
    learning_rate: Positive = 8e-5      # generator and motion estimator
    discriminator_learning_rate: Positive = 8e-5
    betas: tuple[Decay, ...] = (0.9, 0.99)
    milestones: tuple[AtLeastOne, ...] = (200_000, 225_000)  # iterations at which the learning rates decrease
    gamma: Scale = 0.5                  # factor of each decrease
    clip_norm: NotNegative = 0.0        # limit of the model's gradient norm; 0: no clipping
    clip_norm_type: str = 'l2'          # l2 | inf (largest element)
    clip_apart: tuple[tuple[str, ...], ...] = ()  # groups of networks clipped separately, others not; (): all together
    ema_decay: Decay = 0.995            # of the weights used in validation and inference
    ema_exclude: tuple[str, ...] = ()   # networks that inference uses without EMA
    ema_statistics: bool = False        # average batch norm's running statistics too: theirs of small batches are noisy
    precision: str = 'fp32'             # fp32 | bf16 (autocast)
    checkpointing: bool = False         # recompute activations in the backward pass: less memory, more time
    keep_freed: bool = True             # CPU: keep freed memory for reuse; with checkpointing, only of small tensors
    compile: bool = False               # torch.compile the model's blocks: faster on GPUs, in long runs
    seed: Seed = 0
    num_workers: AtLeastZero = 4        # data loading processes per training process
    log_every: AtLeastOne = 50          # iterations between lines of the log
    val_every: AtLeastOne = 2500        # iterations between validations
    val_pairs: AtLeastOne = 32          # fixed test pairs per validation
    save_every: AtLeastOne = 2500       # iterations between checkpoints
    keep_checkpoints: AtLeastOne = 3    # newest checkpoints to keep
    max_nonfinite: AtLeastZero = 20     # non-finite steps to skip before the run stops
    objective_params: ObjectiveParams = ObjectiveParams()

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise ValueError(f'precision={self.precision!r}: expected one of {", ".join(PRECISIONS)}')
        if self.clip_norm_type not in CLIP_NORMS:
            raise ValueError(f'clip_norm_type={self.clip_norm_type!r}: expected one of {", ".join(CLIP_NORMS)}')
        if len(self.betas) != 2:
            raise ValueError(f'betas={list(self.betas)}: expected two values')
        if self.motion_iterations >= self.num_iterations:
            raise ValueError(f'motion_iterations={self.motion_iterations}: expected fewer than '
                             f'num_iterations={self.num_iterations}, as only later iterations train the decoder')


@dataclass(frozen=True)
class ReconstructionParams:
    num_videos: AtLeastOne = 1000  # test clips at most, in order of their names
    include_first: bool = True     # also score frame 0, which is the source itself (as FOMM)
    batch_size: AtLeastOne = 8     # driving frames rendered at once
    save_videos: bool = True


@dataclass(frozen=True)
class AnimateParams:
    num_pairs: AtLeastOne = 50     # random pairs of the test set without a list; each clip is a source once
    pairs_list: str | None = None  # a list as for --mode evaluate --list (evaluation/protocols.py)
    seed: Seed = 0                 # of the random pairs
    batch_size: AtLeastOne = 8     # driving frames rendered at once


@dataclass(frozen=True)
class VisualizerParams:
    samples: AtLeastOne = 4  # rows of the training and validation pictures


@dataclass(frozen=True)
class Config:
    """A checked config; `model_params` is the Params of the method's class in modules/."""
    method: str
    model_params: object
    dataset_params: DatasetParams = DatasetParams()
    train_params: TrainParams = TrainParams()
    reconstruction_params: ReconstructionParams = ReconstructionParams()
    animate_params: AnimateParams = AnimateParams()
    visualizer_params: VisualizerParams = VisualizerParams()

    def as_dict(self):
        """The config as nested dicts and lists, as in YAML files and checkpoints."""
        sections = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name != 'method'}
        sections['model_params'] = {'method': self.method} | sections['model_params']
        return sections


def load(path, overrides=()):
    """Read a YAML config and its base configs, and apply 'section.key=value' overrides.

    Raises UserError that names file, key, expectation and the nearest valid name.
    """
    return _overridden(_read(Path(path)), overrides, str(path))


def override(config, overrides):
    """`config` with 'section.key=value' overrides applied."""
    return _overridden(config.as_dict(), overrides, '--set')


def _overridden(raw, overrides, where):
    for override in overrides:
        key, separator, value = override.partition('=')
        if not separator or not key:
            raise UserError(f'--set {override}: expected section.key=value')
        try:
            value = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise UserError(f'--set {override}: the value is not valid YAML') from None
        for part in reversed(key.split('.')):
            value = {part: value}
        _merge(raw, value)
    return parse(raw, where)


def parse(raw, where):
    """Check nested dicts and return a Config; `where` names their origin in errors."""
    raw = _merge({}, _mapping(raw, where))
    model = dict(_mapping(raw.pop('model_params', {}), f'{where}: model_params'))
    method = model.pop('method', 'synergy')
    if str(method) not in METHODS:
        raise UserError(f'{where}: model_params.method={method!r}: expected one of {", ".join(METHODS)}'
                        f'{did_you_mean(str(method), METHODS)}')
    for (of, key), meaning in LACKED.items():
        if method == of and key not in model:
            log.info('%s has no model_params.%s: %s', where, key, meaning)
    sections = {f.name: f.type for f in dataclasses.fields(Config) if f.name not in ('method', 'model_params')}
    _check_names(raw, [*sections, 'model_params'], where, '')
    built = {name: _build(sections[name], value, where, name) for name, value in raw.items()}
    config = Config(method, _build(METHODS[method].model.Params, model, where, 'model_params'), **built)
    try:
        check_weights(config.train_params.objective_params.loss_weights, METHODS[method].model.own_losses)
        check_landmarks(config)
    except ValueError as error:
        raise UserError(f'{where}: {error}') from None
    return config


def check_landmarks(config):
    """ValueError unless landmarks used as keypoints come with the training pairs and are known to MediaPipe."""
    names = getattr(getattr(config.model_params, 'kp_detector_params', None), 'landmarks', ())
    if names and names != config.dataset_params.synthetic_params.landmarks:
        raise ValueError('model_params.kp_detector_params.landmarks: expected those of '
                         'dataset_params.synthetic_params.landmarks, in the same order')
    if unknown := [name for name in names if name not in VERTICES]:
        raise ValueError(f'model_params.kp_detector_params.landmarks: MediaPipe does not find {", ".join(unknown)}')


def save(config, path):
    """Write the resolved config as YAML."""
    write_text(path, yaml.safe_dump(config.as_dict(), sort_keys=False))


def _read(path, seen=()):
    check_config_path(path)
    if path.resolve() in seen:
        raise UserError(f'config {path} is its own base')
    try:
        raw = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:      # of numbers and dates, of depth
        raise UserError(f'config {path} is not valid YAML: {" ".join(str(error).split())}') from None
    if raw is None:         # truncated by a full disk, for example: do not start two weeks of default training
        raise UserError(f'config {path} is empty; copy it again, or omit --config')
    raw = dict(_mapping(raw, str(path)))
    bases, merged = raw.pop('base', []), {}
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f'config {path}: base={bases!r}: expected the name of a file, or a list of them')
    for base in bases:      # later ones win
        _merge(merged, _read(path.parent / base, (*seen, path.resolve())))
    return _merge(merged, raw)


def _merge(into, new, section=''):
    """Write nested dicts over others, RENAMED keys under their present names; returns `into`."""
    for key, value in new.items():
        key = RENAMED.get((section, key), key)
        if isinstance(value, dict):
            value = _merge(into[key] if isinstance(into.get(key), dict) else {}, value, key)
        into[key] = value
    return into


def _mapping(value, where):
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f'{where}: expected keys and values, found {value!r}')
    return value


def _check_names(given, known, where, prefix):
    for name in given:
        if name not in known:
            raise UserError(f'{where}: unknown key {prefix}{name}{did_you_mean_or_known(name, known)}')


def _build(cls, values, where, key):
    values = _mapping(values, f'{where}: {key}')
    hints = typing.get_type_hints(cls, include_extras=True)
    _check_names(values, list(hints), where, f'{key}.')
    defaults = {f.name: f for f in dataclasses.fields(cls)}
    arguments = {}
    for name, value in values.items():
        default = defaults[name].default
        if dataclasses.is_dataclass(hints[name]) and dataclasses.is_dataclass(default):
            # Missing keys of a nested section take the defaults of its owner.
            value = _merge(_plain(default), _mapping(value, f'{where}: {key}.{name}'))
        arguments[name] = _convert(hints[name], value, where, f'{key}.{name}')
    try:
        return cls(**arguments)
    except ValueError as error:
        raise UserError(f'{where}: {key}: {error}') from None


def _convert(hint, value, where, key):
    """Convert `value` to the type `hint`, or raise UserError."""
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where, key)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        number, allowed = _convert(arguments[0], value, where, key), arguments[1]
        if number not in allowed:
            raise UserError(f'{where}: {key}={number!r}: expected {allowed}')
        return number
    if origin is types.UnionType:
        if value is None:
            return None
        return _convert(arguments[0], value, where, key)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_convert(arguments[0], item, where, f'{key}[{i}]') for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {str(name): _convert(arguments[1], item, where, f'{key}.{name}') for name, item in value.items()}
    if hint is float and isinstance(value, str):      # YAML 1.1 reads 8e-5, without a dot, as a string
        with suppress(ValueError):
            value = float(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    expected = getattr(hint, '__name__', str(hint)) if origin is None else {tuple: 'a list',
                                                                            dict: 'keys and values'}[origin]
    raise UserError(f'{where}: {key}={value!r}: expected {expected}')


def _plain(value):
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value
