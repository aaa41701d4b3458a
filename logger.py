"""The run folder: checkpoints, scalars, pictures, plain log.

    log/<run>/config.yaml                  the resolved config
             /origin.json                  of a run that began with another one's weights: which
             /checkpoints/00012500.pt      everything that training needs to go on
             /pictures/00012500.png        validation: source, driving, prediction, flows, occlusions
             /log.txt  log.jsonl           the same figures for people and for scripts
             /alarms.jsonl                 rules that training broke (curves/rules.py)
             /tensorboard/                 ... and for TensorBoard
"""

import hashlib
import json
import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from config import schema
from config.changes import changes, check_going_on
from modules import ladder
from support.errors import UserError
from support.files import make_folder, writing, written_whole
from support.weights import check_file, load_tensors, save_tensors
from visualizer import save_png

CHECKPOINT_FORMAT = 1

log = logging.getLogger(__name__)


class RunFolder:
    """Where one run keeps what it makes. Only rank 0 of a distributed run writes."""

    def __init__(self, path, writes=True):
        self.path = Path(path)
        self.checkpoints = self.path / 'checkpoints'
        self.pictures = self.path / 'pictures'
        self.writes = writes
        self._tensorboard, self._begins = None, None       # the writer, and the first step that it writes
        if writes:
            for folder in (self.path, self.checkpoints, self.pictures):
                make_folder(folder)

    # What the run is

    def begin(self, config, start):
        """Keep by what config the run goes on from its Beginning, and with whose weights it began."""
        if self.writes:
            schema.save(config, self.path / 'config.yaml')
            if start.origin is not None:
                with written_whole(self.path / 'origin.json') as aside:
                    aside.write_text(json.dumps(start.origin, indent=1))
        self.rewind(start.step)

    def origin(self):
        """Beginning.origin of the run, as it was kept; UserError if the file is damaged."""
        path = self.path / 'origin.json'
        if not path.is_file():
            return None
        try:
            origin = json.loads(path.read_text())
            return {key: kind(origin[key]) for key, kind in (('checkpoint', str), ('sha256', str), ('step', int))}
        except (ValueError, KeyError, TypeError):
            raise UserError(f'{path}: is damaged; it says which weights this run began with: begin with them under '
                            'another --run_name') from None

    # Checkpoints

    def save(self, state, step, keep):
        """Write the checkpoint of `step` whole or not at all, then remove all but the newest `keep`."""
        if not self.writes:
            return
        path = self.checkpoints / f'{step:08d}.pt'
        write_checkpoint(path, state)
        for old in self.steps()[:-keep]:
            old.unlink()
        log.info('saved %s', path)

    def newest(self):
        """(path, state) of the newest checkpoint that is whole, None if there is none at all.

        Damaged ones are named and passed over; UserError where all are, as a run that began anew would replace them.
        """
        paths = self.steps()
        for path in reversed(paths):
            try:
                return path, read_checkpoint(path)
            except UserError as error:
                log.warning('%s; trying the one before', error)
        if paths:
            raise UserError(f'{self.checkpoints}: all {len(paths)} checkpoints are damaged; restore one, or move them '
                            'away to begin anew')
        return None

    def steps(self):
        """Paths of the checkpoints, oldest first."""
        return sorted(path for path in self.checkpoints.glob('*.pt') if path.stem.isdigit())

    # Scalars and pictures

    def scalars(self, step, values):
        """One line of figures for `step`: dict of name -> float; 'group/name' groups them."""
        if not self.writes:
            return
        self._append('log.jsonl', json.dumps({'step': step} | values))
        self._append('log.txt', f'{step:8d}  ' + '  '.join(f'{name} {value:.4g}' for name, value in values.items()))
        with writing(self.path / 'tensorboard'):
            for name, value in values.items():
                self._board().add_scalar(name if '/' in name else f'loss/{name}', value, step)

    def figures(self):
        """What has been logged so far: {'step': ..., name: value} line by line; a line that is cut is passed over."""
        return [json.loads(line) for line in self._lines('log.jsonl') if _step_of(line) < float('inf')]

    def alarm(self, step, rule, text):
        """Keep that a rule was found broken at `step`, and what was said of it."""
        if self.writes:
            self._append('alarms.jsonl', json.dumps({'step': step, 'rule': rule, 'text': text}))

    def picture(self, step, image):
        """A picture (H, W, 3) uint8 of `step`."""
        if not self.writes:
            return
        save_png(self.pictures / f'{step:08d}.png', image)
        with writing(self.path / 'tensorboard'):
            self._board().add_image('validation', image, step, dataformats='HWC')

    def rewind(self, step):
        """Drop figures and alarms of steps after `step`, which a resumed run is about to make again."""
        self._begins = step + 1
        for name in ('log.jsonl', 'log.txt', 'alarms.jsonl'):
            lines = self._lines(name)
            if self.writes and lines:
                with written_whole(self.path / name) as aside:
                    aside.write_text(''.join(line + '\n' for line in lines if _step_of(line) <= step))

    def _lines(self, name):
        path = self.path / name
        return path.read_text().splitlines() if path.is_file() else []

    def _append(self, name, line):
        with writing(self.path / name), open(self.path / name, 'a') as file:
            file.write(line + '\n')

    def close(self):
        """Finish; of a run that never began, nothing is left."""
        if self._tensorboard is not None:
            with writing(self.path / 'tensorboard'):
                self._tensorboard.close()
        if self.writes and not (self.path / 'config.yaml').exists():
            with suppress(OSError):         # something else is in there
                self.checkpoints.rmdir()
                self.pictures.rmdir()
                (self.path / 'run.log').unlink(missing_ok=True)
                self.path.rmdir()

    def _board(self):
        if self._tensorboard is None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and only training needs it
            self._tensorboard = SummaryWriter(self.path / 'tensorboard', purge_step=self._begins)
        return self._tensorboard


