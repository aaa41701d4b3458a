"""Inputs, progress bars and error lines that all tabs of the page share."""

import html
from dataclasses import dataclass

import gradio as gr

from motion.settings import Motion
from support.errors import UserError
from web.files import Files
from web.worker import Cancelled, Progress, Worker

RELATIVE, ABSOLUTE = 'relative to the first frame', 'absolute'


@dataclass(frozen=True)
class PageContext:
    """Worker, files, models and examples of a running page.

    models:   {name: checkpoint}
    examples: [(path of a portrait, path of a driving video)]
    """
    worker: Worker
    files: Files
    models: dict[str, str]
    examples: list[tuple[str, str]]


# ---------------------------------------------------------------------------- inputs

def picture(label, **how):
    """Upload of a picture; the value is its path."""
    return gr.Image(label=label, sources=['upload', 'clipboard', 'webcam'], height=300, **how)


def clip(label, **how):
    """Upload of a video; the value is its path."""
    return gr.Video(label=label, sources=['upload', 'webcam'], height=300, elem_classes='clip', **how)


def motion(page):
    """Add the motion-transfer options of `--mode animate` and `compare` to page, {name: component}."""
    page['motion'] = gr.Radio([RELATIVE, ABSOLUTE], value=RELATIVE, label='Motion', min_width=200,
                              info='Absolute motion also transfers the shape of the driver\'s face')
    page['adapt_scale'] = gr.Checkbox(label='Adapt scale', min_width=200,
                                      info='Scale relative motion to the size of the source face')
    page['find_best_frame'] = gr.Checkbox(label='Find best frame', min_width=200,
                                          info='Count motion from the driving frame closest to the source pose')
    page['smooth'] = gr.Slider(0, 2, 0, step=0.1, label='Smooth', info='Smooths a jittery driving video; 1 is strong')


def motion_of(chosen):
    """The motion.settings.Motion chosen in `motion`."""
    if chosen['motion'] == ABSOLUTE:
        return Motion(relative=False, smooth=chosen['smooth'])
    return Motion(adapt_scale=chosen['adapt_scale'], start='nearest' if chosen['find_best_frame'] else 'first',
                  smooth=chosen['smooth'])


def values_of(page, given):
    """{name: value} of {component: value}."""
    return {name: given[part] for name, part in page.items() if part in given}


def command():
    """A command line to copy, hidden at first."""
    return gr.Code(label='Equivalent command line', language='shell', interactive=False, visible=False,
                   wrap_lines=True, lines=1, elem_classes='command')


def model(context):
    names = list(context.models)
    return gr.Dropdown(names, value=names[0], label='Model', interactive=len(names) > 1)


# ---------------------------------------------------------------------------- jobs

def runs(context, button, cancel, function, inputs, outputs):
    """Let a button run `function`, whose jobs the button `cancel` ends; `cancel` is disabled while no job runs."""
    def unfinished(request: gr.Request):
        return gr.update(interactive=bool(context.worker.tasks(request.session_hash)))
    quick = dict(queue=False, api_name=False, show_progress='hidden')
    button.click(lambda: gr.update(interactive=True), None, cancel, **quick).then(
        function, inputs, outputs, concurrency_limit=None, show_progress='hidden', api_name=False).then(
        unfinished, None, cancel, **quick)


def cancel_button(context, **how):
    """A button that ends all jobs of its visitor."""
    def cancel(request: gr.Request):
        context.worker.cancel_all(request.session_hash)
    button = gr.Button('Cancel', variant='stop', interactive=False, **how)
    button.click(cancel, queue=False, api_name=False, show_progress='hidden')
    return button


def follow(context, session, make_job, paths, count, finish):
    """Yields values of `count` outputs while a job runs: HTML of its progress or error, while the others stay.

    make_job: function that returns the job; its UserErrors are shown like those of the job
    paths:    files whose folders are removed from messages
    finish:   function from the job's value to the outputs' last values
    """
    others = [gr.skip()] * (count - 1)
    try:
        task = context.worker.ask(session, make_job())
        yield bar(task.latest), *others
        for progress in task.progress():
            yield bar(progress), *others
        yield finish(task.result())
    except UserError as error:
        yield trouble(context.files.shown(str(error), *paths)), *others
    except Cancelled:
        yield note('Cancelled.'), *others


def pair_of(context, session, source, driving):
    """Paths of an uploaded portrait and driving video; UserError where one is missing."""
    files = context.files.take(session, source), context.files.take(session, driving)
    if None in files:
        raise UserError('upload a portrait and a driving video first')
    return files


def bar(progress: Progress):
    """HTML of a progress bar."""
    if progress.before:
        jobs = 'one job is' if progress.before == 1 else f'{progress.before} jobs are'
        return note(f'Waiting: {jobs} before yours.')
    if not progress.total:
        return '<div class="status"><progress></progress> Working …</div>'
    left = (progress.total - progress.done) / progress.rate
    return (f'<div class="status"><progress max="{progress.total}" value="{progress.done}"></progress> '
            f'{progress.done} of {progress.total} frames, {progress.rate:.1f} frames/s, {left:.0f} s left</div>')


def trouble(text):
    return f'<div class="status trouble" role="alert">{html.escape(" ".join(text.split()))}</div>'


def note(text):
    return f'<div class="status">{html.escape(text)}</div>'
