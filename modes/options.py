"""Flags that several modes share, and the run folder, methods, model and processes that they name."""

from contextlib import contextmanager
from pathlib import Path

from motion.settings import Motion
from support.checkpoints import checkpoints_in, newest_checkpoint, shipped_weights
from support.errors import UserError
from support.files import split_assignment

DEFAULT_CONFIG = 'config/vox-256.yaml'
SHIPPED_DEFAULT = 'the newest of the run folder; without one, the model in weights/'
RENDERING = ('--set', '--device', '--relative', '--absolute', '--adapt_scale', '--find_best_frame', '--smooth')


# ---------------------------------------------------------------------------- flags

def add_config(parser, default=DEFAULT_CONFIG):
    parser.add_argument('--config', help=f'YAML file; default: {default}')
    add_set(parser)


def add_set(parser):
    parser.add_argument('--set', nargs='+', default=[], action='extend', metavar='section.key=value',
                        help='override config values')


def add_run_folder(parser):
    parser.add_argument('--log_dir', default='log', help='folder of all runs; default: log')
    parser.add_argument('--run_name', help="this run's folder in --log_dir; default: the config's name")


def add_device(parser):
    parser.add_argument('--device', default='auto', help='auto | cpu | cuda | cuda:N | mps')


def add_precision(parser):
    parser.add_argument('--precision', choices=('auto', 'fp32', 'bf16'),
                        help="precision of the networks; auto: bf16 if the device computes it natively; "
                             "default: that of the config")


def add_model(parser, default='the newest of the run folder'):
    """Add the flags that `load_model` reads; `default` says what is used without --checkpoint."""
    add_config(parser, f'the config in --checkpoint, or {DEFAULT_CONFIG}')
    parser.add_argument('--checkpoint', type=newest_checkpoint, metavar='FILE',
                        help=f'checkpoint, or a run folder with checkpoints; default: {default}')
    add_run_folder(parser)


def add_methods(parser):
    """Add flags for several methods and for rendering; read by `check_methods`, `named` and `renderers`."""
    parser.add_argument('--checkpoints', nargs='+', default=[], metavar='[NAME=]FILE',
                        help='models; NAME labels them in the results; default: the name of the run folder or file')
    parser.add_argument('--generated', nargs='+', default=[], metavar='NAME=FOLDER',
                        help='videos that were made elsewhere, named SOURCE--DRIVING.mp4')
    add_set(parser)
    add_device(parser)
    Motion.add_flags(parser)


def check_methods(options):
    """UserError for flags of `add_methods` that exclude each other."""
    Motion.of(options)
    if not options.checkpoints:
        refuse(options, RENDERING, 'without --checkpoints: no model makes frames')


def refuse(options, flags, why):
    """UserError for the first of the `flags` that was given, though nothing reads it in this combination."""
    for flag in flags:
        if flag in options.given:
            raise UserError(f'{flag} is not read {why}; leave one out')


def refuse_run_folder(options, where):
    """UserError for flags of `add_run_folder` if unused: --checkpoint gives the weights, `where` the output path."""
    if options.checkpoint:
        refuse(options, ('--log_dir', '--run_name'), f'with --checkpoint and {where}')


# ---------------------------------------------------------------------------- what they lead to

def use_shipped(options):
    """Let --checkpoint default to the weights that come with the project, where no run is named and none is there."""
    if not options.checkpoint and not {'--config', '--run_name', '--log_dir'} & options.given:
        if not checkpoints_in(run_path(options)):
            options.checkpoint = shipped_weights()


def run_path(options):
    """The run's folder: the one that holds --checkpoint, or the one in --log_dir named --run_name, or as the config.

    So results are saved with the weights that made them, and the same command finds them again.
    """
    checkpoint = getattr(options, 'checkpoint', None)
    if checkpoint and _is_in_run(Path(checkpoint)) and not {'--log_dir', '--run_name'} & options.given:
        return Path(checkpoint).parents[1]
    if options.config or not checkpoint:
        default = Path(options.config or DEFAULT_CONFIG).stem
    else:
        default = _name_of(Path(checkpoint))
    return Path(options.log_dir) / (options.run_name or default)


def training_path(options):
    """As `run_path`, of a run that trains: with --checkpoint never the folder of the run that has those weights."""
    if not options.checkpoint:
        return run_path(options)
    name = Path(options.config).stem if options.config else _name_of(Path(options.checkpoint))
    return Path(options.log_dir) / (options.run_name or f'{name}-tuned')


def training_config(options):
    """Path of the config of a run that trains; None for the one in --checkpoint."""
    return options.config or (None if options.checkpoint else DEFAULT_CONFIG)


def named(options):
    """The methods of `add_methods`: {name: checkpoint}, {name: folder}. UserError."""
    checkpoints, folders = (list(map(split_assignment, texts)) for texts in (options.checkpoints, options.generated))
    for name, path in folders:
        if name is None or not path.is_dir():
            raise UserError(f'--generated {path}: expected NAME=FOLDER, a folder that is there')
    checkpoints = [(name, Path(newest_checkpoint(path))) for name, path in checkpoints]
    checkpoints = [(name or _name_of(path), path) for name, path in checkpoints]
    names = [name for name, _ in checkpoints + folders]
    for name in names:
        if names.count(name) > 1 or '/' in name or name.startswith('.'):
            raise UserError(f'methods {", ".join(names)}: {name} is twice, or no name; give --checkpoints NAME=FILE')
    return dict(checkpoints), dict(folders)


def _name_of(checkpoint):
    """A run's checkpoints are called by their iteration: the run has the name."""
    return checkpoint.resolve().parents[1].name if _is_in_run(checkpoint) else checkpoint.stem


def _is_in_run(checkpoint):
    return checkpoint.parent.name == 'checkpoints' and checkpoint.stem.isdigit()


def renderers(checkpoints, options):
    """Yields (name, config, inference.Renderer) of the checkpoints that `named` gives, one after the other."""
    from load import animation_renderer, load_model
    for name, path in checkpoints.items():
        config, model = load_model(path, overrides=options.set, device=options.device)
        yield name, config, animation_renderer(config, model)


def model_of(options, device):
    """(config, model in eval mode) of the flags of `add_model`."""
    from load import load_model
    return load_model(options.checkpoint, training_config(options), options.set, run_path(options), device)


@contextmanager
def process_group(name):
    """Yields this process's torch.device for --device `name`; joins torchrun's process group within the block."""
    from load import choose_device
    from support import distributed
    device = distributed.start(choose_device(name))
    try:
        with distributed.explained():
            yield device
    finally:
        distributed.stop()
