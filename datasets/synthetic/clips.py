"""The synthetic dataset: clips of talking heads rendered from parameters, with landmarks.

Deterministic by seed, unlimited in people, at any resolution. See `HeadState` for the units of pose and
expression, `Rendered` for those of the ground truth.
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Iterator, Sequence

import numpy as np

from datasets.manifest import CLIP_FPS
from datasets.synthetic.identity import HeadState, Identity
from datasets.synthetic.mesh import LANDMARK_NAMES
from datasets.synthetic.renderer import Rendered, render

__all__ = ['HeadState', 'Identity', 'LANDMARK_NAMES', 'Rendered', 'SyntheticClip', 'motion', 'render',
           'synthetic_people']

MAX_PEOPLE = 100_000                                         # per seed; keeps the people of different seeds apart


# ---- motion

def motion(seed: int, num_frames: int, fps: float = float(CLIP_FPS)) -> list[HeadState]:
    """A smooth trajectory of pose and expression; frame i is the same whatever num_frames is."""
    return [state_at(seed, index / fps) for index in range(num_frames)]


def state_at(seed: int, time: float) -> HeadState:
    """Pose and expression `time` seconds into the trajectory `seed`."""
    rng = np.random.default_rng([seed, 0x307103])
    sway = lambda slow, fast: _sway(rng, time, slow, fast)
    # Where this person mostly looks, and how lively they are.
    lively = rng.uniform(0.6, 1.1)
    yaw = rng.uniform(-9, 9) + lively * 14 * sway(0.08, 0.5)
    pitch = rng.uniform(-4, 4) + lively * 8 * sway(0.1, 0.6)
    roll = lively * 8 * sway(0.07, 0.4)
    x, y, scale = 0.07 * sway(0.05, 0.25), 0.04 * sway(0.05, 0.25), 1 + 0.06 * sway(0.04, 0.2)
    smile, brow = 0.15 + 0.8 * sway(0.08, 0.4), 0.8 * sway(0.1, 0.7)
    gaze_x, gaze_y = 0.8 * sway(0.2, 0.9) - yaw / 60, 0.6 * sway(0.2, 0.8)
    return HeadState(*(float(value) for value in (
        np.clip(yaw, -32, 32), np.clip(pitch, -18, 18), np.clip(roll, -15, 15), x, y, scale, _talk(rng, time),
        np.clip(smile, -1, 1), _lids(rng, time, gaze_y), np.clip(brow, -1, 1), np.clip(gaze_x, -1, 1),
        np.clip(gaze_y, -1, 1))))


def _sway(rng, time, slow, fast):
    """Sum of five sine waves between `slow` and `fast` Hz, smaller for higher frequencies; mostly in [-1, 1]."""
    frequency = np.geomspace(slow, fast, 5) * rng.uniform(0.8, 1.25, 5)
    size = frequency ** -0.6
    return 1.25 * np.sum(size * np.sin(2 * np.pi * (frequency * time + rng.uniform(0, 1, 5)))) / size.sum() * 1.25


def _talk(rng, time):
    """Jaw opening in [0, 1]: syllables of about 4 Hz, in phrases with pauses.

    Mouths open at 2 to 7 Hz: Chandrasekaran et al. 2009, https://doi.org/10.1371/journal.pcbi.1000436
    """
    phrase = np.clip(0.5 + 1.3 * _sway(rng, time, 0.15, 0.6), 0, 1)
    syllable = np.sin(np.pi * rng.uniform(3.2, 4.2) * time + 1.5 * _sway(rng, time, 0.3, 1.2)) ** 2
    return phrase * syllable * np.clip(0.6 + 0.5 * _sway(rng, time, 0.5, 2.0), 0.15, 1)


def _lids(rng, time, gaze_y):
    """Lid closure in [0, 1]: a blink of 0.3 s every 1.5 to 4 s; in between, lids drift and follow the gaze down.

    People who talk blink some 26 times a minute: Bentivoglio et al. 1997, https://doi.org/10.1002/mds.870120629
    """
    period, phase = rng.uniform(1.5, 4.0), rng.uniform(0, 1)
    since = ((time / period + phase) % 1) * period
    blink = np.exp(-((since - 0.3) / 0.085) ** 4)
    rest = np.clip(0.1 + 0.3 * _sway(rng, time, 0.2, 0.9) - 0.3 * gaze_y, 0, 0.6)
    return max(blink, rest)


def any_state(seed: int) -> HeadState:
    """A pose and an expression drawn from `seed`, each part uniformly from its range, beyond what `motion` shows.

    Lids, a third of the time each: open, closed, anything between. The mouth: closed, or open by any amount.
    """
    rng = np.random.default_rng([seed, 0xA27])
    even = lambda low, high: float(rng.uniform(low, high))
    blink = (even(0, 0.1), even(0.85, 1), even(0.1, 0.85))[rng.integers(3)]
    return HeadState(yaw=even(-30, 30), pitch=even(-16, 16), roll=even(-12, 12), x=even(-0.08, 0.08),
                     y=even(-0.05, 0.05), scale=even(0.92, 1.08), jaw=even(0, 1.3) * (rng.random() < 0.7),
                     smile=even(-0.4, 1), blink=blink, brow=even(-1, 1), gaze_x=even(-1, 1), gaze_y=even(-1, 1),
                     pucker=even(-0.3, 0.75) * (rng.random() < 0.5))


# ---- clips

@dataclass(frozen=True)
class SyntheticClip:
    """A video that is rendered when it is read; the interface of the clips on disk.

    name: 'person#clip#first frame#last frame', as file-based clips are called
    """
    name: str
    identity: Identity
    motion_seed: int
    num_frames: int
    size: int
    fps: Fraction = CLIP_FPS
    even: bool = False                 # each frame in a state of its own (any_state), not along a motion

    def __len__(self) -> int:
        return self.num_frames

    def state(self, index: int) -> HeadState:
        """Pose and expression of a frame; IndexError beyond the last."""
        if not 0 <= index < self.num_frames:
            raise IndexError(f'{self.name}: frame {index} of {self.num_frames}')
        if self.even:
            return any_state(self.motion_seed + index)
        return state_at(self.motion_seed, index / float(self.fps))

    def read(self, indices: Sequence[int]) -> list[np.ndarray]:
        """The frames at `indices`, each (size, size, 3) uint8 RGB."""
        return [render(self.identity, self.state(int(index)), self.size).image for index in indices]

    def frames(self) -> Iterator[np.ndarray]:
        """All frames in order, each (size, size, 3) uint8 RGB."""
        return (self.read([index])[0] for index in range(self.num_frames))


def synthetic_people(num_people: int, clips_per_person: int, num_frames: int, size: int, seed: int,
                     even=False) -> dict[str, list[SyntheticClip]]:
    """Clips of `num_people` by name; another seed gives other people with other names.

    even: frames in states of their own (any_state), people with a wider range of features (Identity.wide)
    Raises ValueError for more than MAX_PEOPLE.
    """
    if not 0 < num_people <= MAX_PEOPLE:
        raise ValueError(f'num_people={num_people} must be in 1..{MAX_PEOPLE}')
    people = {}
    for number in range(seed * MAX_PEOPLE, seed * MAX_PEOPLE + num_people):
        name, identity = f'id{number:05d}', Identity.sample(number)
        if even:
            identity = identity.wide(number)
        people[name] = [replace(_clip(name, identity, number, clip, num_frames, size), even=even)
                        for clip in range(clips_per_person)]
    return people


def _clip(name, identity, person, clip, num_frames, size):
    """Clip number `clip` of a person: the same look in slightly other light, another motion."""
    rng = np.random.default_rng([person, clip, 0xC11B])
    light = identity.light
    light = replace(light, azimuth=light.azimuth + rng.uniform(-12, 12), elevation=light.elevation + rng.uniform(-6, 6),
                    key=light.key * rng.uniform(0.93, 1.07))
    return SyntheticClip(f'{name}#s{clip:04d}#{0:06d}#{num_frames:06d}', replace(identity, light=light),
                         int(rng.integers(2 ** 31)), num_frames, size)
