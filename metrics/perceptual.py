"""LPIPS, computed by its authors' package, with backbone weights that the user downloads."""

import warnings

import torch

from metrics.base import Metric, optional, shared
from support.weights import checkpoint_path

BACKBONES = {
    'vgg': 'https://download.pytorch.org/models/vgg16-397923af.pth',
    'alex': 'https://download.pytorch.org/models/alexnet-owt-7be5be79.pth',
}


class _Lpips(Metric):
    """Learned perceptual image patch similarity (Zhang et al., CVPR 2018, arXiv 1801.03924), version 0.1."""

    backbone = 'vgg'     # values of the two backbones are not comparable
    scaled = True        # frames are mapped to [-1, 1], as the network was calibrated

    def __init__(self, device):
        super().__init__(device)
        url = BACKBONES[self.backbone]
        self.weight_files = (checkpoint_path(url),)
        with optional('lpips', [url]):
            self.network = _network(self.backbone, str(device), checkpoint_path(url))

    @torch.inference_mode()
    def __call__(self, generated, driving):
        return self.network(generated, driving, normalize=self.scaled).flatten().cpu().double()


class LpipsVgg(_Lpips):
    id, column = 'lpips.vgg', 'LPIPS'
    definition = 'LPIPS version 0.1, VGG16 backbone, RGB in [-1, 1]; per frame'
    source = 'the paper and MCNet (cmp_lpips.py); https://github.com/richzhang/PerceptualSimilarity'


class LpipsAlex(_Lpips):
    id, column, backbone = 'lpips.alex', 'LPIPS alex', 'alex'
    definition = 'LPIPS version 0.1, AlexNet backbone, RGB in [-1, 1]; per frame'
    source = 'https://github.com/richzhang/PerceptualSimilarity'


class LpipsVggUnscaled(_Lpips):
    id, column, scaled = 'lpips.vgg_unscaled', 'LPIPS [0, 1]', False
    definition = ('LPIPS version 0.1, VGG16 backbone, fed RGB in [0, 1] although it expects [-1, 1], '
                  'to compare with numbers made so; per frame')
    source = 'MRFA, https://github.com/JialeTao/MRFA'


class LpipsAlexUnscaled(_Lpips):
    id, column, backbone, scaled = 'lpips.alex_unscaled', 'LPIPS alex [0, 1]', 'alex', False
    definition = ('LPIPS version 0.1, AlexNet backbone, fed RGB in [0, 1] although it expects [-1, 1], '
                  'to compare with numbers made so; per frame')
    source = 'MCNet (metrics.py), https://github.com/harlanhong/ICCV2023-MCNET'


@shared
def _network(backbone, device, _path):
    import lpips  # slow to import, and optional, shared
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', category=UserWarning, module='torchvision')   # deprecated arguments
        return lpips.LPIPS(net=backbone, verbose=False).eval().to(device)
