"""Recording of a reference from finished runs: one recipe, one run per seed (docs/monitoring.md).

    python -m curves.record RUN... --name demo-64
"""

import argparse
import sys
from pathlib import Path

from curves.history import read_run
from curves.reference import FOLDER, Reference, differences, config_of, write_reference
from support.errors import UserError, program


def record(folders, name):
    """The Reference of the runs in some folders. Raises UserError where they are not seeds of one recipe."""
    configs = [config_of(folder) for folder in folders]
    for folder, config in zip(folders[1:], configs[1:]):
        for key, (theirs, ours) in differences(configs[0], config).items():
            raise UserError(f'{folder}: is of another recipe than {folders[0]}: {key} is {ours!r}, not {theirs!r}')
    seeds = [config['train_params']['seed'] for config in configs]
    for folder, seed in zip(folders, seeds):
        if seeds.count(seed) > 1:
            raise UserError(f'{folder}: seed {seed} appears twice; give one run per seed')
    config = configs[0]
    root = config['dataset_params']['root_dir']
    config['dataset_params']['root_dir'] = root and Path(root).name      # the path is private
    return Reference(name, config, dict(sorted(zip(seeds, map(read_run, folders)))))


@program
def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', nargs='+', type=Path, metavar='RUN', help='folders of runs, one per seed')
    parser.add_argument('--name', required=True, help='name of the reference: that of its config')
    parser.add_argument('--out', type=Path, default=FOLDER, help='folder; default docs/curves')
    options = parser.parse_args(arguments)
    path = write_reference(record(options.runs, options.name), options.out)
    print(f'{path}: {len(options.runs)} seeds, {path.stat().st_size / 1024:.0f} KiB')


if __name__ == '__main__':
    sys.exit(main())
