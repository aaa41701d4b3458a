"""Same-identity reconstruction: every test clip, driven by itself from its first frame, and its scores."""

from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict
from itertools import chain

from tqdm import tqdm

from datasets.video_writer import VideoWriter
from evaluation.evaluate import CodeCounter
from evaluation.protocols import PROTOCOLS
from evaluation.report import Report, write_report
from evaluation.scores import Scorer, mean
from support.errors import UserError
from support.files import make_folder
from visualizer import Strip, beside, contact_sheet, rows_of_sheet, save_png

METRICS = ('l1.mean_abs', 'psnr.rgb', 'ssim.gauss11', 'lpips.vgg')     # --mode evaluate computes the others too


def reconstruct(renderer, clips, folder, *, include_first=True, save_videos=True):
    """Rebuild every clip from its first frame; score, show and save.

    Writes into `folder`: metrics.json, metrics.csv, contact_sheet.png and, with `save_videos`,
    videos/NAME.mp4 (source | driving | prediction, at the clip's own frame rate). Each file appears
    whole or not at all. Memory does not grow with the length of the clips.

    renderer:      inference.Renderer
    clips:         clips as in datasets/video.py, all at the model's image size
    include_first: also rebuild and score the first frame, which is the source (as FOMM does)
    returns:       evaluation.report.Report
    raises:        UserError for a clip that cannot be read or is too short, for two clips of one
                   name, for a folder that cannot be written
    """
    lengths = _check(clips, 0 if include_first else 1)
    folder = make_folder(folder)
    videos = make_folder(folder / 'videos') if save_videos else None
    scorer, shown, strips, rows = Scorer(METRICS, renderer.device, copies=True), rows_of_sheet(len(clips)), [], []

    with tqdm(total=sum(lengths), unit='frame', desc='reconstruction', dynamic_ncols=True) as progress:
        for i, clip in enumerate(clips):
            frames = iter(clip.frames())
            source = next(frames)
            driving = chain([source], frames) if include_first else frames
            strip, codes = Strip(source, lengths[i]), CodeCounter()
            with VideoWriter(videos / f'{clip.name}.mp4', clip.fps) if save_videos else nullcontext() as video:
                made = _shown(codes.watch(renderer.follow(source), driving), strip, video, progress)
                rows.append(scorer.score(clip.name, source, made))
            rows[-1].codes = codes.counts
            if i in shown:
                strips.append(strip)
            psnr = mean(mean(row.scores['psnr.rgb']) for row in rows)
            progress.set_postfix(clip=clip.name[:24], psnr='inf' if psnr is None else f'{psnr:.2f}')

    sheet = contact_sheet([strip.row() for strip in strips], [clips[i].name for i in shown])
    save_png(folder / 'contact_sheet.png', sheet)
    report = Report(rows, scorer.skipped, {'protocol': _protocol(include_first, renderer.precision)})
    write_report(folder, report)
    return report


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
    """Number of frames to rebuild of each clip; every clip's index is read before the first is rendered."""
    if not clips:
        raise UserError('no clips to reconstruct: the test set is empty')
    twice = [name for name, count in Counter(clip.name for clip in clips).items() if count > 1]
    if twice:
        raise UserError(f'two clips are named {twice[0]}, their results would overwrite each other; rename one')
    lengths = [len(clip) - skip for clip in clips]
    for clip, length in zip(clips, lengths):
        if length < 1:
            raise UserError(f'{clip.name}: has {len(clip)} frame(s), too few to be reconstructed; remove the clip')
    return lengths


def _protocol(include_first, precision):
    name = 'same-identity' if include_first else 'same-identity-no-first'
    return asdict(PROTOCOLS[name]) | {'name': name, 'text': f'{PROTOCOLS[name].text}; {precision}; frames are '
                                      'clamped and rounded to 8 bits before they are compared, and are not compressed'}
