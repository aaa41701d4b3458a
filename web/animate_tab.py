"""The tab Animate: everything that `--mode animate` does with one pair."""

import functools
import shlex
from dataclasses import replace
from pathlib import Path

import gradio as gr

from motion.settings import AnimationSettings
from support.errors import UserError
from web import jobs
from web.controls import (
    Desk, cancels, clip, command, follow, model, motion, motion_of, named, note, picture)

STILL, VIDEO, TEMPLATE = 'a picture', 'a video', 'a motion template'
ALONE, BESIDE, PASTED = 'result alone', 'source, driver and result', 'pasted back into the whole source'
WHOLE, CUT = 'squeeze the whole picture', 'cut around the face'


def add_animate(desk: Desk):
    """Lay out the tab; returns (source picture, driving video), which others may fill."""
    page = _layout(desk)
    shown = ('status', 'result', 'saved', 'command', 'faces', 'animate', 'look', 'cancel')
    inputs = {part for name, part in page.items() if name not in shown}

    def animate(given, request: gr.Request):
        chosen, session, settings = named(page, given), request.session_hash, None

        def make_job():
            nonlocal settings
            settings = settings_of(desk, session, chosen)
            return functools.partial(jobs.animate, checkpoint=desk.models[chosen['model']], settings=settings)
        yield note('…'), None, *[gr.update(value=None, visible=False)] * 2
        for status, made in follow(desk, session, make_job, *_files(chosen)):
            if made is None:
                yield status, gr.skip(), gr.skip(), gr.skip()
            else:
                saved = [path for path in (made.video, made.motion) if path]
                yield (note(f'Done: {made.frames} frames.'), made.video, gr.update(value=saved, visible=True),
                       gr.update(value=command_line(desk.models[chosen['model']], settings), visible=True))

    def look(given, request: gr.Request):
        chosen, session = named(page, given), request.session_hash

        def make_job():
            if chosen['driver_kind'] == TEMPLATE:
                raise UserError('a motion template has no faces to look at')
            settings = settings_of(desk, session, chosen | {'crop': CUT})
            return functools.partial(jobs.find_faces, checkpoint=desk.models[chosen['model']], settings=settings)
        for status, found in follow(desk, session, make_job, *_files(chosen)):
            if found is None:
                yield status, gr.skip(), gr.skip(), gr.skip()
            else:
                yield (note(f'{found.source} face(s) in the source, {found.driving} in the driver.'),
                       gr.update(value=found.picture, visible=True),
                       *(gr.update(choices=list(range(count))) for count in (found.source, found.driving)))

    page['animate'].click(animate, inputs, [page[name] for name in ('status', 'result', 'saved', 'command')],
                          concurrency_limit=None, show_progress='hidden', api_name=False)
    page['look'].click(look, inputs, [page[name] for name in ('status', 'faces', 'source_face', 'driving_face')],
                       concurrency_limit=None, show_progress='hidden', api_name=False)
    cancels(desk, page['cancel'])
    return page['source_image'], page['driving_video']


def _layout(desk):
    """{name: component}."""
    page = {}
    with gr.Row():
        with gr.Column(min_width=280):
            page['source_kind'] = gr.Radio([STILL, VIDEO], value=STILL, label='Source: who is to move')
            page['source_image'] = picture('Portrait', elem_id='source')
            page['source_video'] = clip('Source video', visible=False, elem_id='source-video')
        with gr.Column(min_width=280):
            page['driver_kind'] = gr.Radio([VIDEO, TEMPLATE], value=VIDEO, label='Driver: how to move')
            page['driving_video'] = clip('Driving video', elem_id='driver')
            page['driving_motion'] = gr.File(label='Motion template', file_types=['.npz'], visible=False,
                                             elem_id='template')
        with gr.Column(min_width=280):
            page['model'] = model(desk)
            page['result'] = gr.Video(label='Result', interactive=False, height=300, autoplay=True, loop=True,
                                      buttons=['download'], elem_id='result')
    with gr.Row():
        page['animate'] = gr.Button('Animate', variant='primary', elem_id='animate')
        page['look'] = gr.Button('Look for faces first')
        page['cancel'] = gr.Button('Cancel', variant='stop', elem_id='cancel')
    page['status'] = gr.HTML(elem_id='status')
    page['faces'] = gr.Image(label='Faces by number, and what will be cut out: source, driver', visible=False,
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
            page['crop'] = gr.Radio([WHOLE, CUT], value=WHOLE, label='Crop', info='Models know heads in a square')
            page['source_face'] = gr.Dropdown([0], value=0, label='Face of the source', info='0 is the largest')
            page['driving_face'] = gr.Dropdown([0], value=0, label='Face of the driver', info='0 is the largest')
            page['show'] = gr.Radio([ALONE, BESIDE, PASTED], value=ALONE, label='Show')
        with gr.Row():
            motion(page)
        with gr.Row():
            page['source_end'] = gr.Radio(['loop', 'hold'], value='loop', label='End of a source video', min_width=200,
                                          info='Where it is shorter than the motion')
            page['save_motion'] = gr.Checkbox(label='Save the motion', min_width=200,
                                              info='A template of the driver\'s motion to download, without its face')


def _switch(radio, parts):
    radio.change(lambda kind: [gr.update(visible=name == kind) for name in parts], radio, list(parts.values()),
                 queue=False, api_name=False, show_progress='hidden')


def _files(chosen):
    return [chosen[name] for name in ('source_image', 'source_video', 'driving_video', 'driving_motion')]


def settings_of(desk, session, chosen):
    """The AnimationSettings that were chosen, with results in a new folder; UserError for a missing file."""
    source = 'source_image' if chosen['source_kind'] == STILL else 'source_video'
    driving = 'driving_video' if chosen['driver_kind'] == VIDEO else 'driving_motion'
    files = {name: desk.files.take(session, chosen[name]) for name in (source, driving)}
    for name, path in files.items():
        if path is None:
            raise UserError(f'bring {"a portrait" if name == source else "a driver"} first')
    folder, cut = desk.files.new(session), chosen['crop'] == CUT
    return AnimationSettings(
        **files, source_end=chosen['source_end'] if source == 'source_video' else 'loop',
        save_motion=str(folder / 'motion.npz') if chosen['save_motion'] else None,
        result_video=str(folder / 'animation.mp4'), motion=motion_of(chosen), crop='auto' if cut else 'none',
        face_index=(chosen['source_face'], chosen['driving_face']) if cut else (0,),
        paste_back=chosen['show'] == PASTED, side_by_side=chosen['show'] == BESIDE)


def command_line(checkpoint, settings):
    """The command that makes the same result from files of the same names in the current folder."""
    named = {name: Path(path).name for name in ('source_image', 'source_video', 'driving_video', 'driving_motion',
                                                'save_motion', 'result_video') if (path := getattr(settings, name))}
    faces = (0,) if not any(settings.face_index) else settings.face_index
    words = replace(settings, **named, face_index=faces).arguments()
    return shlex.join(['python', 'run.py', '--mode', 'animate', '--checkpoint', checkpoint, *words])
