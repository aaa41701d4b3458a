"""The paper's model: for each scale MCC -> warp -> ACC, then decode (Sec. 3.1, Fig. 2)."""

from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from modules.appearance_compensation import AppearanceCompensation, WindowEmbedding
from modules.autoencoder import AutoencoderParams, Decoder, Encoder, EncoderLevel, Fusion
from modules.codebook import CodebookParams, Quantized, usage
from modules.dense_motion import DenseMotion, DenseMotionNetwork, DenseMotionParams, SourceImage
from modules.discriminator import PatchDiscriminatorParams
from modules.keypoint_detector import KeypointDetector, KeypointDetectorParams
from modules.layers import Downsample, ResBlock, Upsample
from modules.motion_compensation import FlowUpdate, MotionCompensation, MotionEncoder, SourceContext
from modules.retrieval import RetrievalLayer
from modules.talking_head import Generated, SourceState, TalkingHead
from modules.warp import occlude, warp

OCCLUSION_UPDATES = ('probability', 'logit')


@dataclass(frozen=True)
class SynergyParams:
    image_size: int = 256                   # side of the square image in pixels
    occlusion_update: str = 'probability'   # residuals are added to the probability (released code) or to the logit
    tied_windows: bool = False              # ACC starts by passing features, not from PyTorch's default start
    flow_update_width: int = 128            # hidden width of D_MR, which turns retrieved codes into a flow residual
    kp_detector_params: KeypointDetectorParams = KeypointDetectorParams()
    dense_motion_params: DenseMotionParams = DenseMotionParams()
    autoencoder_params: AutoencoderParams = AutoencoderParams()
    motion_codebook_params: CodebookParams = CodebookParams(code_dim=32)
    appearance_codebook_params: CodebookParams = CodebookParams(code_dim=256)
    discriminator_params: PatchDiscriminatorParams = PatchDiscriminatorParams()

    def __post_init__(self):
        if self.occlusion_update not in OCCLUSION_UPDATES:
            raise ValueError(f'occlusion_update={self.occlusion_update!r}: expected one of {", ".join(OCCLUSION_UPDATES)}')
        scales = len(self.autoencoder_params.channels)
        if self.image_size % 2 ** (scales - 1):
            raise ValueError(f'image_size={self.image_size} cannot be halved {scales - 1} times, once per scale '
                             'of autoencoder_params.channels')
        if self.flow_size < self.grid or self.flow_size % self.grid:
            raise ValueError(f'dense_motion_params.scale_factor={self.dense_motion_params.scale_factor} gives flows of '
                             f'{self.flow_size} px, which is no multiple of the {self.grid} px token grid')
        for name in ('motion_codebook_params', 'appearance_codebook_params'):
            if not 0 <= getattr(self, name).scales <= scales:
                raise ValueError(f'{name}.scales={getattr(self, name).scales}: the model has {scales} scales')

    @property
    def grid(self):
        """Side of the token grid: the coarsest scale."""
        return self.image_size // 2 ** (len(self.autoencoder_params.channels) - 1)

    @property
    def flow_size(self):
        return round(self.image_size * self.dense_motion_params.scale_factor)


class SourceFeatures(NamedTuple):
    """What `render` needs of the source.

    pyramid:          F_s^i, coarsest first, (B, C_i, H_i, W_i)
    image:            the source as the dense motion network sees it
    motion_codes, appearance_codes: codes projected to keys and values, for every retrieval layer
    """
    pyramid: list[Tensor]
    image: SourceImage
    motion_codes: list
    appearance_codes: list


