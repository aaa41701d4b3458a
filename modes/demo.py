"""Train a small model on synthetic heads; reconstruct and animate unseen ones.

    python run.py --mode demo
"""

import argparse

from modes import animate, reconstruction
from modes.options import add_config, add_device, add_run_folder, process_group, run_path
from modes.train import train_in

DEMO_CONFIG = 'config/demo-64.yaml'
ENDING = """
A model at {folder}, trained on heads that this project draws itself. Look at
  {folder}/reconstruction/contact_sheet.png   unseen heads, rebuilt from their first frame; videos beside it
  {folder}/animation/contact_sheet.png        unseen heads that follow another one; videos beside it
  {folder}/pictures/                          how it learned: flows and occlusion per scale
  tensorboard --logdir {folder}/tensorboard    curves, codes in use, pictures
Whether it learned as it should, and a page to try it in:
  python run.py --mode curves --run {folder}
  python run.py --mode web --checkpoint {folder}
Real data next: README.md, "Train on VoxCeleb1"."""


def add_arguments(parser):
    add_config(parser, DEMO_CONFIG)
    add_run_folder(parser)
    add_device(parser)


def run(options):
    options.config = options.config or DEMO_CONFIG
    with process_group(options.device) as device:
        from support import distributed
        train_in(run_path(options), options.config, options.set, device)
        distributed.wait()              # for the checkpoint
        reconstruction.run_on(with_defaults(options, reconstruction), device)
        animate.run_on(with_defaults(options, animate), device)
        distributed.wait()
        if distributed.rank() == 0:
            print(ENDING.format(folder=run_path(options)))


def with_defaults(options, mode):
    """The options, with the defaults of a mode's flags for all that they lack."""
    parser = argparse.ArgumentParser()
    mode.add_arguments(parser)
    return argparse.Namespace(**vars(parser.parse_args([])) | vars(options))
