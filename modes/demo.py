"""Train a small model on synthetic heads; reconstruct and animate unseen ones.

    python run.py --mode demo
"""

import argparse

from modes import animate, compare, reconstruction
from modes.options import add_config, add_device, add_run_folder, process_group, run_path
from modes.train import train_in
from support.checkpoints import SHIPPED, checkpoints_in

DEMO_CONFIG = 'config/demo-64.yaml'
RESULT = 256               # least side of the animations in pixels: with the sources' detail where the model's is less
COMPARED = 3               # pairs in the figure that compares this model with the one in weights/
ENDING = """
{folder} holds a model, trained on synthetic heads. Its results:
  {reconstructed}/contact_sheet.png   unseen heads, reconstructed from their first frame, and the videos
  {animated}/contact_sheet.png        unseen heads that follow others, at {size} px, and the videos
  {folder}/compare/comparison.png             this model and the one in weights/, which trained for hours
  {folder}/pictures/                          flows and occlusion per scale while training
  tensorboard --logdir {folder}/tensorboard    curves, codes in use, pictures
Open it in the browser:
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
        folder, config = run_path(options), schema.load(options.config, options.set)
        first, size = distributed.rank() == 0, max(RESULT, config.model_params.image_size)

        def phase(number, what):
            distributed.wait()          # for the files of the phase before
            if first:
                print(f'\n[{number}/4] {what}', flush=True)

        phase(1, f'Train for {config.train_params.num_iterations} steps. The default config takes 4 to 8 minutes.')
        if not train_in(folder, options.config, options.set, device):
            return
        phase(2, 'Reconstruct unseen heads from their first frames: half a minute.')
        reconstructed = reconstruction.run_on(with_defaults(options, reconstruction), device)
        phase(3, f'Animate unseen heads by others at {size} px: a minute.')
        animated = animate.run_on(with_defaults(options, animate, size=size), device)
        phase(4, 'Compare them with the model in weights/: seconds.')
        if first:
            models = {folder.name: checkpoints_in(folder)[-1], SHIPPED.stem: SHIPPED}
            compare.run(with_defaults(
                options, compare, checkpoints=[f'{name}={path}' for name, path in models.items()], pairs=COMPARED,
                list=animated / 'list.csv', pictures_only=True, out=folder / 'compare', set=[]))
            print(ENDING.format(folder=folder, size=size, reconstructed=reconstructed, animated=animated))


def with_defaults(options, mode, **flags):
    """The options with `flags` replaced, and with the defaults of a mode's flags where they lack one."""
    parser = argparse.ArgumentParser()
    mode.add_arguments(parser)
    return argparse.Namespace(**vars(parser.parse_args([])) | vars(options) | flags)
