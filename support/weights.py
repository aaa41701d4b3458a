"""Reading tensors from files that others wrote: safely, and with an answer to what is wrong with them."""

import hashlib
import pickle
import zipfile
from pathlib import Path

import torch

from support.errors import UserError
from support.files import written_whole

PART_FILES = {'depth': ('encoder.pth', 'depth.pth')}      # by layout, see TalkingHead.pretrained_parts
VGG19_URL = 'https://download.pytorch.org/models/vgg19-dcbb9e9d.pth'


def checkpoint_path(url):
    """Where torch.hub keeps the weights that it would load from `url`: $TORCH_HOME/hub/checkpoints/name."""
    return Path(torch.hub.get_dir()) / 'checkpoints' / url.rsplit('/', 1)[-1]


def check_file(path):
    """UserError for a file that is missing, empty, a Git LFS pointer or a web page; looks at its beginning alone."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f'{path}: no such file')
    with open(path, 'rb') as file:
        head = file.read(512).lstrip().lower()
    if not head:
        raise UserError(f'{path}: is empty; download or copy it again')
    if head.startswith(b'version https://git-lfs'):
        raise UserError(f'{path}: is a Git LFS pointer, not the weights; fetch the file itself (git lfs pull)')
    if head.startswith((b'<!doctype', b'<html', b'<?xml')):
        raise UserError(f'{path}: is a web page, not weights; the download went wrong')


def load_tensors(path):
    """What torch.save wrote to `path`, on the CPU; nothing in the file is executed.

    Raises UserError for a missing or cut file, a Git LFS pointer, a web page, a pickle with code in it.
    """
    path = Path(path)
    check_file(path)
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(path) or 'Unsupported' in str(error):
            raise UserError(f'{path}: holds more than tensors (code or unknown objects) and is not opened') from None
        raise UserError(f'{path}: is not a checkpoint, or is damaged; download or copy it again') from None
    except (RuntimeError, EOFError, OSError, KeyError, ValueError):
        raise UserError(f'{path}: is cut short or damaged ({path.stat().st_size:,} bytes); '
                        'download or copy it again') from None


def save_tensors(path, tensors):
    """Write what torch.save takes to `path`, whole or not at all; UserError where it cannot be written."""
    with written_whole(path) as unfinished:
        try:
            torch.save(tensors, unfinished)
        except RuntimeError as error:       # what PyTorch makes of a folder that is missing, or a disk that is full
            raise UserError(f'{path}: cannot be written ({" ".join(str(error).split())})') from None


def weights_hash(model):
    """SHA-256 of a model's names and values."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def vgg19():
    """ImageNet weights of torchvision's VGG19, for the perceptual loss; UserError says how to get them."""
    path = checkpoint_path(VGG19_URL)
    if not path.is_file():
        raise UserError(f'the perceptual loss needs VGG19: download {VGG19_URL} to {path}; or train without it: '
                        '--set train_params.objective_params.loss_weights.perceptual=0')
    return load_tensors(path)


def pretrained_files(layout, folder):
    """Where the files of a part are that others have trained (TalkingHead.pretrained_parts)."""
    return [Path(folder) / name for name in PART_FILES[layout]]


def pretrained(layout, folder):
    """What `pretrained_files` hold; UserError says how to get them."""
    paths = pretrained_files(layout, folder)
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise UserError(f'training begins with a trained {layout} network, but {" and ".join(missing)} '
                        f'{"is" if len(missing) == 1 else "are"} missing: README.md, "Methods", says who publishes it; '
                        f'model_params.{layout}_params.pretrained names the folder')
    return [load_tensors(path) for path in paths]
