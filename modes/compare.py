"""Compare methods side by side: a printed figure, as the paper's Fig. 6 and 9, and labelled videos.

    python run.py --mode compare --checkpoints Ours=model.pt MCNet=mcnet.pt --list pairs.csv --frames largest_pose
    python run.py --mode compare --checkpoints Ours=model.pt --generated AniPortrait=videos \\
        --source_image X.png --driving_video Y.mp4 --zoom 90 150 76 50
"""

from pathlib import Path

from figures.selection import parse_frames, parse_zoom
from modes.options import add_methods, check_methods, named, refuse, renderers
from motion.settings import Motion
from support.checkpoints import shipped_weights
from support.errors import UserError
from support.files import check_inputs, refuse_overwriting


def add_arguments(parser):
    add_methods(parser)
    parser.add_argument('--list', help='CSV file of pairs, with columns source, driving and optionally anchor; a row '
                                       'with one video is reconstructed from its first frame, and scored')
    parser.add_argument('--pairs', type=int, help='number of pairs, the first of --list; default: all')
    parser.add_argument('--source_image', help='source image, or a video whose first frame is the source')
    parser.add_argument('--driving_video', help='driving video file or folder of frames; the ground truth if it is '
                                                'also the source')
    parser.add_argument('--frames', nargs='+', default=['largest_pose'], metavar='RULE|N',
                        help='frames of each pair to print: largest_pose (default) | worst | best, by PSNR of the '
                             'first method | frame numbers from 0')
    parser.add_argument('--zoom', nargs='+', default=[], metavar='X Y W H',
                        help='region to enlarge, in pixels of the frames')
    parser.add_argument('--error', action='store_true', help='add error maps where there is a ground truth')
    parser.add_argument('--width_cm', type=float, default=17.5,
                        help='width of the printed figure, at 300 dpi; default 17.5')
    parser.add_argument('--pictures_only', action='store_true',
                        help='write no videos and render only the printed frames')
    parser.add_argument('--out', default='compare', help='folder for the results; default compare')


def run(options):
    check(options)
    from figures.compare import compare
    job = prepare(options)
    compare(job)
    print(f'comparison.png, .pdf and .json{"" if options.pictures_only else ", and videos/"} are in {options.out}')
    print(job.rule)


def check(options):
    if not options.checkpoints and not options.generated:
        options.checkpoints = [shipped_weights()]
    if bool(options.list) == bool(options.source_image or options.driving_video):
        raise UserError('give either --list, or --source_image and --driving_video')
    if not options.list and not (options.source_image and options.driving_video):
        raise UserError('--source_image and --driving_video need each other; give both')
    if options.pairs is not None:
        if not options.list:
            refuse(options, ('--pairs',), 'without --list')
        if options.pairs < 1:
            raise UserError(f'--pairs {options.pairs}: must be at least 1')
    check_methods(options)
    check_inputs((options.source_image, options.driving_video))
    refuse_overwriting(results_in(options), (options.source_image, options.driving_video, options.list))
    parse_frames(options.frames), parse_zoom(options.zoom)


def results_in(options):
    """The existing files that the comparison would overwrite, and its folder."""
    out = Path(options.out)
    return out, *out.glob('comparison.*'), *out.glob('videos/*')


def prepare(options):
    """The Comparison, at the largest image size of the models; raises UserErrors before the work.

    The config of the first checkpoint names the folder of the test set.
    """
    from animate import warn_of_squeeze
    from datasets.video import open_any
    from evaluation.videos import find_videos, pair_name
    from figures.compare import Comparison
    from figures.methods import RenderedMethod, VideoMethod, largest_cases
    checkpoints, generated = named(options)
    methods, dataset = [], None
    if checkpoints and not options.list:
        for path in (options.source_image, options.driving_video):
            warn_of_squeeze(path, open_any(path).read([0])[0])
    for name, config, renderer in renderers(checkpoints, options):
        dataset = dataset or config.dataset_params
        cases = cases_of(options, dataset, config.model_params.image_size)
        methods.append(RenderedMethod(name, renderer, cases, Motion.of(options)))
    cases = largest_cases(methods) if methods else cases_of(options, None, None)
    for name, folder in generated.items():
        videos = find_videos(folder, [pair_name(case) for case in cases], name)
        refuse_overwriting(results_in(options), [clip.path for clip in videos.values()])
        methods.append(VideoMethod(name, tuple(videos.values()), cases))
    return Comparison(Path(options.out), cases, tuple(methods), parse_frames(options.frames), parse_zoom(options.zoom),
                      options.error, not options.pictures_only, options.width_cm)


def cases_of(options, dataset, size):
    """The pairs at `size` pixels, a tuple of evaluation.cases.Case."""
    from evaluation.pairs import check_whole, find_pairs
    if options.list:
        cases = find_pairs(options.list, dataset, size, options.pairs, seed=0)[:options.pairs]
        return tuple(check_whole(cases, options.list, 'a comparison'))
    from figures.methods import case_of_files
    return (case_of_files(options.source_image, options.driving_video, size),)
