"""The colours of a synthetic head: a texture for its surface, painters for its moving parts.

Colours are display values in [0, 1]. The fourth channel of a texture is gloss, the strength of the highlight.
"""

import numpy as np

from datasets.synthetic.drawn import drawn_once
from datasets.synthetic.identity import Appearance, Backdrop
from datasets.synthetic.mesh import PARTS
from datasets.synthetic.shape import (JAW_DROP, body_loft, bump, curve, hairline, head_angle, head_height, head_loft,
                                      lip_profile, nose_tip, smoothstep)

# Height of a part's texture over its width.
SHARE = {'head': 1.0, 'body': 0.5, 'ear': 0.125, 'curtain': 0.5, 'glasses': 0.0625}


class Noise:
    """Smooth random fields over a texture, the same at every size: https://en.wikipedia.org/wiki/Value_noise."""

    def __init__(self, seed, u, v):
        self.rng, self.u, self.v = np.random.default_rng(seed), u, v

    def __call__(self, cells_u, cells_v):
        """(H, W) in [-1, 1] with so many independent cells across and down."""
        lattice = self.rng.uniform(-1, 1, (cells_v + 2, cells_u + 2)).astype(np.float32)
        return _between(_between(lattice, self.v[:, 0], 0), self.u[0], 1)

    def strands(self, count, bend):
        """(H, W) in [-1, 1], fine lines along v, shifted sideways by `bend` (H, W) in units of u."""
        line = self.rng.uniform(-1, 1, count + 2).astype(np.float32)
        place = np.clip(self.u + bend, 0, 1) * count
        cell = place.astype(np.int32)
        return line[cell] + (line[cell + 1] - line[cell]) * (place - cell)


def _between(lattice, position, axis):
    """The lattice smoothly interpolated along an axis at positions (N,) in [0, 1]."""
    place = position * (lattice.shape[axis] - 2)
    cell = place.astype(np.int32)
    share = smoothstep(0, 1, place - cell)
    low, high = lattice.take(cell, axis), lattice.take(cell + 1, axis)
    return low + (share[:, None] if axis == 0 else share) * (high - low)


class Canvas:
    """A texture being painted: colour (H, W, 3) and gloss (H, W)."""

    def __init__(self, u, v, colour, gloss):
        shape = np.broadcast_shapes(u.shape, v.shape)
        self.colour = np.broadcast_to(np.float32(colour), (*shape, 3)).copy()
        self.gloss = np.full(shape, gloss, np.float32)

    def cover(self, colour, opacity, gloss=None):
        """Paint `colour` with `opacity` (H, W): the operator "over" of Porter and Duff, SIGGRAPH 1984."""
        self.colour += opacity[..., None] * (np.asarray(colour, np.float32) - self.colour)
        if gloss is not None:
            self.gloss += opacity * (gloss - self.gloss)

    def shade(self, factor):
        """Multiply by `factor` (H, W)."""
        self.colour *= factor[..., None]


# ---- textures

class Atlas:
    """All textures of a person above each other.

    texels: (H, W, 4) uint8, colour and gloss
    bottom: rows of each part's texture minus one; first: its first row; both in the order of PARTS
    """

    def __init__(self, a: Appearance, width: int):
        painters = {'head': _paint_head, 'body': _paint_body, 'ear': _paint_ear, 'curtain': _paint_curtain,
                    'glasses': _paint_glasses}
        pictures = [_downsampled(painters[part], a, width, max(int(width * SHARE[part]), 2)) for part in PARTS]
        heights = np.array([len(picture) for picture in pictures])
        self.texels = np.concatenate(pictures)
        self.first = np.float32(np.cumsum(heights) - heights)
        self.bottom = np.float32(heights - 1)

    def locate(self, u, v, part):
        """Atlas position (column, row) of surface coordinates (N,) of parts (N,)."""
        return u * (self.texels.shape[1] - 1), self.first[part] + v * self.bottom[part]


@drawn_once
def atlas(a: Appearance, size: int) -> Atlas:
    """The textures for images of `size` pixels: about two texels to a pixel."""
    return Atlas(a, int(np.clip(2 ** np.ceil(np.log2(2 * size)), 64, 1024)))


