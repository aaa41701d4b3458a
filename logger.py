"""The run folder: checkpoints, scalars, pictures, plain log.

    log/<run>/config.yaml                  the resolved config
             /checkpoints/00012500.pt      everything that training needs to go on
             /pictures/00012500.png        validation: source, driving, prediction, flows, occlusions
             /log.txt  log.jsonl           the same figures for people and for scripts
             /alarms.jsonl                 rules that training broke (curves/rules.py)
             /tensorboard/                 ... and for TensorBoard
"""

import json
import logging
from pathlib import Path

from config import schema
from support.errors import UserError
from support.files import make_folder, written_whole
from support.weights import load_tensors, save_tensors
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
        self._tensorboard = None
        if writes:
            for folder in (self.path, self.checkpoints, self.pictures):
                make_folder(folder)

    # Checkpoints

    def save(self, state, step, keep):
        """Write the checkpoint of `step` whole or not at all, then remove all but the newest `keep`."""
        if not self.writes:
            return
        path = self.checkpoints / f'{step:08d}.pt'
        write_checkpoint(path, state)
        for old in self._steps()[:-keep]:
            old.unlink()
        log.info('saved %s', path)

    def newest(self):
        """(path, state) of the newest checkpoint that is whole, None if there is none at all.

        Damaged ones are named and passed over; UserError where all are, as a run that began anew would replace them.
        """
        paths = self._steps()
        for path in reversed(paths):
            try:
                return path, read_checkpoint(path)
            except UserError as error:
                log.warning('%s; trying the one before', error)
        if paths:
            raise UserError(f'{self.checkpoints}: all {len(paths)} checkpoints are damaged; restore one, or move them '
                            'away to begin anew')
        return None

    def _steps(self):
        return sorted(path for path in self.checkpoints.glob('*.pt') if path.stem.isdigit())

    # Scalars and pictures

    def scalars(self, step, values):
        """One line of figures for `step`: dict of name -> float; 'group/name' groups them."""
        if not self.writes:
            return
        with open(self.path / 'log.jsonl', 'a') as file:
            file.write(json.dumps({'step': step} | values) + '\n')
        with open(self.path / 'log.txt', 'a') as file:
            file.write(f'{step:8d}  ' + '  '.join(f'{name} {value:.4g}' for name, value in values.items()) + '\n')
        for name, value in values.items():
            self._board().add_scalar(name if '/' in name else f'loss/{name}', value, step)

    def figures(self):
        """What has been logged so far: {'step': ..., name: value} line by line; a line that is cut is passed over."""
        return [json.loads(line) for line in self._lines('log.jsonl') if _step_of(line) < float('inf')]

    def alarm(self, step, rule, text):
        """Keep that a rule was found broken at `step`, and what was said of it."""
        if self.writes:
            with open(self.path / 'alarms.jsonl', 'a') as file:
                file.write(json.dumps({'step': step, 'rule': rule, 'text': text}) + '\n')

    def picture(self, step, image):
        """A picture (H, W, 3) uint8 of `step`."""
        if not self.writes:
            return
        save_png(self.pictures / f'{step:08d}.png', image)
        self._board().add_image('validation', image, step, dataformats='HWC')

    def rewind(self, step):
        """Drop figures and alarms of steps after `step`, which a resumed run is about to make again."""
        for name in ('log.jsonl', 'alarms.jsonl'):
            lines = self._lines(name)
            if self.writes and lines:
                with written_whole(self.path / name) as aside:
                    aside.write_text(''.join(line + '\n' for line in lines if _step_of(line) <= step))

    def _lines(self, name):
        path = self.path / name
        return path.read_text().splitlines() if path.is_file() else []

    def close(self):
        if self._tensorboard is not None:
            self._tensorboard.close()

    def _board(self):
        if self._tensorboard is None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and only training needs it
            self._tensorboard = SummaryWriter(self.path / 'tensorboard')
        return self._tensorboard


def _step_of(line):
    try:
        return json.loads(line)['step']
    except (json.JSONDecodeError, KeyError):    # the last line of a killed run may be cut
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


def check_same_model(config, state, path):
    """UserError naming the first difference if `config` describes another model than the checkpoint's."""
    ours, theirs = (flat(side.as_dict()['model_params']) for side in (config, checkpoint_config(state, path)))
    for key in {**ours, **theirs}:
        if ours.get(key) != theirs.get(key):
            raise UserError(f'{path}: is of another model: model_params.{key} is {theirs.get(key)!r} there and '
                            f'{ours.get(key)!r} in the config; give the --config it was trained with, or none')


def flat(section, prefix=''):
    """Nested dicts as one, {'section.key': value}."""
    found = {}
    for key, value in section.items():
        found |= flat(value, f'{prefix}{key}.') if isinstance(value, dict) else {prefix + key: value}
    return found
