"""Start of training: from the newest checkpoint of a run folder, from weights of another run, or from scratch."""

import logging
from dataclasses import dataclass
from pathlib import Path

from config.changes import check_going_on
from logger import check_same_model, checkpoint_config, read_checkpoint
from modules.published.formats import ImportFault, flatten_checkpoint, import_tensors
from modules.resize_checkpoint import MAY_DIFFER, check_scales, resize_checkpoint
from support import distributed, weights
from support.errors import UserError
from support.files import file_hash

log = logging.getLogger(__name__)


@dataclass
class ResumePoint:
    """Where training in a run folder begins.

    path, state: the checkpoint file and its content; None for a new model
    step:        iterations that this run has completed
    origin:      which weights the run was initialised from: its file `checkpoint` (absolute path), `step`, `sha256`;
                 None for a run that began with a new model
    changed:     one line: config values that changed since the checkpoint; '' for none
    image_size:  the checkpoint's image size where it differs from the model's, else None
    """
    path: Path | None = None
    state: dict | None = None
    step: int = 0
    origin: dict | None = None
    changed: str = ''
    image_size: int | None = None

    @property
    def of_another_run(self):
        """Whether the checkpoint is another run's, of which only the weights are used."""
        return self.origin is not None and self.path == Path(self.origin['checkpoint'])


def find_resume_point(run, config, checkpoint=None):
    """The ResumePoint of the RunFolder: its newest undamaged checkpoint, else `checkpoint`, else a new model.

    checkpoint: file of another run, possibly of another image size (modules/resize_checkpoint.py); without it, a run
                that was interrupted before its first checkpoint uses the file that it was first given
    Raises UserError for a checkpoint of another model, a run that began with other weights, and a config that changes
    more than a run may.
    """
    found, origin = run.newest(), run.origin()
    given = None if checkpoint is None else _identify(run, checkpoint)
    if found is not None:
        path, state = found
        if given is not None and (origin is None or origin['sha256'] != given['sha256']):
            other = f'with {origin["checkpoint"]}' if origin else 'without weights of another'
            raise UserError(f'{run.path}: holds a run that began {other}, not with {checkpoint}; choose another '
                            f'--run_name, or resume that run: --resume {run.path}')
        check_same_model(config, state, path)
        return ResumePoint(path, state, state['step'], origin,
                           check_going_on(checkpoint_config(state, path), config, path))

    if given is None and origin is None:
        return ResumePoint()
    if given is None:
        given = _identify(run, origin['checkpoint'])
        if given['sha256'] != origin['sha256']:
            raise UserError(f'{origin["checkpoint"]}: has changed since the run in {run.path} began with it; start a '
                            'new run under another --run_name')
    path = Path(given['checkpoint'])
    state = read_checkpoint(path)
    theirs, image_size = checkpoint_config(state, path).model_params, None
    if theirs.image_size == config.model_params.image_size:
        check_same_model(config, state, path)
    else:
        image_size = theirs.image_size
        check_same_model(config, state, path, MAY_DIFFER)
        try:
            check_scales(theirs, config.model_params)
        except ValueError as error:
            raise UserError(f'{path}: {error}') from None
    return ResumePoint(path, state, 0, given | {'step': state['step']}, image_size=image_size)


def restore(run, config, state, checkpoint=None):
    """Initialise or resume the training State, as `find_resume_point` decides; returns the ResumePoint.

    The run folder is only read. Raises UserError as `find_resume_point`, and where processes find different steps.
    """
    start = find_resume_point(run, config, checkpoint)
    distributed.agree({'newest checkpoint': f'that of step {start.step}'})
    if start.state is None:
        for model in (state.model, state.ema):
            load_pretrained(model)
        return start

    # Another run gives its EMA weights, for the model as well, and its discriminator; optimisers stay new.
    found = start.state
    if start.of_another_run:
        found = {'model': found['ema']} | {name: found[name] for name in ('ema', 'discriminator') if name in found}
    for name in ('model', 'ema', 'discriminator'):
        network = getattr(state, name)
        if network is None or name not in found:
            continue
        tensors = found[name]
        if start.image_size is not None:
            resized = resize_checkpoint(tensors, network)
            tensors = resized.tensors
            if name != 'ema':
                log.info('from %d to %d px, %s: %s', start.image_size, config.model_params.image_size, name, resized)
        weights.load_weights(network, tensors, start.path)
    # Imported checkpoints hold no optimisers.
    for name in ('optimizer', 'discriminator_optimizer'):
        if getattr(state, name) is not None and name in found:
            weights.load_optimizer(getattr(state, name), found[name], start.path)

    if start.of_another_run:
        log.info('initialised from %s, step %d', start.path, start.origin['step'])
        if state.discriminator is not None and 'discriminator' not in found:
            log.info('it has no discriminator: a new one is trained')
    else:
        log.info('resuming from %s', start.path)
        if start.changed:
            log.info('changed since then: %s', start.changed)
    return start


def load_pretrained(model):
    """Load published weights into the parts of a new TalkingHead that need them; UserError if files do not fit."""
    for layout, (part, folder) in model.pretrained_parts().items():
        try:
            import_tensors(layout, flatten_checkpoint(layout, weights.pretrained(layout, folder)), part)
        except ImportFault as fault:
            raise UserError(f'{folder}: {fault}') from None


def _identify(run, checkpoint):
    """`ResumePoint.origin` of a checkpoint file without its step; UserError for a missing file or the run's own."""
    path = Path(checkpoint).resolve()
    weights.check_file(path)
    if path.is_relative_to(run.path.resolve()):
        raise UserError(f'{checkpoint}: belongs to the run in {run.path}, which a new one would overwrite; choose '
                        f'another --run_name, or resume that run: --resume {run.path}')
    return {'checkpoint': str(path), 'sha256': file_hash(path)}
