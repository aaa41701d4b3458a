"""Where checkpoints lie: in run folders, and the model that comes with the project. Nothing slow is imported."""

from pathlib import Path

from support.errors import UserError

SHIPPED = Path(__file__).parents[1] / 'weights' / 'heads-128.safetensors'


def shipped_weights():
    """Path of the weights that come with the project, as a string; UserError where this copy lacks them."""
    if not SHIPPED.is_file():
        raise UserError(f'no --checkpoint is given, and {SHIPPED} is missing from this copy; give --checkpoint, or '
                        'train the demo: python run.py --mode demo')
    return str(SHIPPED)


def checkpoints_in(run):
    """Paths of the checkpoints in a run folder, oldest first."""
    return sorted(path for path in Path(run).glob('checkpoints/*.pt') if path.stem.isdigit())


def newest_checkpoint(path):
    """The newest checkpoint in a run folder, or the path of a file itself, as a string; UserError for none."""
    if not Path(path).is_dir():
        return str(path)
    found = checkpoints_in(path)
    if not found:
        raise UserError(f'{path}: holds no checkpoint; in a run folder they are in {Path(path) / "checkpoints"}')
    return str(found[-1])
