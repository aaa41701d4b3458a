"""DaGAN (Hong et al., CVPR 2022, arXiv 2203.06605): FOMM with depth, for keypoints and for attention.

Keypoints are found in the image and its disparity; FOMM's warped feature is attended to from the source's disparity.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.depth import DepthNetwork, DepthParams
from modules.discriminator import MultiScaleDiscriminatorParams
from modules.first_order import Encoder, FirstOrderGenerated, SourceFeatures
from modules.fomm import Fomm, FommParams
from modules.keypoint_detector import KeypointDetectorParams
from modules.layers import tokens, to_unit, untokens
from support.ranges import TensorSize


@dataclass(frozen=True)
class DaganParams(FommParams):
    attention_channels: TensorSize = 32  # of queries and keys
    depth_params: DepthParams = DepthParams()
    kp_detector_params: KeypointDetectorParams = KeypointDetectorParams(num_kp=15)
    discriminator_params: MultiScaleDiscriminatorParams = MultiScaleDiscriminatorParams(use_keypoints=True)

    def __post_init__(self):
        super().__post_init__()
        halvings = self.depth_params.num_stages + 1
        if self.image_size % 2 ** halvings or self.image_size < 2 ** (halvings + 1):
            raise ValueError(f'image_size={self.image_size}: the depth network halves it {halvings} times, down to at '
                             'least 2 px (depth_params.num_stages + 1)')


@dataclass
class DepthAwareSource(SourceFeatures):
    """depth_feature: (B, C, h, w) the encoded disparity."""
    depth_feature: Tensor


@dataclass
class DaganGenerated(FirstOrderGenerated):
    """warped: (B, C, h, w) the source's feature, warped and occluded, before attention."""
    warped: Tensor | None = None


class CrossModalAttention(nn.Module):
    """Queries from the source's disparity feature, keys and values from the warped feature (DaGAN Sec. 3.4).

    As in the public code, scores are not scaled, and queries are not warped: the result is added at the query's
    position, in the driving pose.
    """

    def __init__(self, channels, attention_channels):
        super().__init__()
        self.query = nn.Conv2d(channels, attention_channels, 1)
        self.key = nn.Conv2d(channels, attention_channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))       # starts as FOMM; the rest learns from the second step on

    def forward(self, depth_feature, warped):
        """depth_feature (1 or B, C, h, w), warped (B, C, h, w) -> (B, C, h, w)."""
        query = F.relu(self.query(depth_feature)).expand(warped.shape[0], -1, -1, -1)
        q, k, v = (tokens(x)[:, None] for x in (query, F.relu(self.key(warped)), F.relu(self.value(warped))))
        found = F.scaled_dot_product_attention(q, k, v, scale=1)                        # (B, 1, h*w, C)
        return self.gamma.to(warped.dtype) * untokens(found[:, 0], warped.shape[-2:]) + warped


class Dagan(Fomm):
    """FOMM with keypoints from image and disparity, and attention to the warped feature from the source's disparity."""

    Params = DaganParams
    fp32_networks = *Fomm.fp32_networks, 'depth'
    observed_channels = 4

    def __init__(self, params):
        super().__init__(params)
        self.depth = DepthNetwork(params.depth_params)
        self.disparity_encoder = Encoder(params.widths, in_channels=1)
        self.attention = CrossModalAttention(params.widths[-1], params.attention_channels)

    def pretrained_parts(self):
        folder = self.params.depth_params.pretrained
        return {'depth': (self.depth, folder)} if folder else {}

    def observe(self, image):
        image = to_unit(image)
        return torch.cat([image, self.depth(image)], dim=1)

    def _source_state(self, observed, keypoints):
        state = super()._source_state(observed[:, :3], keypoints)
        depth_feature = self.disparity_encoder(observed[:, 3:])[-1]
        state.features = DepthAwareSource(**vars(state.features), depth_feature=depth_feature)
        return state

    def render(self, source, driving):
        motion, occlusion, warped = self.warp_source(source, driving)
        attended = (warped if self.skips(source, 'attention', 0)
                    else self.attention(source.features.depth_feature, warped))
        return DaganGenerated(self.decode(attended), [motion.flow], [occlusion], dense_motion=motion, warped=warped)

    @property
    def parts(self):
        return ('attention 1',)
