"""Base class of FOMM (NeurIPS 2019) and its descendants: keypoints, coarse motion, images in [0, 1].

The public codes of FOMM and MCNet feed images in [0, 1] to every network. Our interface speaks [-1, 1], so
these methods convert on the way in and on the way out: published weights work, and numbers compare like for like.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from modules.dense_motion import DenseMotion, DenseMotionNetwork, DenseMotionParams, SourceImage
from modules.discriminator import MultiScaleDiscriminatorParams
from modules.keypoint_detector import KeypointDetector, KeypointDetectorParams
from modules.layers import DownBlock2d, SameBlock2d, check_halvings, check_hourglasses, from_unit, to_unit
from modules.talking_head import Generated, SourceState, TalkingHead
from support.ranges import LayerCount, TensorSize


@dataclass(frozen=True)
class FirstOrderParams:
    """Params that FOMM, MCNet, DaGAN and MRFA share."""
    image_size: TensorSize = 256      # side of the square image in pixels
    block_expansion: TensorSize = 64  # channels at full resolution; doubled at each halving
    max_features: TensorSize = 512    # widest feature
    num_down_blocks: LayerCount = 2   # halvings of the encoder
    kp_detector_params: KeypointDetectorParams = KeypointDetectorParams(num_kp=10)
    dense_motion_params: DenseMotionParams = DenseMotionParams()
    discriminator_params: MultiScaleDiscriminatorParams = MultiScaleDiscriminatorParams()

    def __post_init__(self):
        self.check_sizes()

    @property
    def widths(self):
        """Channels of the encoder's features, finest first."""
        return [min(self.max_features, self.block_expansion * 2 ** level) for level in range(self.num_down_blocks + 1)]

    def check_sizes(self, **further):
        """ValueError if the image cannot be halved as often as the networks do.

        further: names of other parts with `num_blocks` halvings, and the scale at which they see the image
        """
        if self.kp_detector_params.landmarks:
            raise ValueError('kp_detector_params.landmarks: only method synergy has keypoints at landmarks')
        check_halvings(self.image_size, 'num_down_blocks', self.image_size, self.num_down_blocks)
        check_hourglasses(self, **further)


@dataclass
class SourceFeatures:
    """What `render` needs of the source.

    image:   (B, 3, H, W) in [0, 1]
    pyramid: encoder features, finest first, (B, C_i, H / 2^i, W / 2^i)
    small:   the source as the dense motion network sees it
    """
    image: Tensor
    pyramid: list[Tensor]
    small: SourceImage


@dataclass
class FirstOrderGenerated(Generated):
    """Generated with the coarse motion and its parts."""
    dense_motion: DenseMotion | None = None


class Encoder(nn.Module):
    """FOMM's encoder, after Johnson et al., ECCV 2016: a 7x7 block, then halvings; keeps the feature of every scale."""

    def __init__(self, widths, in_channels=3):
        super().__init__()
        self.first = SameBlock2d(in_channels, widths[0], 7)
        self.down_blocks = nn.ModuleList(DownBlock2d(*pair) for pair in zip(widths, widths[1:]))

    def forward(self, image):
        """image (B, in_channels, H, W) in [0, 1] -> list of (B, C_i, H / 2^i, W / 2^i), finest first."""
        pyramid = [self.first(image)]
        for block in self.down_blocks:
            pyramid.append(block(pyramid[-1]))
        return pyramid


class FirstOrderTalkingHead(TalkingHead):
    """Keypoints, coarse motion and a source encoder; a method adds `render`. Its Params are FirstOrderParams.

    observed_channels: of what the keypoint detector sees
    """

    has_coarse_flow = True
    fp32_networks = 'keypoint_detector', 'dense_motion'
    observed_channels = 3

    def __init__(self, params):
        super().__init__()
        self.params = params
        self.keypoint_detector = self.build_keypoint_detector()
        self.dense_motion = DenseMotionNetwork(params.dense_motion_params, params.kp_detector_params.num_kp)
        self.encoder = Encoder(params.widths)
        self.head = nn.Conv2d(params.widths[0], 3, 7, padding=3)

    def build_keypoint_detector(self):
        return KeypointDetector(self.params.kp_detector_params, self.observed_channels)

    @property
    def last_weight(self):
        return self.head.weight

    def observe(self, image):
        """Image (B, 3, H, W) in [-1, 1] -> what the keypoint detector sees, the image in [0, 1] first: (B, C, H, W)."""
        return to_unit(image)

    def keypoints(self, image):
        return self.keypoint_detector(self.observe(image))

    def encode_source(self, image):
        observed = self.observe(image)
        return self._source_state(observed, self.keypoint_detector(observed))

    def _source_state(self, observed, keypoints):
        return SourceState(keypoints, SourceFeatures(observed, self.encoder(observed),
                                                     self.dense_motion.encode_source(observed, keypoints)))

    def forward(self, source, driving):
        # Source first, as in the public codes: the order moves batch-norm statistics.
        observed = self.observe(source)
        source_keypoints, driving_keypoints = self.keypoint_detector(observed), self.keypoints(driving)
        generated = self.render(self._source_state(observed, source_keypoints), driving_keypoints)
        generated.source_keypoints, generated.driving_keypoints = source_keypoints, driving_keypoints
        return generated

    def move_source(self, source, driving):
        source_keypoints, driving_keypoints = self.keypoints(source), self.keypoints(driving)
        moved, motion = self.dense_motion.move(to_unit(source), source_keypoints, driving_keypoints)
        return Generated(from_unit(moved), [motion.flow], [], source_keypoints=source_keypoints,
                         driving_keypoints=driving_keypoints)
