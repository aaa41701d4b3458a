"""The paper's ablations (Tables 2 and 4), FOMM and MCNet, trained alike on the embedded heads, scored on unseen people.

    python -m benchmarks.ablation [--budget quick|full] [--rows baseline mmc ...] [--out log/ablation-quick]

All rows see the same samples in the same order for the same number of steps, once per seed; ablation.yaml says at
what size. Prints a table, in Markdown, beside the paper's figures, and draws a picture. Finished runs are kept:
the same command goes on where it was stopped, and a run is made anew only if its settings change. Settings do not
know of changes to the code: after those, take another --out.
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
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, as_completed, wait
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from PIL import Image
from tqdm import tqdm

from config import schema
from datasets.build import TEST_SEED, TRAIN_SEED
from datasets.synthetic.clips import LANDMARK_NAMES, render, synthetic_people
from logger import RunFolder
from metrics.image import l1, psnr, ssim
from modules.build import build_model
from modules.warp import sample
from support.errors import UserError
from support.files import make_folder, written_whole
from train import train
from visualizer import CELL, enlarge, flow_to_rgb, grid, save_png, to_tensor, to_uint8

CONFIGS = Path(__file__).parents[1] / 'config'
OVERLAY = Path(__file__).with_name('ablation.yaml')
SEEDS = (0, 1, 2)
SPACING = 8                # frames between two that are used of a clip: a third of a second
PICTURED = 4               # pairs in the picture


class Row(NamedTuple):
    """One row: its name in the paper, its config, and the paper's PSNR, L1 and AKD on VoxCeleb1."""
    title: str
    config: str
    psnr: float
    l1: float
    akd: float


