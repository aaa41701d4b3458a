"""Answers of a user study: read from participants' files and validated against the study's key.

A file is accepted as a whole, or rejected with one line that gives the reason.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.study.build import FORMAT, QUESTIONS
from support.errors import UserError
from support.files import read_text


@dataclass(frozen=True)
class Participant:
    """A participant's answers."""
    name: str
    file: Path
    trials: list      # (pair's name, {question: methods, best first}); None stands for the broken video of a check

    def failed_checks(self):
        """Number of failed attention checks: the broken video is not ranked last in at least one question."""
        return sum(None in order['overall'] and any(methods[-1] is not None for methods in order.values())
                   for _, order in self.trials)


def read_key(folder):
    """The key of the study in a folder; raises UserError where it is missing."""
    path = Path(folder) / 'key.json'
    if not path.is_file():
        raise UserError(f'{path}: no such file; give the folder of the study with --out')
    key = _read_json(path)
    if not isinstance(key, dict) or key.get('format') != FORMAT or not {'study', 'owners', 'schedules'} <= key.keys():
        raise UserError(f'{path}: is not the key of a study')
    return key


def read_participants(paths, key):
    """Participants of all files; a folder stands for its JSON files.

    Raises UserError for no files, for a file of another study, incomplete or altered, and for two files of one
    participant.
    """
    files = []
    for path in map(Path, paths):
        files += sorted(path.glob('*.json')) if path.is_dir() else [path]
    if not files:
        raise UserError(f'{", ".join(map(str, paths))}: contains no files of answers (*.json)')
    seen = {}
    for file in files:
        participant = read_participant(file, key)
        if participant.name in seen:
            raise UserError(f'{file}: is of participant {participant.name}, like {seen[participant.name].file}; '
                            'remove one')
        seen[participant.name] = participant
    return list(seen.values())


def read_participant(file, key):
    """The validated answers in one file; raises UserError."""
    if not file.is_file():
        raise UserError(f'{file}: no such file')
    data = _read_json(file)
    if not isinstance(data, dict) or not {'format', 'study', 'participant', 'schedule', 'trials'} <= data.keys():
        raise UserError(f'{file}: is not a file of answers')
    if data['study'] != key['study'] or data['format'] != key['format']:
        raise UserError(f'{file}: belongs to another study ({data["study"]}, not {key["study"]})')
    name, row, trials = data['participant'], data['schedule'], data['trials']
    if not isinstance(name, str) or not re.fullmatch('[A-Za-z0-9_-]{1,40}', name):
        raise UserError(f'{file}: has no valid participant')
    if type(row) is not int or not 0 <= row < len(key['schedules']):
        raise UserError(f'{file}: schedule {row!r} is not one of this study')
    schedule = key['schedules'][row]
    if not isinstance(trials, list) or len(trials) != len(schedule):
        raise UserError(f'{file}: holds {len(trials) if isinstance(trials, list) else "no"} trials, '
                        f'expected {len(schedule)}; was the study finished?')
    return Participant(name, file, [
        _read_trial(trial, pair, options, key, f'{file}, trial {number}')
        for number, (trial, (pair, options)) in enumerate(zip(trials, schedule), 1)])


def _read_trial(trial, pair, options, key, where):
    """(pair's name, {question: methods, best first})"""
    pair = key['pairs'][pair]
    shown = [pair['options'][i] for i in options]
    if not isinstance(trial, dict) or trial.get('options') != shown:
        raise UserError(f'{where}: differs from its schedule; was the file altered?')
    orders = trial.get('order')
    if not isinstance(orders, dict) or orders.keys() != QUESTIONS.keys():
        raise UserError(f'{where}: must answer {", ".join(QUESTIONS)}')
    for question, order in orders.items():
        if not isinstance(order, list) or sorted(map(str, order)) != sorted(shown):
            raise UserError(f'{where}: {question} must rank each video of the trial once')
    return pair['name'], {question: [key['owners'][file] for file in orders[question]] for question in QUESTIONS}


def _read_json(path):
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path}: is not readable JSON ({error})') from error


def ranks_of(participants, key, question):
    """(participants, pairs, methods): the rank that each gave each method, from 1 for the best, without checks."""
    methods = {method: i for i, method in enumerate(key['methods'])}
    pairs = {pair['name']: i for i, pair in enumerate(key['pairs'])}
    ranks = np.zeros((len(participants), len(pairs), len(methods)), int)
    for i, participant in enumerate(participants):
        for pair, orders in participant.trials:
            if None not in orders[question]:
                ranks[i, pairs[pair], [methods[method] for method in orders[question]]] = range(1, len(methods) + 1)
    return ranks
