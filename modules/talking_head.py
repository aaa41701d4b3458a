"""The interface of all methods: detect keypoints, encode a source, render a driving pose.

Training, reconstruction, animation, metrics and pictures use only `TalkingHead`, so a new method is one file in
`modules/`, one YAML and one line in `build.py` (docs/add-a-method.md).
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Keypoints(NamedTuple):
    """FOMM keypoints of a batch of images.

    value:    (B, K, 2) positions (x, y) in [-1, 1]
    jacobian: (B, K, 2, 2) local affine frame around each keypoint; None for methods without one
    heatmap:  (B, K, h, w) where each keypoint may be, sum 1; FOMM's detector, while training only
    """
    value: Tensor
    jacobian: Tensor | None = None
    heatmap: Tensor | None = None

    def map(self, function):
        """Apply `function` to every field that is not None: `keypoints.map(Tensor.detach)`."""
        return Keypoints(*(None if part is None else function(part) for part in self))


def join(keypoints):
    """Keypoints of several batches (B_i, K, 2) -> of one (sum of B_i, K, 2), in their order."""
    return Keypoints(*(None if parts[0] is None else torch.cat(parts) for parts in zip(*keypoints)))


@dataclass
class SourceState:
    """Everything that depends only on the source image; computed once per video.

    keypoints: of the source image
    features:  what else the method's `render` reads
    skipped:   the method's `parts` that `render` skips; see `TalkingHead.without`
    """
    keypoints: Keypoints
    features: Any
    skipped: frozenset[str] = frozenset()


@dataclass
class Generated:
    """Output of a method for a source and a driving pose.

    prediction:        (B, 3, H, W) the frame, nominally in [-1, 1], not clamped
    flows:             coarse flow first, then each refinement; (B, h, w, 2) sampling positions in [-1, 1]
    occlusions:        (B, 1, h, w) in [0, 1], 1 where the source is visible; as many as the method has
    first_scale_prediction: (B, 3, H, W) I_g^1, decoded from the coarsest scale only, also supervised; None for methods
                       without one
    source_keypoints, driving_keypoints: of both images (training only)
    losses:            the method's own unweighted losses, scalars by name (training only)
    diagnostics:       scalars to monitor (training only): codes in use, perplexity, ...
    """
    prediction: Tensor
    flows: list[Tensor]
    occlusions: list[Tensor]
    first_scale_prediction: Tensor | None = None
    source_keypoints: Keypoints | None = None
    driving_keypoints: Keypoints | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)
    diagnostics: dict[str, Tensor] = field(default_factory=dict)


class TalkingHead(nn.Module):
    """A source image and a driving image in, the source person with the driving motion out.

    Images are (B, 3, H, W) in [-1, 1] everywhere.

    Params:          the dataclass that the constructor takes, `model_params` of the config; must have `image_size`, the
                     side of the square image in pixels
    own_losses:      names that `forward` may put into Generated.losses
    has_coarse_flow: whether `move_source` is there, so that keypoints and coarse flow can be trained alone
    landmarks:       names of the face landmarks that are the keypoints; empty for methods that learn their keypoints
    params:          the Params that it was built from, set by `build_model`
    last_weight:     weight of the last layer, where the adaptive adversarial weight compares gradients
    checkpointed_blocks: module classes that make up most of the model: activation checkpointing recomputes them and
                     torch.compile compiles them. None with batch norm, whose statistics would be updated twice.
    fp32_networks:   names of networks that compute in fp32 under autocast too
    """

    Params: type
    own_losses: tuple[str, ...] = ()
    has_coarse_flow: bool = False
    landmarks: tuple[str, ...] = ()
    last_weight: nn.Parameter
    checkpointed_blocks: tuple[type, ...] = ()
    fp32_networks: tuple[str, ...] = ()

    def keypoints(self, image: Tensor) -> Keypoints:
        """Keypoints of image (B, 3, H, W)."""
        raise NotImplementedError

    def encode_source(self, image: Tensor) -> SourceState:
        """Everything that depends only on the source image (B, 3, H, W), for all driving frames."""
        raise NotImplementedError

    def render(self, source: SourceState, driving: Keypoints) -> Generated:
        """Frames for driving keypoints (B, K, 2); a source of batch 1 serves the whole batch."""
        raise NotImplementedError

    def forward(self, source: Tensor, driving: Tensor) -> Generated:
        """Reconstruct `driving` from `source`, both (B, 3, H, W); in training also the method's losses.

        Methods with `landmarks` also take `keypoints`: Keypoints of both images, given instead of detected.
        """
        raise NotImplementedError

    def move_source(self, source: Tensor, driving: Tensor) -> Generated:
        """Reconstruct `driving` as the source image warped by the coarse flow, nothing decoded; as `forward`.

        What the first train_params.motion_iterations train; only for methods that have a coarse flow.
        """
        raise NotImplementedError

    # Inference without parts of the method (`--mode inspect`)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts that `render` can skip, 'KIND SCALE', scales from 1 as in the paper; most have none."""
        return ()

    def without(self, source: SourceState, parts) -> SourceState:
        """The source state from which `render` makes frames without these `parts`."""
        unknown = set(parts) - set(self.parts)
        assert not unknown, f'no parts {sorted(unknown)}; this model has {self.parts}'
        return replace(source, skipped=frozenset(parts))

    @staticmethod
    def skips(source: SourceState, kind: str, scale: int) -> bool:
        """Whether `render` skips the part of this kind at this scale, 0 the coarsest."""
        return f'{kind} {scale + 1}' in source.skipped

    def code_counts(self, source: Tensor, driving: Tensor) -> dict[str, Tensor]:
        """How often each code is chosen for these images (B, 3, H, W): {'codebook scale': counts (K_i,)}.

        Empty for methods without codebooks.
        """
        return {}

    def pretrained_parts(self) -> dict[str, tuple[nn.Module, str]]:
        """Parts that start from published weights: {layout: (part, folder of its files)}.

        layout: key of modules.published.formats.LAYOUTS. Checkpoints contain these parts, too.
        """
        return {}

    def keep_for_update(self, generated: Generated):
        """The part of a micro-batch's output that `after_update` needs; None for most methods."""

    def after_update(self, kept: list) -> None:
        """Called after each update of the weights; kept: what `keep_for_update` returned for each micro-batch."""

    def outer_blocks(self):
        """Modules of the classes in `checkpointed_blocks` that are not inside another one."""
        found, queue = [], list(self.children())
        while queue:
            module = queue.pop()
            if isinstance(module, self.checkpointed_blocks):
                found.append(module)
            else:
                queue.extend(module.children())
        return found

    def enable_activation_checkpointing(self):
        """Activation checkpointing: blocks store only their input and recompute the rest in the backward pass."""
        for block in self.outer_blocks():
            block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
