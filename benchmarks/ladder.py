"""Is a small model's training worth anything to a larger one? 64 px carried to 128 px, against 128 px from scratch.

    python -m benchmarks.ladder [--seeds 0 1 2] [--out log/ladder] [--device auto] [--set key=value ...]

For each seed, a 64 px model is trained by config/demo-64.yaml, and two 128 px models by benchmarks/ladder.yaml on the
same samples for the same number of steps: one begins with the small one's weights (modules/resize_checkpoint.py), one
with none.
Scores are training's own, on fixed pairs of people whom neither has seen. Prints a table and draws the curves; stopped,
the same command goes on.
"""

import argparse
import statistics
import sys
from pathlib import Path

from matplotlib.figure import Figure

from config import schema
from logger import RunFolder
from load import choose_device
from modules.training_step import build_training_step
from resume import restore
from support.errors import UserError
from support.files import write_picture, written_whole
from train import train
from validation import Validation

SMALL, LARGE = Path('config/demo-64.yaml'), Path(__file__).with_suffix('.yaml')
SEEDS = (0, 1, 2)
ARMS = {'carried': 'carried from 64 px', 'scratch': 'from scratch'}
COLOURS = {'carried': '#0b6e75', 'scratch': '#e0912f'}
SCORES = {'psnr': ('PSNR dB', 2), 'ssim': ('SSIM', 3), 'l1': ('L1', 4)}


class Interrupted(Exception):
    """Training was asked to stop; it has saved where it was."""


def trained(folder, config, device, checkpoint=None, from_the_start=False):
    """The RunFolder of a run that is trained to its end, now or before; begun with the weights of `checkpoint`.

    from_the_start: also score what it begins with, as step 0
    """
    run = RunFolder(folder)
    try:
        if from_the_start and not run.figures():
            state = build_training_step(config, device).state
            restore(run, config, state, checkpoint)
            Validation(config, run, device)(state.ema, 0)
        train(config, run, device, checkpoint)
    finally:
        run.close()
    if int(run.steps()[-1].stem) < config.train_params.num_iterations:
        raise Interrupted
    return run


def curve(run):
    """{step: {score: value}} of a run's validations."""
    return {line['step']: {name: line[f'validation/{name}'] for name in SCORES}
            for line in run.figures() if 'validation/psnr' in line}


def compare(seeds, out, device, overrides=()):
    """({arm: {seed: curve}}, mean scores of copying the source): trains what is not trained yet, seed by seed."""
    curves, copied = {arm: {} for arm in ARMS}, []
    for seed in seeds:
        sets = [f'train_params.seed={seed}', 'train_params.num_workers=0', *overrides]
        small, large = (schema.load(path, sets) for path in (SMALL, LARGE))
        weights = trained(out / f'small-seed{seed}', small, device).steps()[-1]
        for arm, checkpoint in (('carried', weights), ('scratch', None)):
            run = trained(out / f'{arm}-seed{seed}', large, device, checkpoint, from_the_start=True)
            curves[arm][seed] = curve(run)
        copied.append(next(line for line in run.figures() if 'validation/psnr' in line))     # the pairs are the seed's
    return curves, {name: statistics.fmean(line[f'copying_source/{name}'] for line in copied) for name in SCORES}


def table(curves, copied):
    """Markdown: mean ± standard deviation over the seeds at every validation, and the least lead of any seed."""
    heading = [f'{title}, {arm}' for title, _ in SCORES.values() for arm in ARMS] + ['least lead in PSNR of a seed, dB']
    lines = [['step', *heading], ['---'] * (len(heading) + 1)]
    lines.append(['copy of the source', *(f'{copied[name]:.{digits}f}' for name, (_, digits) in SCORES.items()
                                          for _ in ARMS), ''])
    for step in next(iter(curves['carried'].values())):
        values = {(name, arm): [points[step][name] for points in curves[arm].values()]
                  for name in SCORES for arm in ARMS}
        lead = min(ours - theirs for ours, theirs in zip(values['psnr', 'carried'], values['psnr', 'scratch']))
        lines.append([str(step), *(spread(values[name, arm], SCORES[name][1]) for name in SCORES for arm in ARMS),
                      f'{lead:+.2f}'])
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in lines)


def spread(values, digits):
    mean = f'{statistics.fmean(values):.{digits}f}'
    return f'{mean} ± {statistics.stdev(values):.{digits}f}' if len(values) > 1 else mean


def draw(curves, copied):
    """A matplotlib Figure: one panel a score, one line a seed."""
    figure = Figure(figsize=(10.5, 3.4), layout='constrained')
    for axes, (name, (title, _)) in zip(figure.subplots(1, len(SCORES)), SCORES.items()):
        axes.axhline(copied[name], color='#888888', linewidth=1, linestyle='--', label='copy of the source')
        for arm, of_seeds in curves.items():
            for seed, points in of_seeds.items():
                axes.plot(points.keys(), [point[name] for point in points.values()], color=COLOURS[arm], linewidth=1.4,
                          marker='.', alpha=0.85, label=ARMS[arm] if seed == min(of_seeds) else None)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel('steps at 128 px', fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[['top', 'right']].set_visible(False)
    figure.axes[-1].legend(fontsize=8, frameon=False)
    return figure


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', nargs='+', type=int, default=list(SEEDS), metavar='SEED')
    parser.add_argument('--out', type=Path, default=Path('log/ladder'))
    parser.add_argument('--device', default='auto', help='auto | cpu | cuda | cuda:N | mps')
    parser.add_argument('--set', nargs='+', default=[], metavar='key=value', help='override both configs')
    options = parser.parse_args(arguments)
    try:
        curves, copied = compare(options.seeds, options.out, choose_device(options.device), options.set)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except (Interrupted, KeyboardInterrupt):
        print('interrupted; the same command goes on from here', file=sys.stderr)
        return 130
    text = table(curves, copied)
    with written_whole(options.out / 'table.md') as path:
        path.write_text(f'{text}\n')
    with written_whole(options.out / 'curves.png') as path:
        write_picture(path, draw(curves, copied).savefig, format='png', dpi=110)
    print(f'{text}\n\ntable.md and curves.png are in {options.out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
