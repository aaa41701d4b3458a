"""The speed benchmark can switch off what it says it can. (No time is a test.)"""

import torch

from benchmarks import speed
from tests.tiny import tiny

CPU = torch.device('cpu')


def test_every_optimisation_can_be_switched_off():
    clock = speed.Clock(CPU)
    training, animation = speed.Training(tiny(), 1, CPU), speed.Animation(tiny(), 1, CPU)
    step, frame = (speed.ablation(clock, work, 1, []) for work in (training, animation))
    assert frame.keys() | step.keys() == speed.OPTIMISATIONS.keys()
    assert step.keys() - frame.keys() == set(speed.TRAINING_ONLY)
    assert frame.keys() - step.keys() == set(speed.ANIMATION_ONLY)


def test_peak_memory_is_that_of_the_call():
    large, small = (speed.peak_memory(CPU, lambda: torch.ones(count * 2 ** 20)) for count in (64, 1))
    assert 0.2 < large - small < 0.3, 'GiB of 63 Mi fp32 numbers'
