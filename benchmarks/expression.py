"""How much of an expression a model carries over: the head is still, one part of the face moves.

    python -m benchmarks.expression --checkpoint log/demo-64 [--people 16] [--device auto] [--picture FILE.png]

Embedded heads that no training, validation or test sees are drawn twice in one pose: at rest, which is also the source,
and with one part moved (MOVES). The model rebuilds both. Of the true change D = moved - rest and the predicted one P,
pixel by pixel within the box of what truly moves:

    share        <P, D> / <D, D>: 1 if the whole change is made, 0 if the part stands still
    correlation  <P, D> / (|P| |D|): whether what changes is what should
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from datasets.synthetic.clips import render, synthetic_people
from inference import Renderer
from logger import RunFolder, checkpoint_config, read_checkpoint
from load import choose_device
from modules.build import build_model
from support.errors import UserError
from support.files import make_folder
from visualizer import grid, save_png, to_uint8

SEED = 3_000_000           # of people that nothing else draws; datasets/build.py has the other seeds
CHANGED = 12               # of 255: a pixel that changes by less is not what moved

# Part -> (state at rest, state moved), in units of HeadState; all else is as in REST.
REST = {'jaw': 0.0, 'smile': 0.0, 'blink': 0.0, 'brow': 0.0, 'gaze_x': 0.0, 'gaze_y': 0.0}
MOVES = {
    'mouth': ({}, {'jaw': 0.8}),
    'smile': ({'smile': -0.6}, {'smile': 0.8}),
    'lids': ({}, {'blink': 1.0}),
    'brows': ({'brow': -0.7}, {'brow': 0.7}),
    'gaze': ({'gaze_x': -0.8}, {'gaze_x': 0.8}),
}


def pairs(part, people, size):
    """(rest, moved), each (people, size, size, 3) uint8: one part of still heads, each in a pose of its own."""
    rest, moved = MOVES[part]
    drawn = []
    for number, clips in enumerate(synthetic_people(people, 1, people + 1, size, SEED).values()):
        clip = clips[0]
        still = replace(clip.state(number), **REST)
        drawn.append([render(clip.identity, replace(still, **state), size).image for state in (rest, moved)])
    return tuple(np.stack(images) for images in zip(*drawn))


@torch.inference_mode()
def predict(model, rest, moved, device):
    """What the model makes of both, with `rest` as the source: two arrays (people, size, size, 3) uint8."""
    made = []
    for images in zip(rest, moved):
        *_, generated = Renderer(model, device).follow(images[0])(images)
        made.append(to_uint8(generated.prediction))
    return tuple(np.stack(images) for images in zip(*made))


def compare(true_change, predicted_change):
    """(share, correlation) of one head's changes (H, W, 3), within the box of the pixels that truly change."""
    rows, columns = np.nonzero(np.abs(true_change).max(-1) >= CHANGED)
    box = np.s_[rows.min():rows.max() + 1, columns.min():columns.max() + 1]
    wanted, made = (change[box].ravel() for change in (true_change, predicted_change))
    product = float(wanted @ made)
    return product / float(wanted @ wanted), product / max(float(np.linalg.norm(wanted) * np.linalg.norm(made)), 1e-9)


def measure(model, size, people=16, device=torch.device('cpu'), picture=None):
    """{part: (share, correlation)} of a TalkingHead in eval mode, means over `people` heads of `size` px.

    picture: where to save a sheet of the first heads; None saves none
    """
    found, rows = {}, []
    for part in MOVES:
        truth = pairs(part, people, size)
        made = predict(model, *truth, device)
        true_change, predicted_change = (np.float32(moved) - np.float32(rest) for rest, moved in (truth, made))
        scores = [compare(*changes) for changes in zip(true_change, predicted_change)]
        found[part] = tuple(float(value) for value in np.mean(scores, 0))
        rows.append([images[head] for head in range(min(3, people)) for images in (*truth, made[1])])
    if picture is not None:
        titles = ['rest (source)', 'moved', 'prediction'] * (len(rows[0]) // 3)
        save_png(picture, grid(rows, titles, list(MOVES)))
    return found


def load(checkpoint):
    """(config, model in eval mode) of a checkpoint file, or of a run folder's newest one."""
    path = Path(checkpoint)
    if path.is_dir():
        newest = RunFolder(path, writes=False).newest()
        if newest is None:
            raise UserError(f'{path}: no checkpoint in it; give a run folder such as log/demo-64, or a checkpoint file')
        path, state = newest
    else:
        state = read_checkpoint(path)
    config = checkpoint_config(state, path)
    model = build_model(config)
    model.load_state_dict(state['ema'])
    return config, model.eval()


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--checkpoint', required=True, help='a run folder such as log/demo-64, or a checkpoint file')
    parser.add_argument('--people', type=int, default=16, help='heads to measure (default 16)')
    parser.add_argument('--device', default='auto', help='auto | cpu | cuda | cuda:N | mps')
    parser.add_argument('--picture', type=Path, help='where to save a picture of the first heads')
    options = parser.parse_args(arguments)
    try:
        if options.people < 1:
            raise UserError(f'--people {options.people}: expected at least 1')
        config, model = load(options.checkpoint)
        if options.picture:
            make_folder(options.picture.parent)
        device = choose_device(options.device)
        found = measure(model.to(device), config.model_params.image_size, options.people, device, options.picture)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print('| moves | share of the true change | correlation |\n| --- | --- | --- |')
    for part, (share, correlation) in found.items():
        print(f'| {part} | {share:.2f} | {correlation:.2f} |')
    return 0


if __name__ == '__main__':
    sys.exit(main())
