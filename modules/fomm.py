"""FOMM, the First Order Motion Model (Siarohin et al., NeurIPS 2019, arXiv 2003.00196): the first baseline."""

from dataclasses import dataclass

import torch
from torch import nn

from modules.first_order import FirstOrderGenerated, FirstOrderParams, FirstOrderTalkingHead
from modules.layers import ResBlock2d, UpBlock2d, from_unit
from modules.warp import occlude, warp
from support.ranges import UpToHundred


@dataclass(frozen=True)
class FommParams(FirstOrderParams):
    num_bottleneck_blocks: UpToHundred = 6  # residual blocks on the warped feature


class Fomm(FirstOrderTalkingHead):
    """Encode the source, warp and occlude its feature, decode the rest (FOMM Sec. 3.2)."""

    Params = FommParams

    def __init__(self, params):
        super().__init__(params)
        widths = params.widths[::-1]
        self.bottleneck = nn.Sequential(*(ResBlock2d(widths[0]) for _ in range(params.num_bottleneck_blocks)))
        self.up_blocks = nn.ModuleList(UpBlock2d(*pair) for pair in zip(widths, widths[1:]))

    def render(self, source, driving):
        motion, occlusion, warped = self.warp_source(source, driving)
        return FirstOrderGenerated(self.decode(warped), [motion.flow], [occlusion], dense_motion=motion)

    def warp_source(self, source, driving):
        """(DenseMotion, occlusion (B, 1, h, w), the source's coarsest feature, warped and occluded)."""
        features = source.features
        motion = self.dense_motion(features.small, source.keypoints, driving)
        occlusion = torch.sigmoid(motion.occlusion_logit)

        # FOMM reads flow and occlusion with align_corners=False, unlike its descendants.
        feature = features.pyramid[-1].expand(driving.value.shape[0], -1, -1, -1)    # one source, many poses
        feature = warp(feature, motion.flow, align_corners=False)
        return motion, occlusion, occlude(feature, occlusion, align_corners=False)

    def decode(self, feature):
        """The warped feature (B, C, h, w) -> image (B, 3, H, W) in [-1, 1]."""
        feature = self.bottleneck(feature)
        for block in self.up_blocks:
            feature = block(feature)
        return from_unit(torch.sigmoid(self.head(feature).float()))
