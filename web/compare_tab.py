"""The tab Compare: one pair through all models of the page, as `--mode compare` shows it."""

import functools
import shlex
from pathlib import Path

import gradio as gr

from figures.selection import parse_frames, parse_zoom
from support.errors import UserError
from web import jobs
from web.controls import (
    PageContext, cancel_button, clip, command, follow, motion, motion_of, note, picture, runs, values_of)
from web.limits import check_moments


def add_compare(context: PageContext):
    """Lay out the tab; returns its components (source picture, driving video)."""
    inputs, made = _inputs(), {}
    with gr.Row():
        run, cancel = gr.Button('Compare', variant='primary', elem_id='compare'), cancel_button(context)
    alone = note('One model is loaded; start the page with several after --checkpoint to compare them.')
    made['status'] = gr.HTML('' if len(context.models) > 1 else alone, elem_id='compare-status')
    made['video'] = gr.Video(show_label=False, interactive=False, autoplay=True, loop=True,
                             buttons=['download'], elem_id='compared')
    made['figure'] = gr.Image(show_label=False, interactive=False, buttons=['fullscreen'], elem_id='comparison')
    made['saved'] = gr.File(label='Download', visible=False, interactive=False, file_count='multiple')
    made['command'] = command()

    def compare(given, request: gr.Request):
        chosen, session = values_of(inputs, given), request.session_hash
        words = {'frames': chosen['frames'].split(), 'zoom': chosen['zoom'].split()}

        def make_job():
            files = tuple(context.files.take(session, chosen[name]) for name in ('source_image', 'driving_video'))
            if None in files:
                raise UserError('upload a portrait and a driving video first')
            shown = {'frames': check_moments(parse_frames(words['frames'])), 'zoom': parse_zoom(words['zoom']),
                     'background': chosen['background']}
            return functools.partial(jobs.compare, models=context.models, files=files, motion=motion_of(chosen),
                                     shown=shown, folder=str(context.files.new(session)))
        yield {made['status']: note('…'), made['video']: None, made['figure']: None,
               made['saved']: gr.update(value=None, visible=False), made['command']: gr.update(visible=False)}
        for status, found in follow(context, session, make_job, chosen['source_image'], chosen['driving_video']):
            if found is None:
                yield {made['status']: status}
            else:
                yield {made['status']: note(f'Done: {found.frames} frames each. {found.rule}'),
                       made['video']: found.video, made['figure']: found.figure,
                       made['saved']: gr.update(value=[found.video, found.figure, found.pdf], visible=True),
                       made['command']: gr.update(value=command_line(context.models, chosen, words), visible=True)}

    runs(context, run, cancel, compare, set(inputs.values()), list(made.values()))
    return inputs['source_image'], inputs['driving_video']


def _inputs():
    """{name: component}."""
    page = {}
    with gr.Row():
        page['source_image'] = picture('Portrait', elem_id='compare-source')
        page['driving_video'] = clip('Driving video', elem_id='compare-driver')
    with gr.Accordion('Options', open=False):
        with gr.Row():
            motion(page)
        with gr.Row():
            page['frames'] = gr.Textbox('largest_pose', label='Printed frames',
                                        info='largest_pose, or frame numbers from 0, or times such as 0.5s 1.2s')
            page['zoom'] = gr.Textbox('', label='Enlarge',
                                      info='mouth, eyes, or x y w h in pixels; empty for nothing')
            page['background'] = gr.Radio(['white', 'dark'], value='white', label='Background', min_width=200)
    return page


def command_line(models, chosen, words):
    """The command that gives the same result for these files, in the folder that holds them.

    models: {name: checkpoint}
    chosen: {name: value} of the tab; words: {'frames' and 'zoom': words}
    """
    files = [word for name in ('source_image', 'driving_video') for word in (f'--{name}', Path(chosen[name]).name)]
    zoom = ['--zoom', *words['zoom']] if words['zoom'] else []
    motion = motion_of(chosen).arguments()
    return shlex.join(['python', 'run.py', '--mode', 'compare', '--checkpoints',
                       *(f'{name}={path}' for name, path in models.items()), *files, *motion, '--frames',
                       *words['frames'], *zoom, '--background', chosen['background']])
