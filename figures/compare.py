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

from datasets.video_writer import VideoWriter
from evaluation.videos import pair_name
from figures.methods import RenderedMethod, at_size, stream
from figures.printed import FigureStyle, Shown, print_figure
from figures.selection import BY_SCORE, RULES, Zoom, as_unit, indices_of, largest_pose, rule_text, select
from metrics.catalogue import build
from support.errors import UserError
from support.files import make_folder, written_whole
from support.streaming import write_behind
from visualizer import BACKGROUND, INK, beside, enlarge, error_to_rgb, shortened

SCORES = {'psnr.rgb': '{:.2f} dB', 'lpips.vgg': 'LPIPS {:.3f}'}     # below a cell
VIDEO_CELL = 256          # smallest height of a frame in a video, pixels
LABEL = 16                # height of a label in a video, pixels

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """Settings of a comparison.

    out:     folder
    cases:   tuple of evaluation.cases.Case, first frames that follow whole clips; they set the size of all cells
    methods: tuple of RenderedMethod and VideoMethod
    frames:  one of RULES, or a tuple of driving frames by number or Time
    zoom:    Zoom, or None
    error:   show error maps
    videos:  write videos; otherwise only the frames of the figure are rendered
    style:   FigureStyle
    raises:  UserError for settings that contradict each other
    """
    out: Path
    cases: tuple
    methods: tuple
    frames: str | tuple = 'largest_pose'
    zoom: Zoom | None = None
    error: bool = False
    videos: bool = True
    style: FigureStyle = FigureStyle()

    def __post_init__(self):
        self.style.check(2 + len(self.methods), self.cases[0].driving.read([0])[0].shape,
                         len(self.cases) * (1 if self.frames in RULES else len(self.frames)))
        for case in self.cases:
            if (self.error or self.frames in BY_SCORE) and not is_truth(case):
                what = '--error' if self.error else f'--frames {self.frames}'
                raise UserError(f'{pair_name(case)}: {what} needs the ground truth; give the same video as source and '
                                'as driver')
            named = [] if self.frames in RULES else indices_of(self.frames, case.driving.fps)
            outside = [index for index in named if not 0 <= index < len(case.driving)]
            if outside:
                raise UserError(f'{case.driving.name} has no frame {outside[0]}; the last is {len(case.driving) - 1}')
            if self.zoom is not None:
                self.zoom.check(case.driving.read([0])[0].shape, case.driving.name)

    @property
    def rendered(self):
        return [method for method in self.methods if isinstance(method, RenderedMethod)]

    @property
    def names(self):
        return [method.name for method in self.methods]

    @property
    def rule(self):
        """How the frames were chosen, as a sentence."""
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
        source = at_size(case.source.read([0])[0], case.driving.read([0])[0].shape)
        for frame in shown_frames(job, number, source):
            rows.append(score(metrics, job, case, frame))
            drawn.append(shown_row(job, case, source, frame, rows[-1]))
    print_figure(out / 'comparison', job.style, ['source', 'driving', *job.names], drawn, job.rule)
    report = {'rule': job.rule, 'methods': job.names, 'left_out': left_out, 'rows': rows}
    with written_whole(out / 'comparison.json') as path:
        path.write_text(json.dumps(report, indent=1, allow_nan=False, ensure_ascii=False) + '\n', encoding='utf-8')
    return report


# ---------------------------------------------------------------------------- frames

def shown_frames(job, number, source):
    """The ClipFrames of a case to show, in the order of the rule; writes the video of the case meanwhile."""
    case = job.cases[number]
    named = [] if job.frames in RULES else indices_of(job.frames, case.driving.fps)
    if job.frames == 'largest_pose':
        method = next(iter(job.rendered), None)
        named = [largest_pose(method.cases[number].driving, method.renderer) if method else largest_pose(case.driving)]
    indices = range(len(case.driving)) if job.whole else sorted(set(named))
    path = make_folder(job.out / 'videos') / f'{number:03d}_{pair_name(case)}.mp4' if job.videos else None
    with video(path, case.driving.fps, source, job.names) if path else nullcontext() as write:
        frames = tqdm(stream(case, number, job.methods, indices), total=len(indices), unit='frame',
                      dynamic_ncols=True, desc=pair_name(case)[:40])
        return select(written(frames, source, write) if write else frames, job.frames, named)


def written(frames, source, write):
    """Yields ClipFrames after writing them."""
    for frame in frames:
        write(source, frame.driving, *frame.made)
        yield frame


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
    truth, scores = as_unit(frame.driving), {name: {} for name in job.names}
    if is_truth(case):
        for name, made in zip(job.names, map(as_unit, frame.made)):
            values = {metric.id: float(metric(made, truth)[0]) for metric in metrics}
            scores[name] = {id_: value if np.isfinite(value) else None for id_, value in values.items()}
    # One region for the row: found in the truth, otherwise in the first method's frame that shows a face.
    region = job.zoom and job.zoom.region([frame.driving] if is_truth(case) else frame.made,
                                          f'{pair_name(case)}, frame {frame.index}')
    return {'source': case.source.name, 'driving': case.driving.name, 'frame': frame.index,
            'same_identity': is_truth(case), 'scores': scores, 'zoom': region}


def shown_row(job, case, source, frame, row):
    """A row of the figure: Shown of source, driving frame and each method's frame."""
    shown = [Shown(source), Shown(frame.driving, row['zoom'] if is_truth(case) else None, note=f'frame {frame.index}')]
    for made, scores in zip(frame.made, row['scores'].values()):
        error = error_to_rgb(made[None], frame.driving[None])[0] if job.error else None
        notes = ['equal' if value is None else SCORES[name].format(value) for name, value in scores.items()]
        shown.append(Shown(made, row['zoom'], error, ', '.join(notes)))
    return shown
