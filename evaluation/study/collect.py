"""Result of a user study from participants' files: study.json, study.md and study.png in the folder of the key."""

import json
import logging
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from evaluation.study.answers import ranks_of, read_key, read_participants
from evaluation.study.build import QUESTIONS
from evaluation.study.statistics import RESAMPLES, krippendorff_alpha, share_intervals
from support.errors import UserError
from support.files import encoded, write_bytes, write_text
from support.pages import fill

COLOURS = ('#0b6e75', '#e0912f', '#7a8b99', '#a63d57', '#5b7f3a', '#6a5aa8', '#c9b037', '#3f6fb5')

log = logging.getLogger(__name__)


def collect(folder, answers, seed=0):
    """Read, validate and count the answers; write study.json, study.md and study.png; return the content of study.json.

    folder:  of the study, with its key; the result is written there
    answers: files of participants, or folders of them; who fails an attention check is excluded and counted
    seed:    of the bootstrap
    raises:  UserError as read_participants does, and where nobody remains
    """
    folder, key = Path(folder), read_key(folder)
    everybody = read_participants(answers, key)
    failed = {participant.name: participant.failed_checks() for participant in everybody}
    kept = [participant for participant in everybody if not failed[participant.name]]
    excluded = {name: checks for name, checks in failed.items() if checks}
    if not kept:
        raise UserError(f'all {len(everybody)} participants failed an attention check; no answers remain')
    if excluded:
        log.warning('%d of %d participants failed an attention check and are excluded: %s',
                    len(excluded), len(everybody), ', '.join(excluded))
    report = {
        'study': key['study'], 'methods': key['methods'],
        'pairs': [pair['name'] for pair in key['pairs']], 'participants': [participant.name for participant in kept],
        'excluded': excluded, 'bootstrap': {'resamples': RESAMPLES, 'seed': seed},
        'questions': {question: analyse(ranks_of(kept, key, question), key['methods'], seed) for question in QUESTIONS},
    }
    write_text(folder / 'study.json', json.dumps(report, indent=1))
    write_text(folder / 'study.md', as_markdown(report))
    write_bytes(folder / 'study.png', encoded(draw_chart(report).savefig, format='png', dpi=200))
    return report


def analyse(ranks, methods, seed):
    """All statistics of one question, from its ranks (participants, pairs, methods)."""
    low, high = share_intervals(ranks, seed)
    scores = {}
    for i, method in enumerate(methods):
        first = ranks[..., i] == 1
        scores[method] = {'first': int(first.sum()), 'shown': first.size, 'share': float(first.mean()),
                          'interval': [float(low[i]), float(high[i])], 'mean_rank': float(ranks[..., i].mean())}
    return {'methods': scores, 'krippendorff_alpha': krippendorff_alpha(ranks.reshape(len(ranks), -1))}


def as_markdown(report):
    return fill(Path(__file__).with_name('study.md.j2'), **report)


# ---------------------------------------------------------------------------- the chart

def draw_chart(report):
    """Preference shares as bars with their 95 % intervals, one group per question (Fig. 12): a matplotlib Figure."""
    methods, questions = report['methods'], report['questions']
    figure = Figure(figsize=(max(6.4, 1.1 + 0.62 * len(questions) * (len(methods) + 1)), 3.8), layout='constrained')
    axes = figure.subplots()
    width, highest = 0.82 / len(methods), 0
    for i, method in enumerate(methods):
        scores = [question['methods'][method] for question in questions.values()]
        share = np.array([score['share'] for score in scores])
        low, high = np.array([score['interval'] for score in scores]).T
        at = np.arange(len(questions)) + (i - (len(methods) - 1) / 2) * width
        axes.bar(at, share, width * 0.9, label=method, color=COLOURS[i % len(COLOURS)],
                 yerr=np.maximum([share - low, high - share], 0),
                 error_kw=dict(ecolor='#333', elinewidth=1, capsize=2.5))
        highest = max(highest, *share, *high)
        for x, value, top in zip(at, share, np.maximum(high, share)):
            axes.annotate(f'{100 * value:.0f}', (x, top), (0, 2), textcoords='offset points', ha='center', fontsize=8)
    axes.set_xticks(range(len(questions)), [question.capitalize() for question in questions])
    axes.tick_params(axis='x', length=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_ylim(0, 1.1 * highest)
    axes.set_ylabel('preferred')
    axes.spines[['top', 'right']].set_visible(False)
    axes.set_title(f'{len(report["participants"])} participants, {len(report["pairs"])} pairs; error bars: 95 % '
                   'intervals', fontsize=9, color='#555', loc='right')
    figure.legend(loc='outside upper center', ncols=min(len(methods), 4), frameon=False)
    return figure
