"""Train a model; rerun the same command to resume.

    python run.py --mode train --config config/vox-256.yaml
    python run.py --mode train --resume log/vox-256
    python run.py --mode train --checkpoint model.pt --set dataset_params.root_dir=data/mine    # fine-tune
"""

import logging
from contextlib import contextmanager, nullcontext
from pathlib import Path

from modes.options import (
    DEFAULT_CONFIG, add_config, add_device, add_run_folder, process_group, refuse, training_config, training_path)
from support.checkpoints import newest_checkpoint
from support.errors import check_config_path
from support.files import writing


def add_arguments(parser):
    add_config(parser, f'the config in --checkpoint, or {DEFAULT_CONFIG}')
    add_run_folder(parser)
    parser.add_argument('--resume', metavar='RUN', help='run folder to resume, with its config')
    parser.add_argument('--checkpoint', type=newest_checkpoint, metavar='FILE',
                        help='checkpoint or run folder whose weights initialise a new run, from step 0')
    add_device(parser)


def run(options):
    folder, config_path = training_path(options), training_config(options)
    if options.resume:
        refuse(options, ('--checkpoint', '--config', '--log_dir', '--run_name'),
               'with --resume, which names the run and its config')
        folder = Path(options.resume)
        config_path = folder / 'config.yaml'
        check_config_path(config_path)
    with process_group(options.device) as device:
        train_in(folder, config_path, options.set, device, options.checkpoint)


def train_in(folder, config_path, overrides, device, checkpoint=None):
    """Train in the run folder `folder`.

    config_path: of the YAML; None for the config inside of `checkpoint`
    overrides:   'section.key=value' on top
    checkpoint:  whose weights a new run begins with; None for a new model
    returns:     whether it is trained to its end
    """
    from logger import RunFolder, load_config
    from support import distributed
    from train import train
    config = load_config(config_path, overrides, checkpoint)
    run = RunFolder(folder, writes=distributed.rank() == 0)
    try:
        distributed.check_shared(folder)
        with logged_to(folder / 'run.log') if run.writes else nullcontext():
            return train(config, run, device, checkpoint)
    finally:
        run.close()


@contextmanager
def logged_to(path):
    """Context manager: the log is also written to a file."""
    with writing(path):
        handler = logging.FileHandler(path, encoding='utf-8')
    handler.handleError = lambda record: None       # a full disk: the same lines are on the terminal, errors too
    handler.setFormatter(logging.Formatter('%(asctime)s %(levelname)s %(message)s'))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
