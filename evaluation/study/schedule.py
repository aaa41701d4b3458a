"""Balanced schedules of a user study: which participant sees which videos, in which order and on which side.

Ranking: a trial shows all methods on one pair. Positions follow a Williams design: within each block of participants,
every method has every position on every pair, and every other method as its left neighbour, equally often.
Pairwise: a trial shows two methods on one pair. Comparisons are assigned in a cycle: their numbers differ by at most
one, and each changes sides every time.

An attention check is a trial in which a clearly broken video replaces one method.

E. J. Williams, Experimental designs balanced for the estimation of residual effects of treatments (1949).
"""

import random
from itertools import combinations
from typing import NamedTuple

PARTICIPANTS = 120       # schedules; participant N has schedule N mod 120
DESIGNS = ('ranking', 'pairwise')


class Trial(NamedTuple):
    """The videos that are shown together.

    pair:    its number
    options: numbers of the methods from left to right; the number of methods stands for the broken video
    """
    pair: int
    options: tuple


def williams_square(num):
    """Orders of `num` treatments in which each is at each position, and left of each other one, equally often.

    returns: list of `num` orders for even `num`, of 2 * num for odd
    """
    zigzag = [(i + 1) // 2 if i % 2 else -(i // 2) for i in range(num)]      # 0 1 -1 2 -2 ...
    rows = [tuple((step + shift) % num for step in zigzag) for shift in range(num)]
    return rows if num % 2 == 0 else rows + [row[::-1] for row in rows]


def draw_checks(num_pairs, num_checks, seed):
    """Numbers of the pairs with an attention check."""
    return random.Random(f'{seed}/checks').sample(range(num_pairs), num_checks)


def draw_schedules(num_methods, num_pairs, check_pairs, *, design, comparisons=None, seed=0):
    """The trials of every participant, in order.

    check_pairs: numbers of the pairs with an attention check, all different
    design:      'ranking' or 'pairwise'
    comparisons: pairwise: number per participant, without checks; None for all
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
    """Every (pair, method, other method), ordered so that each run of `num_pairs` has all pairs and mixed methods."""
    couples = list(combinations(range(num_methods), 2))
    return [(pair, *couples[(turn + pair) % len(couples)]) for turn in range(len(couples)) for pair in range(num_pairs)]


def _rankings(participant, num_methods, num_pairs, seed):
    square = williams_square(num_methods)
    methods = list(range(num_methods))
    random.Random(f'{seed}/methods/{participant // len(square)}').shuffle(methods)      # again for every block
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
    """A check; the broken video's position, and the method that it is shown with, alternate."""
    turn = participant + number
    options = rng.sample(range(num_methods), num_methods) if design == 'ranking' else 2 * [turn // 2 % num_methods]
    options[turn % len(options)] = num_methods
    return Trial(pair, tuple(options))


def _in_random_order(trials, checks, rng):
    """Trials and checks in random order; a check is not first and, if possible, not next to a trial of its pair."""
    trials = rng.sample(trials, len(trials))
    for check in checks:
        places = range(1, len(trials) + 1)
        apart = [place for place in places if check.pair not in [trial.pair for trial in trials[place - 1:place + 1]]]
        trials.insert(rng.choice(apart or places), check)
    return trials
