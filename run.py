"""The command line: parse, load the config, build, dispatch.

    python run.py --config config/vox-256.yaml --mode train
    python run.py --mode reconstruction --checkpoint model.pt
    python run.py --mode animate --checkpoint model.pt --source_image X.png --driving_video Y.mp4 --result_video Z.mp4
"""

import argparse
import logging
import sys
from pathlib import Path

import torch

import distributed
from config import schema
from config.errors import UserError
from logger import RunFolder, check_same_model, checkpoint_config, read_checkpoint
from modules.build import build_model
from modules.checkpoint_import import FORMATS

DEFAULT_CONFIG = 'config/vox-256.yaml'
DEMO_CONFIG = 'config/demo-64.yaml'

log = logging.getLogger('run')


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--mode', choices=MODES, default='train')
    parser.add_argument('--config', help=f'YAML file; default {DEFAULT_CONFIG}, or the one inside of --checkpoint')
    parser.add_argument('--set', nargs='+', default=[], action='extend', metavar='section.key=value',
                        help='override config values')
    parser.add_argument('--log_dir', default='log', help='folder of all runs')
    parser.add_argument('--run_name', help="this run's folder in --log_dir; default: the config's name")
    parser.add_argument('--checkpoint', help='weights to use; default: the newest of the run folder')
    parser.add_argument('--resume', metavar='RUN', help='train: go on with the run in this folder, with its config')
    parser.add_argument('--device', default='auto', help='auto | cpu | cuda | cuda:N | mps')

    animate = parser.add_argument_group('animate')
    animate.add_argument('--source_image', help='image; without it, pairs of the config or of the test set are animated')
    animate.add_argument('--driving_video', help='video file or folder of frames')
    animate.add_argument('--result_video', help='mp4 or gif; default: in the run folder')
    motion = animate.add_mutually_exclusive_group()
    motion.add_argument('--relative', dest='relative', action='store_true', default=True,
                        help="add the driver's motion to the source's pose (default)")
    motion.add_argument('--absolute', dest='relative', action='store_false', help="take the driver's pose as it is")
    animate.add_argument('--adapt_scale', action='store_true', help="scale relative motion to the source's face")
    animate.add_argument('--find_best_frame', action='store_true',
                         help='start relative motion from the driving frame that is nearest to the source')
    animate.add_argument('--side_by_side', action='store_true', help='write source | driving | result')

    published = parser.add_argument_group('import')
    published.add_argument('--from', dest='source', choices=FORMATS, help='which public code wrote the files')
    published.add_argument('--out', default='model.pt', help='where the imported model goes')
    published.add_argument('files', nargs='*', help='published checkpoint files')
    return parser.parse_args(arguments)


# ---------------------------------------------------------------------------- modes

def run_train(options, device):
    from train import train
    if options.resume:
        folder = Path(options.resume)
        config = schema.load(folder / 'config.yaml', options.set)
    else:
        config = schema.load(options.config or DEFAULT_CONFIG, options.set)
        folder = run_path(options)
    run = RunFolder(folder, writes=distributed.rank() == 0)
    if run.writes:
        log_to(folder / 'run.log')
        schema.save(config, folder / 'config.yaml')
    try:
        train(config, run, device)
    finally:
        run.close()


def run_reconstruction(options, device):
    from datasets.build import test_clips
    from metrics.report import format_table
    from reconstruction import reconstruct
    config, model = load_model(options, device)
    params = config.reconstruction_params
    clips = test_clips(config.dataset_params, config.model_params.image_size)[:params.num_videos]
    folder = run_path(options) / 'reconstruction'
    summary, skipped = reconstruct(model, clips, folder, device=device, batch_size=params.batch_size,
                                   include_first=params.include_first, save_videos=params.save_videos,
                                   precision=config.train_params.precision)
    print(format_table(summary, skipped))
    print(f'videos, metrics.json, metrics.csv and contact_sheet.png are in {folder}')


def run_animate(options, device):
    import animate
    from datasets.build import test_people
    from datasets.video import open_clip, read_image
    if bool(options.source_image) != bool(options.driving_video):
        raise UserError('--source_image and --driving_video belong together: give both, or neither for pairs')
    config, model = load_model(options, device)
    params, size = config.animate_params, config.model_params.image_size
    how = dict(device=device, batch_size=params.batch_size, relative=options.relative, adapt_scale=options.adapt_scale,
               precision=config.train_params.precision)

    if options.source_image:
        source, driving = read_image(options.source_image, size), open_clip(options.driving_video, size)
        result = Path(options.result_video or run_path(options) / 'animation' / f'{driving.name}.mp4')
        anchor = animate.find_best_frame(model, source, driving, device) if options.find_best_frame else None
        sound = Path(options.driving_video) if Path(options.driving_video).is_file() else None
        frames = animate.animate(model, source, driving, result, anchor=anchor, side_by_side=options.side_by_side,
                                 audio_from=sound, **how)
        print(f'{result}: {frames} frames at {float(driving.fps):.6g} fps')
        return
    root = config.dataset_params.root_dir
    if params.pairs_list:
        pairs = animate.read_pairs(params.pairs_list, Path(root, 'test') if root else None, size)
    else:
        pairs = animate.draw_pairs(test_people(config.dataset_params, size), params.num_pairs, params.seed)
    folder = run_path(options) / 'animation'
    animate.animate_pairs(model, pairs, folder, best_frame=options.find_best_frame, **how)
    print(f'{len(pairs)} videos and contact_sheet.png are in {folder}')


