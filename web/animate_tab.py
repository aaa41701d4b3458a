"""The tab Animate: the options of `--mode animate` for one source and one driver."""

import functools
import shlex
from dataclasses import replace
from pathlib import Path

import gradio as gr

from motion.settings import AnimationSettings, parse_size
from support.errors import UserError
from web import jobs
from web.controls import (
    PageContext, cancel_button, clip, command, follow, model, motion, motion_of, note, picture, runs, values_of)

STILL, VIDEO, TEMPLATE = 'a picture', 'a video', 'a motion template'
ALONE, BESIDE, PASTED = 'result alone', 'source, driver and result', 'pasted back into the source picture'
WHOLE, CUT = 'whole picture, squeezed', 'crop around the face'


def add_animate(context: PageContext):
    """Lay out the tab; returns its components (source picture, driving video)."""
    page = _layout(context)
    shown = ('status', 'result', 'saved', 'command', 'faces', 'animate', 'look', 'cancel')
    inputs = {part for name, part in page.items() if name not in shown}

    def animate(given, request: gr.Request):
        chosen, session, settings = values_of(page, given), request.session_hash, None

        def make_job():
            nonlocal settings
            settings = settings_of(context, session, chosen)
            return functools.partial(jobs.animate, checkpoint=context.models[chosen['model']], settings=settings)

        def finish(frames):
            saved = [path for path in (settings.result_video, settings.save_motion) if path]
            return (note(f'Done: {frames} frames.'), settings.result_video, gr.update(value=saved, visible=True),
                    gr.update(value=command_line(context.models[chosen['model']], settings), visible=True))
        yield note('…'), None, *[gr.update(value=None, visible=False)] * 2
        yield from follow(context, session, make_job, _files(chosen), 4, finish)

    def look(given, request: gr.Request):
        chosen, session = values_of(page, given), request.session_hash

        def make_job():
            if chosen['driver_kind'] == TEMPLATE:
                raise UserError('a motion template has no faces; choose a driving video')
            settings = settings_of(context, session, chosen | {'crop': CUT})
            return functools.partial(jobs.find_faces, checkpoint=context.models[chosen['model']], settings=settings)

        def finish(found):
            picture, *counts = found
            return (note(f'{counts[0]} face(s) in the source, {counts[1]} in the driving video.'),
                    gr.update(value=picture, visible=True),
                    *(gr.update(choices=list(range(count))) for count in counts))
        yield from follow(context, session, make_job, _files(chosen), 4, finish)

    runs(context, page['animate'], page['cancel'], animate, inputs,
         [page[name] for name in ('status', 'result', 'saved', 'command')])
    runs(context, page['look'], page['cancel'], look, inputs,
         [page[name] for name in ('status', 'faces', 'source_face', 'driving_face')])
    return page['source_image'], page['driving_video']


def _layout(context):
    """Lay out the tab's inputs, buttons and outputs; returns {name: component}."""
    page = {}
    with gr.Row():
        with gr.Column(min_width=280):
            page['source_kind'] = gr.Radio([STILL, VIDEO], value=STILL, label='Source')
            page['source_image'] = picture('Portrait', elem_id='source')
            page['source_video'] = clip('Source video', visible=False, elem_id='source-video')
        with gr.Column(min_width=280):
            page['driver_kind'] = gr.Radio([VIDEO, TEMPLATE], value=VIDEO, label='Driving motion')
            page['driving_video'] = clip('Driving video', elem_id='driver')
            page['driving_motion'] = gr.File(label='Motion template', file_types=['.npz'], visible=False,
                                             elem_id='template')
        with gr.Column(min_width=280):
            page['model'] = model(context)
            page['result'] = gr.Video(label='Result', interactive=False, height=300, autoplay=True, loop=True,
                                      buttons=['download'], elem_id='result')
    with gr.Row():
        page['animate'] = gr.Button('Animate', variant='primary', elem_id='animate')
        page['look'] = gr.Button('Find faces')
        page['cancel'] = cancel_button(context, elem_id='cancel')
    page['status'] = gr.HTML(elem_id='status')
    page['faces'] = gr.Image(label='Numbered faces and crops: source, driver', visible=False,
                             interactive=False, buttons=['fullscreen'], elem_id='faces')
    page['saved'] = gr.File(label='Download', visible=False, interactive=False, file_count='multiple', elem_id='saved')
    page['command'] = command()
    _options(page)
    _switch(page['source_kind'], {STILL: page['source_image'], VIDEO: page['source_video']})
    _switch(page['driver_kind'], {VIDEO: page['driving_video'], TEMPLATE: page['driving_motion']})
    return page


