"""What goes wrong around a run: full and read-only disks, lost folders and processes, damaged data, numbers, signals.

The run ends with exit code 2 and a line that says what to do, or goes on cleanly; what had been saved is not lost, so
that the same command, once the fault is gone, ends as an undisturbed run does.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.campaign import kill, material
from benchmarks.campaign.kill import SCENARIOS, check_same, check_whole, fresh, go_on, inputs, new_run, reference
from benchmarks.campaign.runner import Failure, Kind
from modules.build import METHODS
from tests.support.tiny import ROOT



def refused(run, *codes):
    """Failure unless the run ended with one of the exit codes and one line for the user, of each process at most."""
    text, codes = run.output(), codes or (2,)
    if run.code not in codes or 'Traceback' in text or run.code == 2 and not 1 <= text.count('error: ') <= run.ranks:
        raise Failure(f'code {run.code}: {text[-400:]}')
    return text


# ---------------------------------------------------------------------------- disks

class small_disk:
    """Within it, `folder` is a disk of its own of so many bytes (mount; for the superuser alone)."""

    def __init__(self, folder, size):
        self.folder, self.size = folder, int(size)

    def __enter__(self):
        self._mount('-t', 'tmpfs', '-o', f'size={self.size}', 'tmpfs')
        return self

    def change(self, options):
        self._mount('-o', f'remount,{options}')

    def _mount(self, *arguments):
        subprocess.run(['mount', *arguments, str(self.folder)], check=True)

    def __exit__(self, *error):
        subprocess.run(['umount', '-l', str(self.folder)], check=True)


def disk_full(name, number, rng, work):
    """The disk is full at any point of the run; once there is room, the same command ends it."""
    wanted, _ = reference(name, work)
    size = sum(-(-path.stat().st_size // 4096) * 4096 for path in wanted.rglob('*') if path.is_file())
    folder = fresh(work)
    with small_disk(folder, max(size * rng.uniform(0.05, 0.9), 4096)) as disk:
        run = new_run(name, work, folder, said=work / 'said.txt')
        run.said.unlink(missing_ok=True)
        if run.start().wait() == 0:
            return 'had room'
        refused(run)
        check_whole(folder, wanted)
        disk.change('size=1g')
        go_on(name, work, folder, 'with room again')
        check_same(folder, wanted)


def file_too_large(name, number, rng, work):
    """No file may grow beyond a limit: writes fail in the middle."""
    wanted, _ = reference(name, work)
    largest = max(path.stat().st_size for path in kill.files_in(wanted).values())
    folder = fresh(work)

    def limit(rank):
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest * rng.uniform(0.1, 0.9)), resource.RLIM_INFINITY))
    run = new_run(name, work, folder, said=work / 'said.txt', prepare=limit)
    run.said.unlink(missing_ok=True)
    run.start().wait()
    refused(run)
    check_whole(folder, wanted)
    go_on(name, work, folder, 'without the limit')
    check_same(folder, wanted)


def read_only(name, number, rng, work):
    folder = fresh(work)
    with small_disk(folder, 2 ** 20) as disk:
        disk.change('ro')
        run = new_run(name, work, folder, said=work / 'said.txt')
        run.said.unlink(missing_ok=True)
        run.start().wait()
        refused(run)


def folder_removed(name, number, rng, work):
    """The output folder vanishes while the run goes on: it says so, or makes the folder again."""
    _, facts = reference(name, work)
    folder, moment = fresh(work), rng.random() * facts['cpu']

    def remove(run):
        if run.cpu_time() > moment:
            for path in folder.iterdir():
                shutil.rmtree(path, ignore_errors=True)
    run = new_run(name, work, folder, said=work / 'said.txt', meanwhile=remove)
    run.said.unlink(missing_ok=True)
    run.start().wait()
    refused(run, 0, 2)


# ---------------------------------------------------------------------------- data and checkpoints

def data_damaged(number, rng, work):
    """Training clips are cut, emptied, replaced or removed while training reads them."""
    folder = fresh(work)
    for part, people in (('train', 'abcdef'), ('test', 'xy')):
        (folder / 'data' / part).mkdir(parents=True)
        for person in people:
            (folder / 'data' / part / f'{person}#clip.mp4').write_bytes(material.videos()[0][1])

    def damage(run):
        if (folder / 'run' / 'log.jsonl').is_file():
            for path in rng.sample(sorted((folder / 'data' / 'train').glob('*')), 2):
                rng.choice((lambda: os.truncate(path, path.stat().st_size // 2), lambda: path.write_bytes(b''),
                            lambda: path.write_text('no video'), path.unlink))()
            run.meanwhile = None
    run = new_run('train-adversarial', work, folder, meanwhile=damage, arguments=(
        f'dataset_params.root_dir={folder / "data"}', 'train_params.num_iterations=30'))
    run.start().wait()
    refused(run, 0, 2)
    return 'went on' if run.code == 0 else 'refused'


def checkpoint_damaged(number, rng, work):
    """One byte of the newest checkpoint is another, the file is cut, or empty: the one before is used."""
    wanted, _ = reference('train-motion', work)
    folder = fresh(work)
    shutil.copytree(wanted / 'run', folder / 'run')
    checkpoints = sorted((folder / 'run' / 'checkpoints').glob('*.pt'))
    checkpoints.pop().unlink()
    data = bytearray(checkpoints[-1].read_bytes())
    place = rng.randrange(len(data))
    data[place] ^= 1 << rng.randrange(8)
    checkpoints[-1].write_bytes(rng.choice((data, data, data, data[:place], b'')))
    run = new_run('train-motion', work, folder)
    run.start().wait()
    text = refused(run, 0)
    check_same(folder, wanted)
    return 'the one before was used' if f'{checkpoints[-1].name}: is ' in text else 'the byte is not read'


# ---------------------------------------------------------------------------- numbers

def poisoned(where, number, rng, work):
    """NaN or infinity in the loss or in a gradient of one of two processes: both skip the step, and agree."""
    folder, steps, value = fresh(work), rng.sample(range(2, 9), 2), rng.choice((float('nan'), float('inf')))
    broken_rank = rng.randrange(2)

    def poison(rank):
        method = METHODS['synergy'].model

        class Poisoned(method):
            calls = 0

            def forward(self, source, driving):
                generated = super().forward(source, driving)
                Poisoned.calls += self.training
                if self.training and rank == broken_rank and Poisoned.calls in steps:
                    if where == 'loss':
                        generated.losses['motion_code'] = generated.losses['motion_code'] * value
                    else:
                        generated.losses['motion_code'].register_hook(lambda gradient: gradient * value)
                return generated
        METHODS['synergy'] = METHODS['synergy']._replace(model=Poisoned)
    run = new_run('train-two-processes', work, folder, prepare=poison, arguments=('train_params.motion_iterations=0',))
    run.start().wait()
    text = refused(run, 0)
    if text.count('is not finite, skipped') != 2:
        raise Failure(f'steps {steps} should have been skipped: {text[-300:]}')
    state = torch.load(folder / 'run' / 'checkpoints' / '00000010.pt', weights_only=True)
    if not all(value.isfinite().all() for part in ('model', 'ema') for value in state[part].values()):
        raise Failure('weights are not finite')


# ---------------------------------------------------------------------------- processes and signals

def rank_killed(number, rng, work):
    """One of two processes is killed: the other one says so and ends, and the same command goes on."""
    wanted, facts = reference('train-two-processes', work)
    folder, moment, victim = fresh(work), rng.random() * facts['cpu'], rng.randrange(2)

    def stab(run):
        if run.cpu_time() > moment:
            os.kill(run.pids[victim], signal.SIGKILL)
            run.meanwhile = None
    run = new_run('train-two-processes', work, folder, meanwhile=stab)
    run.start().wait()
    if victim == 1:
        refused(run, 0, 2)
    go_on('train-two-processes', work, folder, 'after one process was killed')
    check_same(folder, wanted)


def worker_killed(number, rng, work):
    """A data loading process is killed, as the kernel does when memory is short."""
    wanted, facts = reference('train-adversarial', work)
    folder, moment = fresh(work), rng.random() * facts['cpu']

    def stab(run):
        children = _children(run.pids[0])
        if children and run.cpu_time() > moment:
            os.kill(rng.choice(children), signal.SIGKILL)
            run.meanwhile = None
    run = new_run('train-adversarial', work, folder, meanwhile=stab)
    run.start().wait()
    refused(run, 0, 2)
    go_on('train-adversarial', work, folder, 'after a data loading process was killed')
    check_same(folder, wanted)


def _children(pid):
    try:
        return [int(child) for child in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]
    except OSError:
        return []


def interrupted(name, number, rng, work):
    """Ctrl-C, once or twice, at any moment: no traceback, and the same command goes on."""
    wanted, facts = reference(name, work)
    folder, moment, again = fresh(work), rng.random() * facts['cpu'], rng.random() < 0.3

    def interrupt(run):
        if run.cpu_time() > moment:
            run.kill(signal.SIGINT)
            run.meanwhile = None
            if again:
                time.sleep(0.05)
                run.kill(signal.SIGINT)
    run = new_run(name, work, folder, meanwhile=interrupt)
    run.start().wait()
    refused(run, 0, 130)
    check_whole(folder, wanted)
    go_on(name, work, folder, 'after Ctrl-C')
    for path in folder.glob('run/checkpoints/*.pt'):
        if not (wanted / path.relative_to(folder)).is_file():
            path.unlink()               # the one that Ctrl-C made it save
    check_same(folder, wanted)
    return f'code {run.code}'


def broken_pipe(name, number, rng, work):
    """Whoever reads what is printed has gone."""
    folder = fresh(work)

    def close(rank):
        reading, writing = os.pipe()
        os.dup2(writing, 1)
        os.close(reading)
        os.close(writing)
    run = new_run(name, work, folder, prepare=close)
    run.start().wait()
    refused(run, 0, 141)
    return f'code {run.code}'


def clock_set_back(name, number, rng, work):
    wanted, _ = reference(name, work)
    folder = fresh(work)

    def turn_back(rank):
        start, real = time.time(), time.time
        time.time = lambda: 2 * start - real() - 86400
    run = new_run(name, work, folder, prepare=turn_back)
    run.start().wait()
    refused(run, 0)
    check_same(folder, wanted)


# ---------------------------------------------------------------------------- surroundings

def surroundings(what, number, rng, work):
    """In an interpreter of its own: no locale, no home, no shared memory."""
    wanted, _ = reference('train-adversarial', work)
    folder = fresh(work)
    environment, before = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT)), []
    if what == 'locale':
        environment = {name: text for name, text in environment.items() if not name.startswith('LC_')} | {
            'LC_ALL': 'C', 'LANG': 'C'}
    elif what == 'home':
        environment |= {'HOME': '/proc/nowhere', 'XDG_CACHE_HOME': '/proc/nowhere', 'TMPDIR': str(folder)}
    else:
        before = ['unshare', '-m', 'sh', '-c', 'mount -t tmpfs -o size=16k tmpfs /dev/shm && exec "$@"', 'sh']
    with open(folder / 'output.txt', 'w') as output:
        done = subprocess.run([*before, sys.executable, str(ROOT / 'run.py'),
                               *map(str, kill.command('train-adversarial', work))],
                              cwd=folder, env=environment, stdout=output, stderr=output)
    text = (folder / 'output.txt').read_text(errors='replace')
    if done.returncode not in ((0, 2) if what == 'shm' else (0,)) or 'Traceback' in text:
        raise Failure(f'code {done.returncode}: {text[-400:]}')
    if done.returncode == 0:
        check_same(folder, wanted)
    return f'code {done.returncode}'


def unreadable_inputs(number, rng, work):
    """Every file that a command names is missing, a folder, or empty, in turn."""
    cases = [(name, key) for name, scenario in SCENARIOS.items() for key in inputs(work)
             if f'{{{key}}}' in ' '.join(scenario.arguments)]
    name, key = cases[number % len(cases)]
    folder, given = fresh(work), command_with(name, key, work, rng)
    run = new_run(name, work, folder)
    run.arguments = given
    run.start().wait()
    refused(run)


def command_with(name, key, work, rng):
    """The scenario's command with another file in place of one of its inputs."""
    odd = work / 'odd'
    shutil.rmtree(odd, ignore_errors=True)
    (odd / 'folder').mkdir(parents=True)
    suffix = inputs(work)[key].suffix
    (odd / f'empty{suffix}').touch()
    instead = rng.choice((odd / f'missing{suffix}', odd / 'folder', odd / f'empty{suffix}', f'{odd}/a\x01b{suffix}',
                          odd / ('x' * 300 + suffix)))
    return [argument.format(**{**inputs(work), key: instead}) for argument in SCENARIOS[name].arguments]


