"""Comparison of our networks with stored results of the released implementations.

    python -m benchmarks.parity FIXTURE.npz|FOLDER ... [--config FILE] [--set key=value ...] [--failures]

Fills our networks, through the true checkpoint importer, with weights that follow from their published names, runs
the fixture's inputs, and compares every stored tensor. Exits with 1 if one is out of tolerance.
"""

import argparse
import sys
import time
from pathlib import Path

from benchmarks.parity.kinds import compare
from support.errors import program


@program
def main(arguments=None):
    """Compare and print; returns the exit code: 0 all within tolerance, 1 not all, 2 a user's mistake."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks.parity', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('fixtures', nargs='+', type=Path, metavar='FIXTURE.npz|FOLDER')
    parser.add_argument('--config', help="config to use instead of the method's own")
    parser.add_argument('--set', nargs='+', default=[], metavar='key=value', help='override config values')
    parser.add_argument('--failures', action='store_true', help='print only what is out of tolerance')
    options = parser.parse_args(arguments)
    paths = [path for given in options.fixtures
             for path in (sorted(given.glob('*.npz')) if given.is_dir() else [given])]
    failures = 0
    for path in paths:
        began = time.perf_counter()
        comparisons = compare(path, options.config, options.set)
        failed = report(comparisons, options.failures)
        print(f'{path.name}: {len(comparisons) - failed} of {len(comparisons)} within tolerance '
              f'({time.perf_counter() - began:.0f} s)', flush=True)
        failures += failed
    return 1 if failures else 0


def report(comparisons, failures_only):
    """Print one line per comparison; returns how many are out of tolerance."""
    width = max(len(comparison.name) for comparison in comparisons)
    header = f'{"":{width}}  {"largest":>9} {"allowed":>9}  {"mean":>9} {"allowed":>9}'
    lines, failed = [], 0
    for comparison in comparisons:
        largest, mean, passed = comparison.verdict()
        failed += not passed
        if not (passed and failures_only):
            lines.append(f'{comparison.name:{width}}  {largest:9.2e} {comparison.largest:9.2e}  '
                         f'{mean:9.2e} {comparison.mean:9.2e}  {"ok" if passed else "OUT"}')
    if lines:
        print('\n'.join([header, *lines]))
    return failed


if __name__ == '__main__':
    sys.exit(main())