def _downsampled(paint, a, width, height):
    """Paint and average: strands must not alias in small textures."""
    times = 2 if width <= 256 else 1
    # A row of u and a column of v: what depends on one of them alone stays cheap.
    u = ((np.arange(times * width, dtype=np.float32) + 0.5) / (times * width))[None, :]
    v = ((np.arange(times * height, dtype=np.float32) + 0.5) / (times * height))[:, None]
    canvas = paint(a, u, v)
    fine = np.concatenate([canvas.colour, canvas.gloss[..., None]], -1)
    coarse = fine.reshape(height, times, width, times, 4).mean((1, 3))
    return (np.clip(coarse, 0, 1) * 255 + 0.5).astype(np.uint8)


def _paint_head(a: Appearance, u, v):
    noise = Noise([a.texture_seed, 1], u, v)
    y, angle = head_height(v, a.mouth_y), head_angle(u)
    x = head_loft(a, y, angle)[0]
    front = (np.cos(angle) > 0).astype(np.float32)
    canvas = Canvas(u, v, a.skin, 0.22)
    _paint_complexion(canvas, a, noise, x, y, front)
    _paint_relief(canvas, a, x, y, front)
    if a.beard:
        _paint_beard(canvas, a, noise, x, y, angle)
    _paint_lips(canvas, a, noise, x, y, front)
    _paint_brows(canvas, a, noise, x, y, front)
    if a.hair_style != 'bald':
        _paint_scalp(canvas, a, noise, y, angle)
    return canvas


def _paint_complexion(canvas, a, noise, x, y, front):
    canvas.shade(1 + 0.05 * noise(14, 16) + 0.04 * noise(60, 70) + 0.05 * noise(300, 300))
    rosy = np.asarray(a.skin) * (1.02, 0.74, 0.72)
    side, tip = np.abs(x), nose_tip(a)
    flush = (bump(side, y, 0.38, -0.24, 0.17, 0.15) + 0.8 * bump(x, y, 0, tip, 0.1, 0.1)
             + 0.4 * bump(x, y, 0, -0.9, 0.15, 0.1))
    canvas.cover(rosy, 0.55 * a.blush * front * np.clip(flush * (1 + 0.4 * noise(30, 30)), 0, 1))
    if a.freckles > 0.05:
        spots = smoothstep(0.45, 0.75, noise(190, 150)) * np.clip(1.2 * bump(side, y, 0.25, -0.16, 0.26, 0.22), 0, 1)
        canvas.cover(np.asarray(a.skin) * (0.72, 0.58, 0.48), 0.8 * a.freckles * front * spots)
    shine = bump(x, y, 0, 0.5, 0.3, 0.15) + bump(x, y, 0, tip, 0.06, 0.2) + 0.6 * bump(side, y, 0.36, -0.1, 0.12, 0.08)
    canvas.gloss += 0.25 * front * np.clip(shine, 0, 1)


def _paint_relief(canvas, a, x, y, front):
    """Darken what little light reaches: sockets, nostrils, folds, the underside of the jaw."""
    side, tip = np.abs(x), nose_tip(a)
    socket = (0.20 * bump(side, y, a.eye_x - 0.03, a.eye_y + 0.04, 0.16, 0.10)
              + 0.10 * bump(side, y, a.eye_x - 0.02, a.eye_y - 0.12, 0.12, 0.04))
    beside_nose = 0.14 * bump(side, y, 0.12, 0.02, 0.05, 0.12)
    under_nose = 0.16 * bump(x, y, 0, tip - 0.12, 0.11 * a.nose_width, 0.03)
    fold_x = curve(y, (a.mouth_y, a.mouth_width + 0.06), (tip - 0.04, 0.13 * a.nose_width + 0.01))
    fold = (0.13 * np.exp(-((side - fold_x) / 0.028) ** 2) * smoothstep(a.mouth_y - 0.02, a.mouth_y + 0.06, y)
            * smoothstep(tip + 0.02, tip - 0.06, y))
    under_lip = 0.2 * bump(x, y, 0, a.mouth_y - a.lip_lower - 0.045, 0.14, 0.03)
    ring = np.hypot((side - 0.10 * a.nose_width) / a.nose_width, y - tip + 0.05)
    wing = 0.22 * np.exp(-((ring - 0.055) / 0.016) ** 2) * (side > 0.09 * a.nose_width)
    canvas.shade(1 - front * np.clip(socket + beside_nose + under_nose + fold + under_lip + wing, 0, 0.6))
    from_nostril = np.hypot((side / a.nose_width - 0.055) / 0.028, (y - tip + 0.085 + 0.15 * (side - 0.055)) / 0.015)
    nostril = smoothstep(1.3, 0.6, from_nostril)
    canvas.cover(np.asarray(a.skin) * (0.32, 0.20, 0.18), 0.7 * front * nostril, gloss=0)
    canvas.shade(1 - 0.35 * smoothstep(-0.93, -1.02, y))


