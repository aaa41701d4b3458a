"""Balanced schedules of a user study: which participant sees which pairs, and the methods in which positions.

A trial shows all methods on one pair. Positions follow a Williams design: within each block of participants, every
method has every position on every pair, and every other method as its left neighbour, equally often.

An attention check is a trial in which a clearly broken video replaces one method.

E. J. Williams, Experimental designs balanced for the estimation of residual effects of treatments (1949).
"""

import random
from typing import NamedTuple

PARTICIPANTS = 120       # schedules; participant N has schedule N mod 120


class Trial(NamedTuple):
    """The videos that are shown together."""
    pair: int           # its number
    options: tuple      # numbers of the methods from left to right; the number of methods stands for the broken video


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


def draw_schedules(num_methods, num_pairs, check_pairs, seed=0):
    """The trials of every participant, in order: PARTICIPANTS lists of Trial.

    check_pairs: numbers of the pairs with an attention check, all different
    """
    square, schedules = williams_square(num_methods), []
    for participant in range(PARTICIPANTS):
        methods = list(range(num_methods))
        random.Random(f'{seed}/methods/{participant // len(square)}').shuffle(methods)      # again for every block
        trials = [Trial(pair, tuple(methods[i] for i in square[(participant + pair) % len(square)]))
                  for pair in range(num_pairs)]
        rng = random.Random(f'{seed}/{participant}')
        checks = []
        for number, pair in enumerate(check_pairs):      # the broken video's position alternates
            options = rng.sample(range(num_methods), num_methods)
            options[(participant + number) % num_methods] = num_methods
            checks.append(Trial(pair, tuple(options)))
        schedules.append(_in_random_order(trials, checks, rng))
    return schedules


def _in_random_order(trials, checks, rng):
    """Trials and checks in random order; a check is not first and, if possible, not next to a trial of its pair."""
    trials = rng.sample(trials, len(trials))
    for check in checks:
        places = range(1, len(trials) + 1)
        apart = [place for place in places if check.pair not in [trial.pair for trial in trials[place - 1:place + 1]]]
        trials.insert(rng.choice(apart or places), check)
    return trials
