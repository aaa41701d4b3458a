"""Same-identity reconstruction: every test clip, driven by itself from its first frame, and its scores.

The paper's Table 1 and 2; FOMM has it as a mode of this name: NeurIPS 2019, Sec. 4,
https://github.com/AliaksandrSiarohin/first-order-model
"""

from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict

import numpy as np
from PIL import Image
from tqdm import tqdm

from datasets.video_writer import VideoWriter
from evaluation.cases import Case, Selection
from evaluation.evaluate import CodeCounter, EvaluationJob
from evaluation.protocols import PROTOCOLS, Item
from evaluation.report import Report, write_report
from evaluation.scores import ClipScores, Scorer, mean
from evaluation.store import Store
from support.errors import UserError
from support.files import make_folder
from visualizer import Strip, beside, cells, contact_sheet, rows_of_sheet, save_png

METRICS = ('l1.mean_abs', 'psnr.rgb', 'ssim.gauss11', 'lpips.vgg')     # --mode evaluate computes the others too


def reconstruct(renderer, clips, folder, *, subject=None, include_first=True, save_videos=True):
    """Rebuild every clip from its first frame; score, show and save.

    Writes into `folder`: metrics.json, metrics.csv, contact_sheet.png and, with `save_videos`,
    videos/NAME.mp4 (source | driving | prediction, at the clip's own frame rate). Each file appears
    whole or not at all. Memory does not grow with the length of the clips. Scores are kept clip by
    clip in clips/, from which the same call goes on after an interruption.

    renderer:      inference.Renderer
    clips:         clips as in datasets/video.py, all at the model's image size
    subject:       {what: value} that tells this model from others
    include_first: also rebuild and score the first frame, which is the source (as FOMM does)
    returns:       evaluation.report.Report
    raises:        UserError for a clip that cannot be read or is too short, for two clips of one
                   name, for a folder that cannot be written
    """
    _check(clips, 0 if include_first else 1)
    cases = [Case(Item(clip.name), clip, clip) for clip in clips]
    name = 'same-identity' if include_first else 'same-identity-no-first'
    job = EvaluationJob(name, PROTOCOLS[name], Selection('all clips', [case.item for case in cases], cases), METRICS,
                        (subject or {}) | {'videos': save_videos}, renderer.batch_size)
    folder, scorer = make_folder(folder), Scorer(METRICS, renderer.device, copies=True)
    store = Store(folder / 'clips', job.settings(scorer))
    store.tidy(cases)      # at once: videos of other weights are replaced one by one, and no scores may outlive them
    videos = make_folder(folder / 'videos') if save_videos else None

    rows, shown = [], [cases[i] for i in rows_of_sheet(len(cases))]
    lengths = {case.item: len(case.moments(job.protocol.first)[1]) for case in cases}
    with tqdm(total=sum(lengths.values()), unit='frame', desc='reconstruction', dynamic_ncols=True) as progress:
        for case in cases:
            video, strip = videos and videos / f'{case.item.name}.mp4', case in shown and store.path(case, '.png')
            row = store.read(case)
            if isinstance(row, ClipScores) and all(path.is_file() for path in (video, strip) if path):
                progress.update(lengths[case.item])
            else:
                row = _rebuild(case, job, renderer, scorer, video, strip, progress)
                store.write(case, row.as_json())
            rows.append(row)
            psnr = mean(mean(row.scores['psnr.rgb']) for row in rows)
            progress.set_postfix(clip=case.item.name[:24], psnr='inf' if psnr is None else f'{psnr:.2f}')

    sheet = contact_sheet([cells(np.asarray(Image.open(store.path(case, '.png')))) for case in shown],
                          [case.item.name for case in shown])
    save_png(folder / 'contact_sheet.png', sheet)
    report = Report(rows, scorer.skipped, {'protocol': _protocol(job, renderer.precision)})
    write_report(folder, report)
    return report


def _rebuild(case, job, renderer, scorer, video_path, strip_path, progress):
    """ClipScores of a case; writes its video and its strip where there is a path for them."""
    at_source, moments = case.moments(job.protocol.first)
    source = case.source.read([at_source])[0]
    strip, codes = Strip(source, len(moments)), CodeCounter()
    with VideoWriter(video_path, case.driving.fps) if video_path else nullcontext() as video:
        made = _shown(codes.watch(renderer.follow(source), case.frames(moments)), strip, video, progress)
        row = scorer.score(case.item.name, source, made)
    if strip_path:
        save_png(strip_path, beside(*strip.row()))
    row.codes = codes.counts
    return row


def _shown(parts, strip, video, progress):
    """Passes on what the renderer makes, and shows it on the way."""
    for driving, made in parts:
        strip.add(driving, made)
        if video is not None:
            for pair in zip(driving, made):
                video.write(beside(strip.source, *pair))
        yield driving, made
        progress.update(len(driving))


def _check(clips, skip):
    """Every clip's index is read before the first is rendered."""
    if not clips:
        raise UserError('no clips to reconstruct: the test set is empty')
    twice = [name for name, count in Counter(clip.name for clip in clips).items() if count > 1]
    if twice:
        raise UserError(f'two clips are named {twice[0]}, their results would overwrite each other; rename one')
    for clip in clips:
        if len(clip) <= skip:
            raise UserError(f'{clip.name}: has {len(clip)} frame(s), too few to be reconstructed; remove the clip')


def _protocol(job, precision):
    return asdict(job.protocol) | {'name': job.name, 'text': f'{job.protocol.text}; {precision}; frames are clamped '
                                   'and rounded to 8 bits before they are compared, and are not compressed'}