def _paint_beard(canvas, a, noise, x, y, angle):
    side = np.abs(angle)
    upper = curve(side, (0.0, a.mouth_y + 0.17), (0.25, a.mouth_y + 0.15), (0.42, a.mouth_y - 0.02), (0.8, -0.52),
                  (1.15, -0.22), (1.35, -0.05))
    jaw = smoothstep(-0.03, 0.06, upper - y + 0.03 * noise(120, 60)) * smoothstep(1.55, 1.35, side)
    philtrum = 1 - 0.5 * bump(x, y, 0, a.mouth_y + 0.13, 0.025, 0.05)
    bare_chin = 1 - 0.5 * bump(np.abs(x), y, 0.11, a.mouth_y - 0.12, 0.06, 0.05)
    strand = 0.75 + 0.35 * noise(420, 260)
    canvas.cover(np.asarray(a.hair) * 0.85, np.clip(a.beard * jaw * philtrum * bare_chin * strand, 0, 0.97), gloss=0.08)


def _paint_lips(canvas, a, noise, x, y, front):
    across = np.clip(1 - (x / (1.02 * a.mouth_width)) ** 2, 0, 1)
    bow = 1 - 0.28 * np.exp(-(x / 0.03) ** 2)
    upper = a.mouth_y + a.lip_upper * across ** 0.8 * bow
    lower = a.mouth_y - a.lip_lower * across ** 0.6
    soft = 0.010
    lip = (smoothstep(soft, -soft, y - upper) * smoothstep(-soft, soft, y - lower)
           * smoothstep(0.0, 0.06, across) * front)
    colour = np.asarray(a.lips) * (1 + 0.10 * noise(330, 12))[..., None]
    canvas.cover(colour * np.where(y > a.mouth_y, 0.84, 1.0)[..., None], 0.9 * lip)
    canvas.gloss += 0.35 * lip * (y < a.mouth_y)
    seam = np.exp(-((y - a.mouth_y) / 0.010) ** 2) * smoothstep(1.12, 0.95, np.abs(x) / a.mouth_width) * front
    canvas.cover(np.asarray(a.lips) * 0.35, 0.8 * seam, gloss=0)


def _paint_brows(canvas, a, noise, x, y, front):
    side = np.abs(x)
    along = (side - 0.10) / 0.36
    centre = (a.brow_y - 0.005 + a.brow_arch * np.sin(np.pi * np.clip(along, 0, 1) ** 1.3)
              - 0.035 * smoothstep(0.65, 1.0, along))
    half = a.brow_thick * (1 - 0.6 * smoothstep(0.35, 1.0, along)) * smoothstep(-0.08, 0.12, along)
    hairs = 0.8 + 0.35 * noise(420, 200)
    brow = (smoothstep(1.25, 0.5, np.abs(y - centre) / np.maximum(half, 1e-3)) * smoothstep(1.03, 0.92, along)
            * (along > -0.08) * hairs * front)
    canvas.cover(np.asarray(a.hair) * 0.7, np.clip(0.95 * brow, 0, 1), gloss=0.05)


