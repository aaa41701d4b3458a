"""Train a model, or go on training it: the same command goes on after any interruption.

    python run.py --mode train --config config/vox-256.yaml
    python run.py --mode train --resume log/vox-256
"""

import logging
from pathlib import Path

from config.path import check_config_path
from modes.options import DEFAULT_CONFIG, add_config, add_device, add_run_folder, process_group, refuse, run_path


def add_arguments(parser):
    add_config(parser)
    add_run_folder(parser)
    parser.add_argument('--resume', metavar='RUN', help='go on with the run in this folder, with its config')
    add_device(parser)


def run(options):
    folder, config_path = run_path(options), options.config or DEFAULT_CONFIG
    if options.resume:
        refuse(options, ('--config', '--log_dir', '--run_name'), 'with --resume, which names the run and its config')
        folder = Path(options.resume)
        config_path = folder / 'config.yaml'
        check_config_path(config_path)
    with process_group(options.device) as device:
        train_in(folder, config_path, options.set, device)


def train_in(folder, config_path, overrides, device):
    """Train by the config at `config_path`, with 'section.key=value' overrides, in the run folder `folder`."""
    from config import schema
    from logger import RunFolder
    from support import distributed
    from train import train
    config = schema.load(config_path, overrides)
    run = RunFolder(folder, writes=distributed.rank() == 0)
    if run.writes:
        log_to(folder / 'run.log')
        schema.save(config, folder / 'config.yaml')
    try:
        train(config, run, device)
    finally:
        run.close()


def log_to(path):
    """Also keep the log in a file."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter('%(asctime)s %(levelname)s %(message)s'))
    logging.getLogger().addHandler(handler)
