"""What all campaigns share: numbered trials, each a function of the seed, their report, and going on after a stop."""

import json
import os
import platform
import random
import time
import traceback
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import NamedTuple

from support.files import make_folder, written_whole

PAGE, TICKS = (os.sysconf(name) for name in ('SC_PAGE_SIZE', 'SC_CLK_TCK'))


class Failure(Exception):
    """The project did not keep a promise; the message is one line and says which."""


def resident(pid='self'):
    """Bytes of a process that are in memory; 0 if there is none."""
    try:
        return int(Path(f'/proc/{pid}/statm').read_text().split()[1]) * PAGE
    except (OSError, IndexError):
        return 0


def cpu_time(pid):
    """Seconds that a process has computed so far; 0 if there is none."""
    try:
        fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS
    except (OSError, IndexError):
        return 0.0


class Kind(NamedTuple):
    """One kind of trial.

    count: how many a whole campaign makes
    trial: (number, random.Random, folder that all trials of the campaign share) -> what came of it, one word, or None;
           any exception is a failure
    """
    count: int
    trial: Callable


def run_campaign(name, kinds, out, *, seed=0, minutes=None, only=(), trials=None):
    """Make the trials that have not been made yet, and write the report; returns it as a dict.

    kinds:   {name: Kind}; they take turns, so that a budget that ends early has tried some of each
    out:     the campaign works in out/NAME-SEED, and finds there what it did before
    minutes: begin no trial after so many
    only:    'KIND' or 'KIND/NUMBER': these alone; numbered ones are made even if they were made before
    trials:  at most so many of each kind
    """
    folder = make_folder(Path(out).resolve() / f'{name}-{seed}')
    tried = _read(folder / 'tried.jsonl')
    end = time.monotonic() + 60 * minutes if minutes else float('inf')
    for kind, number in _turns(kinds, only, trials, tried):
        if time.monotonic() > end:
            break
        entry = _try(kinds[kind], number, f'{seed}/{kind}/{number}', make_folder(folder / 'work'))
        tried[kind, number] = entry
        with open(folder / 'tried.jsonl', 'a') as file:
            file.write(json.dumps({'kind': kind, 'number': number} | entry) + '\n')
        print(f'{name} {kind}/{number}: {entry["failed"] or entry["outcome"] or "survived"}', flush=True)
    report = _report(name, kinds, seed, tried)
    with written_whole(folder / 'report.json') as path:
        path.write_text(json.dumps(report, indent=1) + '\n')
    with written_whole(folder / 'report.md') as path:
        path.write_text(as_markdown(report))
    return report


def _turns(kinds, only, trials, tried):
    """(kind, number) of what is to be tried, in order."""
    numbered = [tuple(name.split('/')) for name in only if '/' in name]
    if numbered:
        yield from ((kind, int(number)) for kind, number in numbered if kind in kinds)
        return
    chosen = [kind for kind in kinds if not only or kind in only]
    counts = {kind: min(kinds[kind].count, trials or kinds[kind].count) for kind in chosen}
    for turn in range(100):       # each takes a hundredth of its trials at a turn
        for kind in chosen:
            first, last = (counts[kind] * (turn + i) // 100 for i in (0, 1))
            yield from ((kind, number) for number in range(first, last) if (kind, number) not in tried)


def _try(kind, number, seed, work):
    start, outcome, failed = time.monotonic(), None, None
    try:
        outcome = kind.trial(number, random.Random(seed), work)
    except Failure as failure:
        failed = str(failure)
    except Exception as error:          # of the campaign's own checks, too: a trial that did not hold is none
        where = traceback.extract_tb(error.__traceback__)[-1]
        failed = f'{type(error).__name__} at {Path(where.filename).name}:{where.lineno}: {" ".join(str(error).split())}'
    return {'seconds': round(time.monotonic() - start, 2), 'outcome': outcome, 'failed': failed and failed[:600]}


def _read(path):
    """{(kind, number): entry} of trials that were made; a line that was cut counts as not made."""
    tried = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        tried[entry.pop('kind'), entry.pop('number')] = entry
    return tried


# ---------------------------------------------------------------------------- report

def _report(name, kinds, seed, tried):
    figures = {}
    for kind in kinds:
        entries = [entry for (of, _), entry in tried.items() if of == kind]
        figures[kind] = {'planned': kinds[kind].count, 'tried': len(entries),
                         'survived': sum(entry['failed'] is None for entry in entries),
                         'outcomes': dict(Counter(entry['outcome'] for entry in entries if entry['outcome'])),
                         'slowest_s': max((entry['seconds'] for entry in entries), default=0)}
    failures = [{'trial': f'{kind}/{number}', 'why': entry['failed'],
                 'repeat': f'python -m benchmarks.campaign {name} --seed {seed} --only {kind}/{number}'}
                for (kind, number), entry in sorted(tried.items()) if entry['failed']]
    machine = f'{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}'
    return {'campaign': name, 'seed': seed, 'date': date.today().isoformat(), 'machine': machine, 'kinds': figures,
            'failures': failures}


def as_markdown(report):
    """The report for people: a table, and every failure with the command that repeats it."""
    lines = [f'# Campaign: {report["campaign"]}', '',
             f'{report["date"]}, {report["machine"]}, seed {report["seed"]}.', '',
             '| kind | planned | tried | survived | of these | slowest, s |', '|---|---|---|---|---|---|']
    for kind, row in report['kinds'].items():
        outcomes = ', '.join(f'{count} {outcome}' for outcome, count in sorted(row['outcomes'].items()))
        lines.append(f'| {kind} | {row["planned"]} | {row["tried"]} | {row["survived"]} | {outcomes} | '
                     f'{row["slowest_s"]} |')
    lines += ['', f'{len(report["failures"])} failures.', '']
    for failure in report['failures']:
        lines += [f'- {failure["trial"]}: {failure["why"]}', f'  `{failure["repeat"]}`']
    return '\n'.join(lines) + '\n'
