"""LPIPS, through the library of its authors, where its backbone's weights are at hand."""

import pickle
import warnings
from contextlib import contextmanager

import torch

from weights import checkpoint_path

BACKBONES = {
    'vgg': 'https://download.pytorch.org/models/vgg16-397923af.pth',
    'alex': 'https://download.pytorch.org/models/alexnet-owt-7be5be79.pth',
}


class Unavailable(Exception):
    """An optional package cannot work here; the message is one line: what is missing, and how to get it."""


@contextmanager
def optional(package, urls):
    """Import an optional package and load its weights in the body; raises Unavailable where that cannot be done.

    package: name of its distribution
    urls:    of the weights it needs. The packages would fetch up to half a gigabyte by themselves; we ask instead
    """
    absent = [f'download {url} to {checkpoint_path(url)}' for url in urls if not checkpoint_path(url).is_file()]
    if absent:
        raise Unavailable('weights not found: ' + '; '.join(absent))
    try:
        yield
    except ImportError as error:
        raise Unavailable(f'{error}: pip install {package}') from error
    except torch.OutOfMemoryError:
        raise     # a RuntimeError too, but no fault of the weights
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        files = ' or '.join(str(checkpoint_path(url)) for url in urls)
        raise Unavailable(f'damaged weights {files} ({type(error).__name__}): download again') from error


class Lpips:
    """Learned perceptual image patch similarity (Zhang et al. 2018), version 0.1; 0 is best.

    backbone: 'vgg' or 'alex'; the values of the two do not compare
    Raises Unavailable if the package or the backbone's weights are missing or damaged.
    """

    def __init__(self, device, backbone='vgg'):
        self.definition = f'LPIPS version 0.1, {backbone} backbone, RGB in [-1, 1]; per frame'
        with optional('lpips', [BACKBONES[backbone]]):
            network = _load(backbone)
        self.network = network.to(device)

    @torch.inference_mode()
    def __call__(self, prediction, target):
        """Distances (B,) of frames (B, 3, H, W) in [-1, 1]."""
        return self.network(prediction, target).flatten()


def _load(backbone):
    import lpips     # slow to import, and optional
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', category=UserWarning, module='torchvision')   # it uses an old spelling
        return lpips.LPIPS(net=backbone, verbose=False).eval()
