"""Train a small model on synthetic heads; reconstruct and animate unseen ones.

    python run.py --mode demo
"""

import argparse

from modes import animate, reconstruction
from modes.options import add_config, add_device, add_run_folder, process_group, run_path
from modes.train import train_in

DEMO_CONFIG = 'config/demo-64.yaml'
RESULT = 256               # least side of the animations in pixels: with the sources' detail where the model's is less
ENDING = """
A model, trained on synthetic heads, is in {folder}. Its results:
  {folder}/reconstruction/contact_sheet.png   unseen heads, reconstructed from their first frame, and the videos
  {folder}/animation/contact_sheet.png        unseen heads that follow others, at {size} px, and the videos
  {folder}/pictures/                          flows and occlusion per scale while training
  tensorboard --logdir {folder}/tensorboard    curves, codes in use, pictures
Compare its curves with the reference, or open it in the browser:
  python run.py --mode curves --run {folder}
  python run.py --mode web --checkpoint {folder}
To train on real videos: README.md, "Train on VoxCeleb1"."""


def add_arguments(parser):
    add_config(parser, DEMO_CONFIG)
    add_run_folder(parser)
    add_device(parser)


def run(options):
    options.config = options.config or DEMO_CONFIG
    with process_group(options.device) as device:
        from config import schema
        from support import distributed
        size = max(RESULT, schema.load(options.config, options.set).model_params.image_size)
        train_in(run_path(options), options.config, options.set, device)
        distributed.wait()              # for the checkpoint
        reconstruction.run_on(with_defaults(options, reconstruction), device)
        animate.run_on(with_defaults(options, animate, size=size), device)
        distributed.wait()
        if distributed.rank() == 0:
            print(ENDING.format(folder=run_path(options), size=size))


def with_defaults(options, mode, **flags):
    """The options, with other values of some flags, and the defaults of a mode's flags for all that they lack."""
    parser = argparse.ArgumentParser()
    mode.add_arguments(parser)
    return argparse.Namespace(**vars(parser.parse_args([])) | vars(options) | flags)
