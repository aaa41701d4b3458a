"""benchmarks/expression.py: 1 for a perfect model, 0 for one that stands still, and people of its own."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import expression
from datasets.build import TEST_SEED, TRAIN_SEED, VALIDATION_SEED
from modules.talking_head import Generated
from tests.support.tiny import save_model


class Copy:
    """Shows the driving image times `gain` on the source: 1 is a perfect model, 0 one that stands still."""

    def __init__(self, gain):
        self.gain, self.params = gain, SimpleNamespace(image_size=32)

    def eval(self):
        return self

    def encode_source(self, image):
        return image

    def keypoints(self, image):
        return image

    def render(self, source, driving):
        return Generated(source + self.gain * (driving - source), [], [])


@pytest.mark.parametrize('gain', [0.0, 0.5, 1.0])
def test_the_share_is_that_of_the_true_change(gain):
    found = expression.measure(Copy(gain), 32, people=2)
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
