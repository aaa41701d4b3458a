"""Statistics of a user study: preference shares, Bradley-Terry strengths, agreement, intervals and tests."""

import numpy as np
from scipy.stats import binomtest

RESAMPLES = 10_000
ITERATIONS = 2_000     # of Bradley-Terry, at most
CHUNK = 500            # resamples computed together


def resample(num_participants, num_pairs, seed, resamples=RESAMPLES):
    """Counts of draws with replacement: (resamples, participants) and (resamples, pairs).

    Both are drawn, independently, because the result should hold for other participants and other pairs: the
    "pigeonhole" bootstrap, Owen, Ann. Appl. Stat. 1 (2007) 386, https://doi.org/10.1214/07-AOAS122.
    """
    rng = np.random.default_rng(seed)
    return tuple(rng.multinomial(num, np.full(num, 1 / num), resamples) for num in (num_participants, num_pairs))


def weighted_sum(counts, weights):
    """Counts (participants, pairs, ...) summed over both, in each resample: (resamples, ...)."""
    people, pairs = weights
    rest = counts.shape[2:]
    parts = []
    for start in range(0, len(people), CHUNK):
        by_pair = (people[start:start + CHUNK] @ counts.reshape(len(counts), -1)).reshape(-1, counts.shape[1], *rest)
        parts.append(np.einsum('bp...,bp->b...', by_pair, pairs[start:start + CHUNK]))
    return np.concatenate(parts)


def interval(values):
    """2.5 and 97.5 % quantiles over resamples (B, ...): two arrays (...); NaN values are ignored."""
    return np.nanpercentile(values, [2.5, 97.5], axis=0)


def shares(first, shown):
    """First places / times shown, both (..., M) -> (..., M) in [0, 1]; NaN for a method that was never shown."""
    with np.errstate(invalid='ignore'):
        return first / np.where(shown == 0, np.nan, shown)


def bradley_terry(beats, tolerance=1e-8):
    """Strengths: log-odds s with P(a before b) = 1 / (1 + exp(s_b - s_a)), of mean 0.

    Every two methods get half a win in each direction in addition, so that a method that never loses has a finite
    strength. Iteration: Hunter, MM algorithms for generalized Bradley-Terry models, Ann. Stat. 32 (2004) 384, Eq. 3.

    beats:   (..., M, M) wins of the row's method over the column's
    returns: (..., M)
    """
    others = 1 - np.eye(beats.shape[-1])
    wins = beats * others + others / 2
    met = wins + np.swapaxes(wins, -1, -2)
    strength = np.ones(wins.shape[:-1])
    for _ in range(ITERATIONS):
        last = strength
        strength = wins.sum(-1) / (met / (last[..., :, None] + last[..., None, :])).sum(-1)
        strength /= np.exp(np.log(strength).mean(-1, keepdims=True))
        if np.abs(np.log(strength / last)).max() < tolerance:
            break
    return np.log(strength)


def krippendorff_alpha(values):
    """Agreement of raters on interval data: 1 for full agreement, 0 for chance, negative below chance.

    values:  (raters, units), NaN where a rater has no value for a unit
    returns: float; None where no two raters share a unit, or all values are equal
    Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section E with the difference of interval data.
    """
    units = [unit[np.isfinite(unit)] for unit in values.T]
    units = [unit for unit in units if len(unit) > 1]
    every = np.concatenate(units) if units else np.zeros(0)
    if not units or not every.var():
        return None
    # The mean squared difference of two of n values is twice their variance, taken with n - 1.
    within = sum(len(unit) * unit.var(ddof=1) for unit in units) / len(every)
    return float(1 - within / every.var(ddof=1))


def two_methods(beats):
    """Exact two-sided binomial tests of whether one of two methods is preferred.

    beats:   (participants, pairs, 2, 2)
    returns: {'wins', 'answers', 'p': over all answers, as papers report it, 'majorities', 'decided',
             'p_participants': over participants, each with the method that they preferred more often, without ties;
             answers of one participant are not independent, participants are}
    """
    wins, losses = beats[:, :, 0, 1].sum(axis=1), beats[:, :, 1, 0].sum(axis=1)
    answers, decided = int((wins + losses).sum()), int((wins != losses).sum())
    majorities = int((wins > losses).sum())
    return {'wins': int(wins.sum()), 'answers': answers, 'p': binomtest(int(wins.sum()), answers).pvalue,
            'majorities': majorities, 'decided': decided,
            'p_participants': binomtest(majorities, decided).pvalue if decided else 1.0}
