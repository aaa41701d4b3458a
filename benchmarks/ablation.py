"""The paper's ablations (Tables 2, 4) and Table 1's methods, trained alike on synthetic heads, scored on others.

    python -m benchmarks.ablation [--budget quick|medium|full] [--rows baseline mmc ...] [--seeds 0 1 2] [--out DIR]

All rows see the same samples in the same order for the same number of steps, once per seed; ablation.yaml holds the
sizes. The command prints a table in Markdown with the paper's numbers. Rerun it to resume: a finished run is made again
only if its settings change. The scores of finished runs are one JSON file, from which another machine can continue.
"""

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, as_completed, wait
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from tqdm import tqdm

from benchmarks.ablation_scores import SCORES, Truth, copying, evaluate, mean, read_truth
from config import schema
from config.changes import changes
from datasets.build import TEST_SEED, TRAIN_SEED
from datasets.synthetic.clips import render, synthetic_people
from evaluation.published import TABLES
from evaluation.report import code_hash
from logger import RunFolder
from modules.build import build_model
from support.errors import program
from support.files import make_folder, write_text
from train import train
from visualizer import save_png

CONFIGS = Path(__file__).parents[1] / 'config'
OVERLAY = Path(__file__).with_name('ablation.yaml')
RESULTS = Path(__file__).with_name('results')           # BUDGET.json: {name of a run: its result}
SEEDS = (0, 1, 2)
SPACING = 8                # every eighth frame of a clip is used: a third of a second
REFERENCE = 'baseline'     # the row that others are compared with, head by head
PUBLISHED = {'psnr.rgb': 2, 'l1.mean_abs': 4, 'akd.mean_abs_xy': 4}      # of the paper, with their digits
PAIRED = 'Differences on the same head after the same seed, mean ± standard error over heads and seeds.'


class Row(NamedTuple):
    """A row of the table: its title, its config, and the paper's {metric id: value} on VoxCeleb1."""
    title: str
    config: str
    published: dict


METHODS, CODEBOOKS, ALLOCATIONS = (TABLES[name] for name in ('Table 1, VoxCeleb1', 'Table 2', 'Table 4'))
ROWS = {
    'fomm': Row('FOMM', 'fomm-vox-256.yaml', METHODS['FOMM']),
    'dagan': Row('DaGAN (random depth)', 'dagan-vox-256.yaml', METHODS['DaGAN']),
    'mcnet': Row('MCNet', 'mcnet-vox-256.yaml', METHODS['MCNet']),
    'mrfa': Row('MRFA', 'mrfa-fomm-vox-256.yaml', METHODS['MRFA']),
    'baseline': Row('Baseline', 'ablation/baseline.yaml', CODEBOOKS['baseline, no codebook']),
    'smc': Row('+ SMC', 'ablation/smc.yaml', CODEBOOKS['+ SMC']),
    'mmc': Row('+ MMC', 'ablation/mmc.yaml', CODEBOOKS['+ MMC']),
    'mmc-sac': Row('+ MMC + SAC', 'ablation/mmc-sac.yaml', CODEBOOKS['+ MMC + SAC']),
    'mmc-mac': Row('+ MMC + MAC', 'ablation/mmc-mac.yaml', CODEBOOKS['+ MMC + MAC']),
    'shared': Row('codes: all shared', 'ablation/shared.yaml', ALLOCATIONS['all shared']),
    'equal': Row('codes: split equally', 'ablation/equal.yaml', ALLOCATIONS['split equally']),
    'progressive': Row('codes: progressive', 'ablation/progressive.yaml', ALLOCATIONS['progressive']),
}


class Run(NamedTuple):
    """One training: its name, its config with seed and data, and the folder of all runs."""
    name: str
    config: schema.Config
    out: Path


# ---------------------------------------------------------------------------- settings

def settings(budget, overrides=()):
    """Every row's Config at a budget's size: {row: Config}."""
    overlay = yaml.safe_load(OVERLAY.read_text())
    configs = {}
    for name, row in ROWS.items():
        config = schema.load(CONFIGS / row.config)
        parts = [layer.get(kind, {}) for layer in (overlay, overlay[budget]) for kind in ('all', config.method)]
        overlaid = [f'{section}={json.dumps(values)}' for part in parts for section, values in part.items()]
        configs[name] = schema.override(config, [*overlaid, *overrides])
    return configs


