"""Parameters of a synthetic head: identity, and state in a frame.

Lengths are in head units: the head is about 2 high, from the chin at y = -1 to the crown at y = +1,
x grows to the right of the image, y upwards and z towards the viewer. Colours are RGB in [0, 1].
"""

from dataclasses import dataclass, replace

import numpy as np

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class HeadState:
    """Pose and expression of one frame."""
    yaw: float = 0.0       # degrees; positive turns the nose towards the right edge of the image
    pitch: float = 0.0     # degrees; positive lifts the nose
    roll: float = 0.0      # degrees; positive tilts the head clockwise as seen in the image
    x: float = 0.0         # position in [-1, 1] image units, to the right
    y: float = 0.0         # position in [-1, 1] image units, downwards
    scale: float = 1.0     # size of the head; 1 fills about 0.8 of the image height, as VoxCeleb crops
    jaw: float = 0.0       # 0 closed .. 1 wide open
    smile: float = 0.0     # -1 pursed .. 1 smiling
    blink: float = 0.0     # 0 open .. 1 closed eyes
    brow: float = 0.0      # -1 frowning .. 1 raised
    gaze_x: float = 0.0    # -1 .. 1, to the right of the image
    gaze_y: float = 0.0    # -1 .. 1, upwards
    pucker: float = 0.0    # 0 at rest .. 1 lips together as for an o; negative stretches them


@dataclass(frozen=True)
class Appearance:
    """Shape and colours of head, hair and clothes; all that needs a mesh and a texture."""
    texture_seed: int      # of freckles, strands and cloth

    face_width: float      # factors of the average head
    jaw_width: float
    chin: float            # length added to the lower face
    cheeks: float
    forehead: float

    eye_x: float           # distance of an eye from the middle
    eye_y: float
    eye_width: float       # half the distance between the corners
    eye_open: float        # lid opening relative to the width
    eye_tilt: float        # slope from the inner to the outer corner
    brow_y: float
    brow_arch: float
    brow_thick: float
    nose_length: float
    nose_width: float
    nose_height: float
    mouth_y: float
    mouth_width: float     # half the distance between the corners
    lip_upper: float       # heights of the lips
    lip_lower: float
    ear_size: float

    skin: Colour
    blush: float
    freckles: float
    lips: Colour
    iris: Colour
    hair: Colour
    hair_style: str        # one of HAIR_STYLES
    hairline: float        # height at which the hair starts over the forehead
    hair_volume: float
    hair_wave: float
    parting: float         # -1 .. 1, where the hair is parted
    beard: float           # 0 none .. 1 full
    glasses: float         # 0 none, else thickness of the frame

    cloth: Colour
    cloth_accent: Colour
    cloth_pattern: str     # one of CLOTH_PATTERNS
    neckline: float        # depth of the collar

    teeth: float = 1.0     # how far the upper ones show in the open mouth; 0 not at all
    mouth_light: float = 1.0    # brightness of what lies behind the teeth
    lashes: float = 1.0    # strength
    liner: float = 0.0     # make-up around the eyes: 0 none .. 1 strong
    lid_shade: float = 0.0      # how much darker, or below 0 lighter, the lids are than the skin


@dataclass(frozen=True)
class Light:
    """A key light over a soft sky."""
    azimuth: float         # degrees, positive from the right of the image
    elevation: float       # degrees above the horizon
    key: float             # strength of the key light
    ambient: float
    warmth: float          # -1 blue .. 1 orange


@dataclass(frozen=True)
class Backdrop:
    """A still, out-of-focus background."""
    seed: int
    top: Colour
    bottom: Colour
    accent: Colour


@dataclass(frozen=True)
class Identity:
    """Everything about a person's picture that does not move."""
    appearance: Appearance
    light: Light
    backdrop: Backdrop

    @staticmethod
    def sample(seed: int) -> 'Identity':
        """The person that belongs to `seed`, always the same."""
        rng = np.random.default_rng([seed, 0x1DE1717])
        return Identity(_sample_appearance(rng), sample_light(rng), _sample_backdrop(rng))

    def wide(self, seed: int) -> 'Identity':
        """This person with features farther from the average, and in stronger or weaker light."""
        rng = np.random.default_rng([seed, 0x51DE])
        a, factor = self.appearance, lambda low, high: float(rng.uniform(low, high))
        appearance = replace(
            a, eye_open=a.eye_open * factor(0.55, 1.3), eye_width=a.eye_width * factor(0.85, 1.15),
            eye_y=a.eye_y + factor(-0.03, 0.03), brow_y=a.brow_y + factor(-0.05, 0.04),
            brow_thick=a.brow_thick * factor(0.4, 1.2), face_width=a.face_width * factor(0.94, 1.08),
            mouth_width=a.mouth_width * factor(0.72, 1.1), mouth_y=a.mouth_y + factor(-0.02, 0.09),
            lip_upper=a.lip_upper * factor(0.5, 1.5), lip_lower=a.lip_lower * factor(0.6, 1.5),
            nose_length=a.nose_length * factor(0.72, 1.05), chin=a.chin + factor(-0.08, 0.03),
            nose_width=a.nose_width * factor(0.85, 1.3),
            lips=_mix(a.lips, a.skin, factor(0, 0.7)), skin=_jitter(rng, a.skin, 0.03),
            teeth=factor(0.3, 1.3), mouth_light=factor(0.4, 2.2), lashes=factor(0.2, 1.3),
            liner=max(0.0, factor(-1, 1)), lid_shade=factor(-0.15, 0.4))
        light = replace(self.light, azimuth=factor(-80, 80), elevation=factor(0, 65), key=factor(0.3, 0.95),
                        ambient=factor(0.2, 0.6))
        return replace(self, appearance=appearance, light=light)


