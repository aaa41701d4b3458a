"""The surfaces of a synthetic head as functions: skull and face, hair, neck and shoulders.

Surface coordinates (u, v) in [0, 1] run along columns and rows of a part; they are the same for every mesh
density and every texture size.
"""

from functools import lru_cache

import numpy as np

from datasets.synthetic.identity import Appearance

SLIT = (0.705, 0.735)    # rows of the head between the lips, folded away while closed
JAW_DROP = 0.23                                              # way of the chin from closed to wide open, in head units


# ---- curves and bumps

def curve(x, *knots):
    """Smooth curve through knots (x, y), constant beyond the ends.

    Cubic Hermite, its slopes by differences: https://en.wikipedia.org/wiki/Cubic_Hermite_spline
    """
    kx, ky = np.array(sorted(knots), np.float32).T
    slope = np.gradient(ky, kx)
    i = np.clip(np.searchsorted(kx, x) - 1, 0, len(kx) - 2)
    h = kx[i + 1] - kx[i]
    t = np.clip((x - kx[i]) / h, 0, 1)
    return (ky[i] * (1 + 2 * t) * (1 - t) ** 2 + h * slope[i] * t * (1 - t) ** 2
            + ky[i + 1] * t * t * (3 - 2 * t) - h * slope[i + 1] * t * t * (1 - t))


def smoothstep(low, high, x):
    """0 below `low`, 1 above `high`, 3 t^2 - 2 t^3 between: https://registry.khronos.org/OpenGL-Refpages/gl4/html/smoothstep.xhtml"""
    t = np.minimum(np.maximum((x - low) * (1 / (high - low)), 0), 1)   # np.clip costs more than it does on short arrays
    return t * t * (3 - 2 * t)


def bump(x, y, cx, cy, sx, sy):
    """A Gaussian at (cx, cy); |x| puts one on either side of the face."""
    return np.exp(-((x - cx) / sx) ** 2 - ((y - cy) / sy) ** 2)


def signed_power(x, exponent):
    """sign(x) |x|^exponent; of cosine and sine, a superellipse (Barr, "Superquadrics", IEEE CG&A 1981)."""
    return np.sign(x) * np.abs(x) ** exponent


# ---- surface coordinates of the head

def _inverse_cdf(low, high, density):
    """Inverse CDF of a density on [low, high], as (probabilities, positions) for np.interp."""
    grid = np.linspace(low, high, 2001)
    mass = np.cumsum(density(grid))
    return (mass - mass[0]) / (mass[-1] - mass[0]), grid


@lru_cache(maxsize=None)
def _columns():
    return _inverse_cdf(-np.pi, np.pi, lambda angle: 1 + 2.2 * np.exp(-(angle / 0.75) ** 2))


def head_angle(u):
    """Longitude of column u: 0 in the face, +-pi at the back; columns crowd in the face."""
    return np.interp(u, *_columns()).astype(np.float32)


@lru_cache(maxsize=64)
def head_rows(mouth_y):
    """Knots (v, height) of the rows of a head; they crowd at nose, lips, crown and chin."""
    ends = lambda y: 0.35 / np.sqrt(np.maximum(1.0 - (y / 1.04) ** 2, 0.02)) + 0.75
    face = lambda y: 0.9 * np.exp(-((y - mouth_y) / 0.15) ** 2) + 0.7 * np.exp(-((y + 0.3) / 0.12) ** 2)
    density = lambda y: ends(y) + face(y)
    upper = _inverse_cdf(-1, -mouth_y, lambda y: density(-y))
    lower = _inverse_cdf(-mouth_y, 1.03, lambda y: density(-y))
    v = np.concatenate([upper[0] * SLIT[0], SLIT[1] + lower[0] * (1 - SLIT[1])])
    return v, -np.concatenate([upper[1], lower[1]])


def head_height(v, mouth_y):
    """Height of row v, from the crown down to under the chin; constant within the slit."""
    return np.interp(v, *head_rows(mouth_y)).astype(np.float32)


def slit_position(v):
    """0 at the upper lip and above .. 1 at the lower lip and below."""
    return np.clip((v - SLIT[0]) / (SLIT[1] - SLIT[0]), 0, 1).astype(np.float32)


