"""Frames to tensors and back, flows as colours, keypoints, sheets."""

import numpy as np
import pytest
import torch
from PIL import Image

from modules.warp import identity_grid
from support.errors import UserError
from tests.support.toys import names_in
from visualizer import CELL, draw_keypoints, flow_to_rgb, grid, save_png, to_tensor, to_uint8

pytestmark = pytest.mark.usefixtures('no_weights')


def test_frames_survive_the_way_to_tensors_and_back():
    frames = [np.arange(192, dtype=np.uint8).reshape(8, 8, 3) + np.uint8(64 * i) for i in range(2)]
    tensor = to_tensor(frames)
    assert tensor.shape == (2, 3, 8, 8) and tensor.min() >= -1 and tensor.max() <= 1
    assert np.array_equal(to_uint8(tensor), np.stack(frames))
    assert to_uint8(torch.full((1, 3, 1, 1), 7.0)).max() == 255


def test_stillness_is_white_and_directions_have_their_own_colours():
    grid_ = identity_grid((8, 8), torch.zeros(1))
    right, left = (grid_ + torch.tensor([shift, 0.]) for shift in (1., -1.))
    white, red, cyan = flow_to_rgb(torch.stack([grid_, right, left]))
    assert (white == 255).all() and red[0, 0, 0] == 255 and cyan[0, 0, 0] == 0


def test_keypoints_are_drawn_at_corner_aligned_positions():
    image = np.zeros((65, 65, 3), np.uint8)
    centre, corner = (draw_keypoints(image, [point]) for point in ([0, 0], [1, -1]))
    assert centre[32, 32].any() and np.array_equal(centre, centre[::-1, ::-1])
    assert corner[0, 64].any() and not corner[0, 60].any() and not image.any()


def test_sheet_holds_ragged_rows_and_long_texts(tmp_path):
    image = np.full((16, 16, 3), 128, np.uint8)
    sheet = grid([[image, image], [image]], ['a very long title that does not fit above its column', 'b'], ['x', 'y'])
    assert sheet.shape[0] > 2 * CELL and 2 * CELL < sheet.shape[1] < 3 * CELL
    save_png(tmp_path / 'sheet.png', sheet)
    assert names_in(tmp_path) == ['sheet.png'] and np.array_equal(np.asarray(Image.open(tmp_path / 'sheet.png')), sheet)
    with pytest.raises(UserError, match='cannot be written'):
        save_png(tmp_path / 'absent' / 'sheet.png', sheet)
