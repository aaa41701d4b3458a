"""Coordinate grids, resizing and sampling, with one choice of `align_corners` and padding.

Flows are backward flows: flow[b, y, x] is the position (x, y) in [-1, 1] at which the source is
sampled for the driving pixel (x, y). -1 and 1 are the centres of the first and the last pixel
(align_corners=True). FOMM's image warps read the same grids with align_corners=False, half a pixel
wider; published weights depend on that, so every call says which of the two it means.
"""

import functools

import torch
import torch.nn.functional as F


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)    # cached for training too, even if inference asks first
def _identity_grid(height, width, device):
    y = torch.linspace(-1, 1, height, device=device)
    x = torch.linspace(-1, 1, width, device=device)
    return torch.stack(torch.meshgrid(y, x, indexing='ij')[::-1], dim=-1)


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)
def _pixels_per_unit(height, width, device):
    return torch.stack([torch.full((), (side - 1) / 2, device=device) for side in (width, height)])


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)
def _cached_corners(many, few, device):
    """Bilinear resizing (align_corners=True) of `many` pixels to `few`: indices of pixels (2 * few,), their weights."""
    # Made on the CPU: Apple GPUs have no float64.
    position = torch.arange(few, dtype=torch.float64) * ((many - 1) / max(few - 1, 1))
    low = position.floor().clamp(max=many - 2)
    upper = position - low
    pixels, weights = torch.stack([low, low + 1], 1).flatten(), torch.stack([1 - upper, upper], 1).flatten()
    return pixels.long().to(device), weights.float().to(device)


def identity_grid(size, like):
    """The identity flow: (H, W, 2) float32 positions (x, y) in [-1, 1] on the device of `like`, size (H, W)."""
    return _identity_grid(*size, like.device)


def pixel_grid(size, like):
    """Pixel coordinates (x, y) of every position: (H, W, 2), as `identity_grid` but in pixels."""
    y, x = (torch.arange(count, dtype=like.dtype, device=like.device) for count in size)
    return torch.stack(torch.meshgrid(y, x, indexing='ij')[::-1], dim=-1)


def from_pixels(position, size):
    """Pixels (x, y) of an image of `size` (H, W), any shape (..., 2) -> positions in [-1, 1]."""
    return position / _pixels_per_unit(*size, position.device) - 1


def resize(x, size, align_corners=True):
    """Bilinear resize of (B, C, H, W) to `size` (H', W'); the tensor itself if it fits."""
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode='bilinear', align_corners=align_corners)


def resize_flow(flow, size, align_corners=True):
    """Resize a flow (B, h, w, 2) to `size` (H, W): positions are normalised, so values stay."""
    return resize(flow.permute(0, 3, 1, 2), size, align_corners).permute(0, 2, 3, 1)


def sample(x, flow, align_corners=True, padding_mode='zeros'):
    """Read x (B, C, H, W) at the positions `flow` (B, h, w, 2) -> (B, C, h, w), in x's type.

    Positions are at least fp32: near the border, bf16 rounds them to half a pixel of 256.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.grid_sample(x.to(wide), flow.to(wide), mode='bilinear', padding_mode=padding_mode,
                         align_corners=align_corners).to(x.dtype)


def read_at(flow, points):
    """Where a flow (B, h, w, 2) reads at points (B, K, 2), both in [-1, 1] -> (B, K, 2)."""
    return sample(flow.permute(0, 3, 1, 2), points[:, None], padding_mode='border')[:, :, 0].transpose(1, 2)


def warp(x, flow, align_corners=True):
    """Backward warping of x (B, C, H, W) by a flow of any size (B, h, w, 2) -> (B, C, H, W); FOMM, Sec. 3.2."""
    return sample(x, resize_flow(flow, x.shape[-2:], align_corners), align_corners)


def occlude(x, occlusion, align_corners=True):
    """Multiply x (B, C, H, W) with the occlusion map (B, 1, h, w) in [0, 1], in x's type; 1 keeps the feature."""
    return x * resize(occlusion, x.shape[-2:], align_corners).to(x.dtype)


class Warped:
    """x (B, C, H, W) warped by a flow (B, h, w, 2) as `warp` does, computed only for the pixels that are needed."""

    def __init__(self, x, flow):
        self.x, self.flow = x, resize_flow(flow, x.shape[-2:])

    @functools.cached_property
    def whole(self):
        """All pixels, (B, C, H, W)."""
        return sample(self.x, self.flow)

    def read_for(self, size):
        """The pixels that `resize` to `size` (h, w) reads: (B, C, 2h, 2w), or all if those are not fewer.

        Pointwise operations may be applied to them, before `resize_read` completes the resizing.
        """
        full = self.x.shape[-2:]
        if not _reads_few(full, size):
            return self.whole
        (rows, _), (columns, _) = _corners_of(self.x, full, size)
        return sample(self.x, self.flow[:, rows][:, :, columns])


def resize_read(pixels, full, size):
    """`resize` to `size` (h, w) of an image of size `full`, from the pixels that `Warped.read_for` returned."""
    if not _reads_few(full, size):
        return resize(pixels, size)
    (_, down), (_, across) = _corners_of(pixels, full, size)
    return F.avg_pool2d(pixels * (4 * down[:, None] * across).to(pixels.dtype), 2)


def _reads_few(full, size):
    return all(2 * few < many for many, few in zip(full, size))


@torch.compiler.assume_constant_result     # in compiled blocks too, tensors are made once
def _corners(many, few, device):
    return _cached_corners(many, few, device)


def _corners_of(x, full, size):
    return [_corners(many, few, x.device) for many, few in zip(full, size)]


def to_displacement(flow):
    """Flow (B, h, w, 2) -> displacement from the identity (B, 2, h, w), in pixels of its own grid."""
    size = flow.shape[1:3]
    return ((flow - identity_grid(size, flow)) * _pixels_per_unit(*size, flow.device)).permute(0, 3, 1, 2)


def from_displacement(displacement):
    """Displacement (B, 2, h, w) in pixels of its own grid -> difference of flows (B, h, w, 2)."""
    return displacement.permute(0, 2, 3, 1) / _pixels_per_unit(*displacement.shape[-2:], displacement.device)


def invert_2x2(matrix):
    """Inverse of (..., 2, 2) in closed form; torch.linalg.inv synchronises the GPU at every call."""
    a, b, c, d = matrix.flatten(-2).unbind(-1)
    adjugate = torch.stack([d, -b, -c, a], dim=-1).unflatten(-1, (2, 2))
    return adjugate / (a * d - b * c)[..., None, None]
