"""Killed at any instant, at any change to a file and in the middle of a write: the end is that of an undisturbed run.

Every trial kills a run one to three times, by SIGKILL to its whole process group, looks at what is there under its
final name, and lets the same command end.
"""

import json
import shutil
import subprocess
from dataclasses import dataclass
from functools import partial

import torch
import yaml

# What the modes import while they run, imported once, before they are forked.
import animate  # noqa: F401
import evaluation.evaluate  # noqa: F401
import reconstruction  # noqa: F401
import tools.import_checkpoint  # noqa: F401
import torch.utils.tensorboard  # noqa: F401
import train  # noqa: F401
from benchmarks.ablation_run import code_version
from benchmarks.campaign import material
from benchmarks.campaign.fuzz import VOX
from benchmarks.campaign.processes import COUNT, Run, Stop
from benchmarks.campaign.runner import Failure, Kind

TIMES = ('data/wait', 'data/step')                           # begin figures of the log that no two runs share
OPEN_ENDED = ('log.txt', 'log.jsonl', 'run.log', 'output.txt', 'operations.txt', 'manifest.jsonl')


@dataclass(frozen=True)
class Scenario:
    """What is run; names in braces are files of `inputs`."""
    arguments: tuple
    ranks: int = 1
    threads: int = 1


def _train(*overrides, ranks=1, threads=1):
    return Scenario(('--mode', 'train', '--config', '{config}', '--device', 'cpu', '--log_dir', '.',
                     '--run_name', 'run', '--set', *overrides), ranks, threads)


_WEIGHTS = ('--checkpoint', '{checkpoint}', '--device', 'cpu')
_MODEL = (*_WEIGHTS, '--log_dir', '.', '--run_name', 'run')

SCENARIOS = {
    'train-motion': _train('train_params.motion_iterations=5'),
    'train-adversarial': _train('train_params.objective_params.adversarial_start=4', 'train_params.num_workers=1'),
    'train-accumulate': _train('train_params.accumulate=2', 'train_params.keep_checkpoints=1'),
    'train-two-threads': _train('train_params.precision=fp32', threads=2),
    'train-two-processes': _train('train_params.motion_iterations=3', ranks=2),
    'prepare': Scenario(('--mode', 'prepare', '--dataset', 'voxceleb1', '--videos', '{videos}', '--metadata',
                         '{metadata}', '--out', 'set', '--size', '16')),
    'prepare-png': Scenario(('--mode', 'prepare', '--dataset', 'voxceleb1', '--videos', '{videos}', '--metadata',
                             '{metadata}', '--out', 'set', '--size', '16', '--format', 'png', '--workers', '2')),
    'evaluate': Scenario(('--mode', 'evaluate', *_MODEL, '--metrics', 'psnr.rgb', 'l1.mean_abs')),
    'reconstruction': Scenario(('--mode', 'reconstruction', *_MODEL)),
    'animate': Scenario(('--mode', 'animate', *_MODEL, '--set', 'animate_params.num_pairs=3')),
    'animate-one': Scenario(('--mode', 'animate', *_WEIGHTS, '--source_image', '{source}', '--driving_video',
                             '{driving}', '--result_video', 'result.mp4')),
    'import': Scenario(('--mode', 'import', '--from', 'smac', '{published0}', '{published1}', '{published2}',
                        '--config', '{published}', '--out', 'model.pt')),
    'export': Scenario(('--mode', 'export', '--checkpoint', '{checkpoint}', '--out', 'onnx')),
}
COUNTS = {'train-motion': 25, 'train-adversarial': 25, 'train-accumulate': 20, 'train-two-threads': 10,
          'train-two-processes': 20, 'prepare': 25, 'prepare-png': 15, 'evaluate': 25, 'reconstruction': 15,
          'animate': 25, 'animate-one': 15, 'import': 15, 'export': 5}


