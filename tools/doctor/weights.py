"""Checks of the weights that training starts from, and of the step at which it starts."""

import re

import torch

from logger import RunFolder, checkpoint_config, read_checkpoint
from modules.build import build_model
from modules.objective import needs_vgg
from modules.resize_checkpoint import resize_checkpoint
from resume import find_resume_point
from support import weights
from support.checkpoints import checkpoints_in
from support.errors import UserError
from support.files import file_hash
from tools.doctor.finding import BLOCKS, NOTE, OK, Finding


def check_weights_file(path):
    """UserError for weights that are missing, are no weights, or do not match their name.

    torch.hub's names end in the first digits of their SHA-256, so truncated files are detected.
    """
    weights.check_file(path)
    digits = re.search(r'-([0-9a-f]{8,})\.', path.name)
    if digits:
        found = file_hash(path)
        if not found.startswith(digits[1]):
            raise UserError(f'{path}: is truncated or not the published file ({path.stat().st_size:,} bytes, its '
                            f'SHA-256 starts with {found[:8]}); download it again')


def _complete(path, what, needed, todo):
    """The Finding of a file that training needs. what, needed: what it is, and what needs it"""
    try:
        check_weights_file(path)
    except UserError as error:
        return Finding(BLOCKS, f'{needed}: {str(error).partition("; ")[0]}', str(path), todo)
    return Finding(OK, f'{what} is complete', str(path))


def check_training_weights(case):
    if needs_vgg(case.config.train_params.objective_params):
        path = weights.checkpoint_path(weights.VGG19_URL)
        yield _complete(path, 'VGG19 of the perceptual loss', 'the perceptual loss needs VGG19',
                        f'download {weights.VGG19_URL} to {path}, or train without it: '
                        '--set train_params.objective_params.loss_weights.perceptual=0')
    else:
        yield Finding(OK, 'this objective needs no VGG19')
    with torch.device('meta'):
        parts = build_model(case.config).pretrained_parts()
    for layout, (_, folder) in parts.items():
        for path in weights.pretrained_files(layout, folder):
            yield _complete(path, f'{path.name} of the {layout} network', 'training starts from a trained '
                            f'{layout} network', f'download {path.name} as docs/weights.md describes')


def check_checkpoint(case):
    """Report what training starts from: the run folder's newest checkpoint, given weights, or nothing."""
    run = RunFolder(case.run_folder, writes=False)
    for path in checkpoints_in(case.run_folder)[-1:]:
        read_checkpoint(path)        # training would pass over a damaged one, back to the one before
    start = find_resume_point(run, case.config, case.checkpoint)
    if start.state is None:
        yield Finding(OK, f'no checkpoint in {case.run_folder}: training starts at step 0')
        return
    with torch.device('meta'):
        model = build_model(case.config)
        theirs = model if start.image_size is None else build_model(checkpoint_config(start.state, start.path))
    wanted = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    for part in ('ema',) if start.of_another_run else ('model', 'ema'):
        if {name: tensor.shape for name, tensor in start.state[part].items()} != wanted:
            yield Finding(BLOCKS, f'the tensors of {part!r} are not those of the model', str(start.path),
                          'use another checkpoint')
            return
    yield Finding(OK, f'checkpoint of step {start.state["step"]}, whole', str(start.path))
    if start.image_size is not None:
        resized = resize_checkpoint(theirs.state_dict(), model)
        yield Finding(NOTE, f'from {start.image_size} to {case.size} px: {resized}', str(start.path))
    if start.of_another_run:
        yield Finding(OK, f'training starts a new run from its weights, at step 0, in {case.run_folder}')
    elif start.step >= case.config.train_params.num_iterations:
        yield Finding(NOTE, f'{case.run_folder} is trained to its end', todo='raise train_params.num_iterations')
    else:
        yield Finding(OK, f'training resumes in {case.run_folder}')
    if start.changed:
        yield Finding(NOTE, f'changed since then: {start.changed}', str(start.path))

