"""Alarms during training: one line for each rule that the scalars violate for long."""

import logging
from typing import NamedTuple

from curves.rules import RULES, Rule

log = logging.getLogger(__name__)


class Alarm(NamedTuple):
    """A broken rule: since which step, when it was reported, and the {scalar: value} at that step."""
    rule: Rule
    since: int
    step: int
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

    def __init__(self, rules=None):
        self.rules = RULES if rules is None else rules
        self.since, self.raised = {}, {}     # by the rule's place: its first broken step, its Alarm

    def __call__(self, values):
        """One interval's {'step': ..., name: value} -> (Alarms that it raises, Alarms that are over)."""
        step, new, over = values['step'], [], []
        for place, rule in enumerate(self.rules):
            if not any(map(rule.matches, values)):
                continue                     # a line of validation holds no values of training
            broken = {name: values[name] for name in rule.crossing(values)}
            if not broken:
                self.since.pop(place, None)
                over += [self.raised.pop(place)] if place in self.raised else []
            elif step - self.since.setdefault(place, step) >= rule.steps and place not in self.raised:
                self.raised[place] = Alarm(rule, self.since[place], step, broken)
                new.append(self.raised[place])
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
