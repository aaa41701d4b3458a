"""Packages, devices, codecs, and what is optional."""

import importlib.util
import os
import platform
from typing import NamedTuple

import torch

from metrics.face import FAN_URLS
from metrics.fid import INCEPTION_URL
from metrics.identity import ANTELOPE_URL, OPENFACE_URL
from metrics.perceptual import BACKBONES
from support import weights
from support.errors import UserError
from tools.doctor.finding import BLOCKS, GIB, NOTE, OK, WARNING, Finding
from tools.doctor.weights import check_weights_file

NEEDED = 'torch', 'torchvision', 'numpy', 'yaml', 'tqdm', 'av', 'PIL', 'tensorboard'


class Extra(NamedTuple):
    """Something optional.

    packages: {what is imported: what is installed}
    files:    weights, as urls; they belong at weights.checkpoint_path(url)
    unlocks:  what works with it
    """
    packages: dict[str, str]
    files: tuple[str, ...]
    unlocks: str


EXTRAS = (
    Extra({'lpips': 'lpips'}, (BACKBONES['vgg'],), 'LPIPS of reconstruction and evaluation (lpips.vgg)'),
    Extra({'pytorch_fid': 'pytorch-fid'}, (INCEPTION_URL,), 'FID (fid.*)'),
    Extra({'face_alignment': 'face-alignment'}, FAN_URLS, 'AKD (akd.*), --find_best_frame by face landmarks'),
    Extra({}, (OPENFACE_URL,), 'AED (aed.*)'),
    Extra({'insightface': 'insightface', 'onnxruntime': 'onnxruntime'}, (ANTELOPE_URL,), 'CSIM (csim.*)'),
    Extra({'mediapipe': 'mediapipe'}, (),
          'head pose, expression, landmarks and jitter (*.mediapipe), --crop auto, --mode prepare'),
    Extra({'onnx': 'onnx', 'onnxruntime': 'onnxruntime'}, (), '--mode export'),
    Extra({'yt_dlp': 'yt-dlp'}, (), '--mode prepare --download'),
)


def check_versions(case):
    yield Finding(OK, f'Python {platform.python_version()}, PyTorch {torch.__version__}, {platform.platform()}')
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        yield Finding(BLOCKS, f'missing packages: {", ".join(missing)}', todo='pip install -r requirements.txt')


def check_device(case):
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            bf16 = 'bf16' if torch.cuda.is_bf16_supported() else 'no bf16'
            yield Finding(OK, f'GPU {index}: {gpu.name}, {gpu.total_memory / GIB:.1f} GiB, {bf16}')
    else:
        why = 'this PyTorch is built without CUDA' if torch.version.cuda is None else 'no driver or no GPU'
        yield Finding(NOTE, f'no CUDA GPU ({why}): {os.cpu_count()} CPU cores, {torch.get_num_threads()} threads')


def check_video(case):
    import av
    versions = sorted(av.library_versions.items())
    libraries = ', '.join(f'{name} {".".join(map(str, version))}' for name, version in versions)
    yield Finding(OK, f'PyAV {av.__version__} with {libraries}')
    uses = ('h264', 'r', 'reading mp4'), ('libx264', 'w', 'writing mp4'), ('vp9', 'r', 'reading webm')
    for codec, mode, use in uses:
        try:
            av.codec.Codec(codec, mode)
        except av.error.FFmpegError:
            yield Finding(WARNING, f'these FFmpeg libraries lack {codec}, needed for {use}',
                          todo='pip install --force-reinstall av')


def check_extras(case):
    for extra in EXTRAS:
        missing = [package for module, package in extra.packages.items() if importlib.util.find_spec(module) is None]
        absent = [f'pip install {" ".join(missing)}'] if missing else []
        for url in extra.files:
            absent += _weights_todo(url)
        if absent:
            yield Finding(NOTE, f'not available: {extra.unlocks}', todo='; '.join(absent))
        else:
            yield Finding(OK, f'available: {extra.unlocks}')


def _weights_todo(url):
    """What to do about the optional weights of `url`: a list, empty where they are in order."""
    path = weights.checkpoint_path(url)
    if path.suffix == '.zip':
        unpacked = path.with_suffix('')
        return [] if list(unpacked.glob('**/*.onnx')) else [f'unpack {url} into {unpacked}']
    try:
        check_weights_file(path)
    except UserError as error:
        return [f'download {url} to {path}' + (f' ({error})' if path.is_file() else '')]
    return []
