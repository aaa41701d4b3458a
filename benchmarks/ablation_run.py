"""One run of benchmarks/ablation.py: train, score, draw; its motion phase comes from another run where there is one."""

import contextlib
import hashlib
import json
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.ablation_scores import evaluate, read_truth
from config import schema
from inference import Renderer
from logger import RunFolder, read_checkpoint
from modules.build import build_model
from modules.training_step import build_training_step
from support.files import make_folder
from train import train
from visualizer import enlarge, flow_to_rgb, save_png, to_uint8

PICTURED = 4                                                # pairs in the picture
MOTION = ('keypoint_detector', 'dense_motion')              # the networks of the motion phase
AFTER = ('motion_codebook_params', 'appearance_codebook_params')     # what plays no part in it
ROOT = Path(__file__).parents[1]
CODE = ('modules', 'datasets', 'benchmarks/ablation_*.py', 'train.py')


class Run(NamedTuple):
    """One training: its name, its config with seed and data, and the folder of all runs."""
    name: str
    config: schema.Config
    out: Path

    @property
    def strip(self):
        return self.out / 'strips' / f'{self.name}.png'


def digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def make(run, device):
    """Train, score, draw; the result as a JSON value. Raises KeyboardInterrupt if training was stopped."""
    folder = RunFolder(run.out / 'runs' / run.name)
    schema.save(run.config, folder.path / 'config.yaml')
    begun = time.process_time()
    with open(folder.path / 'console.txt', 'a') as console, contextlib.redirect_stderr(console):
        try:
            shared = begin_with_motion(run, folder, device)
            train(run.config, folder, device)
        finally:
            folder.close()
    seconds = time.process_time() - begun
    _, state = folder.newest()
    if state['step'] < run.config.train_params.num_iterations:
        raise KeyboardInterrupt
    model = build_model(run.config)
    model.load_state_dict(state['ema'])
    model.to(device).eval()
    truth = read_truth(Path(run.config.dataset_params.root_dir))
    heads = evaluate(model, truth, device)
    make_folder(run.strip.parent)
    save_png(run.strip, strip(model, truth, device))
    return {'parameters': sum(parameter.numel() for parameter in model.parameters()), 'cpu_seconds': round(seconds),
            'motion_of': shared, 'code': code_version(), 'torch': torch.__version__,
            'heads': [{name: float(f'{value:.6g}') for name, value in scores.items()} for scores in heads]}


def begin_with_motion(run, folder, device):
    """Start a run from the motion phase of another one that differs from it in AFTER alone, if there is one.

    Only MOTION takes part in that phase, and it is built first, so the run ends as if it had trained the phase itself.
    Returns the name of the other run; None if there is none, or if the run resumes.
    """
    params = run.config.train_params
    if folder.newest() or not params.motion_iterations:
        return None
    for path in sorted((run.out / 'runs').glob(f'*/checkpoints/{params.motion_iterations:08d}.pt')):
        checkpoint = read_checkpoint(path)
        if before_codebooks(checkpoint['config']) == before_codebooks(run.config.as_dict()):
            state = build_training_step(run.config, device).state
            take_motion(state, checkpoint)
            folder.save(state.checkpoint(run.config, checkpoint['step']), checkpoint['step'], params.keep_checkpoints)
            return path.parents[1].name
    return None


def before_codebooks(config):
    """A config (as_dict) without the parameters that the motion phase does not depend on."""
    return config | {'model_params': {key: value for key, value in config['model_params'].items() if key not in AFTER}}


def take_motion(state, checkpoint):
    """Give a fresh State the networks of a checkpoint's motion phase, with EMA and optimiser."""
    of_motion = lambda names: [name for name in names if name.split('.')[0] in MOTION]
    for network, part in ((state.model, 'model'), (state.ema, 'ema')):
        own = network.state_dict()
        network.load_state_dict(own | {name: checkpoint[part][name] for name in of_motion(own)})
    names = [name for name, _ in state.model.named_parameters()]
    count = len(of_motion(names))
    moments = checkpoint['optimizer']['state']
    assert of_motion(names) == names[:count] and max(moments) < count, 'the motion phase trained something else'
    state.optimizer.load_state_dict(state.optimizer.state_dict() | {'state': moments})


def code_version():
    """Hash of the code that results depend on."""
    files = sorted(path for part in CODE for found in ROOT.glob(part)
                   for path in (found.rglob('*.py') if found.is_dir() else [found]))
    return digest([[str(path.relative_to(ROOT)), path.read_text()] for path in files])


def pictured(truth):
    """(clip, driving frame) of each pair in the picture: of clips spread evenly, the frame that moved most."""
    moved = np.linalg.norm(truth.landmarks - truth.landmarks[:, :1], axis=-1).mean(-1)             # (C, T)
    count = min(PICTURED, len(moved))
    return [(i * len(moved) // count, int(moved[i * len(moved) // count].argmax())) for i in range(count)]


@torch.inference_mode()
def strip(model, truth, device):
    """Prediction and refined flow of every pictured pair, side by side."""
    cells = []
    for clip, index in pictured(truth):
        *_, generated = Renderer(model, device).follow(truth.frames[clip, 0])(truth.frames[clip, index:index + 1])
        cells += [to_uint8(generated.prediction)[0], flow_to_rgb(generated.flows[-1])[0]]
    return np.concatenate([enlarge(cell) for cell in cells], axis=1)
