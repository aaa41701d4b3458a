"""Frames to a device and back: the same ones, in order, however late they are read. (On a GPU: test_gpu.py.)"""

import numpy as np
import pytest
import torch

from inference import Renderer
from support.errors import UserError
from support.transfer import Transfer
from tests.support.toys import ToyClip


class Late(Transfer):
    """What a GPU's would do, by hand: a batch arrives when the next one has been sent."""

    def __init__(self):
        super().__init__('cpu')
        self.behind, self.sent, self.read = 1, 0, []

    def down(self, tensor):
        self.sent += 1
        number, wait = self.sent, super().down(tensor)

        def array():
            self.read.append((number, self.sent))
            return wait()
        return array


def test_a_copy_there_and_back_is_the_same(tmp_path):
    array = np.random.default_rng(0).integers(0, 255, (2, 5, 4, 3), dtype=np.uint8)
    transfer = Transfer('cpu')
    assert transfer.behind == 0 and np.array_equal(transfer.down(transfer.up(array))(), array)


@pytest.mark.parametrize('frames', [1, 4, 11])
def test_frames_that_are_read_late_are_the_same_in_order(model, frames):
    clip, renderer = ToyClip(num_frames=frames), Renderer(model, 'cpu', 4)
    wanted = [batch.frames for batch in renderer.follow(clip.frame(0)).render(clip.frames())]
    renderer.transfer = Late()
    found = [batch.frames for batch in renderer.follow(clip.frame(0)).render(clip.frames())]
    assert len(found) == len(wanted) and all(map(np.array_equal, found, wanted))
    behind = [sent - number for number, sent in renderer.transfer.read]
    assert len(wanted) == 1 or min(behind[:-2]) >= 2, 'a batch, which is two tensors, was waited for at once'


def test_a_batch_that_is_not_finite_is_an_error_before_it_is_given(model):
    clip, renderer = ToyClip(num_frames=12), Renderer(model, 'cpu', 4)
    renderer.transfer = Late()
    given = []
    with pytest.raises(UserError, match='not finite'):
        for batch in renderer.follow(clip.frame(0)).render(clip.frames()):
            given.append(batch)
            if len(given) == 1:
                with torch.no_grad():
                    model.heat.weight.fill_(float('nan'))
    assert 1 <= len(given) < 3
