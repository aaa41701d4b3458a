"""Answers to a user study, as its page saves them."""

from evaluation.study.answers import read_key
from evaluation.study.build import QUESTIONS


def answer(study, participant, prefer, careless=False):
    """What the page saves for a participant: `prefer(question, pair, method)` is largest for the best."""
    key = read_key(study)
    row, trials = participant % len(key['schedules']), []
    for pair, options in key['schedules'][row]:
        pair = key['pairs'][pair]
        shown = [pair['options'][i] for i in options]

        def value(question, file):
            method = key['owners'][file]
            if method is None:
                return float('inf') if careless else float('-inf')
            return prefer(question, pair['name'], method)

        trials.append({'options': shown, 'seconds': 1.0, 'order': {
            question: sorted(shown, key=lambda file: -value(question, file)) for question in QUESTIONS}})
    return {'format': key['format'], 'study': key['study'], 'participant': str(participant), 'schedule': row,
            'started': '', 'finished': '', 'trials': trials}
