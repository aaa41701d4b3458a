"""Are the promises kept? Thousands of trials, each a function of the seed: kill, faults, fuzz, soak.

    python -m benchmarks.campaign kill|faults|fuzz|soak|all [--budget MINUTES] [--seed N] [--out DIR]

Writes OUT/CAMPAIGN-SEED/report.json and report.md: tried, survived, failed with the command that repeats each failure.
Stopped, the same command goes on; what was tried is not tried again.
"""

import argparse
import sys
from importlib import import_module

from benchmarks.campaign import soak
from benchmarks.campaign.runner import as_markdown, run_campaign

CAMPAIGNS = ('kill', 'faults', 'fuzz', 'soak')


def main():
    parser = argparse.ArgumentParser(prog='python -m benchmarks.campaign', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('campaign', choices=(*CAMPAIGNS, 'all'))
    parser.add_argument('--budget', type=float, metavar='MINUTES', help='of each campaign; default: until all is tried')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', default='log/campaign', help='default log/campaign')
    parser.add_argument('--only', nargs='+', default=[], metavar='KIND[/NUMBER]', help='these kinds or trials alone')
    parser.add_argument('--trials', type=int, help='at most so many of each kind')
    parser.add_argument('--scale', type=float, default=1.0, help='of the lengths of soak; default 1')
    options = parser.parse_args()
    soak.SCALE = options.scale
    names, failures = CAMPAIGNS if options.campaign == 'all' else [options.campaign], 0
    kinds = {name: import_module(f'benchmarks.campaign.{name}').KINDS for name in names}
    known = [kind for name in names for kind in kinds[name]]
    for chosen in options.only:
        if chosen.partition('/')[0] not in known:
            parser.error(f'--only {chosen}: the kinds are {", ".join(known)}')
    for name in names:
        report = run_campaign(name, kinds[name], options.out, seed=options.seed, minutes=options.budget,
                              only=options.only, trials=options.trials)
        print(as_markdown(report))
        failures += len(report['failures'])
    return int(failures > 0)


if __name__ == '__main__':
    sys.exit(main())