def run_demo(options, device):
    options.config = options.config or DEMO_CONFIG
    for mode in (run_train, run_reconstruction, run_animate):
        mode(options, device)
    folder = run_path(options)
    print(f"""
A model at {folder}, trained on heads that this project draws itself. Look at
  {folder}/reconstruction/contact_sheet.png   unseen heads, rebuilt from their first frame; videos beside it
  {folder}/animation/contact_sheet.png        unseen heads that follow another one; videos beside it
  {folder}/pictures/                          how it learned: flows and occlusion per scale
  tensorboard --logdir {folder}/tensorboard    curves, codes in use, pictures
Real data next: README.md, "Train on VoxCeleb1".""")


def run_import(options, device):
    from import_checkpoint import import_published
    if not options.source or not options.files:
        raise UserError(f'--mode import needs --from {"|".join(FORMATS)} and the published files')
    config = schema.load(options.config or DEFAULT_CONFIG, options.set)
    count = import_published(options.source, options.files, config, options.out)
    print(f'{count} tensors imported into {options.out}')


MODES = {'train': run_train, 'reconstruction': run_reconstruction, 'animate': run_animate, 'demo': run_demo,
         'import': run_import}


# ---------------------------------------------------------------------------- shared by the modes

def run_path(options):
    """The run's folder: named after the config, so that the same command finds it again."""
    default = Path(options.config or options.checkpoint or DEFAULT_CONFIG).stem
    return Path(options.log_dir) / (options.run_name or default)


def load_model(options, device):
    """(config, model in eval mode): the weights for inference of a checkpoint and the config that fits them."""
    if options.checkpoint:
        path, state = options.checkpoint, read_checkpoint(options.checkpoint)
    else:
        found = RunFolder(run_path(options), writes=False).newest()
        if found is None:
            raise UserError(f'no checkpoint in {run_path(options) / "checkpoints"}: train first '
                            '(--mode train), or give --checkpoint')
        path, state = found
    config = checkpoint_config(state, path) if options.checkpoint and not options.config else None
    if config is None:
        config = schema.load(options.config or DEFAULT_CONFIG, options.set)
        check_same_model(config, state, path)
    elif options.set:
        config = schema.override(config, options.set)
    model = build_model(config)
    model.load_state_dict(state['ema'])
    log.info('weights: %s, step %d', path, state['step'])
    return config, model.to(device).eval()


def choose_device(name):
    if name == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f'--device {name}: expected auto, cpu, cuda, cuda:N or mps') from None
    if device.type == 'cuda':
        if not torch.cuda.is_available():
            raise UserError(f'--device {name}: PyTorch finds no CUDA GPU on this machine; use --device cpu')
        if (device.index or 0) >= torch.cuda.device_count():
            raise UserError(f'--device {name}: this machine has {torch.cuda.device_count()} GPU(s)')
    if device.type == 'mps' and not torch.backends.mps.is_available():
        raise UserError('--device mps: PyTorch finds no Apple GPU on this machine; use --device cpu')
    return device


def log_to(path):
    """Also keep the log in a file."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter('%(asctime)s %(levelname)s %(message)s'))
    logging.getLogger().addHandler(handler)


class AboveProgressBar(logging.Handler):
    """Prints log lines without tearing the progress bar."""

    def emit(self, record):
        from tqdm import tqdm
        tqdm.write(self.format(record), file=sys.stderr)


def main(arguments=None):
    options = parse_arguments(arguments)
    try:
        device = distributed.start(choose_device(options.device))
        logging.basicConfig(level=logging.INFO if distributed.rank() == 0 else logging.ERROR,
                            format='%(message)s', handlers=[AboveProgressBar()])
        MODES[options.mode](options, device)
    except UserError as error:
        # From a data loading process it arrives behind that process's traceback; the message is the last line.
        print(f'error: {str(error).strip().splitlines()[-1].removeprefix("config.errors.UserError: ")}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
    finally:
        distributed.stop()
    return 0


if __name__ == '__main__':
    sys.exit(main())