@dataclass
class SynergyGenerated(Generated):
    """Also everything that the paper's Fig. 7, 8, 10 and 11 show; lists run over scales, coarsest first.

    dense_motion:    the coarse motion M^0 and what it was made of
    motion_features: F_m^{i-1} (B, d_m, h_m, w_m), the encoded flow before refinement, compensated scales only
    residuals:       M_r^i (B, h, w, 2), compensated scales only
    reconstructions: M_hat^i (B, h, w, 2), the flow before refinement rebuilt from codes (training only)
    warped:          F_w^i after occlusion (B, C_i, H_i, W_i)
    compensated:     F_c^i, same shapes; the warped feature itself where there is no compensation
    motion_codes, appearance_codes: Quantized, what the codebooks made of flow and driving feature (training only)
    """
    dense_motion: DenseMotion | None = None
    motion_features: list[Tensor] = field(default_factory=list)
    residuals: list[Tensor] = field(default_factory=list)
    reconstructions: list[Tensor] = field(default_factory=list)
    warped: list[Tensor] = field(default_factory=list)
    compensated: list[Tensor] = field(default_factory=list)
    motion_codes: list[Quantized] = field(default_factory=list)
    appearance_codes: list[Quantized] = field(default_factory=list)


class Synergy(TalkingHead):
    """Multi-scale compensatory codebooks for motion and appearance."""

    Params = SynergyParams
    own_losses = ('motion_reconstruction', 'motion_code', 'appearance_code')
    blocks = (EncoderLevel, ResBlock, Upsample, Downsample, Fusion, RetrievalLayer, SourceContext, FlowUpdate,
              MotionEncoder, WindowEmbedding)

    def __init__(self, params):
        super().__init__()
        self.params = params
        channels, groups = params.autoencoder_params.channels, params.autoencoder_params.norm_groups
        num_kp = params.kp_detector_params.num_kp

        self.keypoint_detector = KeypointDetector(params.kp_detector_params)
        self.dense_motion = DenseMotionNetwork(params.dense_motion_params, num_kp)
        self.encoder = Encoder(params.autoencoder_params)
        self.decoder = Decoder(params.autoencoder_params)
        self.fusions = nn.ModuleList(Fusion(width, groups) for width in channels[1:])
        self.motion_scales = params.motion_codebook_params.scales
        self.appearance_scales = params.appearance_codebook_params.scales
        if self.motion_scales:
            self.motion = MotionCompensation(params.motion_codebook_params, channels, num_kp,
                                             params.flow_size, params.grid,
                                             params.flow_update_width, groups)
        if self.appearance_scales:
            self.appearance = AppearanceCompensation(params.appearance_codebook_params, channels, params.grid,
                                                     params.tied_windows)

    @property
    def last_weight(self):
        """Where the adaptive adversarial weight compares gradients."""
        return self.decoder.last_weight

    def keypoints(self, image):
        return self.keypoint_detector(image)

    def encode_source(self, image):
        return self._source_state(image, self.keypoints(image), self.encoder(image))

    def _source_state(self, image, keypoints, pyramid):
        return SourceState(keypoints, SourceFeatures(
            pyramid, self.dense_motion.encode_source(image, keypoints),
            self.motion.project_codes() if self.motion_scales else [],
            self.appearance.project_codes() if self.appearance_scales else []))

    def render(self, source, driving):
        generated = self._compensate(source, driving)
        state = self.decoder.start(generated.compensated[0])
        generated.prediction = self._paint(state, generated.compensated[1:])
        return generated

    def forward(self, source, driving):
        # The released code detects driving keypoints first; the order moves batch-norm statistics.
        driving_keypoints, source_keypoints = self.keypoints(driving), self.keypoints(source)

        # One encoder pass for both images: group norm keeps samples apart.
        pyramid, middle_tap = self.encoder.tapped(torch.cat([source, driving]))
        source_pyramid, driving_pyramid = zip(*(feature.chunk(2) for feature in pyramid))
        lessons = [middle_tap.chunk(2)[1], *driving_pyramid[1:]]

        # The prediction, and I_g^1 painted from the coarsest feature alone: the decoder shall not lean on fine ones.
        state = self._source_state(source, source_keypoints, list(source_pyramid))
        generated = self._compensate(state, driving_keypoints)
        decoded = self.decoder.start(generated.compensated[0])
        both = self._paint(torch.cat([decoded, decoded]), generated.compensated[1:])
        generated.prediction, generated.coarse_prediction = both.chunk(2)
        generated.source_keypoints, generated.driving_keypoints = source_keypoints, driving_keypoints

        self._learn_codes(generated, lessons)
        return generated

    def coarse(self, source, driving):
        source_keypoints, driving_keypoints = self.keypoints(source), self.keypoints(driving)
        moved, motion = self.dense_motion.move(source, source_keypoints, driving_keypoints)
        return Generated(moved, [motion.flow], [], source_keypoints=source_keypoints, driving_keypoints=driving_keypoints)

    def _compensate(self, source, driving):
        """From coarse to fine: mend the flow, warp and occlude the source, restore what the warp could not bring."""
        features = source.features
        batch = driving.value.shape[0]
        coarse = self.dense_motion(features.image, source.keypoints, driving)
        driving_feature = self.motion.encode_driving(coarse.driving_heatmaps) if self.motion_scales else None

        flow, logit = coarse.flow, coarse.occlusion_logit
        occlusion = torch.sigmoid(logit)
        released = self.params.occlusion_update == 'probability'
        generated = SynergyGenerated(None, [flow], [occlusion], dense_motion=coarse)
        for scale, feature in enumerate(features.pyramid):
            feature = feature.expand(batch, -1, -1, -1)                              # one source, many poses
            if scale < self.motion_scales:
                residual, occlusion_residual, motion = self.motion(scale, flow, feature, driving_feature,
                                                                   features.motion_codes)
                flow = flow + residual                                               # M^i = M^{i-1} + M_r^i
                # The released code adds the residual to the last sigmoid's output and takes the sigmoid again,
                # which pulls every map towards 0.66; published weights have learned around it.
                logit = (occlusion if released else logit) + occlusion_residual
                occlusion = torch.sigmoid(logit)
                generated.motion_features.append(motion)
                generated.residuals.append(residual)
                generated.flows.append(flow)
                generated.occlusions.append(occlusion)
            warped = occlude(warp(feature, flow), occlusion)                         # F_w^i
            compensated = warped
            if scale < self.appearance_scales:
                compensated = self.appearance(scale, warped, flow, features.appearance_codes)    # F_c^i
            generated.warped.append(warped)
            generated.compensated.append(compensated)
        return generated

    def _paint(self, state, finer):
        """Decoder state of the coarsest scale -> images.

        The finer features F_c^2.. are fused into as many samples as they have; any further samples of `state` are
        painted from the coarsest feature alone.
        """
        for scale, (fusion, feature) in enumerate(zip(self.fusions, finer), start=1):
            state = self.decoder.up(state, scale, partial(self._fuse, fusion, feature))
        return self.decoder.head(state).float()

    @staticmethod
    def _fuse(fusion, feature, state):
        count = feature.shape[0]
        fused, plain = state[:count], state[count:]
        return torch.cat([fusion(fused, feature), plain]) if len(plain) else fusion(fused, feature)

    def _learn_codes(self, generated, driving_features):
        """Eq. 3 on the flows before refinement, Eq. 5 on the driving features, summed over scales."""
        losses = {}
        if self.motion_scales:
            lesson = self.motion.learn(generated.flows[:self.motion_scales], generated.motion_features)
            generated.reconstructions, generated.motion_codes, losses['motion_reconstruction'] = lesson
            losses['motion_code'] = sum(codes.loss for codes in generated.motion_codes)
            self._watch(generated, 'motion', self.motion.codebook.slices, generated.motion_codes)
        if self.appearance_scales:
            lessons = [self.appearance.learn(scale, driving_features[scale]) for scale in range(self.appearance_scales)]
            generated.appearance_codes = lessons
            losses['appearance_code'] = sum(codes.loss for codes in generated.appearance_codes)
            self._watch(generated, 'appearance', self.appearance.codebook.slices, lessons)
        generated.losses = losses

    @staticmethod
    def _watch(generated, name, slices, codes):
        """Note how each scale uses its codes."""
        for scale, (part, quantized) in enumerate(zip(slices, codes)):
            used, perplexity = usage(quantized.indices, part.stop - part.start)
            generated.health[f'codes_used/{name}_{scale}'] = used
            generated.health[f'perplexity/{name}_{scale}'] = perplexity

    def after_update(self, generated):
        """Bring codes back that nothing has used for long (CodebookParams.revive_after)."""
        if self.motion_scales:
            self.motion.codebook.revive(generated.motion_codes)
        if self.appearance_scales:
            self.appearance.codebook.revive(generated.appearance_codes)
