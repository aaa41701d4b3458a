"""Loading of models for inference from a checkpoint, a run folder, or the weights that come with the project."""

import logging
from pathlib import Path

import torch

from config import schema
from datasets.face_tracker import LandmarkFinder
from inference import Renderer
from logger import RunFolder, check_same_model, checkpoint_config, read_checkpoint
from modules.build import build_model
from modules.memory import check_frame
from support import hardware
from support.checkpoints import newest_checkpoint, shipped_weights
from support.errors import UserError
from support.weights import load_weights

log = logging.getLogger('run')


def load_model(checkpoint=None, config=None, overrides=(), run=None, device='cpu'):
    """(config, model in eval mode on the device): the weights for inference and the config that fits them.

    checkpoint: path of a checkpoint file; None for the newest one in the run folder `run`
    config:     path of a YAML file; None for the config inside of the checkpoint
    overrides:  'section.key=value' on top of the config
    device:     torch.device, or a name that `choose_device` takes
    raises:     UserError for a missing or damaged checkpoint, a config of another model, a device that is not there
    """
    device = choose_device(device)
    found = RunFolder(run, writes=False).newest() if checkpoint is None else (checkpoint, read_checkpoint(checkpoint))
    if found is None:
        raise UserError(f'no checkpoint in {Path(run) / "checkpoints"}: train first (--mode train), or give '
                        '--checkpoint')
    path, state = found
    if config is None:
        config = schema.override(checkpoint_config(state, path), overrides)
    else:
        config = schema.load(config, overrides)
        check_same_model(config, state, path)
    check_frame(config, device)
    model = build_model(config)
    load_weights(model, state['ema'], path)
    if model.landmarks:         # MediaPipe finds them; without it, the network does
        try:
            model.keypoint_detector.finder = LandmarkFinder(model.landmarks)
        except UserError as missing:
            log.warning('%s; keypoints are detected by a network instead, which moves faces less exactly', missing)
    log.info('weights: %s, step %d', path, state['step'])
    hardware.prepare_cpu()
    return hardware.adapted(config, device), model.to(device, memory_format=hardware.memory_format(device)).eval()


def load(checkpoint=None, device='auto', precision=None):
    """A model ready to animate, an inference.Renderer: of a checkpoint, or the one that comes with the project.

    checkpoint: path of a checkpoint file or of a run folder
    device:     auto, cpu, cuda, cuda:N or mps
    precision:  see `animation_renderer`
    raises:     UserError for a missing or damaged checkpoint, a device that is not there
    """
    config, model = load_model(newest_checkpoint(checkpoint or shipped_weights()), device=device)
    return animation_renderer(config, model, precision)


def animation_renderer(config, model, precision=None):
    """The Renderer for animations with the config and model of `load_model`.

    precision: fp32, bf16, or auto for bf16 where the device computes it without emulation; None for the config's
    """
    device = next(model.parameters()).device
    if precision == 'auto':
        precision = 'bf16' if hardware.has_bf16(device) else 'fp32'
    return Renderer(model, device, config.animate_params.batch_size, precision or config.train_params.precision)


def choose_device(name):
    """The torch.device of a name (auto, cpu, cuda, cuda:N, mps), or the given torch.device; UserError without it."""
    if name == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f'--device {name}: expected auto, cpu, cuda, cuda:N or mps') from None
    if device.type == 'cuda':
        if not torch.cuda.is_available():
            raise UserError(f'--device {name}: PyTorch finds no CUDA GPU on this machine; use --device cpu')
        if (device.index or 0) >= torch.cuda.device_count():
            raise UserError(f'--device {name}: this machine has {torch.cuda.device_count()} GPU(s)')
    if device.type == 'mps' and not torch.backends.mps.is_available():
        raise UserError('--device mps: PyTorch finds no Apple GPU on this machine; use --device cpu')
    return device
