"""Flags that several modes read, and what they lead to: a config, a run folder, a model, a device."""

import argparse
import hashlib
import logging
from contextlib import contextmanager
from pathlib import Path

from support.errors import UserError

DEFAULT_CONFIG = 'config/vox-256.yaml'
RENDERING = ('--set', '--device', '--relative', '--absolute', '--adapt_scale', '--find_best_frame', '--smooth')

log = logging.getLogger('run')


# ---------------------------------------------------------------------------- flags

def add_config(parser, default=DEFAULT_CONFIG):
    parser.add_argument('--config', help=f'YAML file; default {default}')
    add_set(parser)


def add_set(parser):
    parser.add_argument('--set', nargs='+', default=[], action='extend', metavar='section.key=value',
                        help='override config values')


def add_run_folder(parser):
    parser.add_argument('--log_dir', default='log', help='folder of all runs; default log')
    parser.add_argument('--run_name', help="this run's folder in --log_dir; default: the config's name")


def add_device(parser):
    parser.add_argument('--device', default='auto', help='auto | cpu | cuda | cuda:N | mps')


def add_model(parser):
    """What `load_model` reads."""
    add_config(parser, f'the one inside of --checkpoint, or {DEFAULT_CONFIG}')
    parser.add_argument('--checkpoint', type=checkpoint, metavar='FILE',
                        help='weights to use, or the run folder that has them; default: the newest of --run_name')
    add_run_folder(parser)


def add_methods(parser):
    """Several methods, side by side, and how the models among them make frames: `check_methods`, `named`, `renderers`.
    """
    parser.add_argument('--checkpoints', nargs='+', default=[], metavar='[NAME=]FILE',
                        help='models; NAME is what the result calls them, by default the run folder or the file')
    parser.add_argument('--generated', nargs='+', default=[], metavar='NAME=FOLDER',
                        help='videos that were made elsewhere, named SOURCE--DRIVING.mp4')
    add_set(parser)
    add_device(parser)
    add_motion(parser)


def add_motion(parser):
    """How motion is transferred: `check_motion`, `motion`."""
    pose = parser.add_mutually_exclusive_group()
    pose.add_argument('--relative', dest='relative', action='store_true', default=True,
                        help="add the driver's motion to the source's pose (default)")
    pose.add_argument('--absolute', dest='relative', action='store_false', help="take the driver's pose as it is")
    parser.add_argument('--adapt_scale', action='store_true', help="scale relative motion to the source's face")
    parser.add_argument('--find_best_frame', action='store_true',
                        help='start relative motion from the driving frame that is nearest to the source')
    parser.add_argument('--smooth', type=float, default=0, metavar='STRENGTH',
                        help="smooth the keypoints of a jittery driver; 1 is much, 0 (default) is off")


def check_motion(options):
    """UserError for flags of `add_motion` that do not fit together."""
    if options.smooth < 0:
        raise UserError(f'--smooth {options.smooth:g}: must not be negative')
    if not options.relative:
        refuse(options, ('--adapt_scale', '--find_best_frame'), 'with --absolute, which needs no frame to start from')


def check_methods(options):
    """UserError for flags of `add_methods` that do not fit together."""
    check_motion(options)
    if not options.checkpoints:
        refuse(options, RENDERING, 'without --checkpoints: no model makes frames')


def refuse(options, flags, why):
    """UserError for the first of the `flags` that was given, though nothing reads it in this combination."""
    for flag in flags:
        if flag in options.given:
            raise UserError(f'{flag} is not read {why}; leave one out')


def refuse_run_folder(options, where):
    """UserError for flags of `add_run_folder`, if weights are --checkpoint's and results go `where` a flag says."""
    if options.checkpoint:
        refuse(options, ('--log_dir', '--run_name'), f'with --checkpoint and {where}')


# ---------------------------------------------------------------------------- what they lead to

def checkpoint(text):
    """Path of a checkpoint as a string: of a run folder its newest one, of anything else itself; UserError."""
    path = Path(text)
    if not path.is_dir():
        return text
    found = sorted(file for file in path.glob('checkpoints/*.pt') if file.stem.isdigit())
    if not found:
        raise UserError(f'{path}: holds no checkpoint; of a run folder they lie in {path / "checkpoints"}')
    return str(found[-1])


def run_path(options):
    """The run's folder: named after the config or the checkpoint's run, so that the same command finds it again."""
    if options.config or not getattr(options, 'checkpoint', None):
        default = Path(options.config or DEFAULT_CONFIG).stem
    else:
        default = _name_of(Path(options.checkpoint))
    return Path(options.log_dir) / (options.run_name or default)


def training_path(options):
    """As `run_path`, of a run that trains: with --checkpoint never the folder of the run that has those weights."""
    if not options.checkpoint:
        return run_path(options)
    name = Path(options.config).stem if options.config else _name_of(Path(options.checkpoint))
    return Path(options.log_dir) / (options.run_name or f'{name}-tuned')


def training_config(options):
    """Path of the config of a run that trains; None for the one inside of --checkpoint."""
    return options.config or (None if options.checkpoint else DEFAULT_CONFIG)


def motion(options):
    """The inference.Motion of `add_motion`."""
    from inference import Motion
    return Motion.of_flags(options.relative, options.adapt_scale, options.find_best_frame, options.smooth)


