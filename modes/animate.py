"""Animate a source image or video by a driving video or a motion template, or many pairs.

    python run.py --mode animate --source_image me.jpg --driving_video clip.mp4 --size 512 --crop auto
    python run.py --mode animate --checkpoint model.pt --driving_video Y.mp4 --save_motion smile.npz
    python run.py --mode animate --checkpoint model.pt --source_video X.mp4 --driving_motion smile.npz
"""

from dataclasses import replace
from pathlib import Path

from modes.options import (
    SHIPPED_DEFAULT, add_device, add_model, add_precision, model_of, process_group, refuse, refuse_run_folder, run_path,
    use_shipped)
from motion.settings import AnimationSettings, Motion, output_size
from support.errors import UserError
from support.files import check_inputs, refuse_overwriting

FILES = 'source_image', 'source_video', 'driving_video', 'driving_motion', 'save_motion'


def add_arguments(parser):
    add_model(parser, SHIPPED_DEFAULT)
    add_device(parser)
    add_precision(parser)
    AnimationSettings.add_flags(parser)


def run(options):
    check(options)
    use_shipped(options)
    with process_group(options.device) as device:
        run_on(options, device)


def run_on(options, device):
    """Returns the folder of pairs."""
    from support import distributed
    config, model = model_of(options, device)
    if not is_one(options):
        return run_pairs(options, config, model)
    if distributed.rank() == 0:     # one video is work for one process
        run_one(options, config, model)


def check(options):
    if not options.source_video:
        refuse(options, ('--source_end',), 'without --source_video')
    if is_one(options):
        settings = AnimationSettings.of(options)
        if settings.source is None:
            refuse(options, ('--result_video', '--side_by_side', '--paste_back', '--find_best_frame', '--size'),
                   'without a source')
        if settings.result_video or settings.source is None:
            refuse_run_folder(options, '--result_video' if settings.source else '--save_motion')
        check_inputs((settings.source, settings.driving))
        refuse_overwriting((settings.save_motion, settings.result_video), (options.checkpoint, options.config))
    else:
        Motion.of(options)
        if options.size == 'source':
            raise UserError('--size source needs --source_image or --source_video: pairs have one size; give pixels')
        refuse(options, ('--result_video', '--side_by_side', '--face_index', '--paste_back', '--background'),
               'without --source_image: pairs have their folder, and show source | driving | result')


def is_one(options):
    """Whether files to animate are named, rather than pairs of a list or of the test set."""
    return any(getattr(options, name) for name in FILES)


def run_pairs(options, config, model):
    from animate_pairs import animate_pairs
    from evaluation.pairs import find_pairs
    from load import animation_renderer
    from support import distributed
    params, own, crops = config.animate_params, config.model_params.image_size, options.crop == 'auto'
    size = output_size(options.size, own, own)
    if crops and not params.pairs_list:
        raise UserError('--crop auto needs --source_image or animate_params.pairs_list: test clips are crops already')
    cases = find_pairs(params.pairs_list, config.dataset_params, None if crops else size, params.num_pairs, params.seed)
    results = animate_pairs(animation_renderer(config, model, options.precision), cases,
                            run_path(options) / 'animation', Motion.of(options), crop_size=size if crops else None,
                            detail=None if size == own else options.detail == 'on', made_by=repr(config.model_params))
    if distributed.rank() == 0:
        print(f'{len(cases)} videos, list.csv and contact_sheet.png are in {results[0].parent}')
    return results[0].parent


def run_one(options, config, model):
    from animate import animate_files
    from load import animation_renderer
    settings = AnimationSettings.of(options)
    if settings.source and not settings.result_video:
        name = '--'.join(path.stem if path.is_file() else path.name.removesuffix('.mp4')      # or a folder of frames
                         for path in map(Path, (settings.source, settings.driving)))
        settings = replace(settings, result_video=str(run_path(options) / 'animation' / f'{name}.mp4'))
    driving = animate_files(settings, animation_renderer(config, model, options.precision))
    for path in filter(None, (settings.save_motion, settings.result_video)):
        print(f'{path}: {len(driving)} frames at {float(driving.fps):.6g} fps')
