"""Image losses: the Laplacian pyramid weighs small features."""

import torch

from modules.losses import laplacian


def test_a_shift_in_brightness_is_left_to_plain_l1():
    assert laplacian(torch.full((1, 3, 16, 16), 0.3)) < 1e-6


def test_small_features_count_for_more_than_their_pixels():
    """Of two differences with the same sum of pixels, the sharp one costs more than the flat one; plain L1 is blind."""
    flat, sharp = torch.full((1, 1, 16, 16), 1 / 256), torch.zeros(1, 1, 16, 16)
    sharp[..., 5, 5] = 1
    assert torch.isclose(flat.abs().mean(), sharp.abs().mean())
    assert laplacian(sharp) > 1.5 * sharp.abs().mean() > 1000 * laplacian(flat)


def test_pixels_get_a_gradient():
    difference = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    laplacian(difference).backward()
    assert (difference.grad != 0).float().mean() > 0.95      # bands may just cancel
