"""`--mode inspect`: figures of a model at a few driving frames, and of its codebooks over many.

    inspect/01-motion.png  01-codebooks.png  ...   figures of each driving frame
           /codes-usage.png  codes-motion.png ...  figures of the codebooks
           /inspect.html                           all figures in one self-contained file
           /inspect.json                           the numbers of every figure
"""

import base64
import io
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from figures.codes import (
    chosen_codes, code_windows, count_codes, draw_all_codes, draw_atlas, draw_usage, motion_code_flows)
from figures.dagan import dagan_figures
from figures.figure import Moment, common_figures, first_order_figures
from figures.mcnet import mcnet_figures
from figures.mrfa import mrfa_figures
from figures.sheet import draw_sheet
from figures.synergy import synergy_figures
from inference import Renderer
from modules.dagan import Dagan
from modules.first_order import FirstOrderTalkingHead
from modules.mcnet import MCNet
from modules.mrfa import Mrfa
from modules.synergy import Synergy
from modules.talking_head import TalkingHead
from motion.settings import Motion
from support.errors import UserError
from support.files import make_folder, written_whole
from visualizer import save_png

# {class: function of a model and a Moment that returns Figures}; a method has those of all its base classes.
FIGURES = {TalkingHead: common_figures, FirstOrderTalkingHead: first_order_figures, MCNet: mcnet_figures,
           Mrfa: mrfa_figures, Dagan: dagan_figures, Synergy: synergy_figures}

log = logging.getLogger(__name__)


class InspectCase(NamedTuple):
    """A source image (H, W, 3) uint8, a driving clip, and its frames to draw.

    relative:      transfer motion relative to the first frame of the clip; otherwise absolute poses
    same_identity: the driving frame is the ground truth
    """
    name: str
    source: np.ndarray
    driving: Any
    frames: list[int]
    relative: bool
    same_identity: bool


@dataclass(frozen=True)
class InspectOptions:
    """Options of the figures.

    at:          (x, y), the pixel whose attention is drawn, or None
    arrows:      draw arrows over flows
    code_clips:  clips over which code usage is counted, each reconstructed from its first frame
    code_frames: number of their frames, evenly spread; 0 for all
    """
    at: tuple[int, int] | None = None
    arrows: bool = False
    code_clips: tuple = ()
    code_frames: int = 0

    def counted(self):
        """The frames over which codes are counted, in words."""
        total = sum(map(len, self.code_clips))
        return f'over {min(self.code_frames or total, total)} frames of {len(self.code_clips)} clips'


class Sheet(NamedTuple):
    """A finished picture (H, W, 3) uint8 with file name, title, and its text, for the page."""
    file: str
    title: str
    text: str
    picture: np.ndarray


def inspect(model, cases, folder, *, device, precision='fp32', options=InspectOptions(), about=None):
    """Write all figures of `cases` into `folder`; returns the content of inspect.json.

    model:   TalkingHead on `device`, in eval mode
    cases:   InspectCases
    options: InspectOptions
    about:   {label: text} at the top of the page and of the JSON
    raises:  UserError for frames or pixels that do not exist
    """
    _check(cases, options.at)
    folder = make_folder(folder)
    uses = _count(model, options.code_clips, options.code_frames, device, precision)
    windows, report, sections = code_windows(uses), {'about': about or {}, 'moments': []}, []
    moments = [(case, index) for case in cases for index in case.frames]
    for number, (case, index) in enumerate(tqdm(moments, desc='inspect', unit='frame', dynamic_ncols=True), 1):
        figures, size = _figures(model, case, index, device, precision, options.at)
        sheets, numbers = [], {}
        for figure in figures:
            picture, scales = draw_sheet(figure, size, options.arrows, windows)
            sheets.append(Sheet(f'{number:02d}-{figure.name}.png', figure.title, figure.text, picture))
            numbers[figure.name] = figure.numbers | {'scales': scales.as_json()}
        _save(folder, sheets)
        sections.append((f'{number}. {case.name}, frame {index}', [_for_page(sheet) for sheet in sheets]))
        report['moments'].append({'number': number, 'source': case.name, 'driving': case.driving.name, 'frame': index,
                                  'relative': case.relative, 'figures': numbers})
    if uses:
        sheets = _code_sheets(model, uses, model.params.image_size, options.counted())
        _save(folder, sheets)
        sections.append(('Codes', [_for_page(sheet) for sheet in sheets]))
        report['codes'] = {name: use.as_json() for name, use in uses.items()}
    _write(folder, report, sections)
    return report


