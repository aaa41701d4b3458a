"""Same-identity reconstruction: every test clip, driven by itself from its first frame, and its scores."""

from collections import Counter
from contextlib import nullcontext
from itertools import chain, islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from config.errors import UserError
from datasets.video import VideoWriter
from metrics.report import ClipScores, FrameMetrics, Mean, write_report
from modules.motion_transfer import DrivenSource
from visualizer import ContactSheet, batches, beside, make_folder, save_png, to_tensor, to_uint8


def reconstruct(model, clips, folder, *, device, batch_size, frame_limit=None, include_first=True, save_videos=True,
                precision='fp32'):
    """Rebuild every clip from its first frame; score, show and save.

    Writes into `folder`: metrics.json, metrics.csv, contact_sheet.png and, with `save_videos`,
    videos/NAME.mp4 (source | driving | prediction, at the clip's own frame rate). Each file appears
    whole or not at all. Memory does not grow with the length of the clips.

    model:         TalkingHead on `device`; left in eval mode
    clips:         clips as in datasets/video.py, all at the model's image size
    batch_size:    driving frames rendered at once
    frame_limit:   use at most this many frames of each clip; None for all
    include_first: also rebuild and score the first frame, which is the source (as FOMM does)
    precision:     'fp32', or 'bf16' for autocast
    returns:       (summary, skipped): metrics.report.summarize's dict; why which metric is missing
    raises:        UserError for a clip that cannot be read or is too short, for two clips of one
                   name, for a folder that cannot be written
    """
    skip = 0 if include_first else 1
    lengths = _check(clips, frame_limit, skip)
    folder = make_folder(folder)
    videos = make_folder(folder / 'videos') if save_videos else None
    model.eval()
    metrics, sheet, rows, running = FrameMetrics(device), ContactSheet(len(clips)), [], Mean()

    with tqdm(total=sum(lengths), unit='frame', desc='reconstruction', dynamic_ncols=True) as progress:
        for i, clip in enumerate(clips):
            frames = islice(clip.frames(), frame_limit)
            source = next(frames)
            driving = chain([source], frames) if include_first else frames
            sheet.begin(i, clip.name, source, lengths[i])
            scores = ClipScores(clip.name)

            with VideoWriter(videos / f'{clip.name}.mp4', clip.fps) if save_videos else nullcontext() as video:
                for driven, predicted in _rebuild(model, source, driving, device, batch_size, precision):
                    target = np.stack(driven)
                    model_scores = metrics(predicted, target)
                    scores.add(model_scores, metrics(np.stack([source] * len(driven)), target))
                    sheet.add(driven, predicted)
                    if save_videos:
                        for pair in zip(driven, predicted):
                            video.write(beside(source, *pair))

                    running.add(model_scores['psnr'])
                    progress.set_postfix(clip=clip.name[:24], psnr=f'{running.value or float("inf"):.2f}')
                    progress.update(len(driven))
            rows.append(scores)

    save_png(folder / 'contact_sheet.png', sheet.draw())
    definitions = {'protocol': _protocol(frame_limit, include_first, precision), **metrics.definitions}
    return write_report(folder, rows, definitions, metrics.skipped), metrics.skipped


def _check(clips, frame_limit, skip):
    """Number of frames to rebuild of each clip; every clip's index is read before the first is rendered."""
    if not clips:
        raise UserError('no clips to reconstruct: the test set is empty')
    twice = [name for name, count in Counter(clip.name for clip in clips).items() if count > 1]
    if twice:
        raise UserError(f'two clips are named {twice[0]}, their results would overwrite each other; rename one')
    lengths = [len(range(len(clip))[:frame_limit]) - skip for clip in clips]
    for clip, length in zip(clips, lengths):
        if length < 1:
            raise UserError(f'{clip.name}: has {len(clip)} frame(s), too few to be reconstructed; remove the clip')
    return lengths


def _rebuild(model, source, driving, device, batch_size, precision):
    """Yields (driving frames, frames made of the source (B, H, W, 3) uint8), batch by batch."""
    animated = DrivenSource(model, to_tensor([source], device), precision)
    for driven, images in batches(driving, batch_size, device):
        yield driven, to_uint8(animated(images))


def _protocol(frame_limit, include_first, precision):
    return (f'source: first frame of each clip; driven by '
            f'{"all its frames" if frame_limit is None else f"its first {frame_limit} frames"}, the first '
            f'{"included" if include_first else "left out"}; absolute motion; {precision}; '
            f'frames are clamped and rounded to 8 bits before they are compared, and are not compressed')
