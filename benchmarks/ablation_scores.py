"""Scores of benchmarks/ablation.py on the synthetic heads, whose landmarks are exact."""

import statistics
from typing import NamedTuple

import numpy as np
import torch

from datasets.synthetic.clips import LANDMARK_NAMES
from inference import Renderer
from metrics.catalogue import build
from metrics.image import l1, psnr, ssim
from modules.warp import sample
from visualizer import to_tensor, to_uint8


class Truth(NamedTuple):
    """The test clips, C of T frames at S px. The first frame is the source and is left out of all scores.

    frames:    (C, T, S, S, 3) uint8
    landmarks: (C, T, L, 2) pixel positions of LANDMARK_NAMES
    visible:   (C, T, L) bool
    """
    frames: np.ndarray
    landmarks: np.ndarray
    visible: np.ndarray


def read_truth(root):
    with np.load(root / 'truth.npz', allow_pickle=False) as stored:
        return Truth(**stored)


# Landmarks moved by jaw, brows, smile or gaze; the others move with the head.
EXPRESSION = np.array([any(part in name for part in ('pupil', 'brow', 'mouth', 'lip', 'chin', 'jaw'))
                       for name in LANDMARK_NAMES])

# name: (heading, digits). LPIPS needs its weights.
SCORES = {'psnr': ('PSNR dB', 2), 'l1': ('L1', 4), 'ssim': ('SSIM', 4), 'lpips': ('LPIPS', 4),
          'sharpness': ('sharpness', 3), 'head': ('head px', 2), 'expression': ('expression px', 2),
          'coarse_head': ('M^0: head px', 2), 'coarse_expression': ('M^0: expression px', 2)}


@torch.inference_mode()
def evaluate(model, truth, device):
    """Scores of a model (in eval mode), one {name: float} per clip: means over its driving frames."""
    scores = []
    for clip in map(Truth._make, zip(*truth)):
        *_, generated = Renderer(model, device).follow(clip.frames[0])(clip.frames[1:])
        coarse, refined = (follow(flow.float().cpu(), clip) for flow in (generated.flows[0], generated.flows[-1]))
        scores.append(score(to_uint8(generated.prediction), coarse, refined, clip))
    return scores


def copying(truth):
    """Scores of a model that repeats the source frame."""
    scores = []
    for clip in map(Truth._make, zip(*truth)):
        frames, still = clip.frames[1:], clip.landmarks[1:]
        scores.append(score(np.broadcast_to(clip.frames[0], frames.shape), still, still, clip))
    return mean(scores)


def mean(scores):
    return {name: statistics.fmean(score[name] for score in scores) for name in scores[0]}


def follow(flow, clip):
    """Where a flow (T - 1, h, w, 2) finds the driving frames' landmarks in the source, (T - 1, L, 2) in pixels.

    Read where keypoints and flows live: -1 and 1 are the centres of the first and the last pixel. (FOMM's generator
    then warps half a feature's pixel wider; what its decoder makes of that is not motion.)
    """
    unit = (clip.frames.shape[1] - 1) / 2
    position = torch.from_numpy(clip.landmarks[1:] / unit - 1)[:, None]                            # (T - 1, 1, L, 2)
    found = sample(flow.permute(0, 3, 1, 2), position, padding_mode='border')                      # (T - 1, 2, 1, L)
    return (found[:, :, 0].transpose(1, 2).numpy() + 1) * unit


def score(predicted, coarse, refined, clip):
    """SCORES of predicted frames (T - 1, S, S, 3) uint8, and of where both flows found the landmarks."""
    ours, theirs = ((to_tensor(frames) + 1) / 2 for frames in (predicted, clip.frames[1:]))
    images = {'psnr': psnr(ours, theirs).clamp(max=100), 'l1': l1(ours, theirs), 'ssim': ssim(ours, theirs)}
    images |= {'sharpness': gradient_energy(ours) / gradient_energy(theirs)}
    images |= {'lpips': metric(ours, theirs) for metric in build(['lpips.vgg'], 'cpu')[0]}
    before, after = motion_scores(coarse, clip), motion_scores(refined, clip)
    return {**{name: float(values.mean()) for name, values in images.items()}, **after,
            'coarse_head': before['head'], 'coarse_expression': before['expression']}


def gradient_energy(images):
    """Sum of squared differences of neighbouring pixels (B, 3, H, W) -> (B,); blur lowers it."""
    across, down = images.diff(dim=-1), images.diff(dim=-2)
    return across.square().sum((1, 2, 3)) + down.square().sum((1, 2, 3))


def motion_scores(found, clip):
    """Mean distance in pixels of landmarks (T - 1, L, 2) that a flow finds in the source, where both frames show them.

    head, expression: over the landmarks that move with the head, and over the others
    """
    distance = np.linalg.norm(found - clip.landmarks[0], axis=-1)
    seen = clip.visible[0] & clip.visible[1:]
    return {'head': float(distance[seen & ~EXPRESSION].mean()), 'expression': float(distance[seen & EXPRESSION].mean())}
