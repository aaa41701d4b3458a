"""FOMM's dense motion network: coarse flow M^0, occlusion and driving heat map of keypoints (FOMM Sec. 3.2)."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from modules.keypoint_detector import gaussian_heatmaps
from modules.layers import AntiAlias, Hourglass
from modules.warp import identity_grid, invert_2x2, sample, warp
from support.ranges import LayerCount, Positive, Scale, TensorSize


@dataclass(frozen=True)
class DenseMotionParams:
    block_expansion: TensorSize = 64
    num_blocks: LayerCount = 5
    max_features: TensorSize = 1024
    scale_factor: Scale = 0.25    # flows live at this fraction of the image size
    kp_variance: Positive = 0.01  # of the Gaussian around each keypoint


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
        self.kp_variance = params.kp_variance
        self.down = AntiAlias(3, params.scale_factor)
        self.hourglass = Hourglass((num_kp + 1) * 4, params.block_expansion, params.num_blocks, params.max_features)
        self.mask = nn.Conv2d(self.hourglass.out_channels, num_kp + 1, 7, padding=3)
        self.occlusion = nn.Conv2d(self.hourglass.out_channels, 1, 7, padding=3)

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
        mask = self.mask(feature).softmax(dim=1)                                               # (B, K+1, h, w)
        flow = (mask[..., None] * motions).sum(1)                                              # (B, h, w, 2)
        return DenseMotion(flow, self.occlusion(feature), mask, driving_heatmaps)

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