def head_loft(a: Appearance, y, angle):
    """Cross-sections of skull and jaw: x, z and depth-independent front weight, each of the shape of y."""
    low = smoothstep(-0.1, -0.75, y)
    width = curve(y, (1.0, 0.0), (0.97, 0.20), (0.9, 0.385), (0.8, 0.50), (0.65, 0.595), (0.45, 0.66), (0.25, 0.68),
                  (0.05, 0.67), (-0.15, 0.655), (-0.35, 0.625), (-0.5, 0.585), (-0.65, 0.525), (-0.8, 0.42),
                  (-0.9, 0.31), (-0.98, 0.19), (-1.03, 0.0))
    width = width * a.face_width * (1 + low * (a.jaw_width - 1))
    front = curve(y, (1.0, -0.08), (0.97, 0.16), (0.9, 0.36), (0.8, 0.51), (0.65, 0.655), (0.45, 0.745),
                  (0.25, 0.775), (0.05, 0.745), (-0.2, 0.725), (-0.4, 0.735), (-0.58, 0.75), (-0.75, 0.72),
                  (-0.88, 0.71), (-0.97, 0.60), (-1.03, 0.40))
    back = curve(y, (1.0, -0.08), (0.97, -0.33), (0.9, -0.52), (0.75, -0.72), (0.5, -0.86), (0.2, -0.89),
                 (-0.1, -0.82), (-0.35, -0.66), (-0.55, -0.42), (-0.7, -0.18), (-0.85, 0.08), (-0.97, 0.28),
                 (-1.03, 0.40))
    middle = curve(y, (1.0, -0.08), (0.6, -0.06), (0.0, -0.04), (-0.4, 0.02), (-0.7, 0.14), (-0.9, 0.32), (-1.03, 0.40))
    cosine = np.cos(angle)
    x = width * signed_power(np.sin(angle), 0.88)
    z = middle + np.where(cosine > 0, front - middle, middle - back) * signed_power(cosine, 0.88)
    return x, z


def _relief(a: Appearance, x, y):
    """Height of the features over the loft, along z."""
    side = np.abs(x)
    eyes = (-0.105 * bump(side, y, a.eye_x - 0.02, a.eye_y + 0.02, 0.15, 0.115)
            + 0.055 * bump(side, y, a.eye_x, a.eye_y, 0.115, 0.075))
    brows = 0.03 * bump(side, y, 0.24, a.brow_y + 0.01, 0.2, 0.06)
    cheeks = 0.045 * a.cheeks * bump(side, y, 0.40, -0.20, 0.15, 0.13)
    hollow = -0.03 * bump(side, y, 0.45, -0.52, 0.12, 0.14)
    lips = (0.035 * bump(x, y, 0, a.mouth_y + 0.6 * a.lip_upper, 0.75 * a.mouth_width, 0.035)
            + 0.05 * bump(x, y, 0, a.mouth_y - 0.55 * a.lip_lower, 0.65 * a.mouth_width, 0.045)
            - 0.028 * bump(x, y, 0, a.mouth_y, a.mouth_width, 0.018)
            + 0.02 * bump(x, y, 0, a.mouth_y, 0.3, 0.13))
    corners = -0.014 * bump(side, y, a.mouth_width + 0.01, a.mouth_y, 0.05, 0.05)
    chin = 0.045 * bump(x, y, 0, -0.88, 0.15, 0.09) - 0.035 * bump(x, y, 0, a.mouth_y - 0.165, 0.16, 0.045)
    return eyes + brows + cheeks + hollow + lips + corners + chin + _nose(a, x, y)


def nose_tip(a: Appearance):
    """Height of the tip of the nose."""
    return a.eye_y - 0.85 * a.nose_length


def _nose(a: Appearance, x, y):
    tip, side = nose_tip(a), np.abs(x)
    ridge = curve(y, (tip - 0.16, 0.0), (tip - 0.11, 0.14), (tip - 0.06, 0.66), (tip, 1.0), (tip + 0.07, 0.86),
                  (tip + 0.20, 0.47), (a.eye_y + 0.04, 0.20), (a.eye_y + 0.15, 0.06), (a.eye_y + 0.3, 0.0))
    breadth = a.nose_width * curve(y, (tip - 0.1, 0.105), (tip, 0.100), (tip + 0.10, 0.078), (a.eye_y, 0.066),
                                   (a.eye_y + 0.2, 0.12))
    wings = 0.07 * bump(side, y, 0.10 * a.nose_width, tip - 0.05, 0.05 * a.nose_width, 0.052)
    return a.nose_height * ridge * np.exp(-np.abs(side / breadth) ** 1.8) + wings


# ---- hair that sits on the skull