def run_name(configs, row, seed):
    """The name of a run, the same for equal settings: rows of the same model are trained once."""
    first = next(name for name, config in configs.items() if config == configs[row])
    return f'{first}-seed{seed}-{fingerprint(configs[row])}'


def fingerprint(config):
    """Hash of the differences of a config from the defaults: a new option that is off changes no run."""
    defaults = schema.parse({'model_params': {'method': config.method}}, 'defaults')
    return digest([config.method, {key: after for key, (_, after) in changes(defaults, config).items()}])


def digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


# ---------------------------------------------------------------------------- data and its truth

def heads(config, folder, pool):
    """Render the synthetic heads once, as clips on disk for all runs, with the truth of the test clips.

    returns: the dataset's root, with train/, test/ and truth.npz
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
    """The Truth of one clip, without the axis C."""
    rendered = [render(clip.identity, clip.state(index), clip.size) for index in range(0, len(clip), SPACING)]
    return Truth(*(np.stack(values) for values in list(zip(*rendered))[:3]))


# ---------------------------------------------------------------------------- runs

def make(run, device):
    """Train and score; the result as a JSON value. Raises KeyboardInterrupt if training was stopped."""
    folder = RunFolder(run.out / 'runs' / run.name)
    schema.save(run.config, folder.path / 'config.yaml')
    begun = time.process_time()
    with open(folder.path / 'console.txt', 'a') as console, contextlib.redirect_stderr(console):
        try:
            train(run.config, folder, device)
        finally:
            folder.close()
    seconds = time.process_time() - begun
    _, state = folder.newest()
    if state['step'] < run.config.train_params.num_iterations:
        raise KeyboardInterrupt
    model = build_model(run.config)
    model.load_state_dict(state['ema'])
    model.to(device).eval()
    heads = evaluate(model, read_truth(Path(run.config.dataset_params.root_dir)), device)
    return {'parameters': sum(parameter.numel() for parameter in model.parameters()), 'cpu_seconds': round(seconds),
            'code': code_hash(CONFIGS.parent), 'torch': torch.__version__,
            'heads': [{name: float(f'{value:.6g}') for name, value in scores.items()} for scores in heads]}


def read_results(path):
    return json.loads(path.read_text()) if path.is_file() else {}


def run_all(runs, results, pool, jobs, device):
    """Make the runs that have no result, `jobs` at a time; each result is added to the file `results`."""
    missing = [run for run in runs if run.name not in read_results(results)]
    with tqdm(total=len(missing), desc='training and scoring', unit='run', dynamic_ncols=True) as progress:
        running = {}
        while missing or running:
            # No run waits in the pool's own queue: on Ctrl-C it would be trained all the same.
            while missing and len(running) < jobs:
                run = missing.pop(0)
                running[pool.submit(make, run, device)] = run.name
            for task in wait(running, return_when=FIRST_COMPLETED).done:
                name, known = running.pop(task), read_results(results)
                known[name] = task.result()
                lines = (f'{json.dumps(name)}: {json.dumps(known[name])}' for name in sorted(known))
                write_text(results, '{%s}\n' % ',\n'.join(lines))
                progress.set_postfix_str(name)
                progress.update()


def collect(configs, rows, out, root):
    """{row: its runs, one per seed}, trained on the heads in `root`."""
    runs = {}
    for row in rows:
        config = replace(configs[row], dataset_params=replace(configs[row].dataset_params, root_dir=str(root)))
        runs[row] = [Run(run_name(configs, row, seed), replace(config, train_params=replace(
            config.train_params, seed=seed)), out) for seed in SEEDS]
    return runs


def results_of(runs, results):
    """{row: {seed: result}} of finished runs, without rows that have none."""
    known = read_results(results)
    found = {row: {seed: known[run.name] for seed, run in zip(SEEDS, of_row) if run.name in known}
             for row, of_row in runs.items()}
    return {row: of_row for row, of_row in found.items() if of_row}


def table(results, copied):
    """Markdown: mean ± standard deviation over the seeds, with the paper's numbers."""
    names = [name for name in SCORES if name in copied]
    headings = ['', 'seeds', *(SCORES[name][0] for name in names), 'parameters',
                'paper: PSNR', 'paper: L1', 'paper: AKD']
    lines = [headings, ['---'] * len(headings),
             ['copy of the source', '', *(f'{copied[name]:.{SCORES[name][1]}f}' for name in names), *[''] * 4]]
    for name, of_row in results.items():
        of_seeds = [mean(result['heads']) for result in of_row.values()]
        cells = [spread([scores[score] for scores in of_seeds], SCORES[score][1]) for score in names]
        row, size = ROWS[name], next(iter(of_row.values()))['parameters']
        lines.append([row.title, str(len(of_row)), *cells, f'{size / 1e6:.2f} M',
                      *(f'{row.published[name]:.{digits}f}' for name, digits in PUBLISHED.items())])
    return markdown(lines)


