"""Killed at any instant, at any change to a file, in the middle of a write: the end is that of an undisturbed run."""

import pytest

from tests.campaign import share_of
from tests.campaign.processes import Stop
from tests.campaign.scenarios import check_whole

pytestmark = pytest.mark.campaign
COUNTS = {'train-motion': 25, 'train-adversarial': 25, 'train-accumulate': 20, 'train-two-threads': 10,
          'train-two-processes': 20, 'prepare': 25, 'prepare-png': 15, 'evaluate': 25, 'reconstruction': 15,
          'animate': 25, 'animate-one': 15, 'import': 15, 'export': 5}


@pytest.mark.parametrize('name, number', [(name, n) for name, count in COUNTS.items() for n in range(share_of(count))])
def test_a_killed_run_ends_as_an_undisturbed_one(name, number, rng, scenarios):
    """Killed one to three times, by SIGKILL to its process group; then the same command ends."""
    if name == 'export':
        pytest.importorskip('onnx')
    (wanted, cpu, operations), folder, kills = scenarios.reference(name), scenarios.fresh(), []
    for _ in range(rng.randint(1, 3)):
        stop = _moment(rng, cpu, operations)
        killed = scenarios.run(name, folder, stop=stop).end()
        # The limit of a byte reaches data processes that were restarted as a full disk does: an error, not a signal.
        assert killed.code <= 0 or killed.code == 2 and stop.byte is not None, f'{stop}: {killed.text()[-300:]}'
        if killed.code == 0:
            break
        kills.append(stop)
        check_whole(folder, wanted)
    scenarios.finish(name, folder, f'killed at {kills}')


def _moment(rng, cpu, operations):
    """A Stop: any instant, any change to a file, or any byte of a write after that change."""
    how = rng.choice(('cpu', 'operation', 'operation', 'byte'))
    if how == 'cpu':
        return Stop(cpu=rng.random() * cpu)
    return Stop(operation=rng.randrange(operations), byte=None if how == 'operation' else int(2 ** rng.uniform(4, 20)))
