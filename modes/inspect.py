"""Visualise a model at a few driving frames, and its codebooks: the paper's Fig. 7, 8, 10 and 11.

    python run.py --mode inspect --checkpoint model.pt
    python run.py --mode inspect --checkpoint model.pt --source_image X.png --driving_video Y.mp4 --frames 0 20 40
"""

import logging
from pathlib import Path

from modes.options import (
    SHIPPED_DEFAULT, add_device, add_model, model_of, process_group, refuse, refuse_run_folder, run_path, use_shipped)
from support.errors import UserError
from support.files import check_inputs, refuse_overwriting

FIRST_CLIPS = 3           # test clips that are drawn without --source_image
MOMENTS = 3               # frames of a driving video that are drawn without --frames

log = logging.getLogger('run')


def add_arguments(parser):
    add_model(parser, SHIPPED_DEFAULT)
    add_device(parser)
    parser.add_argument('--source_image', help=f"source image; default: the first {FIRST_CLIPS} clips of the test set")
    parser.add_argument('--driving_video', help='driving video file, or folder of frames')
    parser.add_argument('--frames', type=int, nargs='+', metavar='N',
                        help=f'driving frames to draw, counted from 0; default: {MOMENTS} evenly spread, or one per '
                        'test clip')
    parser.add_argument('--absolute', action='store_true', help='transfer absolute poses, as test clips always do')
    parser.add_argument('--at', type=int, nargs=2, metavar=('X', 'Y'),
                        help='pixel whose attention to the codes is drawn')
    parser.add_argument('--code_frames', type=int, default=100, metavar='N',
                        help='test frames to count code usage over, evenly spread; default 100, 0 for all')
    parser.add_argument('--out', help='folder for the figures; default: inspect in the run folder')


def run(options):
    if bool(options.source_image) != bool(options.driving_video):
        raise UserError('--source_image and --driving_video need each other; give both, or neither for test clips')
    if not options.source_image:
        refuse(options, ('--absolute',), 'without --source_image: test clips always use absolute poses')
    if options.code_frames < 0:
        raise UserError(f'--code_frames {options.code_frames}: must not be negative')
    if options.out:
        refuse_run_folder(options, '--out')
    use_shipped(options)
    check_inputs((options.source_image, options.driving_video))
    folder = Path(options.out or run_path(options) / 'inspect')
    refuse_overwriting((folder, *folder.glob('*')), (options.source_image, options.driving_video))
    with process_group(options.device) as device:
        from figures.inspect import inspect
        from inference import Renderer
        from support import distributed
        from support.weights import weights_hash
        config, model = model_of(options, device)
        if distributed.rank() > 0:      # one process draws
            return
        cases, clips = (given_case if options.source_image else test_cases)(options, config)
        inspect(Renderer(model, device, precision=config.train_params.precision), cases, folder, at=options.at,
                code_clips=clips, code_frames=options.code_frames,
                about={'checkpoint': options.checkpoint or str(run_path(options)), 'method': config.method,
                       'image size': config.model_params.image_size, 'weights': weights_hash(model)})
        print(f'figures, inspect.html and inspect.json are in {folder}')


def test_cases(options, config):
    """(InspectCases of the first test clips, all test clips)."""
    from datasets.build import test_clips
    from figures.inspect import InspectCase
    clips = test_clips(config.dataset_params, config.model_params.image_size)
    return [InspectCase(clip.name, clip.read([0])[0], clip, options.frames or [len(clip) // 2], relative=False,
                        same_identity=True) for clip in clips[:FIRST_CLIPS]], clips


def given_case(options, config):
    """(the InspectCase of the given files, clips to count codes over: the test set, or the driving video)."""
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
        log.warning('code usage is counted over %s only: %s', driving.name, error)
        clips = [driving]
    return [case], clips
