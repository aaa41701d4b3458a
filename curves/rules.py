"""Rules for the scalars of a run, each with the likely reason for violating it.

Training checks every log interval against them (curves/alarms.py), `--mode curves` a complete run and its reference
(curves/compare.py).
"""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import yaml

BELOW, ABOVE, EITHER = 'below', 'above', 'either'


class Rule(NamedTuple):
    """A rule for scalars; rules.yaml explains the fields."""
    name: str
    scalars: str
    side: str
    reason: str
    limit: float | None = None
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
        return self.limit is not None and (value < self.limit if self.side == BELOW else value > self.limit)


RULES = tuple(Rule(**rule) for rule in yaml.safe_load(Path(__file__).with_suffix('.yaml').read_text(encoding='utf-8')))
MACHINE = ('data/wait_s', 'data/step_s', 'data/wait_share')      # depend on the machine: limits only
UNKNOWN = 'no known reason; of several lines, the first to leave its band is the likeliest cause'


def reason_of(scalar, side):
    """The likely reason for a scalar on one side, BELOW or ABOVE, of a reference's band."""
    return next((rule.reason for rule in RULES if rule.matches(scalar) and rule.side in (side, EITHER)), UNKNOWN)
