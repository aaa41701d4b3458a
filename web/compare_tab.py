"""The tab Compare: one pair through all checkpoints that the page was started with."""

import functools

import gradio as gr

from web import jobs
from web.animate_tab import ABSOLUTE, RELATIVE, STILL, VIDEO, WHOLE, portrait_of
from web.controls import Desk, cancels, clip, follow, note, picture


def add_compare(desk: Desk):
    """Lay out the tab; returns (source picture, driving video)."""
    names = list(desk.models)
    with gr.Row():
        source, driver = picture('Portrait', elem_id='compare-source'), clip('Driving video', elem_id='compare-driver')
    motion = gr.Radio([RELATIVE, ABSOLUTE], value=RELATIVE, label='Motion')
    with gr.Row():
        run, cancel = gr.Button('Compare', variant='primary', elem_id='compare'), gr.Button('Cancel', variant='stop')
    status = gr.HTML('' if len(names) > 1 else note('One model is loaded; --checkpoint takes several.'),
                     elem_id='compare-status')
    videos = []
    for start in range(0, len(names), 3):
        with gr.Row():
            videos += [gr.Video(label=name, interactive=False, height=300, autoplay=True, loop=True,
                                buttons=['download'], elem_classes='compared')
                       for name in names[start:start + 3]]

    def compare(source, driver, motion, request: gr.Request):
        session = request.session_hash

        def make_job():
            portrait = portrait_of(desk, session, PLAIN | {'source_image': source, 'driving_video': driver,
                                                           'motion': motion})
            return functools.partial(jobs.compare, checkpoints=list(desk.models.values()), portrait=portrait)
        yield note('…'), *[None for _ in videos]
        for status, made in follow(desk, session, make_job, source, driver):
            if made is None:
                yield status, *[gr.skip() for _ in videos]
            else:
                yield note(f'Done: {made[0].frames} frames each.'), *[one.video for one in made]

    run.click(compare, [source, driver, motion], [status, *videos], concurrency_limit=None, show_progress='hidden',
              api_name=False)
    cancels(desk, cancel)
    return source, driver


PLAIN = {'source_kind': STILL, 'driver_kind': VIDEO, 'crop': WHOLE, 'source_end': 'loop', 'save_motion': False,
         'adapt_scale': False, 'find_best_frame': False, 'smooth': 0, 'show': ''}
