"""Safe reading of tensors from files: no code is run, and damaged files are named."""

import hashlib
import pickle
import zipfile
from pathlib import Path

import torch

from support.errors import UserError
from support.files import written_whole

PART_FILES = {'depth': ('encoder.pth', 'depth.pth')}      # by layout; see TalkingHead.pretrained_parts
VGG19_URL = 'https://download.pytorch.org/models/vgg19-dcbb9e9d.pth'


def checkpoint_path(url):
    """Path where torch.hub stores the weights of `url`: $TORCH_HOME/hub/checkpoints/name."""
    return Path(torch.hub.get_dir()) / 'checkpoints' / url.rsplit('/', 1)[-1]


def check_file(path):
    """UserError for a file that is missing, empty, a Git LFS pointer or a web page; reads only its beginning."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f'{path}: is a folder, not weights; give the file as downloaded (do not unpack a .pth.tar)')
    if not path.is_file():
        raise UserError(f'{path}: no such file')
    with open(path, 'rb') as file:
        head = file.read(512).lstrip().lower()
    if not head:
        raise UserError(f'{path}: is empty; download or copy it again')
    if head.startswith(b'version https://git-lfs'):
        raise UserError(f'{path}: is a Git LFS pointer, not the weights; fetch the file itself (git lfs pull)')
    if head.startswith((b'<!doctype', b'<html', b'<?xml')):
        raise UserError(f'{path}: is a web page, not weights; download the file itself')


def load_tensors(path):
    """Load a file of torch.save to the CPU; no code in it is executed.

    Raises UserError for a missing, truncated or damaged file, a Git LFS pointer, a web page, or a pickle with code.
    """
    path = Path(path)
    check_file(path)
    _check_sums(path)
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(path) or 'Unsupported' in str(error):
            raise UserError(f'{path}: holds more than tensors (code or unknown objects) and is not opened') from None
        raise UserError(f'{path}: is not a checkpoint, or is damaged; download or copy it again') from None
    except Exception:        # damaged pickles raise exceptions of many types
        raise _damaged(path) from None


def _check_sums(path):
    """UserError for a zip file of torch.save with wrong checksums, which PyTorch does not verify."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as file:
            names = [info.filename for info in file.infolist()]
            # torch.save writes neither compressed records, which could unpack to any size, nor duplicates.
            plain = len(set(names)) == len(names) and all(info.compress_type == 0 for info in file.infolist())
            broken = not plain or file.testzip() is not None
    except Exception:
        broken = True
    if broken:
        raise _damaged(path)


def _damaged(path):
    return UserError(f'{path}: is truncated or damaged ({path.stat().st_size:,} bytes); download or copy it again')


def is_safetensors(path):
    """Whether a file, whatever its name, begins as safetensors do: a length of eight bytes, and JSON. UserError."""
    check_file(path)
    with open(path, 'rb') as file:
        return file.read(9)[8:] == b'{'


def load_safetensors(path):
    """(tensors by name on the CPU, metadata: dict of strings) of a safetensors file.

    https://github.com/huggingface/safetensors. Raises UserError as `load_tensors` does.
    """
    from safetensors import SafetensorError, safe_open
    check_file(path)
    try:
        with safe_open(path, 'pt') as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except SafetensorError:
        raise _damaged(Path(path)) from None


def save_tensors(path, tensors):
    """Write `tensors` with torch.save to `path` atomically. UserError if it cannot be written."""
    with written_whole(path) as unfinished:
        try:
            torch.save(tensors, unfinished)
        except RuntimeError as error:       # raised by PyTorch for a missing folder or a full disk
            raise UserError(f'{path}: cannot be written ({" ".join(str(error).split())})') from None


def weights_hash(model):
    """SHA-256 of a model's names and values."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# ---------------------------------------------------------------------------- into networks and optimisers

def load_weights(network, tensors, path):
    """Load `tensors`, a state_dict() saved at `path`, into a network.

    Raises UserError that names the first missing, unexpected or unlike tensor; nothing is copied then.
    """
    own = network.state_dict()
    if not isinstance(tensors, dict):
        raise UserError(f'{path}: does not fit the model: its weights are {_described(tensors)}')
    for name in [*own, *(name for name in tensors if name not in own)]:
        if name not in own or name not in tensors:
            raise UserError(f'{path}: does not fit the model: {name} is '
                            f'{"left over" if name in tensors else "missing"}')
        if not _alike(tensors[name], own[name]):
            raise UserError(f'{path}: does not fit the model: {name} is {_described(tensors[name])}, expected '
                            f'{_described(own[name])}')
    network.load_state_dict(tensors)


def load_optimizer(optimizer, found, path):
    """Load a state_dict() saved at `path` into an Adam optimiser; learning rates and other settings stay unchanged.

    Raises UserError if it belongs to other parameters.
    """
    own, state = optimizer.state_dict()['param_groups'], found.get('state') if isinstance(found, dict) else None
    parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]
    fits = isinstance(state, dict) and all(
        number in range(len(parameters)) and isinstance(moments, dict)
        and moments.keys() == {'step', 'exp_avg', 'exp_avg_sq'} and _alike(moments['step'], torch.zeros(()))
        and all(_alike(moments[name], parameters[number]) for name in ('exp_avg', 'exp_avg_sq'))
        for number, moments in state.items())
    if not fits:
        raise UserError(f'{path}: the state of its optimiser is damaged or of another model')
    optimizer.load_state_dict({'state': state, 'param_groups': own})


def _alike(found, own):
    """Whether a loaded tensor can replace one of ours."""
    return (isinstance(found, torch.Tensor) and found.layout == torch.strided and found.device.type == 'cpu'
            and not found.is_quantized and found.shape == own.shape
            and found.dtype.is_floating_point == own.dtype.is_floating_point and not found.dtype.is_complex)


def _described(value):
    return f'{value.dtype} {tuple(value.shape)}' if isinstance(value, torch.Tensor) else f'a {type(value).__name__}'


# ---------------------------------------------------------------------------- pretrained weights

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
        raise UserError(f'training starts from a pretrained {layout} network, but {" and ".join(missing)} '
                        f'{"is" if len(missing) == 1 else "are"} missing: docs/weights.md says who publishes it; '
                        f'model_params.{layout}_params.pretrained names the folder')
    return [load_tensors(path) for path in paths]
