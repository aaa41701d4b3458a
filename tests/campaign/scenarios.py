"""Commands that the long tests disturb, and what must hold of the files that they leave."""

import json
import shutil

import torch

# Imported by the modes as they run; here once, before they are forked.
import animate  # noqa: F401
import evaluation.evaluate  # noqa: F401
import reconstruction  # noqa: F401
import tools.import_checkpoint  # noqa: F401
import torch.utils.tensorboard  # noqa: F401
import train  # noqa: F401
from tests.campaign.processes import COUNT, Run, Stop
from tests.support.inputs import write_inputs
from tests.support.training import flat, steps_of

TIMES = ('data/wait', 'data/step')                           # begin values of the log that no two runs share
OPEN_ENDED = ('log.txt', 'log.jsonl', 'run.log', 'output.txt', 'operations.txt', 'manifest.jsonl')


_TRAIN = '--mode train --config {config} --device cpu --log_dir . --run_name run --set'
_WEIGHTS = '--checkpoint {checkpoint} --device cpu'
_MODEL = f'{_WEIGHTS} --log_dir . --run_name run'
_PREPARE = '--mode prepare --dataset voxceleb1 --videos {videos} --metadata {metadata} --out set --size 16'

# Names in braces are files of `write_inputs`.
SCENARIOS = {
    'train-motion': f'{_TRAIN} train_params.motion_iterations=5',
    'train-adversarial': f'{_TRAIN} train_params.objective_params.adversarial_start=4 train_params.num_workers=1',
    'train-accumulate': f'{_TRAIN} train_params.accumulate=2 train_params.keep_checkpoints=1',
    'train-two-threads': f'{_TRAIN} train_params.precision=fp32',
    'train-two-processes': f'{_TRAIN} train_params.motion_iterations=3',
    'prepare': _PREPARE,
    'prepare-png': f'{_PREPARE} --format png --workers 2',
    'evaluate': f'--mode evaluate {_MODEL} --metrics psnr.rgb l1.mean_abs',
    'reconstruction': f'--mode reconstruction {_MODEL}',
    'animate': f'--mode animate {_MODEL} --set animate_params.num_pairs=3',
    'animate-one': f'--mode animate {_WEIGHTS} --source_image {{source}} --driving_video {{driving}} '
                   '--result_video result.mp4',
    'import': '--mode import --from smac {published0} {published1} {published2} --config {published} --out model.pt',
    'export': '--mode export --checkpoint {checkpoint} --out onnx',
}
PROCESSES = {'train-two-threads': {'threads': 2}, 'train-two-processes': {'ranks': 2}}


class Scenarios:
    """The scenarios' inputs, an undisturbed run of each, and new runs, all below one folder."""

    def __init__(self, folder):
        self.folder, self.inputs, self._references = folder, write_inputs(folder / 'inputs'), {}

    def run(self, name, folder, *more, instead=None, **options):
        """A Run of the scenario with `more` arguments; `instead` maps names of inputs to other files."""
        arguments = [argument.format(**self.inputs | (instead or {})) for argument in SCENARIOS[name].split()]
        return Run([*arguments, *more], folder, **PROCESSES.get(name, {}), **options)

    def reference(self, name):
        """The folder of an undisturbed run, its CPU seconds, its number of changes to files."""
        if name not in self._references:
            folder = self.folder / 'undisturbed' / name
            folder.mkdir(parents=True)
            undisturbed = self.run(name, folder, stop=Stop(operation=COUNT)).end()
            assert undisturbed.code == 0, undisturbed.text()[-400:]
            self._references[name] = folder, undisturbed.cpu, int((folder / 'operations.txt').read_text())
        return self._references[name]

    def fresh(self):
        """An empty folder for a trial."""
        folder = self.folder / 'trial'
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def finish(self, name, folder, when):
        """The same command again, undisturbed, ends as if nothing had happened."""
        last = self.run(name, folder).end()
        assert last.code == 0, f'{when}: {last.text()[-400:]}'
        check_same(folder, self.reference(name)[0])


def files_in(folder):
    """{relative path: path} of all files but those that are always open-ended."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob('*'))
            if path.is_file() and path.name not in OPEN_ENDED and 'tfevents' not in path.name}


def check_whole(folder, wanted):
    """Every file under its final name is what the undisturbed run has there, or had."""
    theirs = files_in(wanted)
    for name, path in files_in(folder).items():
        if any(part.startswith('.') for part in path.relative_to(folder).parts):
            continue
        if name in theirs:
            assert _equal(path, theirs[name]), f'{name} is incomplete after a kill'
        elif path.suffix == '.pt' and path.parent.name == 'checkpoints':
            torch.load(path, weights_only=True)      # one that the undisturbed run has removed
        else:                                        # sums are merged later
            assert path.parent.name == 'clips', f'{name} is there after a kill, and not in an undisturbed run'


def check_same(folder, wanted):
    """The end is that of the undisturbed run: files, logs, TensorBoard's steps."""
    ours, theirs = files_in(folder), files_in(wanted)
    assert ours.keys() == theirs.keys()
    different = [name for name, path in ours.items() if not _equal(path, theirs[name])]
    assert not different, f'{different} differ from those of an undisturbed run'
    for name in ('run/log.jsonl', 'run/log.txt', 'set/manifest.jsonl'):
        if (wanted / name).is_file():
            assert _lines(folder / name) == _lines(wanted / name), name
    for board in folder.rglob('tensorboard'):
        assert steps_of(board) == steps_of(wanted / board.relative_to(folder))


def _lines(path):
    """Of a log or manifest, without values that are times."""
    if path.suffix == '.txt':
        return [line.split()[0] for line in path.read_text().splitlines()]
    return [{name: value for name, value in json.loads(line).items() if not name.startswith(TIMES)}
            for line in path.read_text().splitlines()]


def _equal(path, wanted):
    if path.read_bytes() == wanted.read_bytes():
        return True
    if path.suffix != '.pt':
        return False
    ours, theirs = (dict(flat(torch.load(file, weights_only=True))) for file in (path, wanted))
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[key], theirs[key]) if isinstance(ours[key], torch.Tensor) else ours[key] == theirs[key]
        for key in ours)