HAIR_STYLES = ('bald', 'buzz', 'short', 'swept', 'fringe', 'curly', 'bob', 'long')
CLOTH_PATTERNS = ('plain', 'stripes', 'checks', 'jacket')
SKIN_TONES = ((0.95, 0.79, 0.69), (0.91, 0.72, 0.59), (0.85, 0.64, 0.49), (0.74, 0.52, 0.37), (0.58, 0.39, 0.27),
              (0.42, 0.28, 0.20))
HAIR_COLOURS = ((0.09, 0.07, 0.06), (0.17, 0.11, 0.08), (0.30, 0.19, 0.11), (0.47, 0.31, 0.17), (0.72, 0.56, 0.33),
                (0.52, 0.23, 0.11), (0.58, 0.57, 0.56))
IRIS_COLOURS = ((0.25, 0.14, 0.07), (0.36, 0.22, 0.10), (0.42, 0.36, 0.18), (0.27, 0.42, 0.28), (0.27, 0.45, 0.62),
                (0.42, 0.50, 0.55))


def sample_light(rng) -> Light:
    return Light(azimuth=rng.uniform(-60, 60), elevation=rng.uniform(15, 60), key=rng.uniform(0.55, 0.85),
                 ambient=rng.uniform(0.34, 0.52), warmth=rng.uniform(-1, 1))


def _sample_backdrop(rng) -> Backdrop:
    return Backdrop(seed=int(rng.integers(2 ** 31)), top=_any_colour(rng), bottom=_any_colour(rng),
                    accent=_any_colour(rng))


def _sample_appearance(rng) -> Appearance:
    tone = rng.uniform(0, len(SKIN_TONES) - 1)
    skin = _jitter(rng, _between(SKIN_TONES, tone), 0.02)
    # Dark skin rarely comes with fair hair or eyes.
    fair = 1 - tone / (len(SKIN_TONES) - 1)
    hair = HAIR_COLOURS[rng.integers(len(HAIR_COLOURS) if rng.random() < fair + 0.1 else 2)]
    iris = IRIS_COLOURS[rng.integers(len(IRIS_COLOURS) if rng.random() < fair else 2)]
    style = HAIR_STYLES[rng.choice(len(HAIR_STYLES), p=(0.06, 0.08, 0.19, 0.14, 0.12, 0.11, 0.14, 0.16))]
    shaven = style in ('bob', 'long') or rng.random() < 0.55
    redden = rng.uniform(0.0, 0.6)
    return Appearance(
        texture_seed=int(rng.integers(2 ** 31)),
        face_width=_about(rng, 1.0, 0.05), jaw_width=_about(rng, 1.0, 0.09), chin=_about(rng, 0.0, 0.03),
        cheeks=_about(rng, 1.0, 0.35), forehead=_about(rng, 1.0, 0.03),
        eye_x=_about(rng, 0.275, 0.012), eye_y=_about(rng, 0.02, 0.02), eye_width=_about(rng, 0.128, 0.009),
        eye_open=_about(rng, 0.46, 0.06), eye_tilt=_about(rng, 0.06, 0.07),
        brow_y=_about(rng, 0.215, 0.018), brow_arch=_about(rng, 0.035, 0.018), brow_thick=_about(rng, 0.034, 0.009),
        nose_length=_about(rng, 0.38, 0.025), nose_width=_about(rng, 1.0, 0.14), nose_height=_about(rng, 0.25, 0.03),
        mouth_y=_about(rng, -0.585, 0.018), mouth_width=_about(rng, 0.235, 0.02),
        lip_upper=_about(rng, 0.052, 0.012), lip_lower=_about(rng, 0.072, 0.013), ear_size=_about(rng, 1.0, 0.1),
        skin=skin, blush=rng.uniform(0.1, 0.9), freckles=max(0.0, rng.uniform(-1.5, 1)) * fair,
        lips=_mix(_mix(skin, (0.62, 0.26, 0.25), 0.5), (0.66, 0.10, 0.16), redden), iris=_jitter(rng, iris, 0.04),
        hair=_jitter(rng, hair, 0.02), hair_style=style, hairline=_about(rng, 0.66, 0.045),
        hair_volume=_about(rng, 1.0, 0.2),
        hair_wave=rng.uniform(0, 1), parting=rng.uniform(-1, 1),
        beard=0.0 if shaven else rng.uniform(0.25, 1.0),
        glasses=rng.uniform(0.012, 0.026) if rng.random() < 0.22 else 0.0,
        cloth=_any_colour(rng), cloth_accent=_any_colour(rng),
        cloth_pattern=CLOTH_PATTERNS[rng.integers(len(CLOTH_PATTERNS))],
        neckline=rng.uniform(0.0, 0.35))


def _about(rng, mean, sigma):
    """A normal random number, clipped at two sigma."""
    return float(mean + sigma * np.clip(rng.normal(), -2, 2))


def _any_colour(rng) -> Colour:
    grey, tint = rng.uniform(0.08, 0.8), rng.uniform(-1, 1, 3)
    return _colour(grey + 0.22 * (tint - tint.mean()))


def _jitter(rng, colour, amount) -> Colour:
    return _colour(np.asarray(colour) + rng.normal(0, amount, 3))


def _mix(first, second, share) -> Colour:
    return _colour(np.asarray(first) * (1 - share) + np.asarray(second) * share)


def _between(palette, position) -> Colour:
    index = min(int(position), len(palette) - 2)
    return _mix(palette[index], palette[index + 1], position - index)


def _colour(rgb) -> Colour:
    return tuple(float(c) for c in np.clip(rgb, 0.02, 0.98))
