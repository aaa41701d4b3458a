"""Build the folder of a blind user study from videos of several methods.

    study/page/study.html       the participants' page, from disk or any web host: study.html?participant=7
    study/page/media/           the videos, without sound and metadata, under random names
    study/key.json              the method of each file; not for participants

All videos of a pair have one size, rate, length and encoder, so neither a file nor its playback reveals the method.
File names are hashes of pair and method with a secret salt, which only the key contains.
"""

import hashlib
import json
import random
import secrets
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Mapping

import numpy as np
from tqdm import tqdm

from datasets.still import resized
from datasets.video_writer import VideoWriter
from evaluation.study.schedule import draw_checks, draw_schedules
from evaluation.videos import at_rate, check_length, find_videos, pair_name, seconds
from support.errors import UserError
from support.files import make_folder, write_text, written_whole
from support.pages import fill
from visualizer import save_png

QUESTIONS = {
    'appearance': 'Which video looks most real: sharp, free of flaws, and the same person as in the picture?',
    'motion': 'In which video do head, eyes and mouth move most naturally, and as in the driving video?',
    'overall': 'All in all, which video is best?',
}
FORMAT = 1             # of key.json and of the answers
MOSAIC = 12            # side of the broken video of an attention check, in tiles
HOLD = 4               # frames for which it shows a moment before it jumps to another, to avoid flicker


@dataclass(frozen=True)
class StudyJob:
    """The parts of a study."""
    out: Path                        # its folder
    cases: tuple                     # evaluation.cases.Cases: first frames and the clips that they follow
    methods: Mapping[str, Path]      # {name of the method: folder with a video or frame folder for each pair}
    checks: int = 2                  # number of attention checks
    seed: int = 0                    # of orders, positions and the choice of checks

    def __post_init__(self):
        num_pairs, names = len(self.cases), Counter(map(pair_name, self.cases))
        if not num_pairs or max(names.values()) > 1:
            raise UserError(f'a study needs pairs of different names; given: {", ".join(names) or "none"}')
        if not 0 <= self.checks <= num_pairs:
            raise UserError(f'{self.checks} attention checks: must be from 0 to {num_pairs}, one per pair')


def build(job):
    """Write the study of a StudyJob.

    returns: path of the page
    raises:  UserError where the folder contains a study, or where a video is missing, of another shape than those of
             the other methods, or too short
    """
    out, page = make_folder(job.out), Path(job.out) / 'page'
    check_new(out)
    videos = {method: find_videos(folder, list(map(pair_name, job.cases)), method)
              for method, folder in job.methods.items()}
    with written_whole(page, folder=True) as unfinished:
        key = _write_media(job, videos, make_folder(unfinished / 'media'))
        _write_page(key, unfinished / 'study.html')
        write_text(out / 'key.json', json.dumps(key, indent=1))
    return page / 'study.html'


def check_new(out):
    if (out / 'page').exists() or (out / 'key.json').exists():
        raise UserError(f'{out}: contains a study, whose answers can only be read with its key; '
                        'choose another folder, or remove this one')


# ---------------------------------------------------------------------------- media

def _write_media(job, videos, media):
    """Write videos and source images to the folder `media`; returns the key."""
    methods, salt = list(job.methods), secrets.token_hex(16)

    def hidden(role, pair, method=None, suffix='mp4'):
        text = json.dumps([salt, role, pair, method])
        return f'{hashlib.sha256(text.encode()).hexdigest()[:20]}.{suffix}'

    checks = draw_checks(len(job.cases), job.checks, job.seed)
    pairs, owners = [], []
    for number, case in enumerate(tqdm(job.cases, desc='study', unit='pair', dynamic_ncols=True)):
        pair, fps = pair_name(case), case.driving.fps
        clips = {method: videos[method][pair] for method in methods}
        size, count = _common(case, clips)
        jobs = {hidden('option', pair, method): (clip, method) for method, clip in clips.items()}
        for name in sorted(jobs):      # times of files in random order, which does not reveal the methods
            _write(media / name, at_rate(jobs[name][0], fps, count), fps, *size)
        owner = {method: name for name, (_, method) in jobs.items()}
        if number in checks:
            owner[None] = hidden('check', pair)
            model = clips[methods[checks.index(number) % len(methods)]]
            _write(media / owner[None], _broken(at_rate(model, fps, count), job.seed), fps, *size)
        driver, source = hidden('driver', pair), hidden('source', pair, suffix='png')
        _write(media / driver, at_rate(case.driving, fps, count), fps, size[0])
        save_png(media / source, _resized(next(iter(case.source.frames())), size[0]))
        pairs.append({'name': pair, 'source': source, 'driver': driver, 'options': sorted(owner.values())})
        owners.append(owner)

    trials = draw_schedules(len(methods), len(pairs), checks, job.seed)
    names = [*methods, None]           # numbered as in Trial: the broken video last
    schedules = [[[trial.pair, [pairs[trial.pair]['options'].index(owners[trial.pair][names[option]])
                                for option in trial.options]] for trial in row] for row in trials]
    key = {'format': FORMAT, 'methods': methods, 'pairs': pairs, 'schedules': schedules,
           'owners': {name: method for owner in owners for method, name in owner.items()}, 'salt': salt}
    return {'study': hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12], **key}


def _common(case, clips):
    """((height, width), number of frames) of all videos of a pair: the largest size and the shortest duration."""
    shapes = {method: clip.read([0])[0].shape[:2] for method, clip in clips.items()}
    (first, (height, width)), *others = shapes.items()
    for method, (h, w) in others:
        if abs(h * width - w * height) > max(h, w, height, width):      # a pixel of rounding
            raise UserError(f'{pair_name(case)}: is {width}x{height} by {first} but {w}x{h} by {method}; '
                            'all must show the result alone, in one shape')
    lasts = [check_length(clip, case.driving, pair_name(case), method) for method, clip in clips.items()]
    count = int(min(seconds(case.driving), *lasts) * case.driving.fps + Fraction(1, 2))
    return max(shapes.values()), max(count, 1)


def _broken(frames, seed):
    """A coarse mosaic of the frames in random order: the worst by any of the three questions."""
    tiles = [_resized(frame, MOSAIC, MOSAIC) for frame in frames]
    order = random.Random(seed).choices(range(len(tiles)), k=len(tiles))
    return (np.repeat(np.repeat(tiles[order[i // HOLD * HOLD]], 16, axis=0), 16, axis=1) for i in range(len(tiles)))


def _write(path, frames, fps, height, width=None):
    with VideoWriter(path, fps) as writer:
        for frame in frames:
            writer.write(_resized(frame, height, width))


def _resized(frame, height, width=None):
    """The frame at this height, and at this width or the proportional one."""
    return resized(frame, (height, width or max(round(frame.shape[1] * height / frame.shape[0]), 1)))


# ---------------------------------------------------------------------------- the page

def _write_page(key, path):
    """Write the page, with file names and schedules but without names of methods."""
    shown = {'format': key['format'], 'study': key['study'], 'questions': QUESTIONS,
             'pairs': [{name: pair[name] for name in ('source', 'driver', 'options')} for pair in key['pairs']],
             'schedules': key['schedules']}
    path.write_text(fill(Path(__file__).with_name('page.html.j2'), study=shown), encoding='utf-8')
