"""The paper's ablations (Tables 2, 4) and Table 1's methods, trained alike on the embedded heads, scored on others.

    python -m benchmarks.ablation [--budget quick|medium|full] [--rows baseline mmc ...] [--seeds 0 1 2] [--out DIR]

All rows see the same samples in the same order for the same number of steps, once per seed; ablation.yaml says at
what size. Prints a table, in Markdown, beside the paper's figures, and draws a picture. Finished runs are kept:
the same command goes on where it was stopped, and a run is made anew only if its settings change. The scores of
finished runs are small files of their own (--results), with which another machine can go on. Settings do not know of
changes to the code: results say by which code they were made, the table by how many versions.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, as_completed, wait
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from PIL import Image
from tqdm import tqdm

from benchmarks.ablation_run import Run, digest, make, pictured
from benchmarks.ablation_scores import SCORES, Truth, copying, read_truth
from config import schema
from config.changes import changes
from datasets.build import TEST_SEED, TRAIN_SEED
from datasets.synthetic.clips import render, synthetic_people
from support.errors import UserError
from support.files import make_folder, written_whole
from visualizer import CELL, grid, save_png

CONFIGS = Path(__file__).parents[1] / 'config'
OVERLAY = Path(__file__).with_name('ablation.yaml')
RESULTS = Path(__file__).with_name('results')
SEEDS = (0, 1, 2)
SPACING = 8                # frames between two that are used of a clip: a third of a second
PAIRED = 'Differences on the same head after the same seed, mean ± standard error over heads and seeds.'


class Row(NamedTuple):
    """One row: its name in the paper, its config, and the paper's PSNR, L1 and AKD on VoxCeleb1."""
    title: str
    config: str
    psnr: float
    l1: float
    akd: float


ROWS = {
    'fomm': Row('FOMM', 'fomm-vox-256.yaml', 22.96, 0.0474, 1.4037),                            # Table 1
    'dagan': Row('DaGAN (random depth)', 'dagan-vox-256.yaml', 22.92, 0.0492, 1.5740),
    'mcnet': Row('MCNet', 'mcnet-vox-256.yaml', 24.59, 0.0402, 1.2363),
    'mrfa': Row('MRFA', 'mrfa-fomm-vox-256.yaml', 25.26, 0.0370, 1.1823),
    'baseline': Row('Baseline', 'ablation/baseline.yaml', 24.93, 0.0375, 1.2384),               # Table 2
    'smc': Row('+ SMC', 'ablation/smc.yaml', 24.97, 0.0371, 1.2183),
    'mmc': Row('+ MMC', 'ablation/mmc.yaml', 25.27, 0.0360, 1.2171),
    'mmc-sac': Row('+ MMC + SAC', 'ablation/mmc-sac.yaml', 25.16, 0.0362, 1.2106),
    'mmc-mac': Row('+ MMC + MAC', 'ablation/mmc-mac.yaml', 25.30, 0.0355, 1.2039),
    'shared': Row('codes: all shared', 'ablation/shared.yaml', 25.12, 0.0359, 1.2124),          # Table 4
    'equal': Row('codes: split equally', 'ablation/equal.yaml', 25.20, 0.0358, 1.1893),
    'progressive': Row('codes: progressive', 'ablation/progressive.yaml', 25.30, 0.0355, 1.2039),
}


# ---------------------------------------------------------------------------- settings

def settings(budget, overrides=()):
    """Every row's Config at a budget's size: {row: Config}."""
    overlay = yaml.safe_load(OVERLAY.read_text())
    configs = {}
    for name, row in ROWS.items():
        config = schema.load(CONFIGS / row.config)
        parts = [layer.get(kind, {}) for layer in (overlay, overlay[budget]) for kind in ('all', config.method)]
        laid = [f'{section}={json.dumps(values)}' for part in parts for section, values in part.items()]
        configs[name] = schema.override(config, [*laid, *overrides])
    return configs


def run_name(configs, row, seed):
    """A name that is the same exactly for equal settings: rows that are the same model are trained once."""
    first = next(name for name, config in configs.items() if config == configs[row])
    return f'{first}-seed{seed}-{fingerprint(configs[row])}'


def fingerprint(config):
    """Hash of all in which a config differs from the defaults: an option that is new, and off, changes no run."""
    defaults = schema.parse({'model_params': {'method': config.method}}, 'defaults')
    return digest([config.method, {key: after for key, (_, after) in changes(defaults, config).items()}])


# ---------------------------------------------------------------------------- data and its truth

