"""MCC, motion compensation by the motion codebook (Sec. 3.2.3), and its losses (Sec. 3.2.2, Eq. 3)."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from modules.codebook import Codebook
from modules.flow_update import FlowUpdate, MotionEncoder, SourceContext
from modules.layers import Downsample, ResBlock, Upsample, group_norm
from modules.ops import Conv1x1
from modules.retrieval import Retrieval
from modules.warp import Warped, from_displacement, identity_grid, resize, resize_read, to_displacement


class MotionCompensation(nn.Module):
    """Refines the flow scale by scale from motion codes.

    All scales share all layers, except those whose input width depends on the scale.
    """

    def __init__(self, params, channels, num_kp, flow_size, grid, update_width, groups):
        """channels: feature widths, coarsest first; flow_size, grid: side of flow and token grid in pixels;
        update_width: hidden width of D_MR; groups: of group norm."""
        super().__init__()
        dim = params.code_dim
        halvings = int(math.log2(flow_size // grid))
        self.codebook = Codebook(params)
        self.encode = nn.Sequential(nn.Conv2d(2, dim, 3, padding=1), *(Downsample(dim) for _ in range(halvings)),
                                    ResBlock(dim, dim, groups))                                # E_M
        self.decode = nn.Sequential(*(Upsample(dim) for _ in range(halvings)), ResBlock(dim, dim, groups),
                                    group_norm(dim, groups), nn.Conv2d(dim, 2, 3, padding=1))  # D_M
        self.retrieval = Retrieval(dim, params.num_heads, params.num_layers, grid, params.identity_start)    # T_M

        channels = channels[:params.num_scales]
        self.embed_driving = Conv1x1(num_kp, dim)
        self.embed_source = nn.ModuleList(Conv1x1(width, dim) for width in channels)
        self.embed_evidence = Conv1x1(2 * dim, dim)
        self.embed_query = Conv1x1(2 * dim, dim)
        self.context = nn.ModuleList(SourceContext(width, update_width * 3 // 2) for width in channels)
        self.motion_encoder = MotionEncoder(dim, update_width)
        self.update = FlowUpdate(update_width)                                                 # D_MR

    def project_codes(self):
        """Keys and values of the motion codes (K, d_m), a Projection per layer, for all samples and scales."""
        with torch.autocast(self.codebook.embedding.device.type, enabled=False):
            return self.retrieval.project(self.codebook.embedding)

    def encode_driving(self, heatmaps):
        """Driving keypoint feature F_kp^d of heat maps (B, K, h, w) -> (B, D, h_m, w_m), one for all scales."""
        return F.relu(self.embed_driving(resize(heatmaps, self.retrieval.size)))

    def forward(self, scale, flow, source_feature, driving_feature, projections):
        """Residuals for one scale.

        flow:            (B, h, w, 2) M^{i-1}
        source_feature:  (B, C_i, H_i, W_i) F_s^i
        driving_feature: result of `encode_driving`
        projections:     result of `project_codes`
        returns:         (B, h, w, 2) M_r^i in normalised coordinates, (B, 1, h, w) occlusion residual,
                         (B, d_m, h_m, w_m) F_m^{i-1}, from which the codebook learns
        """
        displacement = to_displacement(flow)                                         # (B, 2, h, w)
        warped = Warped(source_feature, flow)                                        # of (B, C_i, H_i, W_i)
        full, size, grid = source_feature.shape[-2:], flow.shape[1:3], self.retrieval.size

        # Query: the motion so far, without gradient, and the evidence for a better one.
        source = F.relu(self.embed_source[scale](resize_read(warped.read_for(grid), full, grid)))
        evidence = self.embed_evidence(torch.cat([source, driving_feature], dim=1))
        motion = self.encode(displacement.detach())
        query = self.embed_query(torch.cat([motion, evidence], dim=1))               # (B, D, h_m, w_m)

        # Codes refine the flow by a residual: they are too few to reconstruct it exactly.
        # In fp32 also in bf16 training: it is small, and fused attention would pad its few channels in bf16.
        with torch.autocast(query.device.type, enabled=False):
            retrieved = self.retrieval(query.float(), projections, self.codebook.slices[scale])
        retrieved = resize(retrieved, size)
        context = self.context[scale](warped.read_for(size), full, size)
        residual, occlusion = self.update(self.motion_encoder(displacement, retrieved), context)
        return from_displacement(residual.float()), occlusion.float(), motion

    def learn(self, flows, features):
        """Eq. 3 for the flows M^{i-1} (B, h, w, 2) of all scales and their encodings (B, d_m, h_m, w_m).

        No gradient reaches the flows.
        returns: flows reconstructed from codes, Eq. 2, (B, h, w, 2); Quantized with the two code terms of Eq. 3, both
                 per scale; L1 of the reconstructions in normalised coordinates, a scalar summed over scales
        """
        quantized = [self.codebook.quantize(feature, scale) for scale, feature in enumerate(features)]
        # D_M is shared, so all scales are decoded in one batch.
        decoded = self.decode(torch.cat([found.vectors for found in quantized])).float()
        offsets = from_displacement(decoded)
        loss = sum(F.l1_loss(offset, from_displacement(to_displacement(flow.detach())))
                   for offset, flow in zip(offsets.chunk(len(flows)), flows))
        reconstructions = (identity_grid(offsets.shape[1:3], offsets) + offsets).chunk(len(flows))
        return list(reconstructions), quantized, loss
