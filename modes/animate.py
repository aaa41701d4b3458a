"""Let a source image follow a driving video; without one, pairs of the config or of the test set.

    python run.py --mode animate --checkpoint model.pt --source_image X.png --driving_video Y.mp4 --result_video Z.mp4
"""

from pathlib import Path

from modes.options import (
    add_device, add_model, add_motion, animation_renderer, check_motion, find_pairs, load_model, motion, process_group,
    refuse, run_path)
from support.errors import UserError


def add_arguments(parser):
    add_model(parser)
    add_device(parser)
    parser.add_argument('--source_image', help='image; without it, pairs of the config or of the test set are animated')
    parser.add_argument('--driving_video', help='video file or folder of frames')
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
    if not options.source_image:
        run_pairs(options, config, model, device)
    elif distributed.rank() == 0:     # one video is work for one process
        run_one(options, config, model, device)


def check(options):
    """UserError for flags that do not fit together."""
    if bool(options.source_image) != bool(options.driving_video):
        raise UserError('--source_image and --driving_video belong together: give both, or neither for pairs')
    check_motion(options)
    if len(options.face_index) > 2 or min(options.face_index) < 0:
        raise UserError('--face_index: expected the number of a face in the source and, if wanted, one in the driving, '
                        'counted from 0')
    alone = options.source_image and options.crop == 'auto'
    if not alone and (options.paste_back or options.face_index != [0]):
        flag = '--paste_back' if options.paste_back else '--face_index'
        raise UserError(f'{flag} needs --crop auto and --source_image')
    if options.paste_back and options.side_by_side:
        raise UserError('--paste_back and --side_by_side exclude each other: choose one')
    if not options.source_image:
        refuse(options, ('--result_video', '--side_by_side'), 'without --source_image: pairs have their folder, and '
               'show source | driving | result')


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
    import animate
    from datasets.constant_rate import open_constant_rate
    from datasets.still import read_image
    from visualizer import beside
    size = config.model_params.image_size
    names, show = (options.source_image, options.driving_video), None
    source, driving = read_image(names[0]), open_constant_rate(names[1])
    result = Path(options.result_video or run_path(options) / 'animation' / f'{driving.name}.mp4')
    if options.crop == 'auto':
        source, driving, paste_back = animate.crop_to_faces(
            source, driving, size, result.with_name(f'{result.stem}_crop.png'), names=names,
            face_index=(*options.face_index, 0)[:2])
        if options.paste_back:
            show = lambda source, driving, frame: paste_back(frame)
    else:
        source, driving = animate.squeeze(source, driving, size, names)
    if options.side_by_side:
        show = beside
    sound = Path(names[1]) if Path(names[1]).is_file() else None
    frames = animate.animate(animation_renderer(model, config, device), source, driving, result, motion(options),
                             show=show, audio_from=sound)
    print(f'{result}: {frames} frames at {float(driving.fps):.6g} fps')