def paired_table(results):
    """Markdown: each row minus REFERENCE on the same heads and seeds, mean ± standard error over both."""
    reference = results[REFERENCE]
    names = [name for name in SCORES if name in next(iter(reference.values()))['heads'][0]]
    headings = [f'minus {ROWS[REFERENCE].title}', 'pairs', *(SCORES[name][0] for name in names)]
    lines = [headings, ['---'] * len(headings)]
    for row, of_row in results.items():
        pairs = [pair for seed in of_row.keys() & reference.keys()
                 for pair in zip(of_row[seed]['heads'], reference[seed]['heads'], strict=True)]
        if row != REFERENCE and len(pairs) > 1:
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


def protocol(config, truth):
    """A sentence on what the table holds."""
    params, size = config.train_params, config.model_params.image_size
    people, frames = truth.frames.shape[:2]
    return (f'Mean ± standard deviation over the seeds; {size} px, {params.num_iterations} steps of '
            f'{params.batch_size} pairs, {config.dataset_params.synthetic_params.train_people} people trained on; '
            f'{people * (frames - 1)} driving frames of {people} others.')


# ---------------------------------------------------------------------------- command line

@program
def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--budget', choices=('quick', 'medium', 'full'), default='quick',
                        help='quick: minutes, to see that it runs; medium: hours of a CPU; full: a GPU')
    parser.add_argument('--rows', nargs='+', choices=ROWS, default=list(ROWS), metavar='ROW',
                        help=f'rows to train, of {", ".join(ROWS)}; default all')
    parser.add_argument('--seeds', nargs='+', type=int, choices=SEEDS, default=list(SEEDS), metavar='SEED',
                        help='train only these; the table shows all finished ones')
    parser.add_argument('--out', type=Path, help='default log/ablation-BUDGET')
    parser.add_argument('--jobs', type=int,
                        help='number of parallel runs, of one thread each; default: one per CPU core, 4 on a GPU')
    parser.add_argument('--set', nargs='+', default=[], metavar='key=value', help="override every row's config")
    options = parser.parse_args(arguments)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    jobs = options.jobs or (4 if device.type == 'cuda' else os.cpu_count())
    out = options.out or Path('log') / f'ablation-{options.budget}'
    try:
        configs = settings(options.budget, options.set)
        results = (out if options.budget == 'quick' else RESULTS) / f'{options.budget}.json'
        make_folder(results.parent)
        with ProcessPoolExecutor(jobs, multiprocessing.get_context('spawn'), torch.set_num_threads, (1,)) as pool:
            try:
                root = heads(configs[options.rows[0]], out, pool)
                runs = collect(configs, options.rows, out, root)
                # Seed by seed, so that an early stop leaves complete comparisons.
                ordered = {run.name: run for seed in options.seeds for run in
                           (of_row[SEEDS.index(seed)] for of_row in runs.values())}
                run_all(ordered.values(), results, pool, jobs, device)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    except KeyboardInterrupt:
        print('interrupted; rerun the same command to resume', file=sys.stderr)
        return 130

    truth, results = read_truth(root), results_of(runs, results)
    text = table(results, copying(truth)) + f'\n\n{protocol(configs[options.rows[0]], truth)}\n'
    if REFERENCE in results and len(results) > 1:
        text += f'\n{paired_table(results)}\n\n{PAIRED}\n'
    write_text(out / 'table.md', text)
    print(f'{text}\ntable.md is in {out}')


if __name__ == '__main__':
    sys.exit(main())
