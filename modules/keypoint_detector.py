"""FOMM's keypoint detector: unsupervised keypoints and their local affine frames (FOMM Sec. 3.1)."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import nn

from modules.layers import AntiAlias, Hourglass
from modules.talking_head import Keypoints
from modules.warp import identity_grid, invert_2x2
from support.ranges import AtLeastZero, LayerCount, Positive, Range, Scale, TensorSize


@dataclass(frozen=True)
class KeypointDetectorParams:
    num_kp: TensorSize = 15                   # keypoints
    block_expansion: TensorSize = 32          # hourglass width at full detector resolution
    num_blocks: LayerCount = 5                # halvings in the hourglass
    max_features: TensorSize = 1024           # widest hourglass layer
    scale_factor: Scale = 0.25                # the detector sees the image at this scale
    temperature: Positive = 0.1               # of the softmax that turns logits into heat maps
    shared_jacobian: bool = False             # one map of Jacobians for all keypoints, as MRFA has it, or one each
    rigid_keypoints: AtLeastZero = 0          # the first so many span one affine frame instead of learned Jacobians
    padding: Annotated[int, Range(0, 3)] = 0  # of the 7x7 heads; published weights: none, heat maps span [-1, 1]
    landmarks: tuple[str, ...] = ()           # face landmarks that are the keypoints: in training those of the dataset,
                                              # in inference MediaPipe's; the network serves images without a face

    def __post_init__(self):
        if self.rigid_keypoints and not 3 <= self.rigid_keypoints <= self.num_kp:
            raise ValueError(f'rigid_keypoints={self.rigid_keypoints}: expected 0, or 3 to num_kp={self.num_kp}')
        if self.landmarks and (len(self.landmarks) != self.num_kp or not self.rigid_keypoints):
            raise ValueError(f'landmarks has {len(self.landmarks)} names: expected num_kp={self.num_kp}, and '
                             'rigid_keypoints for their Jacobians')


class KeypointDetector(nn.Module):
    """Image -> heat maps -> soft-argmax positions, and Jacobians averaged under the heat maps.

    finder: for inference with `landmarks`: function of images (B, 3, H, W) in [-1, 1] that returns their positions
            (B, K, 2), NaN without a face; load.py sets it
    """

    finder = None

    def __init__(self, params, in_channels=3):
        super().__init__()
        self.temperature = params.temperature
        self.num_jacobians = 1 if params.shared_jacobian else params.num_kp
        self.down = AntiAlias(in_channels, params.scale_factor)
        self.predictor = Hourglass(in_channels, params.block_expansion, params.num_blocks, params.max_features)
        self.kp = nn.Conv2d(self.predictor.out_channels, params.num_kp, 7, padding=params.padding)
        self.frame = AffineFrame(params.rigid_keypoints) if params.rigid_keypoints else None
        if self.frame is not None:
            return
        self.jacobian = nn.Conv2d(self.predictor.out_channels, 4 * self.num_jacobians, 7, padding=params.padding)
        # Every Jacobian starts as the identity.
        nn.init.zeros_(self.jacobian.weight)
        with torch.no_grad():
            self.jacobian.bias.copy_(torch.tensor([1., 0., 0., 1.]).repeat(self.num_jacobians))

    def forward(self, image):
        """Keypoints of image (B, C, H, W) in [-1, 1] (or the range of the imported weights)."""
        if self.finder is None or self.training:
            return self.detect(image)
        value = self.finder(image)
        missing = value.isnan().any(2).any(1)
        if missing.any():
            value[missing] = self.detect(image[missing]).value
        return self.at(value)

    def at(self, value):
        """Keypoints at the positions (B, K, 2), with the affine frame of `rigid_keypoints`."""
        with torch.autocast(value.device.type, enabled=False):
            return Keypoints(value, self.frame(value))

    def detect(self, image):
        """Keypoints of image (B, C, H, W) by the network, without `finder`."""
        # In fp32: it is one hundredth of a frame's operations, and all flows depend on the keypoints.
        with torch.autocast(image.device.type, enabled=False):
            feature = self.predictor(self.down(image.float()))
            logits = self.kp(feature)                                                          # (B, K, h, w)
            heatmap = (logits / self.temperature).flatten(2).softmax(-1).view(logits.shape)
            grid = identity_grid(logits.shape[-2:], logits)
            value = (heatmap[..., None] * grid).sum((2, 3))                                    # (B, K, 2)
            if self.frame is not None:
                jacobian = self.frame(value)
            else:
                jacobians = self.jacobian(feature).unflatten(1, (self.num_jacobians, 4))       # (B, K or 1, 4, h, w)
                jacobian = (heatmap[:, :, None] * jacobians).sum((3, 4)).unflatten(-1, (2, 2))
        return Keypoints(value, jacobian, heatmap if self.training else None)


class AffineFrame(nn.Module):
    """One affine frame of a face, fitted by least squares from a reference to its first `count` keypoints.

    It replaces learned Jacobians if keypoints are guided to landmarks, some of which no expression moves. FOMM uses
    frames as J_S J_D^-1 only (Eq. 4), so that any affine image of the reference gives the same flow.
    reference: (count, 2) a running mean of the keypoints
    """

    MOMENTUM = 0.01

    def __init__(self, count):
        super().__init__()
        side = torch.arange(count) * 2.4                           # spread evenly, never on a line
        self.register_buffer('reference', 0.3 * torch.stack([side.cos(), side.sin()], 1))

    def forward(self, value):
        """Keypoints (B, K, 2) -> (B, K, 2, 2), the same for all keypoints of an image."""
        points = value[:, :len(self.reference)].detach()         # only landmarks guide keypoints
        if self.training:
            self.reference.lerp_(points.mean(0), self.MOMENTUM)
        reference = self.reference - self.reference.mean(0)
        offset = points - points.mean(1, keepdim=True)
        frame = offset.transpose(1, 2) @ reference @ invert_2x2(reference.T @ reference)                    # (B, 2, 2)
        return frame[:, None].expand(-1, value.shape[1], -1, -1)


def gaussian_heatmaps(value, size, variance):
    """One Gaussian exp(-d^2 / (2 variance)) per keypoint: (B, K, 2) -> (B, K, H, W), peak 1."""
    grid = identity_grid(size, value)
    if torch.is_grad_enabled():
        distance = grid - value[:, :, None, None]                                              # (B, K, H, W, 2)
        return torch.exp(-0.5 * distance.square().sum(-1) / variance)
    # The same to rounding, by W + H exponentials instead of W H. In training, rounding follows the released code.
    across, down = (torch.exp(-0.5 * (places - value[..., axis, None]).square() / variance)    # (B, K, W) and (B, K, H)
                    for axis, places in enumerate((grid[0, :, 0], grid[:, 0, 1])))
    return down[..., None] * across[:, :, None]
