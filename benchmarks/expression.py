"""Share of a single facial movement that a model reproduces, on synthetic heads that keep their pose.

    python -m benchmarks.expression --checkpoint log/demo-64 [--people 16]

Heads that no training, validation or test uses are drawn twice: at rest, which is also the source image, and with one
part moved (MOVES). The model reconstructs both. Of the true change D and the predicted change P within the box of the
pixels that change, the share is <P, D> / <D, D>: 1 for the whole change, 0 for none. `--mode evaluate` measures
expression.mediapipe on any clips; only synthetic heads can move a part alone.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from datasets.synthetic.clips import render, synthetic_people
from inference import Renderer
from load import load_model
from support.errors import program
from visualizer import to_uint8

SEED = 3_000_000           # of these people; datasets/build.py has the other seeds
CHANGED = 12               # of 255: smallest change of a pixel that counts as moved

# Part -> (state at rest, state moved), in units of HeadState; the rest of the state is REST.
REST = {'jaw': 0.0, 'smile': 0.0, 'blink': 0.0, 'brow': 0.0, 'gaze_x': 0.0, 'gaze_y': 0.0}
MOVES = {
    'mouth': ({}, {'jaw': 0.8}),
    'smile': ({'smile': -0.6}, {'smile': 0.8}),
    'lids': ({}, {'blink': 1.0}),
    'brows': ({'brow': -0.7}, {'brow': 0.7}),
    'gaze': ({'gaze_x': -0.8}, {'gaze_x': 0.8}),
}


def pairs(part, people, size):
    """Yields (rest, moved) (size, size, 3) uint8 of each of `people` heads, each in a pose of its own."""
    for number, clips in enumerate(synthetic_people(people, 1, people + 1, size, SEED).values()):
        still = replace(clips[0].state(number), **REST)
        yield [render(clips[0].identity, replace(still, **state), size).image for state in MOVES[part]]


def share(rest, moved, made):
    """Share of the change from `rest` to `moved` in the predictions `made` of both; all (H, W, 3)."""
    true_change, predicted_change = (np.float32(b) - np.float32(a) for a, b in ((rest, moved), made))
    rows, columns = np.nonzero(np.abs(true_change).max(-1) >= CHANGED)
    box = np.s_[rows.min():rows.max() + 1, columns.min():columns.max() + 1]
    return float((predicted_change[box] * true_change[box]).sum() / np.square(true_change[box]).sum())


def measure(model, size, people=16):
    """{part: mean share} of a TalkingHead on the CPU, over `people` heads of `size` px."""
    renderer = Renderer(model, 'cpu')

    def made(rest, moved):
        return to_uint8(renderer.follow(rest)([rest, moved])[-1].prediction)
    return {part: float(np.mean([share(*pair, made(*pair)) for pair in pairs(part, people, size)])) for part in MOVES}


@program
def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--checkpoint', required=True, help='a run folder such as log/demo-64, or a checkpoint file')
    parser.add_argument('--people', type=int, default=16, help='number of heads (default 16)')
    options = parser.parse_args(arguments)
    path = Path(options.checkpoint)
    config, model = load_model(run=path) if path.is_dir() else load_model(path)
    print('| movement | share of the true change |\n| --- | --- |')
    for part, value in measure(model, config.model_params.image_size, options.people).items():
        print(f'| {part} | {value:.2f} |')


if __name__ == '__main__':
    sys.exit(main())
