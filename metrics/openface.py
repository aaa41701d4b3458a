"""The face embedding network of AED: nn4.small2 of CMU OpenFace, with the published names.

Amos et al., CMU-CS-16-118, 2016: https://cmusatyalab.github.io/openface/models-and-accuracies/. A smaller form of the
network NN4 of FaceNet (Schroff et al., CVPR 2015).

Layers without weights that the published module counts (ReLU, pools, normalisation) have no entry here.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

SIZE = 96     # width and height of its input, pixels


class OpenFace(nn.Module):
    """Embedding of a face: 128 numbers on the unit sphere. Load the published state dict strictly, and call eval()."""

    def __init__(self):
        super().__init__()
        self.layer1 = nn.Conv2d(3, 64, 7, stride=2, padding=3)
        self.layer2 = nn.BatchNorm2d(64)
        self.layer6 = nn.Conv2d(64, 64, 1)
        self.layer7 = nn.BatchNorm2d(64)
        self.layer9 = nn.Conv2d(64, 192, 3, padding=1)
        self.layer10 = nn.BatchNorm2d(192)
        # kernel: (width before, width after, stride)
        self.layer14 = Inception(192, {3: (96, 128, 1), 5: (16, 32, 1)}, nn.MaxPool2d(3, 2), pooled=32, plain=64)
        self.layer15 = Inception(256, {3: (96, 128, 1), 5: (32, 64, 1)}, nn.LPPool2d(2, 3), pooled=64, plain=64)
        self.layer16 = Inception(320, {3: (128, 256, 2), 5: (32, 64, 2)}, nn.MaxPool2d(3, 2))
        self.layer17 = Inception(640, {3: (96, 192, 1), 5: (32, 64, 1)}, nn.LPPool2d(2, 3), pooled=128, plain=256)
        self.layer18 = Inception(640, {3: (160, 256, 2), 5: (64, 128, 2)}, nn.MaxPool2d(3, 2))
        self.layer19 = Inception(1024, {3: (96, 384, 1)}, nn.LPPool2d(2, 3), pooled=96, plain=256)
        self.layer21 = Inception(736, {3: (96, 384, 1)}, nn.MaxPool2d(3, 2), pooled=96, plain=256)
        self.layer25 = nn.Linear(736, 128)

    def forward(self, image):
        """image (B, 3, 96, 96) in [0, 1], of the channel order the weights were trained on -> (B, 128)."""
        x = F.max_pool2d(self.layer2(self.layer1(image)).relu(), 3, stride=2, padding=1)
        x = F.local_response_norm(x, 5)
        x = self.layer7(self.layer6(x)).relu()
        x = self.layer10(self.layer9(x)).relu()
        x = F.max_pool2d(F.local_response_norm(x, 5), 3, stride=2, padding=1)
        for inception in (self.layer14, self.layer15, self.layer16, self.layer17, self.layer18, self.layer19,
                          self.layer21):
            x = inception(x)
        x = self.layer25(F.avg_pool2d(x, 3).flatten(1))
        return x / (x.square().sum(1, keepdim=True) + 1e-6).sqrt()


class Inception(nn.Module):
    """Parallel branches: 1x1 and k x k convolutions, a pool, and a plain 1x1 convolution; their outputs are stacked."""

    def __init__(self, width, kernels, pool, pooled=None, plain=None):
        """
        width:   input channels
        kernels: {kernel size: (channels of the 1x1 before it, channels of its own, its stride)}
        pool:    module
        pooled:  channels of the 1x1 after the pool, None for no such layer
        plain:   channels of the plain 1x1, None for no such branch
        """
        super().__init__()
        branches = [[*_convolution(width, before, 1), *_convolution(before, after, kernel, stride)]
                    for kernel, (before, after, stride) in kernels.items()]
        branches.append([('pool', pool), *(_convolution(width, pooled, 1) if pooled else [])])
        if plain:
            branches.append(_convolution(width, plain, 1))
        # Published names count the layers of a branch from 1: 1_conv, 2_bn, 3_relu, 4_conv, ...
        self.seq_list = nn.ModuleList(
            nn.Sequential(OrderedDict((f'{i}_{name}', layer) for i, (name, layer) in enumerate(branch, 1)))
            for branch in branches)

    def forward(self, x):
        results = [branch(x) for branch in self.seq_list]
        height, width = (max(result.shape[axis] for result in results) for axis in (2, 3))
        return torch.cat([_centred(result, height, width) for result in results], dim=1)


def _convolution(before, after, kernel, stride=1):
    return [('conv', nn.Conv2d(before, after, kernel, stride, padding=kernel // 2)),
            ('bn', nn.BatchNorm2d(after)), ('relu', nn.ReLU())]


def _centred(x, height, width):
    """x in the middle of zeros (height, width)."""
    down, right = height - x.shape[2], width - x.shape[3]
    return F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
