"""What all tabs of the page share: inputs, progress, and errors as one line."""

import html
from dataclasses import dataclass

import gradio as gr

from motion.settings import Motion
from support.errors import UserError
from web.files import Files
from web.worker import Cancelled, Progress, Worker

RELATIVE, ABSOLUTE = 'relative to the first frame', 'absolute: as the driver is'


@dataclass(frozen=True)
class Desk:
    """What the tabs work with.

    models:   {name: checkpoint}
    examples: [(path of a portrait, path of a driver)]
    """
    worker: Worker
    files: Files
    models: dict[str, str]
    examples: list[tuple[str, str]]


# ---------------------------------------------------------------------------- inputs

def picture(label, **how):
    """A picture, handed on as a path."""
    return gr.Image(label=label, sources=['upload', 'clipboard', 'webcam'], height=300, **how)


def clip(label, **how):
    """A video, handed on as a path."""
    return gr.Video(label=label, sources=['upload', 'webcam'], height=300, elem_classes='clip', **how)


def camera(label, **how):
    """A camera, whose frames are handed on as encoded bytes."""
    return gr.Image(label=label, sources=['webcam'], streaming=True, height=300, **how)


def motion(page):
    """Adds the options of `--mode animate` and `compare` for how motion is transferred to page, {name: component}."""
    page['motion'] = gr.Radio([RELATIVE, ABSOLUTE], value=RELATIVE, label='Motion', min_width=200,
                              info='Absolute leaks the shape of the driver\'s face')
    page['adapt_scale'] = gr.Checkbox(label='Adapt scale', min_width=200,
                                      info='Scale relative motion to the source\'s face')
    page['find_best_frame'] = gr.Checkbox(label='Find the best frame', min_width=200,
                                          info='Start from the driving frame that is nearest to the source')
    page['smooth'] = gr.Slider(0, 2, 0, step=0.1, label='Smooth', info='Calms a jittery driver; 1 is much')


def motion_of(chosen):
    """The motion.settings.Motion that was chosen in `motion`."""
    if chosen['motion'] == ABSOLUTE:
        return Motion(relative=False, smooth=chosen['smooth'])
    return Motion(adapt_scale=chosen['adapt_scale'], start='nearest' if chosen['find_best_frame'] else 'first',
                  smooth=chosen['smooth'])


def named(page, given):
    """{name: value} of {component: value}."""
    return {name: given[part] for name, part in page.items() if part in given}


def command():
    """A command line to copy, hidden until there is one."""
    return gr.Code(label='The same from the command line', language='shell', interactive=False, visible=False,
                   wrap_lines=True, lines=1, elem_classes='command')


def model(desk):
    names = list(desk.models)
    return gr.Dropdown(names, value=names[0], label='Model', interactive=len(names) > 1)


# ---------------------------------------------------------------------------- jobs

def follow(desk, session, make_job, *paths):
    """Yields (HTML of how far a job is, None), at last (HTML, what it returned); after an error the HTML is its line.

    make_job: function that returns the job; its UserErrors are shown as the job's are
    paths:    whose folders messages must not show
    """
    try:
        task = desk.worker.ask(session, make_job())
        yield bar(task.latest), None
        for progress in task.progress():
            yield bar(progress), None
        yield '', task.result()
    except UserError as error:
        yield trouble(desk.files.shown(str(error), *paths)), None
    except Cancelled:
        yield note('Cancelled.'), None


def cancels(desk, button):
    """Let a button end whatever its visitor has asked for."""
    def cancel(request: gr.Request):
        desk.worker.cancel_all(request.session_hash)
    button.click(cancel, queue=False, api_name=False, show_progress='hidden')


def bar(progress: Progress):
    """HTML of a progress bar."""
    if progress.before:
        jobs = 'one job is' if progress.before == 1 else f'{progress.before} jobs are'
        return note(f'Waiting: {jobs} before yours.')
    if not progress.total:
        return '<div class="status"><progress></progress> At work: reading, looking for faces, drawing …</div>'
    left = (progress.total - progress.done) / progress.rate
    return (f'<div class="status"><progress max="{progress.total}" value="{progress.done}"></progress> '
            f'{progress.done} of {progress.total} frames, {progress.rate:.1f} frames/s, {left:.0f} s left</div>')


def trouble(text):
    """HTML of one line that says what is wrong."""
    return f'<div class="status trouble" role="alert">{html.escape(" ".join(text.split()))}</div>'


def note(text):
    return f'<div class="status">{html.escape(text)}</div>'