def find_pairs(list_name, dataset, size, count, seed):
    """evaluation.cases.Cases of a list, or of random pairs of a test set.

    list_name: as evaluation.protocols.load_list takes it, or None; a file's clips lie in its own folder or the test set
    dataset:   DatasetParams of the test set; None without one
    size:      frames are resized to (size, size); None leaves them, which the embedded heads cannot
    count, seed: of the random pairs
    raises:    UserError that names the row of the list whose clip is not there
    """
    from datasets.build import test_clips
    from datasets.constant_rate import open_constant_rate
    from evaluation.cases import Case, ClipFinder, cases_of_list
    from evaluation.protocols import RULES, draw_pairs
    root = dataset and dataset.root_dir
    at_hand = dataset and size and (not list_name or list_name in RULES or root is None)
    clips = {clip.name: clip for clip in test_clips(dataset, size)} if at_hand else {}
    if not list_name:
        return [Case(item, clips[item.source], clips[item.driver])
                for item in draw_pairs(clips, count=count, seed=seed)]
    folders = [Path(list_name).parent] * Path(list_name).is_file() + ([Path(root, 'test')] if root else [])
    return cases_of_list(list_name, ClipFinder(clips, (), size, folders, open_constant_rate), clips)


def subject_of(config, model):
    """{what: value} that tells a model's results from those of others; goes into reports."""
    from support.weights import weights_hash
    params = hashlib.sha256(repr(config.model_params).encode()).hexdigest()[:16]
    return {'method': config.method, 'weights': weights_hash(model), 'model params': params,
            'image size': config.model_params.image_size, 'precision': config.train_params.precision}


def check_whole(cases, list_name, what):
    """The cases, if first frames follow whole clips in all of them; UserError otherwise. what: shows them."""
    for case in cases:
        if case.item.source_time or case.item.driving_time is not None:
            raise UserError(f'{list_name}: {case.item.name} names moments of its clips; {what} shows how the first '
                            'frame of one follows all of the other')
    return cases


def animation_renderer(model, config, device):
    """The inference.Renderer that animations are made with."""
    from inference import Renderer
    return Renderer(model, device, config.animate_params.batch_size, config.train_params.precision)


def named(options):
    """The methods of `add_methods`: {name: checkpoint}, {name: folder}. UserError."""
    checkpoints = [_named(text) for text in options.checkpoints]
    folders = [_named(text) for text in options.generated]
    for name, path in folders:
        if name is None or not path.is_dir():
            raise UserError(f'--generated {path}: expected NAME=FOLDER, a folder that is there')
    checkpoints = [(name, Path(checkpoint(path))) for name, path in checkpoints]
    checkpoints = [(name or _name_of(path), path) for name, path in checkpoints]
    names = [name for name, _ in checkpoints + folders]
    for name in names:
        if names.count(name) > 1 or '/' in name or name.startswith('.'):
            raise UserError(f'methods {", ".join(names)}: {name} is twice, or no name; give --checkpoints NAME=FILE')
    return dict(checkpoints), dict(folders)


def _named(text):
    """'NAME=PATH' or 'PATH' -> (NAME or None, Path)."""
    name, _, path = text.rpartition('=')
    return name or None, Path(path)


def _name_of(checkpoint):
    """A run's checkpoints are called by their iteration: the run has the name."""
    inside = checkpoint.parent.name == 'checkpoints' and checkpoint.stem.isdigit()
    return checkpoint.resolve().parents[1].name if inside else checkpoint.stem


def load_named(checkpoint, options, device):
    """As `load_model`, of one of several checkpoints; --set holds for each."""
    return load_model(argparse.Namespace(checkpoint=str(checkpoint), config=None, set=options.set), device)


def renderers(checkpoints, options):
    """Yields (name, config, inference.Renderer) of the checkpoints that `named` gives, one after the other."""
    device = choose_device(options.device)
    for name, path in checkpoints.items():
        config, model = load_named(path, options, device)
        yield name, config, animation_renderer(model, config, device)


def load_model(options, device):
    """(config, model in eval mode): the weights for inference of a checkpoint and the config that fits them."""
    import torch

    from config import schema
    from logger import RunFolder, check_same_model, checkpoint_config, read_checkpoint
    from modules.build import build_model
    from modules.frame_memory import check_frame
    from support import hardware
    from support.weights import load_weights
    if options.checkpoint:
        path, state = options.checkpoint, read_checkpoint(options.checkpoint)
    else:
        found = RunFolder(run_path(options), writes=False).newest()
        if found is None:
            raise UserError(f'no checkpoint in {run_path(options) / "checkpoints"}: train first '
                            '(--mode train), or give --checkpoint')
        path, state = found
    config = checkpoint_config(state, path) if options.checkpoint and not options.config else None
    if config is None:
        config = schema.load(options.config or DEFAULT_CONFIG, options.set)
        check_same_model(config, state, path)
    elif options.set:
        config = schema.override(config, options.set)
    check_frame(config, device)
    model = build_model(config)
    load_weights(model, state['ema'], path)
    log.info('weights: %s, step %d', path, state['step'])
    hardware.keep_freed_memory()
    hardware.flush_denormals()
    return hardware.adapted(config, device), model.to(device, memory_format=torch.channels_last).eval()


@contextmanager
def process_group(name):
    """Yields this process's torch.device for --device `name`; within it, the processes of torchrun know each other."""
    from support import distributed
    device = distributed.start(choose_device(name))
    try:
        with distributed.explained():
            yield device
    finally:
        distributed.stop()


def choose_device(name):
    """The torch.device of that name; UserError where there is no such device on this machine."""
    import torch
    if name == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f'--device {name}: expected auto, cpu, cuda, cuda:N or mps') from None
    if device.type == 'cuda':
        if not torch.cuda.is_available():
            raise UserError(f'--device {name}: PyTorch finds no CUDA GPU on this machine; use --device cpu')
        if (device.index or 0) >= torch.cuda.device_count():
            raise UserError(f'--device {name}: this machine has {torch.cuda.device_count()} GPU(s)')
    if device.type == 'mps' and not torch.backends.mps.is_available():
        raise UserError('--device mps: PyTorch finds no Apple GPU on this machine; use --device cpu')
    return device
