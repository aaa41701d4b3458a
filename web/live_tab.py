"""The tab Live: a camera drives a portrait."""

import base64
import functools
import time

import gradio as gr

from support.errors import UserError
from web import live
from web.controls import PageContext, model, note, picture, trouble
from web.worker import Cancelled

STREAM_EVERY = 0.04        # seconds between two frames sent by the browser
SIZES = 256, 512           # of the result, pixels; a larger model keeps its own
LONGEST = 3600             # seconds of one stream, at most


def add_live(context: PageContext):
    """Lay out the tab; returns (its source picture, function that forgets a visitor)."""
    resets, shown_at = set(), {}      # visitors whose next frame becomes the reference; when each saw the last frame
    with gr.Row():
        with gr.Column(min_width=280):
            source = picture('Portrait', elem_id='live-source')
        with gr.Column(min_width=280):
            film = gr.Image(label='Camera', sources=['webcam'], streaming=True, height=300, elem_id='camera')
        with gr.Column(min_width=280):
            which = model(context)
            shown = gr.HTML(elem_id='live')
            size = gr.Radio(SIZES, value=SIZES[0], label='Size of the result, pixels')
    reference = gr.Button('Use the current pose as reference', elem_id='reference')
    status = gr.HTML(note('Motion is relative to the first frame: take the pose of the portrait, then press Record. '
                          'Frames that arrive while the worker is busy are dropped.'), elem_id='live-status')

    def drive(frame, source, which, size, request: gr.Request):
        arrived, session = time.monotonic(), request.session_hash
        if frame is None:
            return gr.skip(), gr.skip()
        if not context.worker.idle():
            return gr.skip(), note('The worker is busy with another job; frames are dropped.')
        try:
            path = context.files.take(session, source)
            if path is None:
                raise UserError('upload a portrait first')
            reset = session in resets
            resets.discard(session)
            job = functools.partial(live.render, session=session, checkpoint=context.models[which], source=path,
                                    camera=frame, size=size, reset=reset)
            jpeg, seconds = context.worker.ask(session, job).result()
        except UserError as error:
            return gr.skip(), trouble(context.files.shown(str(error), source))
        except Cancelled:
            return gr.skip(), gr.skip()
        now, picture = time.monotonic(), base64.b64encode(jpeg).decode()
        rate = 1 / max(now - shown_at.get(session, arrived), 1e-3)
        shown_at[session] = now
        return (f'<img class="live" alt="animated portrait" src="data:image/jpeg;base64,{picture}">',
                note(f'{rate:.1f} frames/s, latency {1000 * (now - arrived):.0f} ms '
                     f'(model {1000 * seconds:.0f} ms)'))

    def take_reference(request: gr.Request):
        resets.add(request.session_hash)

    film.stream(drive, [film, source, which, size], [shown, status], stream_every=STREAM_EVERY, time_limit=LONGEST,
                  concurrency_limit=None, show_progress='hidden', api_name=False)
    reference.click(take_reference, queue=False, api_name=False)

    def forget(session):
        resets.discard(session)
        shown_at.pop(session, None)
        context.worker.ask('', functools.partial(live.forget, session=session), limited=False)
    return source, forget