def inputs(work):
    """{name: path} of the files that the scenarios read; made once."""
    folder = work / 'inputs'
    files = {'config': 'config.yaml', 'checkpoint': 'model.pt', 'source': 'source.png', 'driving': 'driving.mp4',
             'metadata': 'metadata.csv', 'videos': 'videos', 'published': 'published.yaml',
             **{f'published{n}': f'published{n}.pth' for n in range(3)}}
    if not (folder / 'done').is_file():
        (folder / 'videos').mkdir(parents=True, exist_ok=True)
        config = material.smallest(
            'train_params.num_iterations=10', 'train_params.log_every=1', 'train_params.save_every=2',
            'train_params.val_every=5', 'train_params.keep_checkpoints=20', 'train_params.batch_size=2',
            'model_params.motion_codebook_params.revive_after=2')
        (folder / 'config.yaml').write_text(yaml.safe_dump(config.as_dict()))
        (folder / 'model.pt').write_bytes(material.checkpoint())
        (folder / 'source.png').write_bytes(material.pictures()['.png'][0])
        (folder / 'driving.mp4').write_bytes(material.videos()[0][1])
        for video in 'abc':
            (folder / 'videos' / f'{video * 11}.mp4').write_bytes(material.videos()[0][1])
        (folder / 'metadata.csv').write_text(VOX + ''.join(
            f'{video * 11},{start},{start + 4},{left}-2-28-22,25,32,24,{part},id{video}{start}\n'
            for left, (video, part) in enumerate((('a', 'train'), ('b', 'train'), ('c', 'test')))
            for start in (0, 3, 6)))
        networks, config = material.published('smac')
        (folder / 'published.yaml').write_text(yaml.safe_dump(config.as_dict()))
        for n, contents in enumerate(networks):
            (folder / f'published{n}.pth').write_bytes(material.saved(contents))
        (folder / 'done').touch()
    return {name: folder / file for name, file in files.items()}


def command(name, work):
    return [argument.format(**inputs(work)) for argument in SCENARIOS[name].arguments]


def new_run(name, work, folder, *, arguments=(), **options):
    scenario = SCENARIOS[name]
    return Run([*command(name, work), *arguments], folder, scenario.ranks, scenario.threads, **options)


def reference(name, work):
    """(folder, {'cpu', 'operations', 'code'}) of an undisturbed run, made anew once the code is another one."""
    folder, facts, code = work / 'reference' / name, work / 'reference' / f'{name}.json', code_version()
    if not facts.is_file() or json.loads(facts.read_text()).get('code') != code:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        undisturbed = new_run(name, work, folder, stop=Stop(operation=COUNT)).start()
        if undisturbed.wait():
            raise RuntimeError(f'the undisturbed run ended with {undisturbed.code}: {undisturbed.output()[-400:]}')
        operations = int((folder / 'operations.txt').read_text())
        facts.write_text(json.dumps({'cpu': undisturbed.cpu, 'operations': operations, 'code': code}))
    return folder, json.loads(facts.read_text())


def trial(name, number, rng, work):
    """Kill a run of the scenario one to three times, look, and let it end."""
    wanted, facts = reference(name, work)
    folder, kills = fresh(work), []
    for _ in range(rng.randint(1, 3)):
        stop = _moment(rng, number, facts)
        killed = new_run(name, work, folder, stop=stop).start()
        code = killed.wait()
        # The limit of a byte reaches data processes that were started anew as a full disk does: an error, not a signal.
        if code > 0 and not (code == 2 and stop.byte is not None):
            raise Failure(f'ended with {code} before it was killed ({stop}): {killed.output()[-300:]}')
        if code == 0:
            break
        kills.append(stop)
        check_whole(folder, wanted)
    go_on(name, work, folder, f'after {kills}')
    check_same(folder, wanted)
    return f'killed {len(kills)} times'


def go_on(name, work, folder, when):
    """The same command again, undisturbed."""
    last = new_run(name, work, folder).start()
    if last.wait():
        raise Failure(f'{when} the same command ended with {last.code}: {last.output()[-400:]}')


