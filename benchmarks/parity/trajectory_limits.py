"""What of a trajectory is compared, and how far it may be off.

The path is chaotic: batch norm over two samples amplifies rounding, and Adam's first update turns a gradient that is
rounding alone into a whole step. The fixture's recipe tells how far the released code goes from itself in double
precision: every loss within 5e-6 before the first update; after it 6e-4 (L1), 7e-4 (perceptual), 4e-3 (of the first
scale), 1.5e-2 (motion codes). Limits of the first two iterations are ten times that; losses that it does not name got
that of the first scale, after seeing a quarter of it.

Of later iterations it tells nothing, and all their limits were set after seeing figures: ours against the released
code, and ours against itself with sums ordered otherwise (channels last, two threads), which is as far apart. At the
eighth iteration losses of images differ by up to a fifth, motion codes up to threefold, keypoints by a fifth of the
image. So later losses say that training is of the same kind; what holds tightly to the end is which losses there are,
learning rates, and how far whole networks have moved.
"""

import numpy as np

from benchmarks.parity.comparison import FLOW, IMAGE, Comparison

# Logged scalars, as natural logarithms of ratios: {name: (first iteration, second, later)}.
IMAGE_LOSS, FIRST_SCALE, MOTION, CODES = (5e-5, 7e-3, 0.5), (5e-5, 4e-2, 0.5), (5e-5, 4e-2, 1.2), (5e-5, 0.15, 2.0)
SCALARS = {
    'log/l_g_pix': (5e-5, 6e-3, 0.5), 'log/l_g_percep': IMAGE_LOSS, 'perceptual_raw': IMAGE_LOSS,
    'perceptual_lr_raw_unweighted': FIRST_SCALE, 'log/l_g_pix_lr_0': FIRST_SCALE, 'log/l_g_percep_lr_0': FIRST_SCALE,
    'log/l_equivariance_value': MOTION, 'log/l_equivariance_jacobian': MOTION,
    'log/l_g_motion_codebook_recon': MOTION,
    'log/l_g_motion_codebook_code': CODES, 'l_g_total': CODES, 'log/l_g_app_codebook_code': (5e-5, 1e-3, 3e-2),
    'log/l_kpd': (1e-6, 0.15, 1.5),        # counts close pairs: 2/225 each
    # A mean over tensors, some of them single numbers whose gradient is rounding: limits set after seeing 2e-3.
    'mean_abs_param_delta_net_g': (1e-2, 3e-2, 0.15),
}
# Those of the discriminator: (its first iteration, later). Its weights are the start's then, and so is what it says of
# real images; what it says of generated ones, and every gradient, is as far off as those are.
ADVERSARIAL = {
    'log/d_weight': (1e-6, 1e-6),          # clamped
    'log/l_d_real': (1e-5, 0.5), 'gan_d_real_raw': (1e-5, 0.5),
    'log/l_d_fake': (0.2, 1.0), 'gan_d_fake_raw': (0.2, 1.0),
    'recon_grad_norm': (2.0, 2.0), 'gan_grad_norm': (2.0, 2.0),
}
# Those that may be of either sign, as differences.
SIGNED = {'log/out_d_real': (1e-5, 0.5), 'log/out_d_fake': (0.2, 1.0), 'gan_g_raw': (0.2, 1.0),
          'log/l_g_gan': (0.2, 1.0)}

# How far whole networks have moved since the start, logarithms: (first update, second, later). The first is ten times
# what another order of sums does to it; the running average's is of the order of rounding of the weights. A wrong
# epsilon (1e-6, 1e-10) is off by 1e-3 and 8e-5 in the first, a wrong beta1 (0.5, 0.95) by 7e-2 and 7e-3 and beta2 = 0.9
# by 4e-3 in the second; beta2 = 0.999 does not show.
MOVED = {'net_g': (3e-5, 3e-3, 2e-2), 'net_motion_estimator': (3e-5, 3e-2, 3e-2), 'net_d': (3e-5, 0.2, 0.2),
         'ema': (1e-3, 3e-3, 2e-2)}
# Means of running statistics: (largest, mean) difference.
STATISTICS = (1e-5, 1e-6), (5e-3, 5e-4), (5e-2, 8e-3)
# Forward values and gradient norms of the first iteration.
FORWARD = {f'kp_{name}_{part}': FLOW for name in ('source', 'driving') for part in ('value', 'jacobian')} | {
    'deformation': FLOW, 'occlusion_map': FLOW, 'out_s4': IMAGE}
GRADIENTS, TERMS = {'net_g': 1e-3, 'net_motion_estimator': 2e-2}, 1e-4
# Of each tensor's change after the last iteration, relative: medians and 85 % quantiles of each network.
CHANGES = {'net_g': (5e-2, 0.2), 'net_motion_estimator': (5e-2, 0.25), 'net_d': (0.15, 0.3)}
CORRELATION = 0.25     # below 1, over all tensors; set after seeing 0.09
# The last prediction's spread, a logarithm: keypoints have moved so far that no pixel is where it was. Weights and
# their running average in each other's place would be 1.3 apart.
PREDICTION = 0.5


def compare(fixture, ours):
    """All comparisons: of the start, of each iteration, of where it ended."""
    yield Comparison('start: prediction', ours['start/prediction_s4'], fixture['start/prediction_s4'], *IMAGE)
    begun = None
    for k, number in enumerate(fixture['iterations'].tolist()):
        theirs, found = (section(values, f'step{k}/') for values in (fixture, ours))
        if begun is None and 'log/d_weight' in theirs:
            begun = k
        for comparison in iteration(theirs, found, k, k == begun):
            yield comparison._replace(name=f'{number}: {comparison.name}')
    yield from end(fixture, ours)


