"""Serve a local web page: animate, inspect, compare, live.

    pip install -r requirements-extra.txt
    python run.py --mode web --checkpoint log/demo-64 model.pt

The page is served to this machine only, unless --host is given.
"""

import functools
import logging
from argparse import Namespace
from pathlib import Path

from modes.options import add_device, add_precision, add_set, named
from support.checkpoints import shipped_weights
from support.errors import UserError

LOG_DIR = Path('log')

log = logging.getLogger('run')


def add_arguments(parser):
    parser.add_argument('--checkpoint', nargs='+', default=[], metavar='[NAME=]FILE',
                        help='checkpoints or run folders, the first preselected; '
                             'default: the newest run below log/, or the model in weights/')
    add_set(parser)
    add_device(parser)
    add_precision(parser)
    parser.add_argument('--port', type=int, default=7860, help='port to listen on; default 7860')
    parser.add_argument('--host', default='127.0.0.1',
                        help='address to listen on; default 127.0.0.1, this machine only')
    parser.add_argument('--auth', metavar='USER:PASSWORD',
                        help='require this login, mandatory with --host; sent unencrypted, over plain HTTP')


def run(options):
    if not 0 < options.port < 65536:
        raise UserError(f'--port {options.port}: must be 1 to 65535')
    address = address_of(options)
    checkpoints, _ = named(Namespace(checkpoints=options.checkpoint or [newest_run()], generated=[]))
    models = {name: str(path) for name, path in checkpoints.items()}
    from web.page import serve
    serve(models, functools.partial(load, overrides=options.set, device=options.device, precision=options.precision),
          address)


def address_of(options):
    """The web.page.Address. UserError for a public page without a login."""
    from web.page import Address
    user, _, password = (options.auth or '').partition(':')
    if options.auth is not None and not (user and password):
        raise UserError('--auth: expected USER:PASSWORD')
    address = Address(options.host, options.port, (user, password) if options.auth else None)
    if not address.local and options.auth is None:
        raise UserError(f'--host {options.host}: everyone who reaches this machine could use the page and its models; '
                        'add --auth USER:PASSWORD')
    if options.auth is not None:
        log.warning('--auth: the page speaks plain HTTP, so password and pictures travel unencrypted; outside of a '
                    'trusted network, put a proxy with TLS before it')
    return address


def newest_run():
    """The most recently written run folder below log/, or the weights that come with the project. UserError."""
    found = sorted(LOG_DIR.glob('*/checkpoints/*.pt'), key=lambda path: path.stat().st_mtime)
    if not found:
        return shipped_weights()
    log.info('loading the newest run, %s', found[-1].parents[1])
    return str(found[-1].parents[1])


def load(checkpoint, overrides, device, precision):
    """The web.worker.LoadedModel of a checkpoint; called in the worker."""
    from load import animation_renderer, load_model
    from web.worker import LoadedModel
    config, model = load_model(checkpoint, overrides=overrides, device=device)
    return LoadedModel(animation_renderer(config, model, precision), config.method)