def heads(config, folder, pool):
    """Render the embedded heads once, as clips on disk that all runs read, and the truth about the test clips.

    returns: the data set's root, with train/, test/ and truth.npz
    """
    params, size = config.dataset_params.synthetic_params, config.model_params.image_size
    root = Path(folder) / f'heads-{digest([vars(params), size])}'
    if root.is_dir():
        return root
    length = params.frames * SPACING
    people = {'train': synthetic_people(params.train_people, params.clips_per_person, length, size, TRAIN_SEED),
              'test': synthetic_people(params.test_people, 1, length, size, TEST_SEED)}
    with tempfile.TemporaryDirectory(prefix='.heads-', dir=folder) as aside:
        aside = make_folder(Path(aside) / 'heads')
        tasks = [pool.submit(write_clip, clip, make_folder(aside / partition / clip.name))
                 for partition, someone in people.items() for clips in someone.values() for clip in clips]
        for task in tqdm(as_completed(tasks), 'rendering heads', len(tasks), unit='clip', dynamic_ncols=True):
            task.result()
        truth = Truth(*map(np.stack, zip(*pool.map(clip_truth, (clips[0] for clips in people['test'].values())))))
        np.savez(aside / 'truth.npz', **truth._asdict())
        aside.replace(root)
    return root


def write_clip(clip, folder):
    for index in range(0, len(clip), SPACING):
        save_png(folder / f'{index:06d}.png', clip.read([index])[0])


def clip_truth(clip):
    """Truth, of one clip, without the axis C."""
    rendered = [render(clip.identity, clip.state(index), clip.size) for index in range(0, len(clip), SPACING)]
    frames, landmarks, visible, _ = (np.stack(values) for values in zip(*rendered))
    steps = {'yaw': 1, 'pitch': 1, 'roll': 1, 'x': 0.01, 'y': 0.01, 'scale': 0.01}
    rest, turning = clip.state(0), []
    for name, step in steps.items():
        ends = [render(clip.identity, replace(rest, **{name: getattr(rest, name) + part}), clip.size).landmarks
                for part in (-step / 2, step / 2)]
        turning.append((ends[1] - ends[0]) / step)
    return Truth(frames, landmarks, visible, np.stack(turning, -1))


# ---------------------------------------------------------------------------- all runs

def one_thread():
    torch.set_num_threads(1)


def run_all(runs, pool, jobs, device):
    """Make the runs that have no result yet, `jobs` at a time."""
    missing = [run for run in runs if not run.result.is_file()]
    with tqdm(total=len(missing), desc='training and scoring', unit='run', dynamic_ncols=True) as progress:
        running = {}
        while missing or running:
            # None waits in the pool's own queue: on Ctrl-C, what is queued there would still be trained.
            while missing and len(running) < jobs:
                run = missing.pop(0)
                running[pool.submit(make, run, device)] = run.name
            for task in wait(running, return_when=FIRST_COMPLETED).done:
                task.result()
                progress.set_postfix_str(running.pop(task))
                progress.update()


def collect(configs, rows, out, root, results):
    """{row: its runs, one per seed}, reading the heads in `root`, with their scores in the folder `results`."""
    def with_seed(config, seed):
        return replace(config, dataset_params=replace(config.dataset_params, root_dir=str(root)),
                       train_params=replace(config.train_params, seed=seed))
    return {row: [Run(run_name(configs, row, seed), with_seed(configs[row], seed), out, results) for seed in SEEDS]
            for row in rows}


def results_of(runs):
    """{row: results of its finished runs, by seed}, without rows that have none."""
    found = {row: {seed: json.loads(run.result.read_text()) for seed, run in zip(SEEDS, of_row) if run.result.is_file()}
             for row, of_row in runs.items()}
    return {row: results for row, results in found.items() if results}


def table(results, copied):
    """Markdown: mean ± standard deviation over the seeds, beside the paper's figures."""
    names = [name for name in SCORES if name in copied]
    headings = ['', 'seeds', *(SCORES[name][0] for name in names), 'parameters',
                'paper: PSNR', 'paper: L1', 'paper: AKD']
    lines = [headings, ['---'] * len(headings),
             ['copy of the source', '', *(f'{copied[name]:.{SCORES[name][1]}f}' for name in names), *[''] * 4]]
    for name, of_row in results.items():
        cells = [spread([result['scores'][score] for result in of_row.values()], SCORES[score][1]) for score in names]
        row, size = ROWS[name], next(iter(of_row.values()))['parameters']
        lines.append([row.title, str(len(of_row)), *cells, f'{size / 1e6:.2f} M',
                      f'{row.psnr:.2f}', f'{row.l1:.4f}', f'{row.akd:.4f}'])
    return markdown(lines)