def section(values, prefix):
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def off(name, ours, theirs, limit, sign=False):
    """A comparison of two scalars by the logarithm of their ratio, or by their difference; fails for a missing one."""
    ours, theirs = (float('nan') if value is None else float(value) for value in (ours, theirs))
    if sign or ours == theirs:
        return Comparison(name, np.array([ours]), np.array([theirs]), limit, limit)
    ratio = np.log(ours / theirs) if ours > 0 and theirs > 0 else np.nan
    return Comparison(name, np.array([ratio]), np.zeros(1), limit, limit)


def iteration(theirs, ours, k, first_adversarial):
    """Comparisons of iteration k, counted from 0."""
    known = {*SCALARS, *ADVERSARIAL, *SIGNED}
    missing = sorted((theirs.keys() & known) ^ (ours.keys() & known))
    yield Comparison(f'losses logged here or there alone: {", ".join(missing[:3]) or "none"}',
                     np.array([len(missing)]), np.zeros(1), 0, 0)
    yield Comparison('learning rates', ours['learning_rates'], theirs['learning_rates'], 1e-12, 1e-12)
    for name, limits in SCALARS.items():
        yield off(name, ours.get(name), theirs.get(name), limits[min(k, 2)])
    for table, sign in ((ADVERSARIAL, False), (SIGNED, True)):
        for name, limits in table.items():
            if name in theirs:
                yield off(name, ours.get(name), theirs[name], limits[not first_adversarial], sign)
    for network, limits in MOVED.items():
        updates = k if network != 'net_d' else int(not first_adversarial)
        name = f'delta_norm/{network}'
        yield off(name, ours[name], theirs[name], limits[min(updates, 2)])
    yield Comparison('batch-norm statistics', ours['bn_means'], theirs['bn_means'], *STATISTICS[min(k, 2)])
    yield from gradients(theirs, ours['gradients'], k)
    if k == 0:
        for name, limits in FORWARD.items():
            yield Comparison(name, ours[name], theirs[name], *limits)
        for name in ('perceptual_terms_scale_layer', 'perceptual_lr_terms_scale_layer'):
            yield Comparison(name, ours[name], theirs[name], *2 * [TERMS * theirs[name].max()])


def gradients(theirs, ours, k):
    """Which parameters have a gradient; in the first iteration also how large, in the middle of each network."""
    norms = dict(zip(map(str, theirs['grad_norm_names']), theirs['grad_norms'].tolist()))
    missing = sorted(norms.keys() ^ ours.keys())
    yield Comparison(f'parameters with a gradient here or there alone: {", ".join(missing[:3]) or "none"}',
                     np.array([len(missing)]), np.zeros(1), 0, 0)
    for network, limit in GRADIENTS.items() if k == 0 else ():
        error = [abs(ours.get(name, np.nan) / norm - 1) for name, norm in norms.items()
                 if name.startswith(f'{network}/')]
        yield Comparison(f'{network}: median of gradient norms, relative', np.median(error, keepdims=True), np.zeros(1),
                         limit, limit)


def end(fixture, ours):
    """Comparisons of the weights after the last iteration, of the running average, and of what both make."""
    for which in ('param', 'ema'):
        names = list(map(str, fixture[f'final/{which}_names']))
        moved, size, probe = (fixture[f'final/{which}_{what}'] for what in ('delta_norm', 'norm', 'delta_probe'))
        found = {what: np.array([ours[f'final/{which}_{what}'].get(name, np.nan) for name in names])
                 for what in ('delta_norm', 'norm', 'delta_probe')}
        error = np.abs(found['delta_norm'] - moved) / np.maximum(moved, 1e-12)
        for network, limits in CHANGES.items():
            of_network = error[[name.startswith(f'{network}/') for name in names]]
            for share, limit in zip((0.5, 0.85), limits) if of_network.size else ():
                yield Comparison(f'{which}: {share:.0%} of {of_network.size} changes in {network}, relative',
                                 np.quantile(of_network, [share]), np.zeros(1), limit, limit)
        yield Comparison(f'{which}: changes off by more than half', np.array([np.sum(~(error < 0.5))]), np.zeros(1),
                         0.02 * len(names), 0.02 * len(names))
        yield Comparison(f'{which}: 85% of norms, relative', np.quantile(np.abs(found['norm'] / size - 1), [0.85]),
                         np.zeros(1), 2e-3, 2e-3)
        agreement = np.corrcoef(found['delta_probe'] / found['delta_norm'], probe / moved)[0, 1]
        yield Comparison(f'{which}: correlation of the directions of changes', np.array([agreement]), np.ones(1),
                         *2 * [CORRELATION])
    post = sorted(name for name in fixture if name.startswith('post/'))
    yield Comparison('batch-norm statistics at the end', np.array([ours.get(name, np.nan) for name in post]),
                     np.array([fixture[name] for name in post]), *STATISTICS[2])
    yield Comparison('passes of the discriminator', ours['final/num_batches_tracked_net_d'],
                     fixture['final/num_batches_tracked_net_d'], 0, 0)
    for which in ('raw', 'ema'):
        name = f'final/prediction_{which}_s4'
        yield off(f'{name}: standard deviation', ours[name].std(), fixture[name].std(), PREDICTION)
