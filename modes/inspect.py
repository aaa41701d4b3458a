"""Draw what a model does at a few driving frames, and what its codes mean: the paper's Fig. 7, 8, 10 and 11.

    python run.py --mode inspect --checkpoint model.pt
    python run.py --mode inspect --checkpoint model.pt --source_image X.png --driving_video Y.mp4 --frames 0 20 40
"""

import logging
from pathlib import Path

from modes.options import add_device, add_model, model_of, process_group, refuse, refuse_run_folder, run_path
from support.errors import UserError

FIRST_CLIPS = 3           # of the test set, looked at where no images are given
MOMENTS = 3               # frames of a driving video, looked at where none are named

log = logging.getLogger('run')


def add_arguments(parser):
    add_model(parser)
    add_device(parser)
    parser.add_argument('--source_image', help="image; without it, the test set's first clips are looked at")
    parser.add_argument('--driving_video', help='video file or folder of frames')
    parser.add_argument('--frames', type=int, nargs='+', metavar='N',
                        help=f'frames of the driving video to look at, from 0; default: {MOMENTS} spread over it, one '
                        'of each test clip')
    parser.add_argument('--absolute', action='store_true', help="take the driver's pose as it is; test clips always do")
    parser.add_argument('--at', type=int, nargs=2, metavar=('X', 'Y'),
                        help='a pixel of the picture to look at closely: what attention reads for it')
    parser.add_argument('--arrows', action='store_true', help='draw arrows over flows')
    parser.add_argument('--code_frames', type=int, default=100, metavar='N',
                        help='frames of the test set that codes are counted over, evenly spread; default 100, 0 for '
                        'all')
    parser.add_argument('--out', help='folder of the pictures; default: inspect in the run folder')


def run(options):
    if bool(options.source_image) != bool(options.driving_video):
        raise UserError('--source_image and --driving_video belong together: give both, or neither for test clips')
    if not options.source_image:
        refuse(options, ('--absolute',), 'without --source_image: a clip that drives itself always does')
    if options.code_frames < 0:
        raise UserError(f'--code_frames {options.code_frames}: must not be negative')
    if options.out:
        refuse_run_folder(options, '--out')
    with process_group(options.device) as device:
        from figures.inspect import InspectOptions, inspect
        from support import distributed
        from support.weights import weights_hash
        config, model = model_of(options, device)
        if distributed.rank() > 0:      # a few pictures are work for one process
            return
        cases, clips = (given_case if options.source_image else test_cases)(options, config)
        folder = Path(options.out or run_path(options) / 'inspect')
        inspect(model, cases, folder, device=device, precision=config.train_params.precision,
                options=InspectOptions(options.at, options.arrows, tuple(clips), options.code_frames),
                about={'checkpoint': options.checkpoint or str(run_path(options)), 'method': config.method,
                       'image size': config.model_params.image_size, 'weights': weights_hash(model)})
        print(f'inspect.html, inspect.json and the pictures are in {folder}')


def test_cases(options, config):
    """(InspectCases of the first test clips, all test clips)."""
    from datasets.build import test_clips
    from figures.inspect import InspectCase
    clips = test_clips(config.dataset_params, config.model_params.image_size)
    return [InspectCase(clip.name, clip.read([0])[0], clip, options.frames or [len(clip) // 2], relative=False,
                        same_identity=True) for clip in clips[:FIRST_CLIPS]], clips


def given_case(options, config):
    """(the InspectCase of the user's files, clips that codes are counted over: test set or driver)."""
    from animate import squeeze
    from datasets.build import test_clips
    from datasets.constant_rate import open_constant_rate
    from datasets.still import read_image
    from figures.inspect import InspectCase
    names, size = (options.source_image, options.driving_video), config.model_params.image_size
    source, driving = squeeze(read_image(names[0]), open_constant_rate(names[1]), size, names)
    frames = options.frames or sorted({(2 * i + 1) * len(driving) // (2 * MOMENTS) for i in range(MOMENTS)})
    case = InspectCase(Path(names[0]).stem, source, driving, frames, relative=not options.absolute, same_identity=False)
    try:
        clips = test_clips(config.dataset_params, size)
    except UserError as error:
        log.warning('codes are counted over %s alone: %s', driving.name, error)
        clips = [driving]
    return [case], clips
