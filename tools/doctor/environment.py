"""Checks of packages, devices, codecs and optional parts."""

import os
import platform
import sys
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch

from datasets.video import open_clip
from datasets.video_writer import VideoWriter
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
    for name in NEEDED:
        if reason := cannot_import(name):
            yield Finding(BLOCKS, f'{name} cannot be imported ({reason})', todo='pip install -r requirements.txt')


def cannot_import(module):
    """Why a module cannot be imported; None if it can. What it prints goes to stderr."""
    try:
        with redirect_stdout(sys.stderr):
            import_module(module)
        return None
    except ModuleNotFoundError as error:
        return 'not installed' if error.name == module else str(error)
    except Exception as error:      # a package that does not fit another one fails in any way
        return f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'


def check_device(case):
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            bf16 = 'bf16' if torch.cuda.is_bf16_supported() else 'no bf16'
            yield Finding(OK, f'GPU {index}: {gpu.name}, {gpu.total_memory / GIB:.1f} GiB, {bf16}')
    else:
        why = 'this PyTorch is built without CUDA' if torch.version.cuda is None else 'no driver or no GPU'
        yield Finding(NOTE, f'no CUDA GPU ({why}): {os.cpu_count()} CPU cores, {torch.get_num_threads()} thread(s)')


def check_video(case):
    import av
    versions = sorted(av.library_versions.items())
    libraries = ', '.join(f'{name} {".".join(map(str, version))}' for name, version in versions)
    yield Finding(OK, f'PyAV {av.__version__} with {libraries}')
    for name, severity in (('a.mp4', BLOCKS), ('a.gif', WARNING)):
        try:
            write_and_read(name)
        except Exception as error:
            yield Finding(severity, f'a small {name[2:].upper()} cannot be written and read: {type(error).__name__}: '
                                    f'{error}', todo='pip install --force-reinstall av')
        else:
            yield Finding(OK, f'wrote a small {name[2:].upper()} and read the same frames')


def write_and_read(name):
    """Write three frames of 32x32 as a video and read them; raises ValueError if they differ."""
    frames = [np.full((32, 32, 3), 60 * number, np.uint8) for number in range(1, 4)]
    with TemporaryDirectory() as folder:
        path = Path(folder, name)
        with VideoWriter(path, 25) as writer:
            for frame in frames:
                writer.write(frame)
        clip = open_clip(path)
        found = clip.read(range(len(clip)))
        if clip.fps != 25 or np.abs(np.subtract(found, frames, dtype=int)).max() > 8:
            raise ValueError(f'{len(clip)} frames at {clip.fps} frames per second, or other colours than were written')


def check_extras(case):
    for extra in EXTRAS:
        reasons = {package: reason for module, package in extra.packages.items() if (reason := cannot_import(module))}
        broken = ''.join(f' ({package}: {reason})' for package, reason in reasons.items() if reason != 'not installed')
        absent = [f'pip install --upgrade {" ".join(reasons)}{broken}'] if reasons else []
        absent += filter(None, map(_weights_todo, extra.files))
        if absent:
            yield Finding(NOTE, f'not available: {extra.unlocks}', todo='; '.join(absent))
        else:
            yield Finding(OK, f'available: {extra.unlocks}')


def _weights_todo(url):
    """What to do about the optional weights of `url`; None where they are in order."""
    path = weights.checkpoint_path(url)
    if path.suffix == '.zip':
        unpacked = path.with_suffix('')
        return None if list(unpacked.glob('**/*.onnx')) else f'unpack {url} into {unpacked}'
    try:
        check_weights_file(path)
    except UserError as error:
        return f'download {url} to {path}' + (f' ({error})' if path.is_file() else '')
