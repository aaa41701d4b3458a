"""`--mode compare`: methods side by side, as a printed figure like the paper's Fig. 6 and 9, and as videos.

    compare/comparison.png  .pdf    rows: pairs; columns: source, driving, methods; 300 dpi
           /comparison.json         the rule, the frames shown and their scores
           /videos/000_PAIR.mp4     the same columns as a video
"""

import json
import logging
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from datasets.still import resized
from datasets.video_writer import VideoWriter
from evaluation.videos import pair_name
from figures.methods import RenderedMethod, stream
from figures.printed import Shown, check_size, print_figure
from figures.selection import BY_SCORE, RULES, check_zoom, largest_pose, rule_text, select
from metrics.catalogue import build
from support.errors import UserError
from support.files import make_folder, write_text
from support.streaming import write_behind
from visualizer import BACKGROUND, INK, beside, enlarge, error_to_rgb, shortened, to_unit_range

SCORES = {'psnr.rgb': '{:.2f} dB', 'lpips.vgg': 'LPIPS {:.3f}'}     # below a cell
VIDEO_CELL = 256          # smallest height of a frame in a video, pixels
LABEL = 16                # height of a label in a video, pixels

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """Settings of a comparison; UserError where they contradict each other."""
    out: Path
    cases: tuple                             # Cases of first frames that follow whole clips; their size is the cells'
    methods: tuple                           # of RenderedMethod and VideoMethod
    frames: str | tuple = 'largest_pose'     # one of RULES, or numbers of driving frames
    zoom: tuple | None = None                # (x, y, w, h) in pixels of the frames, a region to enlarge
    error: bool = False                      # show error maps
    videos: bool = True                      # write videos; otherwise only the frames of the figure are rendered
    width: float = 17.5                      # of the figure in print, cm

    def __post_init__(self):
        check_size(self.width, 2 + len(self.methods), self.cases[0].driving.read([0])[0].shape,
                   len(self.cases) * (1 if self.frames in RULES else len(self.frames)))
        for case in self.cases:
            if (self.error or self.frames in BY_SCORE) and not is_truth(case):
                what = '--error' if self.error else f'--frames {self.frames}'
                raise UserError(f'{pair_name(case)}: {what} needs the ground truth; give the same video as source and '
                                'as driver')
            outside = () if self.frames in RULES else [i for i in self.frames if not 0 <= i < len(case.driving)]
            if outside:
                raise UserError(f'{case.driving.name} has no frame {outside[0]}; the last is {len(case.driving) - 1}')
            if self.zoom is not None:
                check_zoom(self.zoom, case.driving.read([0])[0].shape, case.driving.name)

    @property
    def rendered(self):
        return [method for method in self.methods if isinstance(method, RenderedMethod)]

    @property
    def names(self):
        return [method.name for method in self.methods]

    @property
    def rule(self):
        return rule_text(self.frames, self.names, [method.name for method in self.rendered])

    @property
    def whole(self):
        """Whether all frames are rendered: for videos, for a rule, or because smoothing depends on earlier frames."""
        return self.videos or self.frames in BY_SCORE or any(method.motion.smooth for method in self.rendered)


def is_truth(case):
    """Whether the driving frames are the ground truth: source and driver are one video."""
    return case.item.driver == case.item.source


def compare(job):
    """Write a Comparison into its folder; returns the content of comparison.json. Raises UserError."""
    out = make_folder(job.out)
    metrics, left_out = build(SCORES, 'cpu') if any(map(is_truth, job.cases)) else ([], {})
    for name, why in left_out.items():
        log.warning('%s is left out: %s', name, why)
    rows, drawn = [], []
    for number, case in enumerate(job.cases):
        source = resized(case.source.read([0])[0], case.driving.read([0])[0].shape[:2])
        for frame in shown_frames(job, number, source):
            rows.append(score(metrics, job, case, frame))
            drawn.append(shown_row(job, case, source, frame, rows[-1]['scores']))
    print_figure(out / 'comparison', job.width, ['source', 'driving', *job.names], drawn, job.rule)
    report = {'rule': job.rule, 'methods': job.names, 'left_out': left_out, 'rows': rows}
    write_text(out / 'comparison.json', json.dumps(report, indent=1, allow_nan=False, ensure_ascii=False) + '\n')
    return report


# ---------------------------------------------------------------------------- frames

def shown_frames(job, number, source):
    """The ClipFrames of a case to show, in the order of the rule; writes the video of the case meanwhile."""
    case = job.cases[number]
    named = [] if job.frames in RULES else job.frames
    if job.frames == 'largest_pose':
        method = next(iter(job.rendered), None)
        named = [largest_pose(method.cases[number].driving, method.renderer) if method else largest_pose(case.driving)]
    indices = range(len(case.driving)) if job.whole else sorted(set(named))
    path = make_folder(job.out / 'videos') / f'{number:03d}_{pair_name(case)}.mp4' if job.videos else None

    def frames(write):
        for frame in tqdm(stream(case, number, job.methods, indices), total=len(indices), unit='frame',
                          dynamic_ncols=True, desc=pair_name(case)[:40]):
            if write:
                write(source, frame.driving, *frame.made)
            yield frame

    with video(path, case.driving.fps, source, job.names) if path else nullcontext() as write:
        return select(frames(write), job.frames, named)


@contextmanager
def video(path, fps, source, names):
    """Yields a function that writes source, driving frame and results side by side under their names."""
    height = max(VIDEO_CELL, source.shape[0])
    width = enlarge(source, height).shape[1]
    labels = beside(*(label(name, width) for name in ('source', 'driving', *names)))

    def write(*frames):
        writer.write(np.concatenate([labels, beside(*(enlarge(frame, height) for frame in frames))]))

    with VideoWriter(path, fps) as writer, write_behind(write) as later:
        yield later


def label(text, width):
    """A centred line of text, (H, width, 3) uint8, cut if it is too long."""
    font, strip = ImageFont.load_default(LABEL), Image.new('RGB', (width, 2 * LABEL), BACKGROUND)
    ImageDraw.Draw(strip).text((width / 2, LABEL), shortened(text, width, font), INK, font, 'mm')
    return np.asarray(strip)


# ---------------------------------------------------------------------------- rows of the figure

def score(metrics, job, case, frame):
    """A row of comparison.json; scores: {method: {metric's id: score}}, None for the PSNR of equal frames."""
    scores = {name: {} for name in job.names}
    if is_truth(case):
        truth, *made = to_unit_range([frame.driving, *frame.made])[:, None]
        for name, image in zip(job.names, made):
            values = {metric.id: float(metric(image, truth)[0]) for metric in metrics}
            scores[name] = {id_: value if np.isfinite(value) else None for id_, value in values.items()}
    return {'source': case.source.name, 'driving': case.driving.name, 'frame': frame.index,
            'same_identity': is_truth(case), 'scores': scores, 'zoom': job.zoom}


def shown_row(job, case, source, frame, scores):
    """A row of the figure: Shown of source, driving frame and each method's frame."""
    shown = [Shown(source), Shown(frame.driving, job.zoom if is_truth(case) else None, note=f'frame {frame.index}')]
    for made, scores in zip(frame.made, scores.values()):
        error = error_to_rgb(made[None], frame.driving[None])[0] if job.error else None
        notes = ['equal' if value is None else SCORES[name].format(value) for name, value in scores.items()]
        shown.append(Shown(made, job.zoom, error, ', '.join(notes)))
    return shown
