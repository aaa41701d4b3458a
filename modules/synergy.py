"""The paper's model: for each scale MCC -> warp -> ACC, then decode (Sec. 3.1, Fig. 2)."""

from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from modules.appearance_compensation import AppearanceCompensation, WindowEmbedding
from modules.autoencoder import AutoencoderParams, Decoder, Encoder, EncoderLevel, Fusion
from modules.codebook import CodebookParams, Quantized, join, usage
from modules.convolutions import keep_layout
from modules.dense_motion import DenseMotion, DenseMotionNetwork, DenseMotionParams, SourceImage
from modules.discriminator import PatchDiscriminatorParams
from modules.flow_update import FlowUpdate, MotionEncoder, SourceContext
from modules.keypoint_detector import KeypointDetector, KeypointDetectorParams, gaussian_heatmaps
from modules.layers import Downsample, ResBlock, Upsample, check_hourglasses, shrunk
from modules.motion_compensation import MotionCompensation
from modules.retrieval import Projection, RetrievalLayer
from modules.talking_head import Generated, SourceState, TalkingHead
from modules.warp import occlude, warp
from support.ranges import LayerCount, TensorSize

OCCLUSION_UPDATES = ('probability', 'logit')


@dataclass(frozen=True)
class SynergyParams:
    image_size: TensorSize = 256           # side of the square image in pixels
    occlusion_update: str = 'probability'  # residuals are added to the probability (released code) or to the logit
    tied_windows: bool = False             # ACC starts by passing features, not from PyTorch's default start
    residual_appearance: bool = False      # ACC adds to the warped feature, instead of replacing it
    image_skip: bool = False               # the decoder adds to the source image warped by the finest flow
    pose_scales: tuple[LayerCount, ...] = ()  # scales, 1 the coarsest, whose decoder also sees driving keypoints
    flow_update_width: TensorSize = 128    # hidden width of D_MR, which turns retrieved codes into a flow residual
    kp_detector_params: KeypointDetectorParams = KeypointDetectorParams()
    dense_motion_params: DenseMotionParams = DenseMotionParams()
    autoencoder_params: AutoencoderParams = AutoencoderParams()
    motion_codebook_params: CodebookParams = CodebookParams(code_dim=32)
    appearance_codebook_params: CodebookParams = CodebookParams(code_dim=256)
    discriminator_params: PatchDiscriminatorParams = PatchDiscriminatorParams()

    def __post_init__(self):
        if self.occlusion_update not in OCCLUSION_UPDATES:
            raise ValueError(f'occlusion_update={self.occlusion_update!r}: expected one of '
                             f'{", ".join(OCCLUSION_UPDATES)}')
        num_scales = len(self.autoencoder_params.channels)
        if self.image_size % 2 ** (num_scales - 1):
            raise ValueError(f'image_size={self.image_size} cannot be halved {num_scales - 1} times, once per scale '
                             'of autoencoder_params.channels')
        if self.flow_size < self.grid or self.flow_size % self.grid:
            raise ValueError(f'dense_motion_params.scale_factor={self.dense_motion_params.scale_factor} gives flows of '
                             f'{self.flow_size} px, which is no multiple of the {self.grid} px token grid')
        check_hourglasses(self)
        if not set(self.pose_scales) <= set(range(1, num_scales + 1)):
            raise ValueError(f'pose_scales={list(self.pose_scales)}: the model has scales 1 to {num_scales}')
        for name in ('motion_codebook_params', 'appearance_codebook_params'):
            if not 0 <= getattr(self, name).num_scales <= num_scales:
                raise ValueError(f'{name}.num_scales={getattr(self, name).num_scales}: '
                                 f'the model has {num_scales} scales')

    @property
    def grid(self):
        """Side of the token grid, which is that of the coarsest features."""
        return self.image_size // 2 ** (len(self.autoencoder_params.channels) - 1)

    @property
    def flow_size(self):
        return shrunk(self.image_size, self.dense_motion_params.scale_factor)


class SourceFeatures(NamedTuple):
    """What `render` needs of the source.

    pyramid:          F_s^i, coarsest first, (B, C_i, H_i, W_i)
    image:            the source as the dense motion network sees it
    picture:          the source itself (B, 3, H, W) with image_skip, else None
    motion_projections, appearance_projections: codes projected to keys and values, one Projection per retrieval layer
    """
    pyramid: list[Tensor]
    image: SourceImage
    picture: Tensor | None
    motion_projections: list[Projection]
    appearance_projections: list[Projection]