ROWS = {
    'fomm': Row('FOMM', 'fomm-vox-256.yaml', 22.96, 0.0474, 1.4037),                            # Table 1
    'mcnet': Row('MCNet', 'mcnet-vox-256.yaml', 24.59, 0.0402, 1.2363),
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
    return f'{first}-seed{seed}-{digest(configs[row].as_dict())}'


def digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


# ---------------------------------------------------------------------------- data and its truth

class Truth(NamedTuple):
    """The test clips, C of T frames at S px. The first frame is the source; its own motion is left out of all scores.

    frames:    (C, T, S, S, 3) uint8
    landmarks: (C, T, L, 2) pixel positions of LANDMARK_NAMES
    visible:   (C, T, L) bool
    turning:   (C, L, 2, 6) how the source's landmarks move, in pixels, per degree of yaw, pitch and roll, and per unit
               of x, y and scale
    """
    frames: np.ndarray
    landmarks: np.ndarray
    visible: np.ndarray
    turning: np.ndarray


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


def read_truth(root):
    with np.load(root / 'truth.npz', allow_pickle=False) as stored:
        return Truth(**stored)


# ---------------------------------------------------------------------------- scores

# Landmarks that jaw, brows, smile or gaze move; the others say where the head is.
EXPRESSION = np.array([any(part in name for part in ('pupil', 'brow', 'mouth', 'lip', 'chin', 'jaw'))
                       for name in LANDMARK_NAMES])

SCORES = {'psnr': ('PSNR dB', 2), 'l1': ('L1', 4), 'ssim': ('SSIM', 4), 'pose': ('pose °', 2), 'head': ('head px', 2),
          'expression': ('expression px', 2), 'coarse_head': ('M^0: head px', 2),
          'coarse_expression': ('M^0: expression px', 2)}


@torch.inference_mode()
def evaluate(model, truth, device):
    """Mean scores of a model (in eval mode) over all driving frames of all clips: {name: float}."""
    scores = []
    for clip in map(Truth._make, zip(*truth)):
        driving = to_tensor(clip.frames[1:], device)
        generated = model.render(model.encode_source(to_tensor(clip.frames[:1], device)), model.keypoints(driving))
        coarse, refined = (follow(flow.float().cpu(), clip) for flow in (generated.flows[0], generated.flows[-1]))
        scores.append(score(to_uint8(generated.prediction), coarse, refined, clip))
    return mean(scores)


def copying(truth):
    """The scores of a model that moves nothing: the source frame, again and again."""
    scores = []
    for clip in map(Truth._make, zip(*truth)):
        frames, still = clip.frames[1:], clip.landmarks[1:]
        scores.append(score(np.broadcast_to(clip.frames[0], frames.shape), still, still, clip))
    return mean(scores)


def mean(scores):
    return {name: statistics.fmean(score[name] for score in scores) for name in scores[0]}


def follow(flow, clip):
    """Where a flow (T - 1, h, w, 2) finds the driving frames' landmarks in the source, (T - 1, L, 2) in pixels.

    Read where keypoints and flows live: -1 and 1 are the centres of the first and the last pixel. (FOMM's generator
    then warps half a feature's pixel wider; what its decoder makes of that is not motion.)
    """
    unit = (clip.frames.shape[1] - 1) / 2
    position = torch.from_numpy(clip.landmarks[1:] / unit - 1)[:, None]                            # (T - 1, 1, L, 2)
    found = sample(flow.permute(0, 3, 1, 2), position, padding_mode='border')                      # (T - 1, 2, 1, L)
    return (found[:, :, 0].transpose(1, 2).numpy() + 1) * unit


def score(predicted, coarse, refined, clip):
    """SCORES of predicted frames (T - 1, S, S, 3) uint8, and of where both flows found the landmarks."""
    ours, theirs = ((to_tensor(frames) + 1) / 2 for frames in (predicted, clip.frames[1:]))
    images = {'psnr': psnr(ours, theirs).clamp(max=100), 'l1': l1(ours, theirs), 'ssim': ssim(ours, theirs)}
    before, after = motion_scores(coarse, clip), motion_scores(refined, clip)
    return {**{name: float(values.mean()) for name, values in images.items()}, **after,
            'coarse_head': before['head'], 'coarse_expression': before['expression']}


def motion_scores(found, clip):
    """How far off the source's true landmarks are those that the motion found (T - 1, L, 2).

    head, expression: mean distance in pixels, over the landmarks that both frames show
    pose:             the same error read as a turn of the source's head, to first order: mean over |yaw|, |pitch| and
                      |roll| in degrees of the least-squares rigid motion that explains it
    """
    error = found - clip.landmarks[0]
    seen = clip.visible[0] & clip.visible[1:]
    distance = np.linalg.norm(error, axis=-1)
    turns = []
    for frame, landmarks in zip(error, seen & ~EXPRESSION):
        rigid = np.linalg.lstsq(clip.turning[landmarks].reshape(-1, 6), frame[landmarks].ravel(), rcond=None)[0]
        turns.append(np.abs(rigid[:3]).mean())
    return {'head': float(distance[seen & ~EXPRESSION].mean()), 'expression': float(distance[seen & EXPRESSION].mean()),
            'pose': float(np.mean(turns))}


# ---------------------------------------------------------------------------- one run

class Run(NamedTuple):
    """What a working process needs to know of one run."""
    name: str
    config: schema.Config      # with its seed, reading the rendered heads
    out: Path

    @property
    def result(self):
        return self.out / 'results' / f'{self.name}.json'

    @property
    def strip(self):
        return self.result.with_suffix('.png')


def make(run, device):
    """Train, score, draw; the result appears last and whole. Raises KeyboardInterrupt if training was stopped."""
    folder = RunFolder(run.out / 'runs' / run.name)
    schema.save(run.config, folder.path / 'config.yaml')
    with open(folder.path / 'console.txt', 'a') as console, contextlib.redirect_stderr(console):
        try:
            train(run.config, folder, device)
        finally:
            folder.close()
    _, state = folder.newest()
    if state['step'] < run.config.train_params.num_iterations:
        raise KeyboardInterrupt
    model = build_model(run.config)
    model.load_state_dict(state['ema'])
    model.to(device).eval()
    truth = read_truth(Path(run.config.dataset_params.root_dir))
    scores = evaluate(model, truth, device)
    save_png(run.strip, strip(model, truth, device))
    size = sum(parameter.numel() for parameter in model.parameters())
    with written_whole(run.result) as path:
        path.write_text(json.dumps({'scores': scores, 'parameters': size, 'config': run.config.as_dict()}, indent=2))


def pictured(truth):
    """(clip, driving frame) of each pair in the picture: of clips spread evenly, the frame that moved most."""
    moved = np.linalg.norm(truth.landmarks - truth.landmarks[:, :1], axis=-1).mean(-1)             # (C, T)
    count = min(PICTURED, len(moved))
    return [(i * len(moved) // count, int(moved[i * len(moved) // count].argmax())) for i in range(count)]


@torch.inference_mode()
def strip(model, truth, device):
    """Prediction and refined flow of every pictured pair, side by side."""
    cells = []
    for clip, index in pictured(truth):
        source, driving = (to_tensor(truth.frames[clip, i:i + 1], device) for i in (0, index))
        generated = model.render(model.encode_source(source), model.keypoints(driving))
        cells += [to_uint8(generated.prediction)[0], flow_to_rgb(generated.flows[-1])[0]]
    return np.concatenate([enlarge(cell) for cell in cells], axis=1)


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


def collect(configs, rows, out, root):
    """{row: its runs, one per seed}, reading the heads in `root`."""
    def with_seed(config, seed):
        return replace(config, dataset_params=replace(config.dataset_params, root_dir=str(root)),
                       train_params=replace(config.train_params, seed=seed))
    return {row: [Run(run_name(configs, row, seed), with_seed(configs[row], seed), out) for seed in SEEDS]
            for row in rows}


def table(runs, copied):
    """Markdown: mean ± standard deviation over the seeds, beside the paper's figures."""
    headings = ['', *(heading for heading, _ in SCORES.values()),
                'parameters', 'paper: PSNR', 'paper: L1', 'paper: AKD']
    lines = [headings, ['---'] * len(headings),
             ['copy of the source', *(f'{copied[name]:.{digits}f}' for name, (_, digits) in SCORES.items()), *[''] * 4]]
    for name, of_row in runs.items():
        results = [json.loads(run.result.read_text()) for run in of_row]
        cells = [spread([result['scores'][score] for result in results], digits)
                 for score, (_, digits) in SCORES.items()]
        row = ROWS[name]
        lines.append([row.title, *cells, f'{results[0]["parameters"] / 1e6:.2f} M',
                      f'{row.psnr:.2f}', f'{row.l1:.4f}', f'{row.akd:.4f}'])
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in lines)


def spread(values, digits):
    return f'{statistics.fmean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}'


def protocol(config, truth):
    """What the figures of the table are."""
    params, size = config.train_params, config.model_params.image_size
    people, frames = truth.frames.shape[:2]
    return (f'Mean ± standard deviation over {len(SEEDS)} seeds; {size} px, {params.num_iterations} steps of '
            f'{params.batch_size} pairs, {config.dataset_params.synthetic_params.train_people} people trained on; '
            f'{people * (frames - 1)} driving frames of {people} others.')


def picture(runs, truth):
    """One row per method, first seed: what it made of the same sources and driving frames."""
    rows = [[truth.frames[clip, i] for clip, index in pictured(truth) for i in (0, index)]]
    for first, *_ in runs.values():
        cells = np.asarray(Image.open(first.strip))
        rows.append(np.split(cells, cells.shape[1] // CELL, axis=1))
    titles = ['source / prediction', 'driving / flow'] * (len(rows[0]) // 2)
    return grid(rows, titles, ['', *(ROWS[name].title for name in runs)])


# ---------------------------------------------------------------------------- command line

def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--budget', choices=('quick', 'full'), default='quick',
                        help='quick: 20 minutes on two cores; full: a GPU')
    parser.add_argument('--rows', nargs='+', choices=ROWS, default=list(ROWS), metavar='ROW',
                        help=f'of {", ".join(ROWS)}; default all')
    parser.add_argument('--out', type=Path, help='default log/ablation-BUDGET')
    parser.add_argument('--jobs', type=int,
                        help='runs at a time, of one thread each; default: one per CPU core, or 4 on a GPU')
    parser.add_argument('--set', nargs='+', default=[], metavar='key=value', help="override every row's config")
    options = parser.parse_args(arguments)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    jobs = options.jobs or (4 if device.type == 'cuda' else os.cpu_count())
    out = options.out or Path('log') / f'ablation-{options.budget}'
    try:
        configs = settings(options.budget, options.set)
        make_folder(out / 'results')
        with ProcessPoolExecutor(jobs, multiprocessing.get_context('spawn'), one_thread) as pool:
            try:
                root = heads(configs[options.rows[0]], out, pool)
                runs = collect(configs, options.rows, out, root)
                # Seed by seed, so that an early stop leaves whole comparisons.
                ordered = {run.name: run for group in zip(*runs.values()) for run in group}
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

    truth = read_truth(root)
    text = table(runs, copying(truth)) + f'\n\n{protocol(configs[options.rows[0]], truth)}\n'
    with written_whole(out / 'table.md') as path:
        path.write_text(text)
    save_png(out / 'picture.png', picture(runs, truth))
    print(f'{text}\ntable.md and picture.png are in {out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
