"""MRFA (Tao et al., NeurIPS 2023): iterative refinement of the flow by correlation of structure.

The flow of FOMM's motion model is a prior. Structure features of the source and of the driving pose are correlated at
all pairs of positions; from coarse to fine, the correlations around the flow's target correct the flow.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.first_order import FirstOrderGenerated, FirstOrderParams, FirstOrderTalkingHead, SourceFeatures
from modules.flow_update import FlowUpdate, MotionEncoder, SourceContext
from modules.keypoint_detector import KeypointDetectorParams, gaussian_heatmaps
from modules.layers import BatchNorm2d, Hourglass, ResBlock2d, UpBlock2d, from_unit, shrunk, tokens
from modules.token_pose import TokenKeypointDetector, TokenLayer, TokenPoseParams
from modules.warp import from_pixels, occlude, pixel_grid, resize, resize_flow, sample, to_displacement, warp
from support.ranges import LayerCount, Positive, TensorSize


@dataclass(frozen=True)
class StructureParams:
    block_expansion: TensorSize = 32  # hourglass width at flow resolution
    num_blocks: LayerCount = 5        # halvings in the hourglass
    max_features: TensorSize = 512    # widest hourglass layer
    channels: TensorSize = 256        # of the structure maps that are correlated
    kp_variance: Positive = 0.1       # of the Gaussian around each keypoint; ten times the dense motion's
    radius: TensorSize = 3            # of the look-up, in pixels of each level
    levels: LayerCount = 2            # of the look-up, each half as fine as the one before


PRIORS = 'fomm', 'mtia'


@dataclass(frozen=True)
class MrfaParams(FirstOrderParams):
    num_down_blocks: LayerCount = 5      # halvings; the flow is refined at num_down_blocks + 1 scales
    flow_update_width: TensorSize = 128  # hidden width of the flow updater
    prior_model: str = 'fomm'            # keypoint detector: fomm, or mtia, the published model's token transformer
    structure_params: StructureParams = StructureParams()
    kp_detector_params: KeypointDetectorParams = KeypointDetectorParams(num_kp=10, shared_jacobian=True)
    token_pose_params: TokenPoseParams = TokenPoseParams()    # of mtia, which takes num_kp from kp_detector_params

    def __post_init__(self):
        if self.prior_model not in PRIORS:
            raise ValueError(f'prior_model={self.prior_model!r}: expected one of {", ".join(PRIORS)}')
        self.check_sizes(structure_params=self.dense_motion_params.scale_factor)
        if self.prior_model == 'mtia':
            self.token_pose_params.patches_across(self.image_size)


@dataclass
class RefinementSource(SourceFeatures):
    """structure: (B, C, h, w) structure map of the source."""
    structure: Tensor


@dataclass
class MrfaGenerated(FirstOrderGenerated):
    """warped_source: (B, 3, H, W) in [0, 1], the source image warped by the flow before its last correction."""
    warped_source: Tensor | None = None


# ---------------------------------------------------------------------------- structure and its correlation

class StructureEncoder(nn.Module):
    """Feature maps of the face's structure, from keypoints alone (driving) or with the small image (source)."""

    def __init__(self, params, num_kp, size):
        super().__init__()
        self.kp_variance = params.kp_variance
        self.position = nn.Parameter(nn.init.normal_(torch.empty(1, num_kp, size, size), std=0.02))
        self.driving, self.source = (Hourglass(channels, params.block_expansion, params.num_blocks, params.max_features)
                                     for channels in (num_kp, num_kp + 3))
        self.driving_head, self.source_head = (nn.Conv2d(hourglass.out_channels, params.channels, 1)
                                               for hourglass in (self.driving, self.source))

    def encode_driving(self, value):
        """Driving keypoints (B, K, 2) -> (B, C, h, w)."""
        return self.driving_head(self.driving(self._heatmaps(value)))

    def encode_source(self, value, image):
        """Source keypoints (B, K, 2) and small image (B, 3, h, w) in [0, 1] -> (B, C, h, w)."""
        return self.source_head(self.source(torch.cat([self._heatmaps(value), image], dim=1)))

    def _heatmaps(self, value):
        return gaussian_heatmaps(value, self.position.shape[-2:], self.kp_variance) + self.position


