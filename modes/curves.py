"""Draw a run over reference curves, and report anomalies with likely causes.

    python run.py --mode curves --run log/demo-64
    python run.py --mode curves --run log/mine --reference demo-64 --out mine.png
"""

from pathlib import Path

NAMED = 5                 # differences of the config that are named; the others are counted


def add_arguments(parser):
    parser.add_argument('--run', required=True, help='folder of the run, with its log.jsonl')
    parser.add_argument('--reference',
                        help='name of a reference in docs/curves; default: the one with the most similar config')
    parser.add_argument('--out', metavar='FILE.png', help="file of the figure; default: curves.png in the run's folder")


def run(options):
    from curves import reference as references
    from curves.anomalies import find_anomalies
    from curves.draw import draw
    from curves.history import read_run
    from support.files import encoded, make_folder, refuse_overwriting, write_bytes
    folder = Path(options.run)
    curves, config = read_run(folder), references.config_of(folder)
    reference = (references.read_reference(options.reference) if options.reference else references.nearest(config))
    anomalies = find_anomalies(curves)
    print(f'{folder.name} compared with reference {reference.name} ({reference.counted})')
    different = references.differences(config, reference.config)
    if 'model_params.method' in different:
        print('the reference is of another method, so values of losses do not compare; '
              'docs/monitoring.md describes how to make one')
    if different:
        named = [f'{key} {ours} (reference: {theirs})' for key, (ours, theirs) in list(different.items())[:NAMED]]
        more = f', and {len(different) - NAMED} more' if len(different) > NAMED else ''
        print(f'the configs differ: {", ".join(named)}{more}')
    print('\n'.join(anomaly.text for anomaly in anomalies.values()) or 'no anomalies')
    out = Path(options.out or folder / 'curves.png')
    refuse_overwriting([out], (folder / 'log.jsonl', folder / 'config.yaml'))
    make_folder(out.parent)
    figure = draw(curves, reference, anomalies, folder.name)
    write_bytes(out, encoded(figure.savefig, format='png', dpi=110))
    print(f'figure: {out}')
