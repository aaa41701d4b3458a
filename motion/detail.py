"""Frames larger than the model's images: the source's own detail, warped along the flow.

    P   prediction, at the model's size        M   finest flow
    S   source image, at the output size       W   S sampled at M
    g   gate in [0, 1], at the model's size

    frame = up(P) + up(g) W - up(g down(W))

Up to the model's resolution the frame is the model's; what is finer comes from the source. The gate closes where the
source has nothing to give. Where the model repaints, as in an opening mouth, P and down(W) disagree; where the flow
tears the source apart, its detail would become streaks. Nothing is learned, and every frame stands alone: a still
driver gives a still result.
"""

import functools

import torch
import torch.nn.functional as F

from modules.warp import resize, resize_flow, sample, to_displacement
from visualizer import to_bytes

TOLERANCE = 0.14       # difference of P and down(W), images in [-1, 1], at which the gate has fallen to 1/e
TORN, WHOLE = 0.2, 0.6  # scale of the flow, in its weakest direction, up to which the gate is closed; from which open


def large_frames(generated, source, detail=True):
    """Frames (B, H, H, 3) uint8 at the size of the source, one after the other: memory is that of one frame.

    generated: modules.talking_head.Generated of B frames
    source:    (1 or B, 3, H, H) in [-1, 1], larger than the prediction
    detail:    carry the source's detail; False enlarges the prediction alone
    """
    frames = []
    for i in range(len(generated.prediction)):
        prediction, flow = generated.prediction[i:i + 1].float(), generated.flows[-1][i:i + 1].float()
        image = source if len(source) == 1 else source[i:i + 1]
        frames.append(to_bytes(add_detail(prediction, flow, image) if detail else _up(prediction, image.shape[-1])))
    return torch.cat(frames)


def add_detail(prediction, flow, source):
    """The prediction (B, 3, h, h) at the size of the source (1 or B, 3, H, H), with its detail: (B, 3, H, H).

    flow: (B, h', w', 2), see modules/warp.py
    """
    size, large = prediction.shape[-1], source.shape[-1]
    displacement = to_displacement(resize_flow(flow, (size, size))).contiguous()          # pixels of the model
    wide = resize(displacement, (large, large), align_corners=False).permute(0, 2, 3, 1)
    positions = torch.add(_centres(large, source.device), wide, alpha=2 / size)
    moved = sample(source.expand(len(flow), -1, -1, -1), positions, align_corners=False, padding_mode='border')     # W
    small = F.interpolate(moved, (size, size), mode='bilinear', antialias=True)           # down(W)
    gate = agreement(prediction, small) * visibility(displacement)
    coarse, gate = _up(torch.cat([prediction - gate * small, gate], 1), large).split([3, 1], 1)
    return torch.addcmul(coarse, gate.clamp(0, 1), moved)


def agreement(prediction, moved):
    """Agreement of the prediction with the warped source, in [0, 1]: (B, 1, h, h).

    prediction, moved: P and down(W), (B, 3, h, h)
    """
    difference = F.avg_pool2d((prediction - moved).abs().mean(1, keepdim=True), 3, 1, 1, count_include_pad=False)
    return torch.exp(-(difference / TOLERANCE) ** 2)


def visibility(displacement):
    """Where the flow keeps the source whole, in [0, 1]: (B, 1, h, h).

    displacement: of the flow, (B, 2, h, h) in its pixels. The scale of the flow in its weakest direction is the smaller
                  singular value of its Jacobian: 1 moves, above enlarges the area that is read, 0 repeats one pixel
    """
    padded = F.pad(displacement, (1, 1, 1, 1), mode='replicate')
    dx = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2
    dy = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2
    a, c, b, d = dx[:, 0] + 1, dx[:, 1], dy[:, 0], dy[:, 1] + 1                           # [[a, b], [c, d]]
    scale = (torch.hypot(a + d, b - c) - torch.hypot(a - d, b + c)) / 2
    share = ((scale[:, None] - TORN) / (WHOLE - TORN)).clamp(0, 1)
    return share ** 2 * (3 - 2 * share)


def _up(x, size):
    """x (B, C, h, h), enlarged: (B, C, size, size). With `antialias` PyTorch takes the separable, faster way."""
    return F.interpolate(x, (size, size), mode='bicubic', antialias=True)


@functools.lru_cache(maxsize=4)
@torch.inference_mode(False)      # cached for all uses, even if inference asks first
def _centres(size, device):
    """Positions of the pixels' centres, (size, size, 2), for align_corners=False."""
    centre = (torch.arange(size, device=device) * 2 + 1) / size - 1
    return torch.stack(torch.meshgrid(centre, centre, indexing='xy'), -1)