def paired_table(results, reference):
    """Markdown: each row minus the reference row on the same heads and seeds, mean ± standard error over both."""
    names = [name for name in SCORES if name in next(iter(results[reference].values()))['scores']]
    headings = [f'minus {ROWS[reference].title}', 'pairs', *(SCORES[name][0] for name in names)]
    lines = [headings, ['---'] * len(headings)]
    for row, of_row in results.items():
        pairs = [pair for seed in of_row.keys() & results[reference].keys()
                 for pair in zip(of_row[seed]['heads'], results[reference][seed]['heads'], strict=True)]
        if row != reference and len(pairs) > 1:
            lines.append([ROWS[row].title, str(len(pairs)), *(
                difference([ours[name] - theirs[name] for ours, theirs in pairs], SCORES[name][1]) for name in names)])
    return markdown(lines)


def markdown(lines):
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in lines)


def difference(values, digits):
    error = statistics.stdev(values) / len(values) ** 0.5
    return f'{statistics.fmean(values):+.{digits}f} ± {error:.{digits}f}'


def spread(values, digits):
    mean_value = f'{statistics.fmean(values):.{digits}f}'
    return f'{mean_value} ± {statistics.stdev(values):.{digits}f}' if len(values) > 1 else mean_value


def protocol(config, truth, results):
    """What the figures of the table are."""
    versions = len({result['code'] for of_row in results.values() for result in of_row.values()})
    params, size = config.train_params, config.model_params.image_size
    people, frames = truth.frames.shape[:2]
    return (f'Mean ± standard deviation over the seeds; {size} px, {params.num_iterations} steps of '
            f'{params.batch_size} pairs, {config.dataset_params.synthetic_params.train_people} people trained on; '
            f'{people * (frames - 1)} driving frames of {people} others'
            + (f'; by {versions} versions of the code.' if versions > 1 else '.'))


def picture(runs, truth):
    """One row per method, its first seed: what it made of the same sources and driving frames."""
    rows = [[truth.frames[clip, i] for clip, index in pictured(truth) for i in (0, index)]]
    for of_row in runs.values():
        cells = np.asarray(Image.open(next(run.strip for run in of_row if run.strip.is_file())))
        rows.append(np.split(cells, cells.shape[1] // CELL, axis=1))
    titles = ['source / prediction', 'driving / flow'] * (len(rows[0]) // 2)
    return grid(rows, titles, ['', *(ROWS[name].title for name in runs)])


# ---------------------------------------------------------------------------- command line

def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--budget', choices=('quick', 'medium', 'full'), default='quick',
                        help='quick: does it run, in minutes; medium: hours of CPU, resumes; full: a GPU')
    parser.add_argument('--rows', nargs='+', choices=ROWS, default=list(ROWS), metavar='ROW',
                        help=f'of {", ".join(ROWS)}; default all')
    parser.add_argument('--seeds', nargs='+', type=int, choices=SEEDS, default=list(SEEDS), metavar='SEED',
                        help='train these alone; the table shows all that are finished')
    parser.add_argument('--reference', choices=ROWS, default='baseline', metavar='ROW',
                        help='what the other rows are compared with, head by head; default baseline')
    parser.add_argument('--out', type=Path, help='default log/ablation-BUDGET')
    parser.add_argument('--results', type=Path, metavar='DIR', help='where the scores of finished runs are kept and '
                        f'looked for; default {RESULTS.relative_to(CONFIGS.parent)}/BUDGET, of quick OUT/results')
    parser.add_argument('--jobs', type=int,
                        help='runs at a time, of one thread each; default: one per CPU core, or 4 on a GPU')
    parser.add_argument('--set', nargs='+', default=[], metavar='key=value', help="override every row's config")
    options = parser.parse_args(arguments)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    jobs = options.jobs or (4 if device.type == 'cuda' else os.cpu_count())
    out = options.out or Path('log') / f'ablation-{options.budget}'
    try:
        configs = settings(options.budget, options.set)
        results = options.results or (out / 'results' if options.budget == 'quick' else RESULTS / options.budget)
        make_folder(results)
        with ProcessPoolExecutor(jobs, multiprocessing.get_context('spawn'), one_thread) as pool:
            try:
                root = heads(configs[options.rows[0]], out, pool)
                runs = collect(configs, options.rows, out, root, results)
                # Seed by seed, so that an early stop leaves whole comparisons.
                ordered = {run.name: run for seed in options.seeds for run in
                           (of_row[SEEDS.index(seed)] for of_row in runs.values())}
                run_all(ordered.values(), pool, jobs, device)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted; the same command goes on from here', file=sys.stderr)
        return 130

    truth, results = read_truth(root), results_of(runs)
    text = table(results, copying(truth)) + f'\n\n{protocol(configs[options.rows[0]], truth, results)}\n'
    if options.reference in results and len(results) > 1:
        text += f'\n{paired_table(results, options.reference)}\n\n{PAIRED}\n'
    with written_whole(out / 'table.md') as path:
        path.write_text(text)
    save_png(out / 'picture.png', picture({row: runs[row] for row in results}, truth))
    print(f'{text}\ntable.md and picture.png are in {out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
