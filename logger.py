"""The run folder: config, checkpoints, scalars, pictures, logs.

    log/<run>/config.yaml                  the resolved config
             /origin.json                  the checkpoint that the initial weights came from, if any
             /checkpoints/00012500.pt      the state that training resumes from
             /pictures/00012500.png        validation: source, driving, prediction, flows, occlusions
             /log.txt  log.jsonl           scalars, for people and for scripts
             /alarms.jsonl                 rules that training broke (support/alarms.yaml)
             /tensorboard/                 scalars and pictures for TensorBoard
"""

import json
import logging
from contextlib import suppress
from pathlib import Path

from config import schema
from config.changes import changes
from support.checkpoints import checkpoints_in
from support.errors import UserError
from support.files import make_folder, write_text, writing
from support.weights import is_safetensors, load_safetensors, load_tensors, save_tensors
from visualizer import save_png

CHECKPOINT_FORMAT = 1

log = logging.getLogger(__name__)


class RunFolder:
    """The output folder of one run. Only rank 0 of a distributed run writes."""

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

    def save_config(self, config, start):
        """Save the config and where the initial weights came from (ResumePoint); drop log lines of later steps."""
        if self.writes:
            schema.save(config, self.path / 'config.yaml')
            if start.origin is not None:
                write_text(self.path / 'origin.json', json.dumps(start.origin, indent=1))
        self.rewind(start.step)

    def origin(self):
        """ResumePoint.origin of the run, as `save_config` wrote it; UserError if the file is damaged."""
        path = self.path / 'origin.json'
        if not path.is_file():
            return None
        try:
            origin = json.loads(path.read_text())
            return {key: kind(origin[key]) for key, kind in (('checkpoint', str), ('sha256', str), ('step', int))}
        except (ValueError, KeyError, TypeError):
            raise UserError(f'{path}: is damaged; it names the weights that this run began with: start a new run with '
                            'them under another --run_name') from None

    # Checkpoints

    def save(self, state, step, keep):
        """Write the checkpoint of `step` atomically, then delete all but the newest `keep`."""
        if not self.writes:
            return
        path = self.checkpoints / f'{step:08d}.pt'
        write_checkpoint(path, state)
        for old in checkpoints_in(self.path)[:-keep]:
            old.unlink()
        log.info('saved %s', path)

    def newest(self):
        """(path, state) of the newest intact checkpoint; None without checkpoints.

        Damaged ones are logged and skipped. Raises UserError if all are damaged, as a new run would replace them.
        """
        paths = checkpoints_in(self.path)
        for path in reversed(paths):
            try:
                return path, read_checkpoint(path)
            except UserError as error:
                log.warning('%s; trying the previous one', error)
        if paths:
            raise UserError(f'{self.checkpoints}: all {len(paths)} checkpoints are damaged; restore one, or move them '
                            'away to start again')
        return None

    # Scalars and pictures

    def scalars(self, step, values):
        """Log {name: float} of `step`; 'group/name' groups scalars."""
        if not self.writes:
            return
        self._append('log.jsonl', json.dumps({'step': step} | values))
        self._append('log.txt', f'{step:8d}  ' + '  '.join(f'{name} {value:.4g}' for name, value in values.items()))
        with writing(self.path / 'tensorboard'):
            for name, value in values.items():
                self._board().add_scalar(name if '/' in name else f'loss/{name}', value, step)

    def figures(self):
        """The logged scalars, a list of {'step': ..., name: value}; truncated lines are skipped."""
        return [json.loads(line) for line in self._lines('log.jsonl') if _step_of(line) < float('inf')]

    def alarm(self, step, rule, text):
        """Log that a rule was violated at `step`, with its message."""
        if self.writes:
            self._append('alarms.jsonl', json.dumps({'step': step, 'rule': rule, 'text': text}))

    def picture(self, step, image):
        """Save the picture (H, W, 3) uint8 of `step`."""
        if not self.writes:
            return
        save_png(self.pictures / f'{step:08d}.png', image)
        with writing(self.path / 'tensorboard'):
            self._board().add_image('validation', image, step, dataformats='HWC')

    def rewind(self, step):
        """Delete scalars and alarms after `step`, which a resumed run logs again."""
        self._begins = step + 1
        for name in ('log.jsonl', 'log.txt', 'alarms.jsonl'):
            lines = self._lines(name)
            if self.writes and lines:
                write_text(self.path / name, ''.join(line + '\n' for line in lines if _step_of(line) <= step))

    def _lines(self, name):
        path = self.path / name
        return path.read_text().splitlines() if path.is_file() else []

    def _append(self, name, line):
        with writing(self.path / name), open(self.path / name, 'a') as file:
            file.write(line + '\n')

    def close(self):
        """Close the writer; delete the folder of a run that never started."""
        if self._tensorboard is not None:
            with writing(self.path / 'tensorboard'):
                self._tensorboard.close()
        if self.writes and not (self.path / 'config.yaml').exists():
            with suppress(OSError):         # the folder holds other files
                self.checkpoints.rmdir()
                self.pictures.rmdir()
                (self.path / 'run.log').unlink(missing_ok=True)
                self.path.rmdir()

    def _board(self):
        if self._tensorboard is None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and used by training only
            self._tensorboard = SummaryWriter(self.path / 'tensorboard', purge_step=self._begins)
        return self._tensorboard