class CorrelationVolume:
    """Inner products of driving and source structure at all pairs of positions, read where a flow points (as in RAFT).

    A coarser volume is an average of the finest one; it is computed as the product of averaged maps, so no volume is
    ever copied, and the finest serves all scales from the maps' own resolution on. Per sample with 64 x 64 maps of 256
    channels: 2 x 4096 x 4096 x 256 = 8.6 GFLOP and 64 MiB in fp32 for the finest, 1.66 times that for all.
    """

    def __init__(self, driving, source, radius, levels):
        """driving (B, C, h, w), source (1 or B, C, h, w); radius in pixels of each level, each half the one before."""
        self.driving = driving.float()
        self.sources = [F.avg_pool2d(source.float(), 2 ** level) for level in range(levels)]
        steps = torch.arange(-radius, radius + 1, dtype=self.driving.dtype, device=driving.device)
        self.window = torch.stack(torch.meshgrid(steps, steps, indexing='ij'), dim=-1)            # x is the slow axis
        self.volumes = {}

    def at(self, size):
        """Each level's volume (B * h'w', 1, h / 2^level, w / 2^level), driving positions averaged to size (h', w')."""
        if size not in self.volumes:
            with torch.autocast(self.driving.device.type, enabled=False):
                query = tokens(F.avg_pool2d(self.driving, self.driving.shape[-1] // size[-1]))    # (B, h'w', C)
                query = query / query.shape[-1] ** 0.5
                self.volumes[size] = [(query @ source.flatten(2)).flatten(0, 1).unflatten(1, (1, *source.shape[-2:]))
                                      for source in self.sources]
        return self.volumes[size]

    def look_up(self, displacement):
        """Correlations around where displacement (B, 2, H, W), in its own pixels, points: (B, L(2r+1)^2, H, W)."""
        full, wanted = self.driving.shape[-2:], displacement.shape[-2:]
        size = tuple(map(min, full, wanted))
        # Plain ratios of sizes, though grids have their corners aligned: as in the public code.
        centres = resize(displacement, size).permute(0, 2, 3, 1) * (full[-1] / wanted[-1])
        centres = (centres + pixel_grid(size, centres) * (full[-1] / size[-1])).flatten(0, 2)[:, None, None]
        found = []
        for level, volume in enumerate(self.at(size)):
            around = from_pixels(centres / 2 ** level + self.window, volume.shape[-2:])           # (Bhw, 2r+1, 2r+1, 2)
            found.append(sample(volume, around).flatten(1))
        return resize(torch.cat(found, dim=1).unflatten(0, (-1, *size)).permute(0, 3, 1, 2), wanted)


# ---------------------------------------------------------------------------- refinement

@dataclass
class Motion:
    """displacement (B, 2, H, W) from the identity, in pixels of its own grid; occlusion_logit (B, 1, H, W)."""
    displacement: Tensor
    occlusion_logit: Tensor

    def __add__(self, other):
        return Motion(self.displacement + other.displacement, self.occlusion_logit + other.occlusion_logit)

    def still(self):
        """Zero displacement and occlusion logit on the same grid."""
        return Motion(torch.zeros_like(self.displacement), torch.zeros_like(self.occlusion_logit))

    def at(self, size):
        """The same motion on a grid of `size` (H', W')."""
        ratio = size[-1] / self.displacement.shape[-1]
        return Motion(resize(self.displacement, size) * ratio, resize(self.occlusion_logit, size))

    @property
    def flow(self):
        """Positions (B, H, W, 2) in [-1, 1]."""
        size = self.displacement.shape[-2:]
        return from_pixels(self.displacement.permute(0, 2, 3, 1) + pixel_grid(size, self.displacement), size)


class MotionRefinement(nn.Module):
    """Corrects a motion from correlations and the warped source; all scales share the weights except the context's."""

    def __init__(self, params, widths):
        """widths: of the source's features, coarsest first."""
        super().__init__()
        structure, width = params.structure_params, params.flow_update_width
        correlations = structure.levels * (2 * structure.radius + 1) ** 2
        self.context = nn.ModuleList(SourceContext(channels, width * 3 // 2) for channels in widths)
        self.motion_encoder = MotionEncoder(correlations, width)
        self.update = FlowUpdate(width)

    def forward(self, scale, motion, feature, volume):
        """The correction of `motion` (scale 0 is the coarsest), on the grid of the source's feature (B, C, H, W)."""
        encoded = self.motion_encoder(motion.displacement, volume.look_up(motion.displacement))
        size = feature.shape[-2:]
        context = self.context[scale](warp(feature, motion.flow), size, size)
        displacement, occlusion_logit = self.update(encoded, context)
        return Motion(displacement.float(), occlusion_logit.float())


# ---------------------------------------------------------------------------- the method

class JoiningLevel(nn.Module):
    """Joins two features, then a residual and an upsampling block: 2 x (B, C, H, W) -> (B, C', 2H, 2W)."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.norm = BatchNorm2d(2 * in_channels)
        self.join = nn.Conv2d(2 * in_channels, in_channels, 3, padding=1)
        self.residual = ResBlock2d(in_channels)
        self.up = UpBlock2d(in_channels, out_channels)

    def forward(self, x, y):
        return self.up(self.residual(self.join(F.relu(self.norm(torch.cat([x, y], dim=1))))))


class Mrfa(FirstOrderTalkingHead):
    """Refine FOMM's flow at every scale, warp the source's features by it, decode from coarse to fine."""

    Params = MrfaParams
    checkpointed_blocks = (SourceContext, MotionEncoder, FlowUpdate, TokenLayer)

    def __init__(self, params):
        super().__init__(params)
        size = shrunk(params.image_size, params.dense_motion_params.scale_factor)
        widths = params.widths[::-1]                                                              # coarsest first
        self.structure = StructureEncoder(params.structure_params, params.kp_detector_params.num_kp, size)
        self.refinement = MotionRefinement(params, widths)
        self.levels = nn.ModuleList(JoiningLevel(*pair) for pair in zip(widths, widths[1:]))

    def build_keypoint_detector(self):
        params = self.params
        if params.prior_model == 'fomm':
            return super().build_keypoint_detector()
        return TokenKeypointDetector(params.token_pose_params, params.kp_detector_params.num_kp, params.image_size)

    def _source_state(self, observed, keypoints):
        state = super()._source_state(observed, keypoints)
        structure = self.structure.encode_source(keypoints.value, state.features.small.image)
        state.features = RefinementSource(**vars(state.features), structure=structure)
        return state

    def render(self, source, driving):
        features, batch = source.features, driving.value.shape[0]
        dense = self.dense_motion(features.small, source.keypoints, driving)
        prior = Motion(to_displacement(dense.flow), dense.occlusion_logit)
        generated = MrfaGenerated(None, [dense.flow], [torch.sigmoid(dense.occlusion_logit)], dense_motion=dense)
        volume = CorrelationVolume(self.structure.encode_driving(driving.value), features.structure,
                                   self.params.structure_params.radius, self.params.structure_params.levels)

        state, moved, correction = None, None, prior.still()
        for scale, feature in enumerate(reversed(features.pyramid)):
            feature = feature.expand(batch, -1, -1, -1)                            # one source, many poses
            size = feature.shape[-2:]

            # Every scale starts from the prior and all corrections so far, and adds its own.
            correction = correction.at(size)
            motion = prior.at(size) + correction
            residual = (motion.still() if self.skips(source, 'refinement', scale)
                        else self.refinement(scale, motion, feature, volume))
            refined, correction = motion + residual, correction + residual
            occlusion = torch.sigmoid(refined.occlusion_logit)
            generated.flows.append(refined.flow)
            generated.occlusions.append(occlusion)

            # The refined warp where the source is visible, elsewhere the decoder's state joined with the prior's warp.
            decoded = self.levels[scale - 1](state, moved) if scale else None
            state = occlude(warp(feature, refined.flow), occlusion)
            if scale:
                state = state + occlude(decoded, 1 - occlusion)
            moved = sample(feature, resize_flow(dense.flow, size), align_corners=False)

        # The image itself moves by the flow before its last correction, as in the public code.
        generated.warped_source = warp(features.image.expand(batch, -1, -1, -1), motion.flow)
        decoded = torch.sigmoid(self.head(state).float())
        generated.prediction = from_unit(decoded * (1 - occlusion) + generated.warped_source * occlusion)
        return generated

    @property
    def parts(self):
        return tuple(f'refinement {scale + 1}' for scale in range(len(self.params.widths)))
