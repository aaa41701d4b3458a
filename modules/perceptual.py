"""The pyramid VGG19 perceptual loss (FOMM Sec. 3.3, this paper's L_recon); after Johnson et al., ECCV 2016."""

import torch
from torch import nn

from modules.layers import AntiAlias, to_unit

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TAPS = (1, 6, 11, 20, 29)    # relu1_1 .. relu5_1 in torchvision's numbering of VGG19's `features`


class VGG19(nn.Module):
    """torchvision's VGG19 up to relu5_1 (Simonyan and Zisserman, ICLR 2015), frozen."""

    def __init__(self):
        super().__init__()
        from torchvision.models.vgg import cfgs, make_layers  # slow to import
        self.features = make_layers(cfgs['E'][:17])
        self.register_buffer('mean', torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer('std', torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)
        self.requires_grad_(False)

    def forward(self, image):
        """image (B, 3, H, W), normalised as an image in [0, 1] -> five feature maps, relu1_1 .. relu5_1."""
        x = (image - self.mean) / self.std
        taps = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in TAPS:
                taps.append(x)
        return taps


class PerceptualLoss(nn.Module):
    """Mean absolute difference of VGG19 features, summed over five layers and a pyramid of scales."""

    def __init__(self, network, scales=(1, 0.5, 0.25, 0.125), imagenet_range=False):
        """imagenet_range: map images from [-1, 1] to [0, 1], the range that the network was trained on.

        This paper's released code does not map them. FOMM's images are in [0, 1]; the mapping comes before downscaling,
        whose padding of 0 is black in [0, 1] and grey in [-1, 1].
        """
        super().__init__()
        self.imagenet_range = imagenet_range
        self.network = network
        self.pyramid = nn.ModuleList(AntiAlias(3, scale) for scale in scales)

    def value_and_gradient(self, predictions, target):
        """Loss and its gradient at each prediction, one level of the pyramid at a time, which saves memory.

        predictions: list of (B, 3, H, W), all compared with the target (B, 3, H, W), whose features are computed once
        returns:     terms (predictions, levels, layers) of the loss, unweighted; list of gradients (B, 3, H, W)
        """
        leaf = torch.cat([prediction.detach() for prediction in predictions]).requires_grad_()
        terms, gradient = [], torch.zeros_like(leaf)
        for down in self.pyramid:
            with torch.no_grad():
                wanted = self.network(down(self._ranged(target)))
            level, part = self._level(down, leaf, wanted)
            terms.append(level)
            gradient += part
        return torch.stack(terms, dim=1), list(gradient.chunk(len(predictions)))

    def _level(self, down, leaf, wanted):
        """Losses (predictions, layers) at one image scale, and the gradient of their sum at the predictions."""
        with torch.enable_grad():
            seen = self.network(down(self._ranged(leaf)))
        terms, gradients = zip(*(mean_difference(*pair) for pair in zip(seen, wanted)))
        return torch.stack(terms, dim=1), torch.autograd.grad(seen, leaf, gradients)[0]

    def _ranged(self, image):
        return to_unit(image) if self.imagenet_range else image


@torch.no_grad()
def mean_difference(features, wanted):
    """Mean |difference| of each of N predictions' features (N*B, C, H, W) from (B, C, H, W).

    Returns the means (N,), in fp32 also for bf16 features, and the gradient of their sum at the features.
    """
    difference = features.unflatten(0, (-1, len(wanted))) - wanted
    means = difference.abs().flatten(1).mean(1, dtype=torch.promote_types(difference.dtype, torch.float32))
    return means, (difference.sgn_() / wanted.numel()).flatten(0, 1)
