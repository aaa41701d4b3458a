"""The tab Live: the visitor's camera drives a portrait."""

import base64
import functools
import time

import gradio as gr

from support.errors import UserError
from web import live
from web.controls import Desk, camera, model, note, picture, trouble
from web.worker import Cancelled

STREAM_EVERY = 0.05        # seconds between two frames that the browser sends
LONGEST = 3600             # seconds of one stream


class Sessions:
    """Of each visitor: a meter, and whether the next frame is to be the reference."""

    def __init__(self):
        self.meters, self.anew = {}, set()

    def meter(self, session):
        return self.meters.setdefault(session, live.Meter())

    def forget(self, session):
        self.meters.pop(session, None)
        self.anew.discard(session)


def add_live(desk: Desk):
    """Lay out the tab; returns (source picture, function that forgets a session)."""
    sessions = Sessions()
    with gr.Row():
        with gr.Column(min_width=280):
            source = picture('Portrait', elem_id='live-source')
        with gr.Column(min_width=280):
            film = camera('Camera', elem_id='camera')
        with gr.Column(min_width=280):
            which = model(desk)
            shown = gr.HTML(elem_id='live')
    reference = gr.Button('Take the present pose as reference', elem_id='reference')
    status = gr.HTML(note('Motion counts from the first frame: look at the camera as the portrait does, then press '
                          'Record. Frames that come too fast are dropped.'), elem_id='live-status')

    def drive(frame, source, which, request: gr.Request):
        arrived, session = time.monotonic(), request.session_hash
        if frame is None:
            return gr.skip(), gr.skip()
        meter = sessions.meter(session)
        if not desk.worker.idle():
            meter.dropped += 1
            return gr.skip(), note('The worker is busy with another job; frames are dropped meanwhile.')
        try:
            path = desk.files.take(session, source)
            if path is None:
                raise UserError('bring a portrait first')
            anew = session in sessions.anew
            sessions.anew.discard(session)
            job = functools.partial(live.render, session=session, checkpoint=desk.models[which], source=path,
                                    camera=frame, anew=anew)
            made = desk.worker.ask(session, job).result()
        except UserError as error:
            return gr.skip(), trouble(desk.files.shown(str(error), source))
        except Cancelled:
            return gr.skip(), gr.skip()
        meter.add(arrived)
        picture = base64.b64encode(made.jpeg).decode()
        return (f'<img class="live" alt="the portrait, driven" src="data:image/jpeg;base64,{picture}">',
                note(f'{meter.rate:.1f} frames/s, {1000 * meter.latency:.0f} ms in the server '
                     f'({1000 * made.seconds:.0f} ms of it the model)'))

    def take_reference(request: gr.Request):
        sessions.anew.add(request.session_hash)

    film.stream(drive, [film, source, which], [shown, status], stream_every=STREAM_EVERY, time_limit=LONGEST,
                  concurrency_limit=None, show_progress='hidden', api_name=False)
    reference.click(take_reference, queue=False, api_name=False)
    return source, sessions.forget