def _paint_scalp(canvas, a, noise, y, angle):
    bend = 0.010 * noise(9, 7) * (1 + 2 * a.hair_wave) + 0.05 * a.parting * smoothstep(0.5, 1.0, y)
    ragged = noise.strands(150, bend) * 0.05 + noise.strands(60, bend) * 0.04
    wide = 0.5 if a.hair_style in ('buzz', 'short') else 0.25
    above = y - hairline(a, angle) + (ragged if a.hair_style != 'buzz' else 0.03 * noise(200, 200))
    cover = smoothstep(-0.06 * wide, 0.14 * wide, above)
    if a.hair_style == 'buzz':
        canvas.cover(np.asarray(a.hair), cover * np.clip(0.72 + 0.2 * noise(500, 400), 0, 1), gloss=0.08)
        return
    canvas.shade(1 - 0.25 * smoothstep(-0.12, 0.0, above) * (1 - cover))    # the hair's shadow on the skin
    canvas.cover(_strand_colour(a, noise, bend), cover, gloss=0.35)
    canvas.shade(1 - 0.25 * cover * smoothstep(0.16, 0.0, above))           # darker at the roots


def _strand_colour(a, noise, bend):
    if a.hair_style == 'curly':
        tone = 1 + 0.35 * noise(70, 60) + 0.25 * noise(160, 120)
    else:
        tone = 1 + 0.30 * noise.strands(260, bend) + 0.22 * noise.strands(90, bend) + 0.12 * noise.strands(30, bend)
        tone = tone * (1 + 0.08 * noise(20, 12))
    return np.asarray(a.hair, np.float32) * tone[..., None]


def _paint_body(a: Appearance, u, v):
    noise = Noise([a.texture_seed, 2], u, v)
    point = body_loft(v, u)
    x, y, front = point[..., 0], point[..., 1], smoothstep(-0.2, 0.1, point[..., 2])
    canvas = Canvas(u, v, np.asarray(a.skin) * 0.97, 0.12)
    canvas.shade(1 + 0.05 * noise(20, 20) + 0.05 * noise(120, 120))
    # The jaw keeps the light from the neck; the sinews and the collar bones catch some.
    canvas.shade(1 - 0.42 * smoothstep(-1.22, -0.92, y))
    canvas.shade(1 - 0.16 * bump(x, y, 0, -1.36, 0.09, 0.10) * front)
    collar = -1.24 - a.neckline * np.clip(1 - np.abs(x) / 0.42, 0, 1) * front
    cloth = smoothstep(0.012, -0.012, y - collar)
    canvas.shade(1 - 0.35 * smoothstep(0.09, 0.0, y - collar) * (1 - cloth))
    canvas.cover(_cloth_colour(a, noise, x, y), cloth, gloss=0.04)
    hem = np.exp(-((y - collar + 0.035) / 0.012) ** 2)
    canvas.shade(1 - 0.3 * hem * cloth)
    return canvas


def _cloth_colour(a: Appearance, noise, x, y):
    weave = 1 + 0.06 * noise(300, 300) + 0.10 * noise(18, 14)
    cloth, accent = np.asarray(a.cloth, np.float32), np.asarray(a.cloth_accent, np.float32)
    share = np.zeros_like(x)
    if a.cloth_pattern == 'stripes':
        share = smoothstep(-0.25, 0.25, np.sin(34 * y))
    elif a.cloth_pattern == 'checks':
        share = 0.5 * smoothstep(-0.2, 0.2, np.sin(22 * x)) + 0.5 * smoothstep(-0.2, 0.2, np.sin(22 * y))
    elif a.cloth_pattern == 'jacket':
        share = smoothstep(0.01, -0.01, np.abs(x) - 0.40 - 0.55 * (y + 1.3))
    colour = cloth + (accent - cloth) * share[..., None]
    return colour * weave[..., None]


def _paint_ear(a: Appearance, u, v):
    canvas = Canvas(u, v, np.asarray(a.skin) * (1.0, 0.92, 0.90), 0.2)
    canvas.shade(1 - 0.42 * np.exp(-((v - 0.42) / 0.26) ** 2) + 0.06 * np.exp(-((v - 0.9) / 0.08) ** 2))
    return canvas


def _paint_curtain(a: Appearance, u, v):
    noise = Noise([a.texture_seed, 3], u, v)
    bend = 0.02 * noise(8, 6) * (1 + 2 * a.hair_wave)
    canvas = Canvas(u, v, a.hair, 0.35)
    canvas.cover(_strand_colour(a, noise, bend), np.ones_like(u * v))
    canvas.shade(1 - 0.25 * smoothstep(0.75, 1.0, v))
    return canvas