def fresh(work):
    """An empty folder for a trial."""
    folder = work / 'trial'
    if folder.is_mount():           # a campaign that was killed left a small disk there
        subprocess.run(['umount', '-l', str(folder)], check=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _moment(rng, number, facts):
    """A Stop: any instant, any change to a file, or any byte of a write after that change."""
    how = rng.choice(('cpu', 'operation', 'operation', 'byte'))
    if how == 'cpu':
        return Stop(cpu=rng.random() * facts['cpu'])
    operation = rng.randrange(facts['operations'])
    return Stop(operation=operation, byte=None if how == 'operation' else int(2 ** rng.uniform(4, 20)))


# ---------------------------------------------------------------------------- what must hold

def files_in(folder):
    """{relative path: path} of all files but those that are always open-ended."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob('*'))
            if path.is_file() and path.name not in OPEN_ENDED and 'tfevents' not in path.name}


def check_whole(folder, wanted):
    """Whatever is there under its final name is what the undisturbed run has there, or had."""
    theirs = files_in(wanted)
    for name, path in files_in(folder).items():
        if any(part.startswith('.') for part in path.relative_to(folder).parts):
            continue
        if name not in theirs:
            if path.suffix == '.pt' and path.parent.name == 'checkpoints':
                torch.load(path, weights_only=True)      # one that the undisturbed run has removed
                continue
            if path.parent.name != 'clips':              # sums, merged later
                raise Failure(f'{name} is there after a kill, and not in an undisturbed run')
        elif not _equal(path, theirs[name]):
            raise Failure(f'{name} is not whole after a kill')


def check_same(folder, wanted):
    """The end is that of the undisturbed run."""
    ours, theirs = files_in(folder), files_in(wanted)
    if ours.keys() != theirs.keys():
        raise Failure(f'left over: {sorted(ours.keys() - theirs.keys())[:4]}, '
                      f'missing: {sorted(theirs.keys() - ours.keys())[:4]}')
    for name, path in ours.items():
        if not _equal(path, theirs[name]):
            raise Failure(f'{name} differs from that of an undisturbed run')
    for name in ('run/log.jsonl', 'run/log.txt', 'set/manifest.jsonl'):
        if (wanted / name).is_file():
            ours, theirs = _lines(folder / name), _lines(wanted / name)
            if ours != theirs:
                n = next((n for n, pair in enumerate(zip(ours, theirs)) if pair[0] != pair[1]), len(ours))
                raise Failure(f'{name}: {len(ours)} lines, not {len(theirs)}, or line {n + 1} differs: {ours[n:n + 1]}')
    for board in folder.rglob('tensorboard'):
        check_board(board, wanted / board.relative_to(folder))


def _lines(path):
    """Of a log or manifest, without figures that are times."""
    if path.suffix == '.txt':
        return [line.split()[0] for line in path.read_text().splitlines()]
    return [{name: value for name, value in json.loads(line).items() if not name.startswith(TIMES)}
            for line in path.read_text().splitlines()]


def check_board(board, wanted):
    """TensorBoard shows every step once, in order."""
    ours, theirs = (steps_of(folder) for folder in (board, wanted))
    if ours != theirs:
        tag = next(tag for tag in theirs if ours.get(tag) != theirs[tag])
        raise Failure(f'TensorBoard shows {tag} at steps {ours.get(tag)}')


def steps_of(board):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(board), size_guidance={'scalars': 0}).Reload()
    return {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()['scalars']}


def _equal(path, wanted):
    if path.read_bytes() == wanted.read_bytes():
        return True
    if path.suffix != '.pt':
        return False
    ours, theirs = (dict(_flat(torch.load(file, weights_only=True))) for file in (path, wanted))
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[key], theirs[key]) if isinstance(ours[key], torch.Tensor) else ours[key] == theirs[key]
        for key in ours)


def _flat(tree, prefix=''):
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(value, (dict, list, tuple)):
            yield from _flat(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', value


KINDS = {name: Kind(COUNTS[name], partial(trial, name)) for name in SCENARIOS}
