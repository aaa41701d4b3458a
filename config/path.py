"""Whether a config file is there; in a module of its own, as it is asked before anything slow is imported."""

from pathlib import Path

from support.errors import UserError
from support.names import did_you_mean


def check_config_path(path):
    """UserError that names the nearest file where there is no config at `path`."""
    path = Path(path)
    if not path.is_file():
        known = sorted(str(p) for p in path.parent.glob('*.yaml')) if path.parent.is_dir() else []
        raise UserError(f'config {path} does not exist{did_you_mean(path, known)}')
