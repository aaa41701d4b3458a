"""The patch discriminator (VQGAN's, five strided or plain 4x4 convolutions with batch norm)."""

from dataclasses import dataclass

from torch import nn

from modules.layers import BatchNorm2d


@dataclass(frozen=True)
class PatchDiscriminatorParams:
    channels: int = 64         # width of the first layer
    num_layers: int = 4        # strided layers; 4 judge patches of 16 px steps, (B, 1, 14, 14) at 256 px


class PatchDiscriminator(nn.Module):
    """One logit per overlapping patch: high for real."""

    Params = PatchDiscriminatorParams

    def __init__(self, params):
        super().__init__()
        widths = [params.channels * min(2 ** level, 8) for level in range(params.num_layers + 1)]
        layers = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2, True)]
        for level in range(1, params.num_layers + 1):
            stride = 1 if level == params.num_layers else 2
            layers += [nn.Conv2d(widths[level - 1], widths[level], 4, stride=stride, padding=1, bias=False),
                       BatchNorm2d(widths[level]), nn.LeakyReLU(0.2, True)]
        layers.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.main = nn.Sequential(*layers)
        self.apply(self._init)

    @staticmethod
    def _init(module):
        # pix2pix's initialisation, which the released code uses for this network only.
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)

    def forward(self, image):
        """image (B, 3, H, W) in [-1, 1] -> logits (B, 1, h, w)."""
        return self.main(image).float()