def _step_of(line):
    """The step of a line of log.jsonl, alarms.jsonl or log.txt; infinity for a line truncated by a killed run."""
    try:
        return json.loads(line)['step'] if line.startswith('{') else int(line[:8])
    except (ValueError, KeyError):
        return float('inf')


# ---------------------------------------------------------------------------- checkpoint files

def write_checkpoint(path, state):
    """Write `state` to `path` atomically. UserError if it cannot be written."""
    save_tensors(path, {'format': CHECKPOINT_FORMAT} | state)


def read_checkpoint(path):
    """Read a checkpoint of this project as a dict; UserError for any other file.

    A safetensors file holds the weights for inference alone (tools/release_weights.py).
    """
    state = _read_release(path) if is_safetensors(path) else load_tensors(path)
    if not isinstance(state, dict) or state.get('format') != CHECKPOINT_FORMAT:
        raise UserError(f'{path}: is not a checkpoint of this project; import published weights with --mode import')
    parts = {'config': dict, 'step': int, 'model': dict, 'ema': dict}
    for part, kind in parts.items():
        if not isinstance(state.get(part), kind):
            raise UserError(f'{path}: is damaged or not a checkpoint of this project: {part} is not a {kind.__name__}')
    return state


def _read_release(path):
    """A safetensors file as a checkpoint with format, config, step and weights; None where metadata is missing."""
    tensors, metadata = load_safetensors(path)
    try:
        return {name: json.loads(metadata[name]) for name in ('format', 'config', 'step')} | {
            'model': tensors, 'ema': tensors}
    except (KeyError, ValueError):
        return None


def checkpoint_config(state, path):
    """The config that a checkpoint was trained with."""
    return schema.parse(state['config'], f'{path} (config inside)')


def load_config(path, overrides, checkpoint=None):
    """The config of a YAML file, or of the checkpoint if `path` is None, with overrides applied."""
    if path is not None:
        return schema.load(path, overrides)
    return schema.override(checkpoint_config(read_checkpoint(checkpoint), checkpoint), overrides)


def check_same_model(config, state, path, but=()):
    """UserError that names the differences if `config` describes another model than the checkpoint.

    but: keys of model_params that may differ
    """
    found = {key: values for key, values in changes(checkpoint_config(state, path), config).items()
             if key.startswith('model_params.') and key.removeprefix('model_params.') not in but}
    if method := found.get('model_params.method'):      # all other keys differ with it
        found = {'model_params.method': method}
    if found:
        named = [f'{key} is {theirs!r} there and {ours!r} in the config' for key, (theirs, ours) in found.items()]
        more = f', and {len(named) - 3} more keys differ' if len(named) > 3 else ''
        raise UserError(f'{path}: holds another model: {", ".join(named[:3])}{more}; give the --config it was trained '
                        'with, or omit --config')
