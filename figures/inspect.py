"""`--mode inspect`: figures of a model at a few driving frames, and of its codebooks over many.

    inspect/01-motion.png  01-codebooks.png  ...   figures of each driving frame
           /codes-usage.png  codes-motion.png ...  figures of the codebooks
           /inspect.html                           all figures in one self-contained file
           /inspect.json                           the numbers of every figure
"""

import base64
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from figures.codes import code_figures, code_windows, count_codes
from figures.compared import dagan_figures, mcnet_figures, mrfa_figures
from figures.draw import draw
from figures.figure import Moment, coarse_figure, common_figures
from figures.synergy import synergy_figures
from modules.dagan import Dagan
from modules.first_order import FirstOrderTalkingHead
from modules.mcnet import MCNet
from modules.mrfa import Mrfa
from modules.synergy import Synergy
from modules.talking_head import TalkingHead
from motion.settings import Motion
from support.errors import UserError
from support.files import make_folder, write_bytes, write_text
from support.pages import fill

# {class: function of a model and a Moment that returns Figures}; a method has those of all its base classes.
FIGURES = {TalkingHead: common_figures, FirstOrderTalkingHead: lambda model, moment: [coarse_figure(moment)],
           MCNet: mcnet_figures, Mrfa: mrfa_figures, Dagan: dagan_figures, Synergy: synergy_figures}


class InspectCase(NamedTuple):
    """A source image, a driving clip, and its frames to draw."""
    name: str
    source: np.ndarray       # (H, W, 3) uint8
    driving: Any
    frames: list[int]
    relative: bool           # transfer motion relative to the first frame of the clip; otherwise absolute poses
    same_identity: bool      # the driving frame is the ground truth


def inspect(renderer, cases, folder, *, at=None, code_clips=(), code_frames=0, about=None):
    """Write all figures of `cases` into `folder`; returns the content of inspect.json.

    renderer:    inference.Renderer
    cases:       InspectCases
    at:          (x, y), the pixel whose attention is drawn, or None
    code_clips:  clips over which code usage is counted, each reconstructed from its first frame
    code_frames: number of their frames, evenly spread; 0 for all
    about:       {label: text} at the top of the page and of the JSON
    raises:      UserError for frames or pixels that do not exist
    """
    _check(cases, at)
    folder, size = make_folder(folder), renderer.size
    uses = count_codes(renderer, code_clips, code_frames)
    windows, report, sections = code_windows(uses), {'about': about or {}, 'moments': []}, []
    moments = [(case, index) for case in cases for index in case.frames]
    for number, (case, index) in enumerate(tqdm(moments, desc='inspect', unit='frame', dynamic_ncols=True), 1):
        numbers, shown = {}, []
        for figure in _figures(renderer, case, index, at):
            png, scales = draw(figure, size, windows)
            shown.append(_write_sheet(folder, f'{number:02d}-{figure.name}.png', figure, png))
            numbers[figure.name] = figure.numbers | {'scales': scales.as_json()}
        sections.append((f'{number}. {case.name}, frame {index}', shown))
        report['moments'].append({'number': number, 'source': case.name, 'driving': case.driving.name, 'frame': index,
                                  'relative': case.relative, 'figures': numbers})
    if uses:
        total = sum(map(len, code_clips))
        counted = f'over {min(code_frames or total, total)} frames of {len(code_clips)} clips'
        sections.append(('Codes', [_write_sheet(folder, f'{figure.name}.png', figure, draw(figure, size)[0])
                                   for figure in code_figures(renderer.model, uses, counted)]))
        report['codes'] = {name: use.as_json() for name, use in uses.items()}
    text = fill(Path(__file__).with_name('inspect.html.j2'), about=report['about'], sections=sections,
                codes=report.get('codes', {}))
    write_text(folder / 'inspect.html', text)
    write_text(folder / 'inspect.json', json.dumps(report, indent=1, allow_nan=False, ensure_ascii=False) + '\n')
    return report


def _check(cases, at):
    for case in cases:
        outside = [index for index in case.frames if not 0 <= index < len(case.driving)]
        if outside:
            raise UserError(f'{case.driving.name} has no frame {outside[0]}; the last is {len(case.driving) - 1}')
        size = len(case.source)
        if at is not None and not all(0 <= place < size for place in at):
            raise UserError(f'--at {at[0]} {at[1]}: must lie within {size}x{size} pixels')


def figures_of(model, moment):
    """All Figures of a moment, those of base classes first."""
    return [figure for cls in reversed(type(model).__mro__) if cls in FIGURES for figure in FIGURES[cls](model, moment)]


@torch.inference_mode()
def _figures(renderer, case, index, at):
    driven = renderer.follow(case.source, case.driving, Motion(case.relative))
    made, = driven.render(case.driving.read([index]))
    moment = Moment(driven.image, made.images, driven.state, made.found, made.pose, made.generated,
                    case.same_identity, at)
    with renderer.autocast():
        return figures_of(renderer.model, moment)


# ---------------------------------------------------------------------------- files

def _write_sheet(folder, file, figure, png):
    """Write a drawn Figure; returns it as the page's template takes it, with its PNG in base64."""
    write_bytes(folder / file, png)
    return {'file': file, 'title': figure.title, 'text': figure.text, 'data': base64.b64encode(png).decode()}
