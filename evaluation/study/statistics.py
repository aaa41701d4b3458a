"""Statistics of a user study: bootstrap intervals of preference shares, and agreement of participants."""

import numpy as np

RESAMPLES = 10_000


def share_intervals(ranks, seed):
    """95 % intervals of the share of first places: two arrays (M,), the lower and the upper ends.

    Participants and pairs are both drawn with replacement, independently, because the result should hold for other
    participants and other pairs: the "pigeonhole" bootstrap, Owen, Ann. Appl. Stat. 1 (2007) 386,
    https://doi.org/10.1214/07-AOAS122.

    ranks: (participants, pairs, M), 1 for the best method
    """
    rng = np.random.default_rng(seed)
    people, pairs = (rng.multinomial(num, np.full(num, 1 / num), RESAMPLES).astype(float) for num in ranks.shape[:2])
    first = np.einsum('rnm,rn->rm', np.tensordot(people, ranks == 1, 1), pairs)
    return np.percentile(first / first.sum(1, keepdims=True), [2.5, 97.5], axis=0)


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
