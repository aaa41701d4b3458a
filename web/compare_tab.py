"""The tab Compare: one pair through all models of the page, as `--mode compare` shows it."""

import functools
import shlex
from pathlib import Path

import gradio as gr

from web import jobs
from web.controls import (
    PageContext, cancel_button, clip, command, follow, motion, motion_of, note, pair_of, picture, runs, values_of)


def add_compare(context: PageContext):
    """Lay out the tab; returns its components (source picture, driving video)."""
    page = {}
    with gr.Row():
        page['source_image'] = picture('Portrait', elem_id='compare-source')
        page['driving_video'] = clip('Driving video', elem_id='compare-driver')
    with gr.Accordion('Options', open=False), gr.Row():
        motion(page)
    with gr.Row():
        run, cancel = gr.Button('Compare', variant='primary', elem_id='compare'), cancel_button(context)
    alone = note('One model is loaded; start the page with several after --checkpoint to compare them.')
    made = [gr.HTML('' if len(context.models) > 1 else alone, elem_id='compare-status'),
            gr.Video(show_label=False, interactive=False, autoplay=True, loop=True, buttons=['download'],
                     elem_id='compared'),
            gr.Image(show_label=False, interactive=False, buttons=['fullscreen'], elem_id='comparison'),
            gr.File(label='Download', visible=False, interactive=False, file_count='multiple'), command()]

    def compare(given, request: gr.Request):
        chosen, session = values_of(page, given), request.session_hash

        def make_job():
            files = pair_of(context, session, chosen['source_image'], chosen['driving_video'])
            return functools.partial(jobs.compare, models=context.models, files=files, motion=motion_of(chosen),
                                     folder=str(context.files.new(session)))

        def finish(found):
            *files, frames, rule = found                        # video, figure, PDF
            return (note(f'Done: {frames} frames each. {rule}'), *files[:2], gr.update(value=files, visible=True),
                    gr.update(value=command_line(context.models, chosen), visible=True))
        yield note('…'), None, None, gr.update(value=None, visible=False), gr.update(visible=False)
        yield from follow(context, session, make_job, (chosen['source_image'], chosen['driving_video']), 5, finish)

    runs(context, run, cancel, compare, set(page.values()), made)
    return page['source_image'], page['driving_video']


def command_line(models, chosen):
    """The command that gives the same result for these files, in the folder that holds them.

    models: {name: checkpoint}
    chosen: {name: value} of the tab
    """
    files = [word for name in ('source_image', 'driving_video') for word in (f'--{name}', Path(chosen[name]).name)]
    return shlex.join(['python', 'run.py', '--mode', 'compare', '--checkpoints',
                       *(f'{name}={path}' for name, path in models.items()), *files, *motion_of(chosen).arguments()])
