"""A page in the browser: animate, inspect, compare, live.

    pip install -r requirements-extra.txt
    python run.py --mode web --checkpoint log/demo-64 model.pt

Listens on this machine alone unless --host says otherwise. Without --checkpoint, the newest run below log/ is shown.
"""

import functools
import logging
from argparse import Namespace
from pathlib import Path

from modes.options import add_device, add_set, named
from support.errors import UserError

LOG_DIR = Path('log')
LOCAL = ('127.0.0.1', 'localhost', '::1')

log = logging.getLogger('run')


def add_arguments(parser):
    parser.add_argument('--checkpoint', nargs='+', default=[], metavar='[NAME=]FILE',
                        help='models, or run folders; the first is shown first. Default: the newest run below log/')
    add_set(parser)
    add_device(parser)
    parser.add_argument('--port', type=int, default=7860, help='default 7860')
    parser.add_argument('--host', default=LOCAL[0], help='address to listen on; default 127.0.0.1, this machine alone')
    parser.add_argument('--auth', metavar='USER:PASSWORD', help='ask visitors for these; needed with --host')
    parser.add_argument('--share', choices=('never',), default='never', help='never: no tunnel to the outside is made')


def run(options):
    if not 0 < options.port < 65536:
        raise UserError(f'--port {options.port}: must be 1 to 65535')
    address = address_of(options)
    checkpoints, _ = named(Namespace(checkpoints=options.checkpoint or [newest_run()], generated=[]))
    models = {name: str(path) for name, path in checkpoints.items()}
    from web.page import Address, serve
    serve(models, functools.partial(load, overrides=options.set, device=options.device),
          Address(*address, share=options.share != 'never'))


def address_of(options):
    """(host, port, (user, password) or None); UserError for a page that anybody could use."""
    user, _, password = (options.auth or '').partition(':')
    if options.auth is not None and not (user and password):
        raise UserError('--auth: expected USER:PASSWORD')
    if options.host not in LOCAL:
        if options.auth is None:
            raise UserError(f'--host {options.host}: everybody who reaches this machine could use the page and its '
                            'models; give --auth USER:PASSWORD too')
        log.warning('--host %s: the page can be reached from other machines, unencrypted; --auth is all that guards it',
                    options.host)
    return options.host, options.port, (user, password) if options.auth else None


def newest_run():
    """The run folder below log/ that was written last; UserError says how to make one."""
    found = sorted(LOG_DIR.glob('*/checkpoints/*.pt'), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(f'there is no run below {LOG_DIR}/ to show; train the demo, six minutes on two cores: '
                        'python run.py --mode demo')
    log.info('showing the newest run, %s', found[-1].parents[1])
    return str(found[-1].parents[1])


def load(checkpoint, overrides, device):
    """The web.worker.LoadedModel of a checkpoint; called in the worker."""
    from load import animation_renderer, load_model
    from web.worker import LoadedModel
    config, model = load_model(checkpoint, overrides=overrides, device=device)
    return LoadedModel(animation_renderer(config, model), config)
