"""Score a model, or videos made elsewhere, by a named protocol.

    python run.py --mode evaluate --checkpoint model.pt --path_map data/vox/test --list voxceleb1-50
    python run.py --mode evaluate --generated THEIRS --driving data/vox/test
"""

from pathlib import Path

from modes.options import add_device, add_model, model_of, process_group, refuse, run_path
from support.errors import UserError


def add_arguments(parser):
    add_model(parser)
    add_device(parser)
    parser.add_argument('--protocol', default='same-identity',
                        help='same-identity (default) | same-identity-no-first | cross-identity-relative | '
                             'cross-identity-absolute | pairs-same | pairs-cross | celebv-hq: see docs/evaluation.md')
    parser.add_argument('--metrics', nargs='+', metavar='ID', help="metric ids; default: the protocol's metrics")
    parser.add_argument('--list', help='voxceleb1-50 | voxceleb1-50-cross | ... (evaluation/lists/), or a CSV file; '
                                       "default: the protocol's list, or the whole test set")
    parser.add_argument('--path_map', nargs='+', default=[], metavar='[PREFIX=]FOLDER',
                        help='folder of the clips, or of the clips whose ids start with PREFIX; default: the test set')
    parser.add_argument('--generated', metavar='FOLDER',
                        help='score these videos, frame folders or stills instead of a model')
    parser.add_argument('--driving', metavar='FOLDER',
                        help='driving videos of --generated, with the same names')
    parser.add_argument('--source', dest='sources', metavar='FOLDER',
                        help='source images of --generated, with the same names')
    parser.add_argument('--resize', type=int, metavar='PIXELS', help='resize --generated to this size before scoring')


def run(options):
    check(options)
    with process_group(options.device) as device:
        from evaluation import evaluate
        from evaluation.protocols import find_protocol
        from evaluation.tables import format_table
        protocol = find_protocol(options.protocol)
        selection, how, folder, renderer = (of_folders if options.generated else of_model)(options, protocol, device)
        job = evaluate.EvaluationJob(options.protocol, protocol, selection, tuple(options.metrics or protocol.metrics),
                                     **how)
        part = f'-{Path(options.list).stem}' if options.list else ''
        folder = folder / 'evaluation' / f'{options.protocol}{part}'
        report = evaluate.evaluate(job, folder, device, renderer)
        if report is not None:
            print(format_table(report))
            print(f'metrics.json, metrics.csv, metrics.md and report.html are in {report.folder}')


def check(options):
    if bool(options.generated) != bool(options.driving) or options.sources and not options.generated:
        raise UserError('--generated, --driving and --source belong together: give the first two, or none for a model')
    if options.generated:
        refuse(options, ('--checkpoint', '--config', '--set', '--path_map'), 'with --generated, which needs no model')
    else:
        refuse(options, ('--resize',), 'without --generated: models have an image size of their own')


def of_folders(options, protocol, device):
    """(Selection of videos made elsewhere, further fields of the EvaluationJob, the run's folder, None)."""
    from evaluation.cases import Selection, choose_items, clips_in, match_cases, under_names
    from evaluation.protocols import Item
    generated, driving, sources = (folder and clips_in(folder, options.resize)
                                   for folder in (options.generated, options.driving, options.sources))
    if options.list:
        list_name, items = choose_items(protocol, options.list, driving)
    else:
        list_name, items = 'all clips', [Item(name) for name in driving]
        generated, sources = (under_names(clips, driving, folder) for clips, folder in (
            (generated, options.generated), (sources, options.sources)))
    selection = Selection(list_name, items, *match_cases(items, protocol, generated, driving, sources))
    name = options.run_name or Path(options.generated).resolve().name
    subject = {'generated': options.generated, 'resized to': options.resize}
    return selection, {'subject': subject}, Path(options.log_dir) / name, None


def of_model(options, protocol, device):
    """(Selection of the clips, further fields of the EvaluationJob, the run's folder, the model's Renderer)."""
    from datasets.build import test_clips
    from evaluation.cases import ClipFinder, Selection, choose_items, find_cases, test_set
    from evaluation.report import subject_of
    from inference import Renderer
    config, model = model_of(options, device)
    size, pairs = config.model_params.image_size, config.animate_params
    clips = (test_set(options.path_map, size) if options.path_map else
             {clip.name: clip for clip in test_clips(config.dataset_params, size)})
    list_name, items = choose_items(protocol, options.list, clips, pairs.num_pairs, pairs.seed)
    folders = [Path(options.list).parent] if options.list and Path(options.list).is_file() else []
    selection = Selection(list_name, items, *find_cases(items, ClipFinder(clips, options.path_map, size, folders)))
    batch_size = config.reconstruction_params.batch_size
    return (selection, {'subject': subject_of(config, model), 'batch_size': batch_size}, run_path(options),
            Renderer(model, device, batch_size, config.train_params.precision))
