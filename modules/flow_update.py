"""MRFA's flow updater (Tao et al., NeurIPS 2023), after RAFT's: a correction of flow and occlusion."""

import torch
import torch.nn.functional as F
from torch import nn

from modules.ops import Conv1x1
from modules.warp import resize_read


class MotionEncoder(nn.Module):
    """Encodes the flow together with the feature retrieved for it: correlations (MRFA) or codes (this paper)."""

    def __init__(self, channels, width):
        """channels: of the retrieved feature; width: of the result."""
        super().__init__()
        self.retrieved1 = Conv1x1(channels, width)
        self.retrieved2 = nn.Conv2d(width, width * 3 // 4, 3, padding=1)
        self.motion1 = nn.Conv2d(2, width, 7, padding=3)
        self.motion2 = nn.Conv2d(width, width // 2, 3, padding=1)
        self.join = nn.Conv2d(width * 3 // 4 + width // 2, width - 2, 3, padding=1)

    def forward(self, displacement, retrieved):
        """displacement (B, 2, h, w) in pixels, retrieved (B, C, h, w) -> (B, width, h, w)."""
        r = F.relu(self.retrieved2(F.relu(self.retrieved1(retrieved))))
        m = F.relu(self.motion2(F.relu(self.motion1(displacement))))
        return torch.cat([F.relu(self.join(torch.cat([r, m], dim=1))), displacement], dim=1)


class SourceContext(Conv1x1):
    """Feature of the warped source at each position of the flow, projected at the source's full resolution."""

    def forward(self, pixels, full, size):
        """pixels (B, C, ., .): those that resizing F_w from `full` to `size` (h, w) reads -> (B, C', h, w)."""
        return resize_read(F.relu(super().forward(pixels), inplace=True), full, size)


class FlowUpdate(nn.Module):
    """Motion features and source context -> residual displacement and residual occlusion."""

    def __init__(self, width):
        super().__init__()
        self.context = nn.Conv2d(width * 3 // 2, width, 3, padding=1)
        self.motion = self._head(width, 2)
        self.occlusion = self._head(width, 1)

    @staticmethod
    def _head(width, channels):
        return nn.Sequential(nn.Conv2d(2 * width, width, 3, padding=1), nn.ReLU(),
                             nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, motion, context):
        """motion (B, width, h, w), context (B, 3/2 width, h, w) -> (B, 2, h, w) in pixels, (B, 1, h, w)."""
        x = torch.cat([motion, F.relu(self.context(context))], dim=1)
        return self.motion(x), self.occlusion(x)