class ScaleResult(NamedTuple):
    """What compensation makes of one scale; None where that scale's flow is not compensated.

    flow:            M^i (B, h, w, 2)
    occlusion_logit: (B, 1, h, w), and its sigmoid, the occlusion
    warped:          F_w^i after occlusion (B, C_i, H_i, W_i)
    compensated:     F_c^i, same shape; the warped feature itself where appearance is not compensated
    residual:        M_r^i (B, h, w, 2)
    motion_feature:  F_m^{i-1} (B, d_m, h_m, w_m), the encoded flow before refinement
    """
    flow: Tensor
    occlusion_logit: Tensor
    occlusion: Tensor
    warped: Tensor | None = None
    compensated: Tensor | None = None
    residual: Tensor | None = None
    motion_feature: Tensor | None = None


@dataclass
class SynergyGenerated(Generated):
    """Generated with everything that the paper's Fig. 7, 8, 10 and 11 show; lists run over scales, coarsest first.

    dense_motion:    the coarse motion M^0 and what it was made of
    motion_features: F_m^{i-1} (B, d_m, h_m, w_m), the encoded flow before refinement, compensated scales only
    residuals:       M_r^i (B, h, w, 2), compensated scales only
    reconstructions: M_hat^i (B, h, w, 2), the flow before refinement, reconstructed from codes (training only)
    warped:          F_w^i after occlusion (B, C_i, H_i, W_i)
    compensated:     F_c^i, same shapes; the warped feature itself where there is no compensation
    motion_quantized, appearance_quantized: what the codebooks made of flow and driving feature (training only)
    """
    dense_motion: DenseMotion | None = None
    motion_features: list[Tensor] = field(default_factory=list)
    residuals: list[Tensor] = field(default_factory=list)
    reconstructions: list[Tensor] = field(default_factory=list)
    warped: list[Tensor] = field(default_factory=list)
    compensated: list[Tensor] = field(default_factory=list)
    motion_quantized: list[Quantized] = field(default_factory=list)
    appearance_quantized: list[Quantized] = field(default_factory=list)