def _check(cases, at):
    for case in cases:
        outside = [index for index in case.frames if not 0 <= index < len(case.driving)]
        if outside:
            raise UserError(f'{case.driving.name} has no frame {outside[0]}; its last one is {len(case.driving) - 1}')
        size = len(case.source)
        if at is not None and not all(0 <= place < size for place in at):
            raise UserError(f'--at {at[0]} {at[1]}: must lie within {size}x{size} pixels')


def figures_of(model, moment):
    """All Figures of a moment, those of base classes first."""
    return [figure for cls in reversed(type(model).__mro__) if cls in FIGURES for figure in FIGURES[cls](model, moment)]


# ---------------------------------------------------------------------------- rendering

@torch.inference_mode()
def _figures(model, case, index, device, precision, at):
    """(Figures of one driving frame, side of the images)."""
    renderer = Renderer(model, device, precision=precision)
    driven = renderer.follow(case.source, case.driving, Motion(case.relative))
    made, = driven.render(case.driving.read([index]))
    moment = Moment(driven.image, made.images, driven.state, made.found, made.pose, made.generated,
                    case.same_identity, at)
    with renderer.autocast():
        return figures_of(model, moment), moment.size


def _count(model, clips, limit, device, precision):
    """{'BOOK SCALE': CodeUse} over frames of the clips; {} for methods without codebooks."""
    uses, total = {}, sum(map(len, clips))
    count = min(limit or total, total)
    # Evenly spread over all frames of all clips, one after the other.
    wanted = {i * total // count for i in range(count)} if count else set()
    start = 0
    for clip in tqdm(clips, desc='codes', unit='clip', dynamic_ncols=True):
        indices = [i for i in range(len(clip)) if start + i in wanted]
        start += len(clip)
        if indices and not _count_clip(model, clip, indices, uses, device, precision):
            return {}
    return uses


@torch.inference_mode()
def _count_clip(model, clip, indices, uses, device, precision):
    """Add the frames of one clip; returns False for methods without codes."""
    renderer = Renderer(model, device, batch_size=1, precision=precision)
    driven = renderer.follow(clip.read([0])[0])
    for made in driven.render(frame for index in indices for frame in clip.read([index])):
        with renderer.autocast():
            chosen = chosen_codes(model, made.generated, made.images)
        if not chosen:
            return False
        count_codes([(made.driving[0], chosen)], uses, len(made.driving[0]))
    return True


# ---------------------------------------------------------------------------- files

def _code_sheets(model, uses, size, about):
    sheets = [Sheet('codes-usage.png', 'Code usage', about, draw_usage(uses, about))]
    for book in dict.fromkeys(use.book for use in uses.values()):
        mine = {name: use for name, use in uses.items() if use.book == book}
        flows = motion_code_flows(model.motion) if book == 'motion' else None
        sheets.append(Sheet(f'codes-{book}.png', f'{book.capitalize()} codes', about,
                            draw_all_codes(book, mine, size, flows)))
        sheets += [Sheet(f'codes-{name.replace(" ", "-")}-windows.png', f'Windows of {name}', about,
                         draw_atlas(name, use))
                   for name, use in mine.items()]
    return sheets


def _save(folder, sheets):
    for sheet in sheets:
        save_png(folder / sheet.file, sheet.picture)


def _for_page(sheet):
    """A sheet as the page's template takes it, with its PNG in base64."""
    file = io.BytesIO()
    Image.fromarray(sheet.picture).save(file, format='PNG')
    height, width, _ = sheet.picture.shape
    return {'file': sheet.file, 'title': sheet.title, 'text': sheet.text, 'width': width, 'height': height,
            'data': base64.b64encode(file.getvalue()).decode()}


def _write(folder, report, sections):
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
                                     trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    text = environment.get_template('inspect.html.j2').render(about=report['about'], sections=sections,
                                                              codes=report.get('codes', {}))
    with written_whole(folder / 'inspect.html') as path:
        path.write_text(text, encoding='utf-8')
    with written_whole(folder / 'inspect.json') as path:
        path.write_text(json.dumps(report, indent=1, allow_nan=False, ensure_ascii=False) + '\n', encoding='utf-8')
