"""Compare a run with reference curves: draw both, and report anomalies with likely causes.

    python run.py --mode curves --run log/demo-64
    python run.py --mode curves --run log/mine --reference demo-64 --out mine.png
"""

from pathlib import Path

NAMED = 5                 # differences of the config that are named; the others are counted


def add_arguments(parser):
    parser.add_argument('--run', required=True, help='folder of the run, with its log.jsonl')
    parser.add_argument('--reference', help='one of docs/curves; default: the one whose config is nearest')
    parser.add_argument('--out', metavar='FILE.png', help="file of the figure; default: curves.png in the run's folder")


def run(options):
    from curves import reference as references
    from curves.compare import compare
    from curves.draw import draw
    from curves.history import read_run
    from support.files import make_folder, refuse_overwriting, write_picture, written_whole
    folder = Path(options.run)
    curves, config = read_run(folder), references.config_of(folder)
    reference = (references.read_reference(options.reference) if options.reference else references.nearest(config))
    different = references.differences(config, reference.config)
    panels, anomalies = compare(curves, reference, same_config=not different)
    print_report(reference, different, curves, panels, anomalies)
    if not panels:
        print('no steps in common: nothing to draw')
        return
    out = Path(options.out or folder / 'curves.png')
    refuse_overwriting([out], (folder / 'log.jsonl', folder / 'config.yaml'))
    make_folder(out.parent)
    with written_whole(out) as path:
        figure = draw(panels, anomalies, f'{folder.name} compared with {reference.name}',
                      (folder.name, f'{reference.name}, {seeds(reference)}'))
        write_picture(path, figure.savefig, format='png', dpi=110)
    print(f'figure: {out}')


def seeds(reference):
    return '1 seed' if len(reference.seeds) == 1 else f'{len(reference.seeds)} seeds'


def print_report(reference, different, curves, panels, anomalies):
    """Print what the run is compared with, what is not normal, and what could not be compared."""
    print(f'{len(panels)} scalars compared with reference {reference.name} ({seeds(reference)})')
    if different:
        named = [f'{key} {ours} (reference: {theirs})' for key, (ours, theirs) in list(different.items())[:NAMED]]
        more = f', and {len(different) - NAMED} more' if len(different) > NAMED else ''
        print(f'the configs differ: {", ".join(named)}{more}')
    if different or len(reference.seeds) == 1:
        why = 'another config has other curves' if different else 'a reference of one seed has no range'
        print(f'{why}: checked against the limits that need no reference only')
    for anomaly in anomalies.values():
        print(anomaly.text)
    if not anomalies:
        print('no anomalies')
    drawn = {panel.scalar for panel in panels}
    if missing := [scalar for scalar in curves if scalar not in drawn]:
        print(f'without a reference, not drawn: {", ".join(missing)}')