class Synergy(TalkingHead):
    """Multi-scale compensatory codebooks for motion and appearance."""

    Params = SynergyParams
    own_losses = ('motion_reconstruction', 'motion_code', 'appearance_code')
    has_coarse_flow = True
    checkpointed_blocks = (EncoderLevel, ResBlock, Upsample, Downsample, Fusion, RetrievalLayer, SourceContext,
                           FlowUpdate, MotionEncoder, WindowEmbedding)

    def __init__(self, params):
        super().__init__()
        self.params, self.landmarks = params, params.kp_detector_params.landmarks
        channels, groups = params.autoencoder_params.channels, params.autoencoder_params.norm_groups
        num_kp = params.kp_detector_params.num_kp

        self.keypoint_detector = KeypointDetector(params.kp_detector_params)
        self.dense_motion = DenseMotionNetwork(params.dense_motion_params, num_kp)
        self.encoder = Encoder(params.autoencoder_params)
        self.decoder = Decoder(params.autoencoder_params)
        self.fusions = nn.ModuleList(Fusion(width, groups) for width in channels[1:])
        self.pose = nn.ModuleDict({str(scale): nn.Conv2d(num_kp, channels[scale - 1], 3, padding=1)
                                   for scale in params.pose_scales})
        self.motion_scales = params.motion_codebook_params.num_scales
        self.appearance_scales = params.appearance_codebook_params.num_scales
        if self.motion_scales:
            self.motion = MotionCompensation(params.motion_codebook_params, channels, num_kp,
                                             params.flow_size, params.grid,
                                             params.flow_update_width, groups)
        if self.appearance_scales:
            self.appearance = AppearanceCompensation(params.appearance_codebook_params, channels, params.grid,
                                                     params.tied_windows, params.residual_appearance)
        for parameter in self.pose.parameters():
            nn.init.zeros_(parameter)                    # at first the keypoints add nothing
        if params.image_skip:
            nn.init.zeros_(self.decoder.last_weight)     # at first the decoder adds nothing

    @property
    def fp32_networks(self):
        return 'keypoint_detector', 'dense_motion', *(['motion.retrieval'] if self.motion_scales else [])

    @property
    def last_weight(self):
        """The last layer's kernel, whose gradients the adaptive adversarial weight compares."""
        return self.decoder.last_weight

    @property
    def parts(self):
        return (*(f'motion {i + 1}' for i in range(self.motion_scales)),
                *(f'appearance {i + 1}' for i in range(self.appearance_scales)))

    def keypoints(self, image):
        return self.keypoint_detector(image)

    def encode_source(self, image):
        return self._source_state(image, self.keypoints(image), self.encoder(image))

    def _source_state(self, image, keypoints, pyramid):
        return SourceState(keypoints, SourceFeatures(
            pyramid, self.dense_motion.encode_source(image, keypoints), image if self.params.image_skip else None,
            self.motion.project_codes() if self.motion_scales else [],
            self.appearance.project_codes() if self.appearance_scales else []))

    def render(self, source, driving):
        generated = self._compensate(source, driving)
        coarsest, *finer = self._posed(generated, driving)
        generated.prediction = self._decode(self.decoder.start(coarsest), finer, self._moved(source, generated))
        return generated

    def forward(self, source, driving, keypoints=None):
        # The released code detects driving keypoints first; the order moves batch-norm statistics.
        source_keypoints, driving_keypoints = keypoints or reversed([self.keypoints(driving), self.keypoints(source)])

        # One encoder pass for both images: group norm keeps samples apart.
        pyramid, middle_tap = self.encoder.tapped(torch.cat([source, driving]))
        source_pyramid, driving_pyramid = zip(*(feature.chunk(2) for feature in pyramid))
        for feature in source_pyramid:
            keep_layout(feature)
        codebook_targets = [middle_tap.chunk(2)[1], *driving_pyramid[1:]]

        # The prediction, and I_g^1 from the coarsest feature only, so that the decoder does not depend on fine ones.
        state = self._source_state(source, source_keypoints, list(source_pyramid))
        generated = self._compensate(state, driving_keypoints)
        coarsest, *finer = self._posed(generated, driving_keypoints)
        both = self._decode(self.decoder.start(coarsest), finer, self._moved(state, generated), plain=True)
        generated.prediction, generated.first_scale_prediction = both.chunk(2)
        generated.source_keypoints, generated.driving_keypoints = source_keypoints, driving_keypoints

        self.learn_codes(generated, codebook_targets)
        return generated

    def move_source(self, source, driving, keypoints=None):
        source_keypoints, driving_keypoints = keypoints or (self.keypoints(source), self.keypoints(driving))
        moved, motion = self.dense_motion.move(source, source_keypoints, driving_keypoints)
        return Generated(moved, [motion.flow], [], source_keypoints=source_keypoints,
                         driving_keypoints=driving_keypoints)

    def _compensate(self, source, driving):
        """From the coarsest scale to the finest: all of Fig. 2 but the encoder and the decoder."""
        features, batch = source.features, driving.value.shape[0]
        motion = self.dense_motion(features.image, source.keypoints, driving)                # M^0
        driving_feature = self.motion.encode_driving(motion.driving_heatmaps) if self.motion_scales else None

        results = [ScaleResult(motion.flow, motion.occlusion_logit, torch.sigmoid(motion.occlusion_logit))]
        for scale, feature in enumerate(features.pyramid):
            feature = feature.expand(batch, -1, -1, -1)                                      # one source, many poses
            results.append(self._compensate_scale(scale, feature, results[-1], driving_feature, source))
        coarse, *results = results
        refined = [result for result in results if result.residual is not None]
        return SynergyGenerated(
            None, [coarse.flow, *(result.flow for result in refined)],
            [coarse.occlusion, *(result.occlusion for result in refined)], dense_motion=motion,
            motion_features=[result.motion_feature for result in refined],
            residuals=[result.residual for result in refined],
            warped=[result.warped for result in results], compensated=[result.compensated for result in results])

    def _compensates(self, kind, scale, source):
        """Whether motion or appearance is compensated at this scale: built, and not left out (`without`)."""
        return f'{kind} {scale + 1}' in self.parts and not self.skips(source, kind, scale)

    def _compensate_scale(self, scale, feature, before, driving_feature, source):
        """Sec. 3.2.3 for one scale: refine the flow, update the occlusion, warp, occlude, compensate.

        feature: F_s^i (B, C_i, H_i, W_i); before: ScaleResult of the scale before; returns this scale's
        """
        flow, logit, occlusion = before.flow, before.occlusion_logit, before.occlusion
        residual = motion_feature = None
        if self._compensates('motion', scale, source):
            residual, occlusion_residual, motion_feature = self.motion(scale, flow, feature, driving_feature,
                                                                       source.features.motion_projections)
            flow = flow + residual                                                           # M^i = M^{i-1} + M_r^i
            # The released code adds the residual to the last sigmoid's output and takes the sigmoid again,
            # which pulls every map towards 0.66; published weights have learned around it.
            released = self.params.occlusion_update == 'probability'
            logit = (occlusion if released else logit) + occlusion_residual
            occlusion = torch.sigmoid(logit)
        warped = compensated = occlude(warp(feature, flow), occlusion)                       # F_w^i
        if self._compensates('appearance', scale, source):
            compensated = self.appearance(scale, warped, flow, source.features.appearance_projections)    # F_c^i
        return ScaleResult(flow, logit, occlusion, warped, compensated, residual, motion_feature)

    def _posed(self, generated, driving):
        """F_c of every scale; at `pose_scales` plus a convolution of the driving keypoints' heat maps.

        A flow opens no closed mouth. The Gaussians have a standard deviation of one pixel of the scale.
        """
        def pose(scale, size):
            heatmaps = gaussian_heatmaps(driving.value, (size, size), (2 / (size - 1)) ** 2)
            return self.pose[str(scale)](heatmaps)
        return [feature + pose(scale, feature.shape[-1]) if str(scale) in self.pose else feature
                for scale, feature in enumerate(generated.compensated, start=1)]

    def _moved(self, source, generated):
        """With image_skip, the source image warped by the finest flow (B, 3, H, W), to which the decoder adds."""
        if not self.params.image_skip:
            return None
        flow = generated.flows[-1]
        return warp(source.features.picture.expand(flow.shape[0], -1, -1, -1), flow)

    def _decode(self, state, finer, moved=None, plain=False):
        """Decoder state of the coarsest scale (B, C_1, h, w) -> images (B, 3, H, W), added to `moved` if it is given.

        The finer features F_c^2.. are fused into the state. plain: decode it from the coarsest feature alone as well,
        in the same batch: (2B, 3, H, W).
        """
        for scale, (fusion, feature) in enumerate(zip(self.fusions, finer), start=1):
            state = self.decoder.up(state, scale, partial(self._fuse, fusion, feature, plain))
        if plain and not finer:
            state = torch.cat([state, state])
        decoded = self.decoder.head(state).float()
        return decoded if moved is None else decoded + moved.repeat(len(decoded) // len(moved), 1, 1, 1)

    @staticmethod
    def _fuse(fusion, feature, plain, state):
        """The fused state (B, C, h, w); with `plain`, followed along the batch by the state without any fusion."""
        if not plain:
            return fusion(state, feature)
        # Chunks, not slices, whose gradients would be filled up with zeros, channels first.
        halves = state.chunk(len(state) // len(feature))
        return torch.cat([fusion(halves[0], feature), halves[-1]])

    def learn_codes(self, generated, targets):
        """Codebook losses, summed over scales: Eq. 3 of the flows, Eq. 5 of `targets`, the driving features."""
        losses = {}
        if self.motion_scales:
            learned = self.motion.learn(generated.flows[:self.motion_scales], generated.motion_features)
            generated.reconstructions, generated.motion_quantized, losses['motion_reconstruction'] = learned
            losses['motion_code'] = sum(quantized.loss for quantized in generated.motion_quantized)
        if self.appearance_scales:
            generated.appearance_quantized = [self.appearance.learn(scale, targets[scale])
                                              for scale in range(self.appearance_scales)]
            losses['appearance_code'] = sum(quantized.loss for quantized in generated.appearance_quantized)
        generated.losses = losses
        for name, book, quantized in self.codebooks(generated):
            for scale, found in enumerate(quantized):
                used, perplexity = usage(found.indices, len(book.codes(scale)))
                generated.diagnostics |= {f'codes_used/{name}_{scale}': used, f'perplexity/{name}_{scale}': perplexity}

    def codebooks(self, generated):
        """(name, Codebook, Quantized per scale) of each codebook that the model has."""
        if self.motion_scales:
            yield 'motion', self.motion.codebook, generated.motion_quantized
        if self.appearance_scales:
            yield 'appearance', self.appearance.codebook, generated.appearance_quantized

    def code_counts(self, source, driving):
        generated = self(source, driving)
        return {f'{name} {scale}': torch.bincount(found.indices.flatten(), minlength=len(book.codes(scale)))
                for name, book, quantized in self.codebooks(generated) for scale, found in enumerate(quantized)}

    def keep_for_update(self, generated):
        """Per codebook, per scale: the features that were quantised and the codes that they chose."""
        return [[found._replace(vectors=None, loss=None) for found in quantized]
                for _, _, quantized in self.codebooks(generated)]

    def after_update(self, kept):
        """Revive codes that no feature has chosen for long (CodebookParams.revive_after)."""
        books = [part.codebook for name, part in self.named_children() if name in ('motion', 'appearance')]
        for book, parts in zip(books, zip(*kept, strict=True), strict=True):
            book.revive([join(scale) for scale in zip(*parts, strict=True)])
