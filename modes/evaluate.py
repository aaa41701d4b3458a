"""Score a model, or videos that were made elsewhere, by a named protocol.

    python run.py --mode evaluate --checkpoint model.pt --path_map data/vox-png/test --list voxceleb1-50
    python run.py --mode evaluate --generated THEIRS --driving data/vox-png/test
"""

from pathlib import Path

from modes.options import add_device, add_model, load_model, process_group, refuse, run_path
from support.errors import UserError


def add_arguments(parser):
    add_model(parser)
    add_device(parser)
    parser.add_argument('--protocol', default='same-identity',
                        help='same-identity (default) | cross-identity-relative | ...: evaluation/protocols.py')
    parser.add_argument('--metrics', nargs='+', metavar='ID', help="metric ids; default: the protocol's")
    parser.add_argument('--list', help='voxceleb1-50 | voxceleb1-50-cross | ... (evaluation/lists/) or a CSV file, '
                                       "DaGAN's and MCNet's too; default: the protocol's, or the whole test set")
    parser.add_argument('--path_map', nargs='+', default=[], metavar='[PREFIX=]FOLDER',
                        help='where the clips are, or those whose ids begin with PREFIX; default: the test set')
    parser.add_argument('--generated', metavar='FOLDER',
                        help='score these videos, folders of frames or stills instead of a model')
    parser.add_argument('--driving', metavar='FOLDER', help='what drove them, named alike')
    parser.add_argument('--source', dest='sources', metavar='FOLDER', help='their sources, named alike')
    parser.add_argument('--resize', type=int, metavar='PIXELS', help='score --generated at this size')


def run(options):
    check(options)
    with process_group(options.device) as device:
        from evaluation import evaluate
        from evaluation.protocols import find_protocol
        from evaluation.report import format_table
        protocol = find_protocol(options.protocol)
        settings = dict(name=options.protocol, protocol=protocol, metric_ids=options.metrics or protocol.metrics,
                        device=device)
        prepared = (evaluate_folders if options.generated else evaluate_model)(options, protocol, device)
        part = f'-{Path(options.list).stem}' if options.list else ''
        folder = prepared.pop('folder') / f'{options.protocol}{part}'
        report = evaluate.evaluate(folder=folder, **settings, **prepared)
        if report is not None:
            print(format_table(report))
            print(f'metrics.json, metrics.csv, metrics.md and report.html are in {folder}')


def check(options):
    """UserError for flags that do not fit together."""
    if bool(options.generated) != bool(options.driving) or options.sources and not options.generated:
        raise UserError('--generated, --driving and --source belong together: give the first two, or none for a model')
    if options.generated:
        refuse(options, ('--checkpoint', '--config', '--set', '--path_map'), 'with --generated: no model makes frames')
    else:
        refuse(options, ('--resize',), 'without --generated: a model makes frames of its own size')


def evaluate_folders(options, protocol, device):
    """What evaluate.evaluate takes for videos that were made elsewhere."""
    from evaluation.evaluate import choose_items, clips_in, match_cases
    from evaluation.protocols import Item
    generated, driving, sources = (folder and clips_in(folder, options.resize)
                                   for folder in (options.generated, options.driving, options.sources))
    if options.list:
        list_name, items = choose_items(protocol, options.list, driving)
    else:
        list_name, items = 'all clips', [Item(name) for name in driving]
    cases, missing, extra = match_cases(items, protocol, generated, driving, sources)
    name = Path(options.generated).resolve().name
    return dict(cases=cases, items=items, list_name=list_name, missing=missing, extra=extra,
                subject={'generated': options.generated, 'resized to': options.resize},
                folder=Path(options.log_dir) / (options.run_name or name) / 'evaluation')


def evaluate_model(options, protocol, device):
    """What evaluate.evaluate takes for a model."""
    from datasets.build import test_clips
    from evaluation.evaluate import ClipFinder, choose_items, find_cases, test_set
    from evaluation.store import weights_hash
    from inference import Renderer
    config, model = load_model(options, device)
    size, precision, pairs = config.model_params.image_size, config.train_params.precision, config.animate_params
    clips = (test_set(options.path_map, size) if options.path_map else
             {clip.name: clip for clip in test_clips(config.dataset_params, size)})
    list_name, items = choose_items(protocol, options.list, clips, pairs.num_pairs, pairs.seed)
    cases, missing = find_cases(items, ClipFinder(clips, options.path_map, size))
    batch_size = config.reconstruction_params.batch_size
    return dict(cases=cases, items=items, list_name=list_name, missing=missing, batch_size=batch_size,
                renderer=Renderer(model, device, batch_size, precision),
                subject={'method': config.method, 'weights': weights_hash(model), 'image size': size,
                         'precision': precision},
                folder=run_path(options) / 'evaluation')
