"""Limits of a run's scalars, with the likely reason for crossing each; training checks every log interval."""

import logging
import operator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import yaml

log = logging.getLogger(__name__)


class Rule(NamedTuple):
    """A limit of scalars; alarms.yaml explains the fields."""
    name: str
    scalars: str
    side: str
    limit: float
    reason: str
    steps: int = 0
    together: bool = False

    def crossing(self, values):
        """{name: value} of the scalars that cross the limit, as NaN does not; {} if `together` and not all of them do.

        None if no scalar is the rule's: a line of validation holds no values of training.
        """
        crossed = operator.lt if self.side == 'below' else operator.gt
        matching = {name: value for name, value in values.items() if fnmatchcase(name, self.scalars)}
        over = {name: value for name, value in matching.items() if crossed(value, self.limit)}
        if not matching:
            return None
        return {} if self.together and over != matching else over


RULES = tuple(Rule(**rule) for rule in yaml.safe_load(Path(__file__).with_suffix('.yaml').read_text(encoding='utf-8')))


class Alarm(NamedTuple):
    """A broken rule: since which step, and the {scalar: value} at the step of the report."""
    rule: Rule
    since: int
    broken: dict[str, float]

    @property
    def text(self):
        """One line: what, which values, why."""
        (name, value), *others = self.broken.items()
        more = f' and {len(others)} more' if others else ''
        return (f'{self.rule.name}: {name} {value:.3g}{more}, {self.rule.side} {self.rule.limit:g} since step '
                f'{self.since}; {self.rule.reason}')


class Watch:
    """Checks the values of each log interval against the rules; its state depends on them only, so a run can resume."""

    def __init__(self):
        self.since, self.raised = {}, {}     # by the rule's name: its first broken step, its Alarm

    def __call__(self, values):
        """Check one log interval {'step': ..., name: value}; returns (new Alarms, resolved Alarms)."""
        step, new, over = values['step'], [], []
        for rule in RULES:
            broken = rule.crossing(values)
            if broken is None:
                continue
            if not broken:
                self.since.pop(rule.name, None)
                over += [self.raised.pop(rule.name)] if rule.name in self.raised else []
            elif step - self.since.setdefault(rule.name, step) >= rule.steps and rule.name not in self.raised:
                self.raised[rule.name] = Alarm(rule, self.since[rule.name], broken)
                new.append(self.raised[rule.name])
        return new, over


class Alarms:
    """The alarms of a training run, written to its log and to alarms.jsonl."""

    def __init__(self, run):
        """run: RunFolder; values that it has logged before count, and are not reported again."""
        self.run, self.watch = run, Watch()
        for values in run.figures():
            self.watch(values)

    def __call__(self, step, values):
        """Check the values {name: value} of the log interval that ends at `step`."""
        new, over = self.watch({'step': step} | values)
        for alarm in new:
            log.warning('step %d: %s', step, alarm.text)
            self.run.alarm(step, alarm.rule.name, alarm.text)
        for alarm in over:
            log.info('step %d: resolved: %s', step, alarm.rule.name)
