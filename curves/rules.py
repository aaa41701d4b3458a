"""Limits of the scalars of a run, each with the likely reason for crossing it.

Training checks every log interval against them (curves/alarms.py), `--mode curves` a complete run
(curves/anomalies.py).
"""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import yaml


class Rule(NamedTuple):
    """A limit of scalars; rules.yaml explains the fields."""
    name: str
    scalars: str
    side: str
    limit: float
    reason: str
    steps: int = 0
    together: bool = False

    def matches(self, scalar):
        return fnmatchcase(scalar, self.scalars)

    def crossing(self, values):
        """Names of the scalars in {name: value} that cross the limit; [] if `together` and not all of them do."""
        matching = [name for name in values if self.matches(name)]
        over = [name for name in matching if self.crossed(values[name])]
        return [] if self.together and over != matching else over

    def crossed(self, value):
        """Whether one value crosses the limit; NaN does not."""
        return value < self.limit if self.side == 'below' else value > self.limit


RULES = tuple(Rule(**rule) for rule in yaml.safe_load(Path(__file__).with_suffix('.yaml').read_text(encoding='utf-8')))
