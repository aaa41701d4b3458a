"""The balanced random schedule of a user study: questions, their order, and sides, per participant.

Ranking: a trial shows all methods on one pair. Positions follow a Williams design: over each block of participants
every method has every position on every pair equally often, and every other method as its left neighbour.
Pairwise: a trial shows two methods on one pair. The comparisons are dealt out in a cycle: each is shown equally often
(to within one), and changes sides each time.

An attention check is a trial in which one method gives way to a video that is broken beyond doubt.

E. J. Williams, Experimental designs balanced for the estimation of residual effects of treatments (1949).
"""

import random
from itertools import combinations
from typing import NamedTuple

PARTICIPANTS = 120       # different schedules; participant number N has schedule N mod 120
DESIGNS = ('ranking', 'pairwise')


class Trial(NamedTuple):
    """What is shown at once.

    pair:    its number
    options: numbers of the methods, from left to right; the number of methods itself is the broken video
    """
    pair: int
    options: tuple


def williams_square(num):
    """Orders of `num` treatments: each treatment is at each position, and left of each other one, equally often.

    returns: list of `num` orders where that is even, of 2 * num where it is odd
    """
    zigzag = [(i + 1) // 2 if i % 2 else -(i // 2) for i in range(num)]      # 0 1 -1 2 -2 ...
    rows = [tuple((step + shift) % num for step in zigzag) for shift in range(num)]
    return rows if num % 2 == 0 else rows + [row[::-1] for row in rows]


def draw_checks(num_pairs, num_checks, seed):
    """The pairs that attention checks are made of."""
    return random.Random(f'{seed}/checks').sample(range(num_pairs), num_checks)


def draw_schedules(num_methods, num_pairs, check_pairs, *, design, comparisons=None, seed=0):
    """The trials of every participant, in order.

    check_pairs: pairs on which there is an attention check, each at most once
    design:      'ranking' or 'pairwise'
    comparisons: pairwise: how many of them each participant makes, besides checks; None for all there are
    returns:     PARTICIPANTS lists of Trial
    """
    schedules = []
    for participant in range(PARTICIPANTS):
        rng = random.Random(f'{seed}/{participant}')
        trials = (_rankings(participant, num_methods, num_pairs, seed) if design == 'ranking' else
                  _comparisons(participant, num_methods, num_pairs, comparisons, seed))
        checks = [_check(participant, number, pair, num_methods, design, rng)
                  for number, pair in enumerate(check_pairs)]
        schedules.append(_in_random_order(trials, checks, rng))
    return schedules


def all_comparisons(num_methods, num_pairs):
    """Every (pair, method, other method), so that `num_pairs` in a row have all pairs and a mix of the methods."""
    couples = list(combinations(range(num_methods), 2))
    return [(pair, *couples[(turn + pair) % len(couples)]) for turn in range(len(couples)) for pair in range(num_pairs)]


def _rankings(participant, num_methods, num_pairs, seed):
    square = williams_square(num_methods)
    methods = list(range(num_methods))
    random.Random(f'{seed}/methods/{participant // len(square)}').shuffle(methods)      # anew for every block
    return [Trial(pair, tuple(methods[i] for i in square[(participant + pair) % len(square)]))
            for pair in range(num_pairs)]


def _comparisons(participant, num_methods, num_pairs, count, seed):
    every = all_comparisons(num_methods, num_pairs)
    count = count or len(every)
    first_sides = random.Random(f'{seed}/sides').choices((0, 1), k=num_methods ** 2)
    trials = []
    for position in range(participant * count, (participant + 1) * count):
        pair, left, right = every[position % len(every)]
        showing = position // len(every)
        swapped = (showing + pair + first_sides[left * num_methods + right]) % 2
        trials.append(Trial(pair, (right, left) if swapped else (left, right)))
    return trials


def _check(participant, number, pair, num_methods, design, rng):
    """The broken video takes turns in its position, and in the method that it is set against."""
    turn = participant + number
    options = rng.sample(range(num_methods), num_methods) if design == 'ranking' else 2 * [turn // 2 % num_methods]
    options[turn % len(options)] = num_methods
    return Trial(pair, tuple(options))


def _in_random_order(trials, checks, rng):
    """Trials in random order; checks among them, neither first nor next to the trial of the same pair if possible."""
    trials = rng.sample(trials, len(trials))
    for check in checks:
        places = range(1, len(trials) + 1)
        apart = [place for place in places if check.pair not in [trial.pair for trial in trials[place - 1:place + 1]]]
        trials.insert(rng.choice(apart or places), check)
    return trials