def _step_of(line):
    """Of a line of log.jsonl, alarms.jsonl or log.txt; infinity for one that was cut, the last of a killed run."""
    try:
        return json.loads(line)['step'] if line.startswith('{') else int(line[:8])
    except (ValueError, KeyError):
        return float('inf')


# ---------------------------------------------------------------------------- checkpoint files

def write_checkpoint(path, state):
    """Write `state` to `path`, whole or not at all; UserError where it cannot be written."""
    save_tensors(path, {'format': CHECKPOINT_FORMAT} | state)


def read_checkpoint(path):
    """A checkpoint of this project as a dict; UserError if it is anything else."""
    state = load_tensors(path)
    if not isinstance(state, dict) or state.get('format') != CHECKPOINT_FORMAT:
        raise UserError(f'{path}: is no checkpoint of this project; published weights come in by --mode import')
    parts = {'config': dict, 'step': int, 'model': dict, 'ema': dict}
    for part, kind in parts.items():
        if not isinstance(state.get(part), kind):
            raise UserError(f'{path}: is damaged, or was not written by this project: {part} is no {kind.__name__}')
    return state


def checkpoint_config(state, path):
    """The config that a checkpoint was trained with."""
    return schema.parse(state['config'], f'{path} (config inside)')


def load_config(path, overrides, checkpoint=None):
    """The config of a YAML file, or the one inside of a checkpoint file where `path` is None, with its overrides."""
    if path is not None:
        return schema.load(path, overrides)
    return schema.override(checkpoint_config(read_checkpoint(checkpoint), checkpoint), overrides)


