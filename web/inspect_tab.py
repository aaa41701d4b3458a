"""The tab Inspect: the figures of `--mode inspect`, for a frame that is chosen by a slider."""

import functools

import gradio as gr

from support.errors import UserError
from web import jobs
from web.controls import ABSOLUTE, RELATIVE, Desk, cancels, clip, follow, model, note, picture


def add_inspect(desk: Desk):
    """Lay out the tab; returns (source picture, driving video)."""
    place, enlarged = gr.State(None), gr.State(1)
    with gr.Row():
        with gr.Column(min_width=280):
            source = picture('Portrait', elem_id='inspect-source')
        with gr.Column(min_width=280):
            driver = clip('Driving video', elem_id='inspect-driver')
        with gr.Column(min_width=280):
            which = model(desk)
            frame = gr.Image(label='Click: which codes are read there?', interactive=False, height=300,
                             buttons=['fullscreen'], elem_id='frame')
    slider = gr.Slider(0, 1, 0, step=1, label='Frame of the driver')
    with gr.Row():
        motion = gr.Radio([RELATIVE, ABSOLUTE], value=RELATIVE, label='Motion')
        arrows = gr.Checkbox(label='Arrows', info='Over flows')
    with gr.Row():
        run, cancel = gr.Button('Draw', variant='primary', elem_id='draw'), gr.Button('Cancel', variant='stop')
    status = gr.HTML(elem_id='inspect-status')
    gallery = gr.Gallery(label='Figures', columns=3, height='auto', object_fit='contain', interactive=False,
                         buttons=['download', 'fullscreen'], elem_id='figures')

    def show(driver, which, index, request: gr.Request):
        session = request.session_hash

        def make_job():
            return functools.partial(jobs.show_frame, checkpoint=desk.models[which], index=int(index),
                                     driving=desk.files.take(session, driver), folder=str(desk.files.new(session)))
        if driver is None:
            return
        for status, made in follow(desk, session, make_job, driver):
            if made is None:
                yield status, gr.skip(), gr.skip(), gr.skip()
            else:
                yield '', made.picture, gr.update(maximum=made.length - 1), made.enlarged

    def draw(source, driver, which, index, motion, arrows, place, request: gr.Request):
        session = request.session_hash

        def make_job():
            files = desk.files.take(session, source), desk.files.take(session, driver)
            if None in files:
                raise UserError('bring a portrait and a driver first')
            return functools.partial(jobs.inspect, checkpoint=desk.models[which], files=files, index=int(index),
                                     shown={'relative': motion == RELATIVE, 'at': place, 'arrows': arrows},
                                     folder=str(desk.files.new(session)))
        for status, made in follow(desk, session, make_job, source, driver):
            yield (status, gr.skip()) if made is None else (note(f'{len(made)} pictures.'), made)

    def choose(enlarged, event: gr.SelectData):
        x, y = (int(place) // enlarged for place in event.index)
        return (x, y), note(f'Place {x}, {y}: Draw shows what is read for it.')

    how = dict(concurrency_limit=None, show_progress='hidden', api_name=False)
    gr.on([driver.change, slider.release, which.change], show, [driver, which, slider],
          [status, frame, slider, enlarged], **how)
    run.click(draw, [source, driver, which, slider, motion, arrows, place], [status, gallery], **how)
    frame.select(choose, enlarged, [place, status], queue=False, api_name=False)
    cancels(desk, cancel)
    return source, driver
