"""The page of `--mode web`, built with Gradio: four tabs, examples, server."""

import functools
import logging
import os
import signal
import sys
from pathlib import Path
from typing import NamedTuple

from support.errors import UserError
from support.pages import PROJECT
from web import jobs
from web.files import Files
from web.guard import LOCAL_HOSTS, Guard, cut_off
from web.limits import MOST_BYTES
from web.worker import Worker

FORGET_AFTER = 3600        # seconds after which unused uploads are deleted
STYLE = Path(__file__).parent / 'page.css'
FONT = ['system-ui', 'sans-serif']      # installed ones: nothing is downloaded


class Address(NamedTuple):
    """Where to listen; auth is (user, password) or None."""
    host: str = '127.0.0.1'
    port: int = 7860
    auth: tuple[str, str] | None = None

    @property
    def local(self):
        return self.host in ('127.0.0.1', 'localhost', '::1')


def serve(models, load, address):
    """Serve the page until it is interrupted.

    models:  {name: checkpoint}
    load:    picklable function of a checkpoint that returns a web.worker.LoadedModel
    address: Address
    raises:  UserError where Gradio is missing, the port is taken, a model cannot be loaded
    """
    with Files() as files:
        # Gradio shall store uploads in our folder.
        os.environ.update(GRADIO_TEMP_DIR=str(files.root), GRADIO_EXAMPLES_CACHE=str(files.root / 'none'))
        try:
            cut_off()
        except ImportError as error:
            raise UserError(f'--mode web needs Gradio ({error.name} is missing): '
                            'pip install -r requirements-extra.txt') from None
        worker = Worker(load)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))      # runs the cleanup below
        try:
            job = functools.partial(jobs.begin, checkpoints=list(models.values()), folder=files.root / 'examples')
            _show(worker, files, models, worker.ask('', job).result(), address)
        finally:
            worker.close()


def _show(worker, files, models, examples, address):
    import gradio as gr
    from starlette.middleware import Middleware
    logging.getLogger('httpx').setLevel(logging.WARNING)      # Gradio requests its own page at the start
    from web.controls import PageContext
    hosts = LOCAL_HOSTS if address.local else None
    page = build(PageContext(worker, files, models, examples))
    page.queue(max_size=32, api_open=False)
    try:
        _, url, _ = page.launch(
            server_name=address.host, server_port=address.port, auth=address.auth, share=False, quiet=True,
            prevent_thread_lock=True, max_file_size=MOST_BYTES, show_error=False, ssr_mode=False, pwa=False,
            mcp_server=False, enable_monitoring=False, footer_links=[], run_history=False, css_paths=STYLE,
            theme=gr.themes.Default(font=FONT, font_mono=['ui-monospace', 'monospace']),
            app_kwargs={'middleware': [Middleware(Guard, hosts=hosts)], 'docs_url': None, 'redoc_url': None})
    except OSError as error:
        raise UserError(f'--port {address.port}: cannot listen there ({error}); choose another') from error
    except ValueError as error:      # Gradio requests its own page at the start and gives up after some seconds
        raise UserError(f'the page does not answer on {address.host}: this machine is busy, or a proxy intercepts '
                        'requests; set no_proxy=localhost,127.0.0.1 and try again') from error
    print(f'The page is at {url} (Ctrl-C ends it)', flush=True)
    try:
        page.block_thread()
    finally:
        page.close(verbose=False)


def build(context):
    import gradio as gr

    from web.animate_tab import add_animate
    from web.compare_tab import add_compare
    from web.inspect_tab import add_inspect
    from web.live_tab import add_live
    with gr.Blocks(title=PROJECT, analytics_enabled=False, delete_cache=(600, FORGET_AFTER)) as page:
        gr.Markdown(f'# {PROJECT}')
        for name, add in (('Animate', add_animate), ('Inspect', add_inspect), ('Compare', add_compare)):
            with gr.Tab(name):
                pair = add(context)
                gr.Examples([list(example) for example in context.examples], list(pair), label='Synthetic heads',
                            cache_examples=False)
        with gr.Tab('Live'):
            source, forget_live = add_live(context)
            gr.Examples([[portrait] for portrait, _ in context.examples], [source], label='Synthetic heads',
                        cache_examples=False)

        def leave(request: gr.Request):
            context.worker.cancel_all(request.session_hash)
            forget_live(request.session_hash)
            context.files.forget(request.session_hash)
        page.unload(leave)
    return page