def _paint_glasses(a: Appearance, u, v):
    return Canvas(u, v, np.asarray(a.cloth_accent) * 0.35, 0.9)


# ---- what moves on the surface

def painted(under, colour, opacity):
    """`colour` with `opacity` (N,) over paint (N, 4)."""
    return under + opacity[:, None] * (np.asarray(colour, np.float32) - under)


def paint_eyes(a: Appearance, state, skin, x, y, blur):
    """Eyes over `skin` (N, 4) at face positions x, y (N,); `blur` is a pixel in head units. Returns (N, 4)."""
    side = np.sign(x)
    ex = (np.abs(x) - a.eye_x) / a.eye_width                          # -1 inner corner .. 1 outer corner
    ey = (y - a.eye_y) / a.eye_width - a.eye_tilt * ex
    soft = 0.6 * blur / a.eye_width + 0.02
    lid, lower = eye_lids(a, state, ex)
    rest = eye_lids(a, state.__class__(), ex)[0]
    within = smoothstep(1.12, 1.0, np.abs(ex))

    # The lid: a crease above the opening, skin a little darker where it has come down.
    crease = (np.exp(-((ey - rest - 0.20 - 0.05 * (1 - ex * ex)) / (0.045 + soft)) ** 2) * within
              * (1 - 0.6 * state.blink))
    closed = smoothstep(-soft, soft, rest - ey) * smoothstep(-soft, soft, ey - lid) * within
    out = skin * (1 - 0.30 * crease - 0.10 * closed)[:, None]
    if a.lid_shade:
        out = out * (1 - a.lid_shade * within * np.exp(-((ey - 0.8 * rest) / 0.4) ** 2))[:, None]

    # The ball: white, shaded by the lid above it; iris, pupil and two lights.
    px, py = pupil_position(state)
    dx, dy = ex - side * px, ey - py
    radius = np.hypot(dx, dy)
    ball = np.empty_like(skin)
    ball[:] = (0.82, 0.79, 0.77, 0.2)
    ball = painted(ball, (0.80, 0.48, 0.45, 0.3), smoothstep(-0.78, -0.98, ex))
    iris = np.asarray((*a.iris, 0.3))
    ball = painted(ball, iris * (0.45, 0.45, 0.45, 1), smoothstep(soft, -soft, radius - IRIS))
    ball = painted(ball, iris * (1.15, 1.15, 1.15, 1),
                   smoothstep(soft, -soft, radius - 0.84 * IRIS) * (0.65 + 0.35 * smoothstep(0.3, -0.3, dy)))
    ball = painted(ball, (0.02, 0.02, 0.02, 0.3), smoothstep(soft, -soft, radius - 0.45 * IRIS))
    ball *= (1 - 0.45 * smoothstep(0.26, 0.0, lid - ey))[:, None]
    glint = smoothstep(soft, -soft, np.hypot(dx * side + 0.13, dy - 0.15) - 0.10)
    ball = painted(ball, (1.25, 1.25, 1.25, 0), glint)

    opening = smoothstep(-soft, soft, lid - ey) * smoothstep(-soft, soft, ey - lower) * (np.abs(ex) < 1)
    out = out + opening[:, None] * (ball - out)
    lashes = (np.exp(-((ey - lid - 0.03) / (0.065 + 0.6 * soft)) ** 2) * smoothstep(1.08, 0.95, np.abs(ex))
              * (0.75 + 0.25 * ex) * a.lashes)
    if a.liner:
        liner = a.liner * np.exp(-(np.maximum(ey - lid, 0) / 0.16) ** 2)
        lashes = lashes + liner * smoothstep(1.15, 0.9, np.abs(ex)) * (ey > lower)
    under = 0.35 * np.exp(-((ey - lower) / (0.04 + soft)) ** 2) * smoothstep(1.05, 0.9, np.abs(ex))
    dark = np.asarray((*(0.35 * np.asarray(a.hair)), 0.05))
    return painted(out, dark, np.clip((0.06 / (0.06 + 0.4 * soft)) * 0.95 * lashes + under, 0, 1))


IRIS = 0.47                                                           # radius over half the width of the eye


