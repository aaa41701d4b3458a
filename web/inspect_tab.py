"""The tab Inspect: the figures of `--mode inspect` for one frame of a driving video."""

import functools

import gradio as gr

from web import jobs
from web.controls import (
    ABSOLUTE, RELATIVE, PageContext, cancel_button, clip, follow, model, note, pair_of, picture, runs)


def add_inspect(context: PageContext):
    """Lay out the tab; returns its components (source picture, driving video)."""
    place, enlarged = gr.State(None), gr.State(1)
    with gr.Row():
        with gr.Column(min_width=280):
            source = picture('Portrait', elem_id='inspect-source')
        with gr.Column(min_width=280):
            driver = clip('Driving video', elem_id='inspect-driver')
        with gr.Column(min_width=280):
            which = model(context)
            frame = gr.Image(label='Click a place to see which codes it reads', interactive=False, height=300,
                             buttons=['fullscreen'], elem_id='frame')
    slider = gr.Slider(0, 1, 0, step=1, label='Driving frame')
    motion = gr.Radio([RELATIVE, ABSOLUTE], value=RELATIVE, label='Motion')
    with gr.Row():
        run, cancel = gr.Button('Draw', variant='primary', elem_id='draw'), cancel_button(context)
    status = gr.HTML(elem_id='inspect-status')
    gallery = gr.Gallery(label='Figures', columns=3, height='auto', object_fit='contain', interactive=False,
                         buttons=['download', 'fullscreen'], elem_id='figures')

    def show(driver, which, index, request: gr.Request):
        session = request.session_hash

        def finish(made):
            path, enlarged, length = made
            return '', path, gr.update(maximum=length - 1), enlarged

        def make_job():
            path, folder = context.files.take(session, driver), str(context.files.new(session))
            return functools.partial(jobs.show_frame, checkpoint=context.models[which], index=int(index),
                                     driving=path, folder=folder)
        if driver is None:
            return
        yield from follow(context, session, make_job, (driver,), 4, finish)

    def draw(source, driver, which, index, motion, place, request: gr.Request):
        session = request.session_hash

        def make_job():
            return functools.partial(jobs.inspect, checkpoint=context.models[which], index=int(index),
                                     files=pair_of(context, session, source, driver),
                                     shown={'relative': motion == RELATIVE, 'at': place},
                                     folder=str(context.files.new(session)))
        yield from follow(context, session, make_job, (source, driver), 2,
                          lambda made: (note(f'{len(made)} pictures.'), made))

    def choose(enlarged, event: gr.SelectData):
        x, y = (int(place) // enlarged for place in event.index)
        return (x, y), note(f'Pixel {x}, {y} is chosen; press Draw.')

    gr.on([driver.change, slider.release, which.change], show, [driver, which, slider],
          [status, frame, slider, enlarged], concurrency_limit=None, show_progress='hidden', api_name=False)
    runs(context, run, cancel, draw, [source, driver, which, slider, motion, place], [status, gallery])
    frame.select(choose, enlarged, [place, status], queue=False, api_name=False)
    return source, driver