def _spread(function, names, count):
    """Kinds of one fault for several scenarios, as one that takes them in turn."""
    return Kind(count * len(names), lambda number, rng, work: function(names[number % len(names)], number, rng, work))


SHORT = ['animate', 'evaluate', 'reconstruction']
ALL = [name for name in SCENARIOS if name != 'export']
KINDS = {
    'disk-full': _spread(disk_full, ALL, 4),
    'file-too-large': _spread(file_too_large, ALL, 2),
    'read-only': _spread(read_only, ALL, 1),
    'folder-removed': _spread(folder_removed, ['train-adversarial', *SHORT, 'prepare'], 4),
    'data-damaged': Kind(10, data_damaged),
    'checkpoint-damaged': Kind(20, checkpoint_damaged),
    'not-finite': _spread(poisoned, ['loss', 'gradient'], 5),
    'rank-killed': Kind(10, rank_killed),
    'worker-killed': Kind(10, worker_killed),
    'interrupted': _spread(interrupted, ALL, 4),
    'broken-pipe': _spread(broken_pipe, [*SHORT, 'prepare', 'animate-one', 'import'], 1),
    'clock-set-back': _spread(clock_set_back, ['train-adversarial', *SHORT, 'prepare'], 1),
    'surroundings': _spread(surroundings, ['locale', 'home', 'shm'], 1),
    'unreadable-inputs': Kind(40, unreadable_inputs),
}
