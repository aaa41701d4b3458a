"""Let a source image follow a driving video; without one, pairs of the config or of the test set.

    python run.py --mode animate --checkpoint model.pt --source_image X.png --driving_video Y.mp4 --result_video Z.mp4
    python run.py --mode animate --checkpoint model.pt --driving_video Y.mp4 --save_motion smile.npz
    python run.py --mode animate --checkpoint model.pt --source_video X.mp4 --driving_motion smile.npz
"""

from dataclasses import replace
from pathlib import Path

from modes.options import (
    add_device, add_model, add_motion, animation_renderer, check_motion, find_pairs, load_model, motion, process_group,
    refuse, refuse_run_folder, run_path)
from portrait import Portrait
from support.errors import UserError


def add_arguments(parser):
    add_model(parser)
    add_device(parser)
    parser.add_argument('--source_image', help='image; without any source or driver, pairs of the config or of the '
                        'test set are animated')
    parser.add_argument('--source_video', help='video file or folder of frames, whose frame i follows motion i')
    parser.add_argument('--source_end', choices=('loop', 'hold'), default='loop',
                        help='where --source_video is shorter than the motion: from its beginning again (default), or '
                        'its last frame')
    parser.add_argument('--driving_video', help='video file or folder of frames')
    parser.add_argument('--driving_motion', metavar='FILE.npz', help='motion template in the place of a driving video')
    parser.add_argument('--save_motion', metavar='FILE.npz',
                        help='write the keypoints of the driving video, a motion template; needs no source')
    parser.add_argument('--result_video', help='mp4 or gif; default: in the run folder')
    add_motion(parser)
    parser.add_argument('--crop', choices=('none', 'auto'), default='none',
                        help='auto: cut source and driving to a square around the face; RESULT_crop.png shows them')
    parser.add_argument('--face_index', type=int, nargs='+', default=[0], metavar=('SOURCE', 'DRIVING'),
                        help='with --crop auto: which face of source and driving; 0 (default) is the largest')
    parser.add_argument('--paste_back', action='store_true',
                        help='with --crop auto: lay the result back into the whole source image')
    parser.add_argument('--side_by_side', action='store_true', help='write source | driving | result')


def run(options):
    check(options)
    with process_group(options.device) as device:
        run_on(options, device)


def run_on(options, device):
    from support import distributed
    config, model = load_model(options, device)
    if not is_one(options):
        run_pairs(options, config, model, device)
    elif distributed.rank() == 0:     # one video is work for one process
        run_one(options, config, model, device)


def check(options):
    """UserError for flags that do not fit together."""
    check_motion(options)
    if not options.source_video:
        refuse(options, ('--source_end',), 'without --source_video')
    if is_one(options):
        portrait = portrait_of(options)
        if portrait.result_video or not portrait.source:
            refuse_run_folder(options, '--result_video' if portrait.source else '--save_motion')
    else:
        refuse(options, ('--result_video', '--side_by_side', '--face_index', '--paste_back'),
               'without --source_image: pairs have their folder, and show source | driving | result')


def is_one(options):
    """Whether files to animate are named, rather than pairs of a list or of the test set."""
    return any((options.source_image, options.source_video, options.driving_video, options.driving_motion,
                options.save_motion))


def portrait_of(options):
    """The Portrait that the flags describe; UserError where they do not fit together."""
    portrait = Portrait(
        options.source_image, options.source_video, options.source_end, options.driving_video, options.driving_motion,
        options.save_motion, options.result_video, options.relative, options.adapt_scale, options.find_best_frame,
        options.smooth, options.crop, tuple(options.face_index), options.paste_back, options.side_by_side)
    if not portrait.source:
        refuse(options, ('--result_video', '--side_by_side', '--paste_back', '--find_best_frame'), 'without a source')
    return portrait


def run_pairs(options, config, model, device):
    import animate
    from support import distributed
    params, size, crops = config.animate_params, config.model_params.image_size, options.crop == 'auto'
    if crops and not params.pairs_list:
        raise UserError('--crop auto needs --source_image or animate_params.pairs_list: test clips are crops already')
    cases = find_pairs(params.pairs_list, config.dataset_params, None if crops else size, params.num_pairs, params.seed)
    folder = run_path(options) / 'animation'
    animate.animate_pairs(animation_renderer(model, config, device), cases, folder, motion(options),
                          crop_size=size if crops else None, made_by=repr(config.model_params))
    if distributed.rank() == 0:
        print(f'{len(cases)} videos, list.csv and contact_sheet.png are in {folder}')


def run_one(options, config, model, device):
    from portrait import bring_to_life
    portrait = portrait_of(options)
    if portrait.source and not portrait.result_video:
        path = Path(portrait.driving)
        name = path.stem if path.is_file() else path.name.removesuffix('.mp4')      # or a folder of frames
        portrait = replace(portrait, result_video=str(run_path(options) / 'animation' / f'{name}.mp4'))
    driving = bring_to_life(portrait, animation_renderer(model, config, device), config.model_params.image_size)
    for path in filter(None, (portrait.save_motion, portrait.result_video)):
        print(f'{path}: {len(driving)} frames at {float(driving.fps):.6g} fps')