def _options(page):
    with gr.Accordion('Options', open=False):
        with gr.Row():
            page['crop'] = gr.Radio([WHOLE, CUT], value=WHOLE, label='Crop',
                                    info='Models are trained on square crops of heads')
            page['source_face'] = gr.Dropdown([0], value=0, label='Source face', info='0 is the largest')
            page['driving_face'] = gr.Dropdown([0], value=0, label='Driver face', info='0 is the largest')
            page['show'] = gr.Radio([ALONE, BESIDE, PASTED], value=ALONE, label='Show')
        with gr.Row():
            page['size'] = gr.Radio(['model', '256', '512', '1024', 'source'], value='model', label='Size',
                                    info='Of the result, in pixels; of the model, or of the source')
            page['detail'] = gr.Radio(['on', 'off'], value='on', label='Detail of the source',
                                      info='Where the result is larger than the model\'s images')
        with gr.Row():
            motion(page)
        with gr.Row():
            page['source_end'] = gr.Radio(['loop', 'hold'], value='loop', label='End of a source video', min_width=200,
                                          info='If it is shorter than the driving motion')
            page['save_motion'] = gr.Checkbox(label='Save motion', min_width=200,
                                              info='Download the driving motion as a template, without the face')


def _switch(radio, parts):
    radio.change(lambda kind: [gr.update(visible=name == kind) for name in parts], radio, list(parts.values()),
                 queue=False, api_name=False, show_progress='hidden')


def _files(chosen):
    return [chosen[name] for name in ('source_image', 'source_video', 'driving_video', 'driving_motion')]


def settings_of(context, session, chosen):
    """The chosen AnimationSettings, with a new folder for the results. UserError for a missing file."""
    source = 'source_image' if chosen['source_kind'] == STILL else 'source_video'
    driving = 'driving_video' if chosen['driver_kind'] == VIDEO else 'driving_motion'
    files = {name: context.files.take(session, chosen[name]) for name in (source, driving)}
    for name, path in files.items():
        if path is None:
            raise UserError(f'upload a {"portrait" if name == source else "driver"} first')
    folder, cut = context.files.new(session), chosen['crop'] == CUT
    return AnimationSettings(
        **files, source_end=chosen['source_end'] if source == 'source_video' else 'loop',
        save_motion=str(folder / 'motion.npz') if chosen['save_motion'] else None,
        result_video=str(folder / 'animation.mp4'), motion=motion_of(chosen), detail=chosen['detail'],
        size=None if chosen['size'] == 'model' else parse_size(chosen['size']), crop='auto' if cut else 'none',
        face_index=(chosen['source_face'], chosen['driving_face']) if cut else (0,),
        paste_back=chosen['show'] == PASTED, side_by_side=chosen['show'] == BESIDE)


def command_line(checkpoint, settings):
    """The command that gives the same result for these files, in the folder that holds them."""
    named = {name: Path(path).name for name in ('source_image', 'source_video', 'driving_video', 'driving_motion',
                                                'save_motion', 'result_video') if (path := getattr(settings, name))}
    faces = (0,) if not any(settings.face_index) else settings.face_index
    words = replace(settings, **named, face_index=faces).arguments()
    return shlex.join(['python', 'run.py', '--mode', 'animate', '--checkpoint', checkpoint, *words])
