"""MCNet (Hong and Xu, ICCV 2023, arXiv 2307.09906): a memory of faces refines the warped source feature.

The memory is learned over the whole training set. An implicit identity, read off the source keypoints and the
warped feature, modulates it per sample; the feature then queries the modulated memory at each decoder scale.
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.discriminator import MultiScaleDiscriminatorParams
from modules.first_order import FirstOrderGenerated, FirstOrderParams, FirstOrderTalkingHead
from modules.keypoint_detector import KeypointDetectorParams
from modules.layers import ResBlock2d, UpBlock2d, from_unit, tokens, untokens
from modules.warp import occlude, resize, warp
from support.ranges import LayerCount, TensorSize

TEMPERATURE = 34           # of the softmax over dynamic kernels: nearly uniform at first, so that every kernel learns
ATTENTION_SCALE = 1 / 4    # of query . key; the public code's constant, whatever the width


@dataclass(frozen=True)
class MCNetParams(FirstOrderParams):
    num_down_blocks: LayerCount = 3    # halvings; the memory refines features of the coarsest `num_down_blocks` scales
    memory_channels: TensorSize = 512  # of the meta-memory, and of queries, keys and values
    memory_size: TensorSize = 32       # side of the meta-memory
    style_channels: TensorSize = 512   # of the implicit identity code
    style_hidden: TensorSize = 128     # hidden width on the way to it
    num_kernels: TensorSize = 4        # that the dynamic convolution mixes
    kp_detector_params: KeypointDetectorParams = KeypointDetectorParams(num_kp=15)
    discriminator_params: MultiScaleDiscriminatorParams = MultiScaleDiscriminatorParams(use_keypoints=True)

    def __post_init__(self):
        super().__post_init__()
        if self.block_expansion % 2:
            raise ValueError(f'block_expansion={self.block_expansion}: expected an even number, as the memory refines '
                             'every second channel')


@dataclass
class MCNetGenerated(FirstOrderGenerated):
    """FirstOrderGenerated with the memory's features; lists run over scales, coarsest first.

    warped_source: (B, 3, H, W) in [0, 1], the source image warped by the coarse flow
    features:      (B, C, H_i, W_i) every second channel of the warped feature, projected to the memory's channels
    values:        (B, C, M, M) values of the conditioned memory
    """
    warped_source: Tensor | None = None
    features: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


# ---------------------------------------------------------------------------- convolutions with weights per sample

class ModulatedConv(nn.Module):
    """StyleGAN2's style convolution (Karras et al., CVPR 2020, Sec. 2.2) at one resolution.

    Modulate, convolve, demodulate, noise, bias, leaky ReLU.

    The published weights keep StyleGAN2's equalised learning rate: weights are N(0, 1) and scaled when used.
    """

    def __init__(self, channels, style_channels):
        super().__init__()
        self.style_weight = nn.Parameter(torch.randn(channels, style_channels))
        self.style_bias = nn.Parameter(torch.ones(channels))
        self.weight = nn.Parameter(torch.randn(channels, channels, 3, 3))
        self.noise_strength = nn.Parameter(torch.zeros(1))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x, style):
        """x (1 or B, C, H, W), style (B, S) -> (B, C, H, W)."""
        style = F.linear(style, self.style_weight / math.sqrt(style.shape[1]), self.style_bias)      # (B, C)
        weight = self.weight / math.sqrt(self.weight[0].numel())
        # Scaling input and output channels equals scaling the kernels, and one kernel serves the whole batch.
        x = F.conv2d(x * style[:, :, None, None], weight, padding=1)
        energy = style.square() @ weight.square().sum((2, 3)).t()                                    # (B, C)
        x = x * torch.rsqrt(energy + 1e-8)[:, :, None, None]
        # The public code also adds noise in evaluation; here a pose gives one picture.
        if self.training:
            x = x + self.noise_strength * torch.randn_like(x[:, :1])
        return math.sqrt(2) * F.leaky_relu(x + self.bias[:, None, None], 0.2)


class DynamicConv(nn.Module):
    """Dynamic convolution (Chen et al., CVPR 2020): kernels mixed per sample by a feature's mean."""

    def __init__(self, in_channels, out_channels, num_kernels):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_kernels * out_channels, in_channels, 3, 3))
        # The public code does not initialise this bias; training from scratch then diverges.
        self.bias = nn.Parameter(torch.zeros(num_kernels, out_channels))
        self.squeeze = nn.Conv2d(in_channels, in_channels // 4 + 1, 1, bias=False)
        self.choose = nn.Conv2d(in_channels // 4 + 1, num_kernels, 1)
        nn.init.kaiming_uniform_(self.weight)
        for layer in (self.squeeze, self.choose):
            nn.init.kaiming_normal_(layer.weight, mode='fan_out', nonlinearity='relu')
        nn.init.zeros_(self.choose.bias)

    def forward(self, x, condition):
        """x (B, C, H, W), condition (B, C, h, w) -> (B, C', H, W)."""
        batch = x.shape[0]
        logits = self.choose(F.relu(self.squeeze(condition.mean((2, 3), keepdim=True)))).flatten(1)
        mixture = (logits.float() / TEMPERATURE).softmax(1)                                          # (B, K)
        kernels = self.weight.unflatten(0, self.bias.shape)                                          # (K, C', C, k, k)
        weight = torch.einsum('bk,koiyx->boiyx', mixture, kernels)
        bias = mixture @ self.bias                                                                   # (B, C')
        # One group per sample: each is convolved by its own kernel.
        x = F.conv2d(x.reshape(1, -1, *x.shape[2:]), weight.flatten(0, 1), bias.flatten(), padding=1, groups=batch)
        return x.view(batch, -1, *x.shape[2:])


# ---------------------------------------------------------------------------- memory

class MemoryCompensation(nn.Module):
    """The meta-memory and the attention that reads it; scales share all but the projections in and out."""

    def __init__(self, params):
        super().__init__()
        channels, halves = params.memory_channels, [width // 2 for width in params.widths[:0:-1]]    # coarsest first
        self.memory = nn.Parameter(torch.empty(1, channels, params.memory_size, params.memory_size))
        nn.init.kaiming_uniform_(self.memory)
        self.project = nn.ModuleList(nn.Conv2d(half, channels, 1) for half in halves)
        self.identity = nn.Sequential(nn.Linear(channels + 2 * params.kp_detector_params.num_kp, params.style_hidden),
                                      nn.ReLU(), nn.Linear(params.style_hidden, params.style_channels))
        self.condition = ModulatedConv(channels, params.style_channels)
        self.key_value = DynamicConv(channels, 2 * channels, params.num_kernels)
        self.query = nn.Conv2d(channels, channels, 1)
        self.difference = nn.Conv2d(channels, channels, 1)
        self.unproject = nn.ModuleList(nn.Conv2d(channels, half, 3, padding=1) for half in halves)
        self.norm = nn.ModuleList(nn.InstanceNorm2d(half, affine=True) for half in halves)

    def forward(self, scale, warped, source_keypoints):
        """Refine every second channel of a warped feature by attention to the memory.

        scale:            0 is the coarsest
        warped:           (B, C_i, H, W) source feature, warped and occluded
        source_keypoints: (B, K, 2) positions
        returns:          the refined feature (B, C_i, H, W); feature and value as MCNetGenerated has them
        """
        kept, refined = warped[:, ::2], warped[:, 1::2]
        feature = self.project[scale](refined)                                                        # (B, C, H, W)
        memory = self.conditioned(feature, source_keypoints)                                          # (B, C, M, M)
        key, value = F.relu(self.key_value(memory, feature)).chunk(2, dim=1)
        q, k, v = (tokens(x)[:, None] for x in (F.relu(self.query(feature)), key, value))            # (B, 1, H*W, C)
        found = F.scaled_dot_product_attention(q, k, v, scale=ATTENTION_SCALE)
        found = untokens(found[:, 0], feature.shape[-2:])
        refined = feature + F.relu(self.difference(feature - found))
        refined = F.relu(self.norm[scale](self.unproject[scale](refined)))
        return torch.stack([kept, refined], dim=2).flatten(1, 2), feature, value

    def conditioned(self, feature, source_keypoints):
        """The memory (B, C, M, M), modulated by an implicit identity: source keypoints (B, K, 2), pooled feature."""
        identity = self.identity(torch.cat([feature.mean((2, 3)), source_keypoints.flatten(1)], dim=1))
        return self.condition(self.memory, identity)


# ---------------------------------------------------------------------------- the method

class DecoderLevel(nn.Module):
    """Two residual blocks, then an upsampling block: (B, C, H, W) -> (B, C', 2H, 2W)."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.residual = nn.Sequential(ResBlock2d(in_channels), ResBlock2d(in_channels))
        self.up = UpBlock2d(in_channels, out_channels)

    def forward(self, x):
        return self.up(self.residual(x))


class MCNet(FirstOrderTalkingHead):
    """Warp the source at every scale, refine it by the memory, decode from coarse to fine."""

    Params = MCNetParams
    own_losses = ('feature_consistency',)

    def __init__(self, params):
        super().__init__(params)
        self.compensation = MemoryCompensation(params)
        widths = params.widths[::-1]                                                                 # coarsest first
        joined = [widths[0], *(2 * width for width in widths[1:-1])]        # decoder state and encoder feature
        self.levels = nn.ModuleList(DecoderLevel(*pair) for pair in zip(joined, widths[1:]))

    def render(self, source, driving):
        features, batch = source.features, driving.value.shape[0]
        motion = self.dense_motion(features.small, source.keypoints, driving)
        occlusion = torch.sigmoid(motion.occlusion_logit)
        generated = MCNetGenerated(None, [motion.flow], [occlusion], dense_motion=motion)

        # One source, many poses; features coarsest first.
        *warped, finest = [occlude(warp(feature.expand(batch, -1, -1, -1), motion.flow), occlusion)
                           for feature in reversed(features.pyramid)]
        keypoints = source.keypoints.value.expand(batch, -1, -1)

        # From coarse to fine: refine, join with what is decoded so far, decode.
        state = None
        for scale, (level, feature) in enumerate(zip(self.levels, warped)):
            if not self.skips(source, 'memory', scale):
                feature, projected, value = self.compensation(scale, feature, keypoints)
                generated.features.append(projected)
                generated.values.append(value)
            state = level(feature if state is None else torch.cat([state, feature], dim=1))

        # The warped source shows through where it is visible, the decoded image everywhere else.
        visible = resize(occlusion, features.image.shape[-2:])
        decoded = torch.sigmoid(self.head(occlude(state, 1 - visible) + finest).float())
        generated.warped_source = warp(features.image.expand(batch, -1, -1, -1), motion.flow)
        generated.prediction = from_unit(decoded * (1 - visible) + generated.warped_source * visible)
        return generated

    def forward(self, source, driving):
        generated = super().forward(source, driving)
        generated.losses['feature_consistency'] = sum(map(feature_consistency, generated.features, generated.values))
        return generated

    @property
    def parts(self):
        return tuple(f'memory {scale + 1}' for scale in range(len(self.levels)))


def feature_consistency(feature, value):
    """Mean |difference|; pulls the memory's values (B, C, M, M) towards the feature (B, C, H, W), which stays."""
    return F.l1_loss(value, resize(feature.detach(), value.shape[-2:]))