def eye_lids(a: Appearance, state, ex):
    """Heights of the upper and lower lid at ex in [-1, 1], in units of the eye's half width."""
    arch = np.clip(1 - ex * ex, 0, 1)
    upper = a.eye_open * 1.12 * arch ** 0.7 * (1 - 0.12 * ex) * (1 + 0.10 * state.brow)
    lower = -a.eye_open * (0.72 - 0.25 * max(state.smile, 0)) * arch ** 0.9 * (1 + 0.10 * ex)
    closed = lower + 0.10 * arch
    # Looking down brings the lid along.
    blink = np.clip(state.blink + 0.25 * max(-state.gaze_y, 0), 0, 1)
    return upper + blink * (closed - upper), lower


def pupil_position(state):
    """(x, y) of the right eye's pupil, in units of the eye's half width; the left eye mirrors x."""
    return 0.42 * state.gaze_x, 0.04 + 0.20 * state.gaze_y


def paint_mouth(a: Appearance, state, x, slit, blur):
    """Colour and gloss (N, 4) of the open mouth at face positions x and `slit`, 0 (upper lip) to 1 (lower lip)."""
    gap = JAW_DROP * 1.13 * state.jaw * lip_profile(a, x)
    from_top, from_bottom = slit * gap, (1 - slit) * gap
    soft = 0.6 * blur + 0.004
    out = np.empty((len(x), 4), np.float32)
    out[:] = np.multiply((0.13, 0.035, 0.04, 0.0), a.mouth_light)
    tongue = smoothstep(soft, -soft, np.hypot(x / 0.62, from_bottom - 0.005) - 0.095) * (state.jaw > 0.15)
    out = painted(out, (0.58, 0.24, 0.25, 0.3), 0.9 * tongue)
    teeth = smoothstep(-soft, soft, 0.058 * a.teeth - 0.25 * x * x - from_top)
    gaps = np.exp(-((np.abs((np.abs(x) / 0.046) % 1 - 0.5) - 0.5) / 0.10) ** 2)
    white = (0.86, 0.84, 0.78) * (1 - 0.25 * gaps - 1.6 * x * x)[:, None]
    out = painted(out, np.concatenate([white, np.full((len(x), 1), 0.3)], 1), teeth)
    bottom = smoothstep(-soft, soft, 0.022 - from_bottom) * (np.abs(x) < 0.75 * a.mouth_width)
    out = painted(out, (0.68, 0.66, 0.61, 0.2), 0.8 * bottom)
    # The lips shade what lies behind them.
    return out * (1 - 0.55 * np.exp(-from_top / 0.02) - 0.3 * np.exp(-from_bottom / 0.02))[:, None]


# ---- background

@drawn_once
def paint_backdrop(backdrop: Backdrop, size: int):
    """(size, size, 3) float32 display values in [0, 1]."""
    rng = np.random.default_rng([backdrop.seed, 4])
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = np.meshgrid(axis, axis)
    top, bottom, accent = (np.float32(c) for c in (backdrop.top, backdrop.bottom, backdrop.accent))
    picture = top + (bottom - top) * smoothstep(0.05, 0.95, y + 0.3 * (x - 0.5))[..., None]
    for _ in range(7):
        cx, cy = rng.uniform(-0.1, 1.1), rng.uniform(-0.1, 1.1)
        (width, height), soft = rng.uniform(0.05, 0.3, 2), rng.uniform(0.02, 0.12)
        if rng.random() < 0.5:
            shape = smoothstep(soft, -soft, np.abs(x - cx) - width) * smoothstep(soft, -soft, np.abs(y - cy) - height)
        else:
            shape = smoothstep(1 + 4 * soft, 1 - 4 * soft, np.hypot((x - cx) / width, (y - cy) / height))
        colour = np.clip(accent + rng.uniform(-0.3, 0.3) + rng.uniform(-0.1, 0.1, 3), 0, 1).astype(np.float32)
        picture += rng.uniform(0.25, 0.7) * shape[..., None] * (colour - picture)
    noise = Noise([backdrop.seed, 5], x, y)
    grain = 1 + 0.05 * noise(5, 5) + 0.03 * noise(23, 23)
    return np.clip(picture * grain[..., None], 0, 1)
