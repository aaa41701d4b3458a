"""Identity preservation: AED (OpenFace) and CSIM (ArcFace: Deng et al., CVPR 2019)."""

import functools
import warnings

import numpy as np
import torch

from metrics.base import Cached, FeatureMetric, Unavailable, optional, shared
from metrics.openface import SIZE, OpenFace
from support.weights import checkpoint_path, load_tensors, load_weights

OPENFACE_URL = 'https://github.com/harlanhong/ICCV2023-MCNET/raw/HEAD/evaluation/OpenFacePytorch/openface.pth'
ANTELOPE_URL = 'https://github.com/deepinsight/insightface/releases/download/model-zoo/antelopev2.zip'
ANTELOPE_FILES = ('scrfd_10g_bnkps.onnx', 'glintr100.onnx')      # detection, recognition
DETECTION_SIZE = 256                                             # pixels, as in the paper's code


# The networks

@shared
def _openface(device, path):
    """Frames (B, 3, H, W) in [0, 1] -> (B, 128), of length 1."""
    network = OpenFace().eval()
    load_weights(network, load_tensors(path), path)
    network.to(device)

    def embeddings(frames):
        rows, columns = (_shrinking(size).to(frames.device) for size in frames.shape[2:])
        return network((rows @ frames @ columns.T).flip(1))
    return Cached(embeddings)


@functools.cache
def _shrinking(size):
    """(96, size) matrix of scikit-image's resize to 96 pixels with anti-aliasing, which is linear."""
    from skimage.transform import resize  # slow to import
    return torch.from_numpy(resize(np.eye(size, dtype=np.float32), (SIZE, size), anti_aliasing=size > SIZE))


def arcface_embeddings(device):
    """Frames (B, 3, H, W) in [0, 1] -> (B, 512), of length 1, of the first face; NaN for frames without a face.

    The licence of the weights permits non-commercial research only. Raises Unavailable.
    """
    folder = antelope_folder()
    with optional('insightface onnxruntime', []):
        try:
            return _arcface(str(device), folder)
        except ImportError:
            raise
        except Exception as error:      # errors of onnxruntime have no other base class
            raise Unavailable(f'damaged weights in {folder} ({type(error).__name__}): download again') from error


def antelope_folder():
    """Folder of the two networks, which may lie in a folder of the archive's name; raises Unavailable."""
    expected = checkpoint_path(ANTELOPE_URL).with_suffix('')
    for folder in (expected, expected / expected.name):
        if all((folder / name).is_file() for name in ANTELOPE_FILES):
            return folder
    raise Unavailable(f'weights not found: unpack {ANTELOPE_URL} (for non-commercial research only) into {expected}')


@shared
def _arcface(device, folder):
    from insightface.app import FaceAnalysis  # slow to import, and optional
    device = torch.device(device)
    network = FaceAnalysis(name=str(folder), allowed_modules=['detection', 'recognition'])
    network.prepare(ctx_id=-1 if device.type == 'cpu' else device.index or 0, det_size=(DETECTION_SIZE, DETECTION_SIZE))

    def embeddings(frames):
        found = torch.full((len(frames), 512), torch.nan, dtype=torch.float64)
        images = (frames.flip(1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', category=FutureWarning, module='insightface')
            for row, image in zip(found, images):
                for face in network.get(image)[:1]:
                    row.copy_(torch.from_numpy(face.normed_embedding))
        return found
    return Cached(embeddings)


# The metrics

class Aed(FeatureMetric):
    id, column = 'aed.openface_sq', 'AED'
    definition = ('squared Euclidean distance of the OpenFace (nn4.small2) embeddings, 128 numbers of length 1, of '
                  'the generated and the driving frame: whole frames, not aligned, resized to 96 x 96 with Gaussian '
                  'anti-aliasing, channels in the order BGR; per frame')
    source = 'FOMM, MRFA, MCNet and the paper; https://github.com/AliaksandrSiarohin/pose-evaluation'
    weight_files = property(lambda self: [checkpoint_path(OPENFACE_URL)])

    def load(self, device):
        with optional('torch', [OPENFACE_URL]):
            return _openface(str(device), checkpoint_path(OPENFACE_URL))

    def compare(self, generated, target):
        return (generated - target).double().square().sum(1)


class AedSource(Aed):
    id, column, needs_source = 'aed.openface_sq_source', 'AED source', True
    definition = Aed.definition.replace('driving frame', 'source image')
    source = 'MCNet and the paper, for cross-identity'


class AedEuclidean(Aed):
    id, column = 'aed.openface_l2', 'AED Euclid.'
    definition = Aed.definition.replace('squared ', '')
    source = 'as the papers describe AED; their released code computes the squared distance'

    def compare(self, generated, target):
        return super().compare(generated, target).sqrt()


class Csim(FeatureMetric):
    id, column, direction, needs_source = 'csim.antelopev2', 'CSIM', 'higher', True
    definition = ('cosine of the ArcFace (insightface antelopev2, for non-commercial research only) embeddings of '
                  f'the generated frame and the source image: the first face found at detection size {DETECTION_SIZE}, '
                  'aligned by the library; per frame')
    source = 'the paper for cross-identity, https://github.com/ShaelynZ/synergize-motion-appearance'
    weight_files = property(lambda self: [antelope_folder() / name for name in ANTELOPE_FILES])

    def load(self, device):
        return arcface_embeddings(device)

    def compare(self, generated, target):
        return (generated * target).sum(1)


class CsimDriving(Csim):
    id, column, needs_source = 'csim.antelopev2_driving', 'CSIM driving', False
    definition = Csim.definition.replace('source image', 'driving frame')
    source = 'the paper for same-identity, https://github.com/ShaelynZ/synergize-motion-appearance'
