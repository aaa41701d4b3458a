"""Reference curves of a recipe with several seeds, in docs/curves/NAME.jsonl.

The first line holds the recipe, {"reference": NAME, "config": {...}}. Each other line holds scalars of a seed, logged
at the same steps, {"seed": 0, "steps": [...], "values": {scalar: [...]}}.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from config import schema
from config.changes import flat
from curves.history import Curve
from support.errors import UserError, did_you_mean_or_known
from support.files import write_text

FOLDER = Path(__file__).parents[1] / 'docs' / 'curves'
POINTS = 150             # of a scalar, at most
DIGITS = 4               # of a value
# What leaves a recipe's curves alone.
FREE = ('train_params.seed', 'train_params.num_workers', 'train_params.log_every', 'train_params.val_every',
        'train_params.save_every', 'train_params.keep_checkpoints', 'train_params.compile',
        'train_params.checkpointing', 'train_params.max_nonfinite', 'reconstruction_params.', 'animate_params.',
        'visualizer_params.')


@dataclass(frozen=True)
class Reference:
    """Runs of one recipe.

    name:   of the recipe
    config: as nested dicts
    seeds:  {seed: {scalar: Curve}}
    """
    name: str
    config: dict
    seeds: dict

    @property
    def counted(self):
        """'3 seeds'"""
        return f'{len(self.seeds)} seed{"s" * (len(self.seeds) > 1)}'


def names():
    """Names of the shipped references."""
    return sorted(path.stem for path in FOLDER.glob('*.jsonl'))


def read_reference(name):
    """The Reference of that name; UserError with the nearest name if there is none."""
    if name not in names():
        raise UserError(f'--reference {name}: there is no such reference{did_you_mean_or_known(name, names())}')
    head, *lines = map(json.loads, (FOLDER / f'{name}.jsonl').read_text().splitlines())
    seeds = {}
    for line in lines:
        seeds.setdefault(line['seed'], {}).update(
            {scalar: Curve(np.array(line['steps']), np.array(values, float))
             for scalar, values in line['values'].items()})
    return Reference(head['reference'], head['config'], seeds)


def write_reference(reference, folder):
    """Write NAME.jsonl into the folder, completely or not at all; returns its path."""
    lines = [{'reference': reference.name, 'config': reference.config}]
    for seed, curves in reference.seeds.items():
        together = {}
        for scalar, curve in curves.items():
            steps, values = thinned(curve.finite())
            together.setdefault(tuple(steps.tolist()), {})[scalar] = [float(f'{value:.{DIGITS}g}') for value in values]
        lines += [{'seed': seed, 'steps': steps, 'values': values} for steps, values in together.items() if steps]
    path = folder / f'{reference.name}.jsonl'
    write_text(path, ''.join(json.dumps(line, separators=(',', ':')) + '\n' for line in lines))
    return path


def thinned(curve):
    """A Curve of at most POINTS points: means of neighbours, at the last step of each."""
    each = -(-len(curve.steps) // POINTS) or 1
    starts = range(0, len(curve.steps), each)
    return Curve(np.array([curve.steps[i:i + each][-1] for i in starts], int),
                 np.array([curve.values[i:i + each].mean() for i in starts]))


# ---------------------------------------------------------------------------- which one

def config_of(folder):
    """The config, as nested dicts, that the run in a folder was made with; UserError where it is missing."""
    return schema.load(folder / 'config.yaml').as_dict()


def recipe(config):
    """Nested dicts of a config -> {'section.key': value} of the keys that shape the curves.

    Of the data's path only the last folder counts: the rest differs between machines.
    """
    values = {key: value for key, value in flat(config).items() if not key.startswith(FREE)}
    root = values.get('dataset_params.root_dir')
    return values | {'dataset_params.root_dir': root and Path(root).name}


def differences(config, other):
    """{'section.key': (value here, value there)} of two configs' recipes; None stands for a missing one."""
    here, there = recipe(config), recipe(other)
    return {key: (here.get(key), there.get(key)) for key in {**here, **there} if here.get(key) != there.get(key)}


def nearest(config):
    """The Reference with the fewest differences to a config, those of its method before all others."""
    if not names():
        raise UserError(f'{FOLDER}: contains no references; docs/monitoring.md describes how to make one')
    return min(map(read_reference, names()),
               key=lambda reference: ('model_params.method' in (found := differences(config, reference.config)),
                                      len(found)))