def hairline(a: Appearance, angle):
    """Height at which hair starts, by azimuth `angle`."""
    side, top, temple, nape = np.abs(angle), a.hairline, 0.42, -0.46
    if a.hair_style == 'fringe':
        top, temple = a.brow_y + 0.12 + 0.05 * a.hair_wave, 0.2
    line = curve(side, (0.0, top), (0.45, top - 0.005), (0.75, top - 0.04), (1.0, temple), (1.18, 0.22),
                 (1.33, -0.06), (1.5, -0.10), (1.72, -0.05), (1.9, -0.28), (2.3, nape + 0.04), (3.15, nape))
    if a.hair_style in ('swept', 'bob', 'long', 'short'):
        # Two strands fall from the parting to the sides.
        split = 0.5 * a.parting
        line = line + 0.07 * np.exp(-((angle - split) / 0.25) ** 2) - 0.05 * np.exp(-((side - 0.8) / 0.3) ** 2)
    return line


def hair_depth(a: Appearance, y, angle):
    """How far the hair stands off the skull at (y, angle)."""
    if a.hair_style == 'bald':
        return np.zeros_like(y * angle)
    thick = {'buzz': 0.015, 'short': 0.06, 'swept': 0.09, 'fringe': 0.08, 'curly': 0.17, 'bob': 0.09,
             'long': 0.085}[a.hair_style]
    above = y - hairline(a, angle)
    cover = smoothstep(-0.01, 0.10 if a.hair_style != 'curly' else 0.2, above)
    crown = {'swept': 0.12, 'short': 0.07, 'buzz': 0.0, 'curly': 0.08}.get(a.hair_style, 0.04)
    # At the very top all columns meet and must agree.
    apart = smoothstep(1.0, 0.75, y)
    lift = crown * smoothstep(0.35, 0.95, y) * (0.7 + apart * (smoothstep(-0.4, 0.5, np.cos(angle)) - 0.7))
    if a.hair_style == 'swept':
        lift = lift * (1 + 0.5 * apart * np.sin(angle) * np.sign(a.parting))
    lumps = 0.0
    if a.hair_style == 'curly':
        lumps = 0.022 * np.sin(13 * angle + 5 * y) * np.sin(17 * y + 3 * np.sin(5 * angle)) * apart
    locks = 0.008 * np.sin(23 * angle + 4 * np.sin(3 * y)) * apart * (a.hair_style != 'buzz')
    return cover * (a.hair_volume * (thick + lift) + lumps + locks)


# ---- surfaces

def head_surface(a: Appearance, y, angle):
    """Neutral position (..., 3) on the head, hair included."""
    x, z = head_loft(a, y, angle)
    z = z + _relief(a, x, y) * smoothstep(0.0, 0.5, np.cos(angle))
    # Outwards of the ellipsoid that fits the skull.
    out = np.stack([x / 0.46, (y - 0.1) / 0.9, (z + 0.05) / 0.7], -1)
    out = out / np.linalg.norm(out, axis=-1, keepdims=True)
    point = np.stack([x, y, z], -1) + out * hair_depth(a, y, angle)[..., None]
    stretch = a.chin * smoothstep(a.mouth_y + 0.1, -1.0, y) + (a.forehead - 1) * np.maximum(y - a.brow_y, 0)
    point[..., 1] += np.where(y < 0, -stretch, stretch)
    return point


def lip_profile(a: Appearance, x):
    """How far the lips part at x: 1 in the middle, 0 at the corners."""
    return np.clip(1 - (x / a.mouth_width) ** 2, 0, 1) ** 0.75


def body_loft(v, u):
    """Neck and shoulders: position (..., 3) of row v from the jaw down, column u around."""
    y = -0.42 - 2.3 * v ** 1.15
    angle = (2 * u - 1) * np.pi
    width = curve(y, (-0.4, 0.37), (-0.9, 0.375), (-1.10, 0.41), (-1.24, 0.56), (-1.36, 0.90),
                  (-1.50, 1.28), (-1.68, 1.56), (-2.0, 1.70), (-2.8, 1.75))
    depth = curve(y, (-0.4, 0.38), (-1.0, 0.36), (-1.3, 0.38), (-1.6, 0.46), (-2.2, 0.62), (-2.8, 0.7))
    centre = curve(y, (-0.4, -0.20), (-1.0, -0.22), (-1.5, -0.28), (-2.8, -0.25))
    x = width * signed_power(np.sin(angle), 0.9)
    # The throat: two sinews and the pit between the collar bones.
    throat = 0.03 * bump(np.abs(x), y, 0.12, -1.15, 0.08, 0.2) - 0.04 * bump(x, y, 0, -1.33, 0.1, 0.1)
    z = centre + depth * signed_power(np.cos(angle), 0.8) + throat * (np.cos(angle) > 0)
    return np.stack(np.broadcast_arrays(x, y, z), -1)
