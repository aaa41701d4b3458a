"""benchmarks/expression.py: the share of a true change, measured on synthetic heads."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import expression
from datasets.build import TEST_SEED, TRAIN_SEED, VALIDATION_SEED
from modules.talking_head import Generated
from tests.support.tiny import save_model


def copying(gain):
    """A model that shows the driving image times `gain` on the source: 1 is perfect, 0 stands still."""
    model = SimpleNamespace(params=SimpleNamespace(image_size=32), eval=lambda: model)
    model.encode_source = model.keypoints = lambda image: image
    model.render = lambda source, driving: Generated(source + gain * (driving - source), [], [])
    return model


@pytest.mark.parametrize('gain', [0.0, 0.5, 1.0])
def test_the_share_is_that_of_the_true_change(gain):
    found = expression.measure(copying(gain), 32, people=2)
    assert found == pytest.approx(dict.fromkeys(expression.MOVES, gain), abs=0.03)


def test_one_part_moves_and_the_head_is_still():
    rest, moved = map(np.stack, zip(*expression.pairs('mouth', 2, 64)))
    rows = np.nonzero(np.abs(rest.astype(int) - moved).max((0, 2, 3)) >= expression.CHANGED)[0]
    assert rows.size and rows.min() > 30                  # nothing above the middle of the face
    assert not {expression.SEED} & {TRAIN_SEED, TEST_SEED, VALIDATION_SEED}


def test_a_run_is_measured_from_the_command_line(tmp_path, capsys):
    save_model(tmp_path / 'model.pt')
    assert expression.main(['--checkpoint', str(tmp_path / 'model.pt'), '--people', '1']) == 0
    assert '| lids |' in capsys.readouterr().out
    assert expression.main(['--checkpoint', str(tmp_path / 'nothing.pt')]) == 2
    assert 'nothing.pt' in capsys.readouterr().err
