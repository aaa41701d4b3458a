"""The run folder: checkpoints, scalars, pictures, plain log.

    log/<run>/config.yaml                  the resolved config
             /origin.json                  of a run that began with another one's weights: which
             /checkpoints/00012500.pt      everything that training needs to go on
             /pictures/00012500.png        validation: source, driving, prediction, flows, occlusions
             /log.txt  log.jsonl           the same figures for people and for scripts
             /alarms.jsonl                 rules that training broke (curves/rules.py)
             /tensorboard/                 ... and for TensorBoard
"""

import json
import logging
from contextlib import suppress
from pathlib import Path

from config import schema
from config.changes import changes
from support.errors import UserError
from support.files import make_folder, writing, written_whole
from support.weights import load_safetensors, load_tensors, save_tensors
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

    def save_config(self, config, start):
        """Save the config and where the initial weights came from (ResumePoint); drop log lines of later steps."""
        if self.writes:
            schema.save(config, self.path / 'config.yaml')
            if start.origin is not None:
                with written_whole(self.path / 'origin.json') as aside:
                    aside.write_text(json.dumps(start.origin, indent=1))
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
    """A checkpoint of this project as a dict; UserError if it is anything else.

    Also of a safetensors file, which holds the weights for inference alone (tools/release_weights.py).
    """
    state = _read_release(path) if Path(path).suffix == '.safetensors' else load_tensors(path)
    if not isinstance(state, dict) or state.get('format') != CHECKPOINT_FORMAT:
        raise UserError(f'{path}: is no checkpoint of this project; published weights come in by --mode import')
    parts = {'config': dict, 'step': int, 'model': dict, 'ema': dict}
    for part, kind in parts.items():
        if not isinstance(state.get(part), kind):
            raise UserError(f'{path}: is damaged, or was not written by this project: {part} is no {kind.__name__}')
    return state


def _read_release(path):
    """What `write_checkpoint` would have written of the weights in a safetensors file, as far as it goes."""
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
