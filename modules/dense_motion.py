"""FOMM's dense motion network: coarse flow M^0, occlusion and driving heat map of keypoints (FOMM Sec. 3.2)."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn

from modules.keypoint_detector import gaussian_heatmaps
from modules.layers import AntiAlias, Hourglass
from modules.warp import identity_grid, invert_2x2, read_at, sample, warp
from support.ranges import LayerCount, NotNegative, Positive, Range, Scale, TensorSize

ANCHOR_FADE = 0.2             # of a Gaussian's peak: where all are far below it, the flow stays


@dataclass(frozen=True)
class DenseMotionParams:
    block_expansion: TensorSize = 64
    num_blocks: LayerCount = 5
    max_features: TensorSize = 1024
    scale_factor: Scale = 0.25    # flows live at this fraction of the image size
    kp_variance: Positive = 0.01  # of the Gaussian around each keypoint
    mask_kernel: Annotated[int, Range(1, 15)] = 7  # side of the last convolutions, odd
    anchor_width: NotNegative = 0.0  # see `anchored`, for keypoints that are exact; 0: as FOMM

    def __post_init__(self):
        if self.mask_kernel % 2 == 0:
            raise ValueError(f'mask_kernel={self.mask_kernel}: expected an odd number')


class SourceImage(NamedTuple):
    """The source as the dense motion network sees it, computed once per video.

    image:    (B, 3, h, w) the source at flow resolution
    heatmaps: (B, K, h, w) Gaussians at the source keypoints
    """
    image: Tensor
    heatmaps: Tensor


class DenseMotion(NamedTuple):
    """flow (B, h, w, 2); occlusion_logit (B, 1, h, w); mask (B, K+1, h, w); driving_heatmaps (B, K, h, w)."""
    flow: Tensor
    occlusion_logit: Tensor
    mask: Tensor
    driving_heatmaps: Tensor


class DenseMotionNetwork(nn.Module):
    """Combines the affine motions around each keypoint and the identity into one flow (FOMM Eq. 7)."""

    def __init__(self, params, num_kp):
        super().__init__()
        self.kp_variance, self.anchor_width = params.kp_variance, params.anchor_width
        self.down = AntiAlias(3, params.scale_factor)
        self.hourglass = Hourglass((num_kp + 1) * 4, params.block_expansion, params.num_blocks, params.max_features)
        last = partial(nn.Conv2d, self.hourglass.out_channels, kernel_size=params.mask_kernel,
                       padding=params.mask_kernel // 2)
        self.mask, self.occlusion = last(num_kp + 1), last(1)

    def encode_source(self, image, keypoints):
        """The part that depends on the source alone: image (B, 3, H, W) -> SourceImage."""
        with torch.autocast(image.device.type, enabled=False):
            small = self.down(image.float())
        return SourceImage(small, gaussian_heatmaps(keypoints.value, small.shape[-2:], self.kp_variance))

    def forward(self, source, source_keypoints, driving_keypoints):
        """DenseMotion for a SourceImage and both Keypoints (B, K, 2); a source of batch 1 serves every driving pose."""
        # All in fp32, as the keypoint detector: in bf16 the mask alone would move the flow by 0.2 px of 256.
        with torch.autocast(source.image.device.type, enabled=False):
            return self._forward(source, source_keypoints, driving_keypoints)

    def _forward(self, source, source_keypoints, driving_keypoints):
        batch = driving_keypoints.value.shape[0]
        motions = self.sparse_motions(source_keypoints, driving_keypoints, source.image)       # (B, K+1, h, w, 2)
        driving_heatmaps = gaussian_heatmaps(driving_keypoints.value, source.image.shape[-2:], self.kp_variance)

        # Input: differences of heat maps, and the source warped by each candidate motion.
        heatmaps = nn.functional.pad(driving_heatmaps - source.heatmaps, (0, 0, 0, 0, 1, 0))   # background first
        # All candidates are sampled in one call, stacked along the height, so that the image is not copied K+1 times.
        image = source.image.expand(batch, -1, -1, -1)
        deformed = sample(image, motions.flatten(1, 2), align_corners=False)                   # (B, 3, (K+1)h, w)
        deformed = deformed.unflatten(2, motions.shape[1:3]).transpose(1, 2)                   # (B, K+1, 3, h, w)
        evidence = torch.cat([heatmaps[:, :, None], deformed], dim=2).flatten(1, 2)            # (B, 4(K+1), h, w)

        # Output: a softmax over the motions at each pixel, and where the source is occluded.
        feature = self.hourglass(evidence)
        scores, occlusion_logit = self._last(feature)
        mask = scores.softmax(dim=1)                                                           # (B, K+1, h, w)
        flow = (mask[..., None] * motions).sum(1)                                              # (B, h, w, 2)
        if self.anchor_width:
            flow = anchored(flow, source_keypoints.value, driving_keypoints.value, self.anchor_width)
        return DenseMotion(flow, occlusion_logit, mask, driving_heatmaps)

    def _last(self, feature):
        """Both convolutions in one, as they read the same feature: (B, K+1, h, w), (B, 1, h, w)."""
        parts = self.mask, self.occlusion
        weight, bias = torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
        together = nn.functional.conv2d(feature, weight, bias, padding=self.mask.padding)
        return together.split([part.out_channels for part in parts], dim=1)

    def move(self, image, source_keypoints, driving_keypoints):
        """Warp image (B, 3, H, W) by the flow between both Keypoints: (image, DenseMotion)."""
        motion = self(self.encode_source(image, source_keypoints), source_keypoints, driving_keypoints)
        return warp(image, motion.flow), motion

    @staticmethod
    def sparse_motions(source, driving, like):
        """First-order motions T_{S<-D} around every keypoint (FOMM Eq. 4), the identity first: (B, K+1, h, w, 2)."""
        grid = identity_grid(like.shape[-2:], like)                                            # (h, w, 2)
        offset = grid - driving.value[:, :, None, None]                                        # (B, K, h, w, 2)
        if driving.jacobian is not None:
            jacobian = source.jacobian @ invert_2x2(driving.jacobian)                          # (B, K, 2, 2)
            offset = torch.einsum('bkij,bkhwj->bkhwi', jacobian, offset)
        motions = offset + source.value[:, :, None, None]
        return torch.cat([grid.expand(motions.shape[0], 1, *grid.shape), motions], dim=1)


def anchored(flow, source, driving, width):
    """A flow (B, h, w, 2) moved near the driving keypoints, for it to read the source's there; both (B, K, 2).

    A mask of many keypoints blends the motions of neighbours. What each then misses is added around it, weighted by
    Gaussians of standard deviation `width` in [-1, 1], normalised where they overlap (Shepard, ACM 1968).
    """
    weights = gaussian_heatmaps(driving, flow.shape[1:3], width ** 2)                          # (B, K, h, w)
    weights = weights / (weights.sum(1, keepdim=True) + ANCHOR_FADE)
    missed = source - read_at(flow, driving)                                                   # (B, K, 2)
    return flow + (weights.flatten(2).transpose(1, 2) @ missed).unflatten(1, flow.shape[1:3])