def check_same_model(config, state, path, but=()):
    """UserError naming what differs if `config` describes another model than the checkpoint's.

    but: keys of model_params that may differ
    """
    found = {key: values for key, values in changes(checkpoint_config(state, path), config).items()
             if key.startswith('model_params.') and key.removeprefix('model_params.') not in but}
    if method := found.get('model_params.method'):      # all other keys differ with it
        found = {'model_params.method': method}
    if found:
        named = [f'{key} is {theirs!r} there and {ours!r} in the config' for key, (theirs, ours) in found.items()]
        more = f', and {len(named) - 3} more keys differ' if len(named) > 3 else ''
        raise UserError(f'{path}: is of another model: {", ".join(named[:3])}{more}; give the --config it was trained '
                        'with, or none')


# ---------------------------------------------------------------------------- where a run begins

@dataclass
class Beginning:
    """Where training in a run folder begins.

    path, state: the checkpoint, None for a run that begins with nothing
    step:        iterations that the run has taken
    origin:      of a run that began with weights of another one, which: its file `checkpoint` (absolute), `step` and
                 `sha256`; None for others
    changed:     what the config changed since the checkpoint, in one line; '' if nothing
    image_size:  of a checkpoint that is of another image size than the run's model, which; None for others
    """
    path: Path | None = None
    state: dict | None = None
    step: int = 0
    origin: dict | None = None
    changed: str = ''
    image_size: int | None = None

    @property
    def borrowed(self):
        """Whether the checkpoint is another run's, of which the weights alone are taken."""
        return self.origin is not None and self.path == Path(self.origin['checkpoint'])


def beginning(run, config, checkpoint=None):
    """Where training by `config` in the RunFolder begins: at its newest whole checkpoint if there is one.

    checkpoint: otherwise, begin with the weights of this one; without it, with those that the run began with before;
                they may be of another image size (modules/ladder.py)
    Raises UserError for a checkpoint of another model, a run that began with other weights, a config that has changed
    more than a run's may.
    """
    found, kept = run.newest(), run.origin()
    given = None if checkpoint is None else _origin_of(run, checkpoint)
    if found is not None:
        if given is not None and (kept is None or kept['sha256'] != given['sha256']):
            other = f'with {kept["checkpoint"]}' if kept else 'without weights of another'
            raise UserError(f'{run.path}: holds a run that began {other}, not with {checkpoint}; choose another '
                            f'--run_name, or go on with that run: --resume {run.path}')
        path, state = found
        check_same_model(config, state, path)
        changed = check_going_on(checkpoint_config(state, path), config, path)
        return Beginning(path, state, state['step'], kept, changed)

    if given is None and kept is not None:
        given = _origin_of(run, kept['checkpoint'])
        if given['sha256'] != kept['sha256']:
            raise UserError(f'{kept["checkpoint"]}: is not the file any more that the run in {run.path} began with; '
                            'begin with it under another --run_name')
    if given is None:
        return Beginning()
    path = Path(given['checkpoint'])
    state = read_checkpoint(path)
    size = checkpoint_config(state, path).model_params.image_size
    if size == config.model_params.image_size:
        check_same_model(config, state, path)
        size = None
    else:
        check_ladder(config, state, path)
    return Beginning(path, state, 0, given | {'step': state['step']}, image_size=size)


def check_ladder(config, state, path):
    """UserError if a model of `config` cannot begin with the weights of the checkpoint, of another image size."""
    check_same_model(config, state, path, ladder.MAY_DIFFER)
    try:
        ladder.check_scales(checkpoint_config(state, path).model_params, config.model_params)
    except ValueError as error:
        raise UserError(f'{path}: {error}') from None


def _origin_of(run, checkpoint):
    """`Beginning.origin` of a checkpoint file but for its step; UserError if it is none, or the run's own."""
    path = Path(checkpoint).resolve()
    check_file(path)
    if path.is_relative_to(run.path.resolve()):
        raise UserError(f'{checkpoint}: is of the run in {run.path}, which a new one would overwrite; choose another '
                        f'--run_name, or go on with that run: --resume {run.path}')
    with open(path, 'rb') as file:
        return {'checkpoint': str(path), 'sha256': hashlib.file_digest(file, 'sha256').hexdigest()}
