"""The mesh of a synthetic head: lofted grids, their expressions, named points.

Every part is a grid of vertices; each vertex has surface coordinates, its position on the part's texture.
"""

from typing import NamedTuple

import numpy as np

from datasets.synthetic.drawn import drawn_once
from datasets.synthetic.identity import Appearance
from datasets.synthetic.shape import (JAW_DROP, SLIT, body_loft, bump, curve, head_angle, head_height, head_loft,
                                      head_rows, head_surface, lip_profile, nose_tip, signed_power, slit_position,
                                      smoothstep)

SKIN, EYE, MOUTH = 0, 1, 2    # how a triangle is painted: by its texture alone, or as it moves
PARTS = ('head', 'body', 'ear', 'curtain', 'glasses')        # each with its own texture
EXPRESSIONS = ('jaw', 'smile', 'brow', 'pucker')

PIVOT = np.array([0.0, -0.62, -0.22], np.float32)            # where the head turns on the neck
BODY_PIVOT = np.array([0.0, -1.9, -0.2], np.float32)

LANDMARK_NAMES = (
    'left_eye_outer', 'left_eye_inner', 'right_eye_inner', 'right_eye_outer', 'left_pupil', 'right_pupil',
    'left_brow_outer', 'left_brow_middle', 'left_brow_inner', 'right_brow_inner', 'right_brow_middle',
    'right_brow_outer',
    'nose_bridge', 'nose_tip', 'nose_left', 'nose_right', 'nose_base',
    'mouth_left', 'mouth_right', 'upper_lip_top', 'upper_lip', 'lower_lip', 'lower_lip_bottom', 'chin',
    'left_cheek', 'right_cheek', 'left_jaw', 'right_jaw', 'forehead',
    'left_lid_upper', 'left_lid_lower', 'right_lid_upper', 'right_lid_lower',
    'left_temple', 'right_temple', 'left_ear', 'right_ear', 'left_jaw_corner', 'right_jaw_corner',
    'upper_lip_left', 'upper_lip_right', 'lower_lip_left', 'lower_lip_right',
    'lower_lip_bottom_left', 'lower_lip_bottom_right')


class Mesh(NamedTuple):
    """All parts as one triangle mesh: V vertices, T triangles, L landmarks."""
    shapes: np.ndarray       # (1 + 4, V, 6) neutral position and normal, then what each of EXPRESSIONS adds
    rigid: np.ndarray        # (V,) 1 moves with the head, 0 with the body
    surface: np.ndarray      # (V, 5) u, v in the part's texture; x, y of the neutral face; slit, 0 upper .. 1 lower lip
    triangles: np.ndarray    # (T, 3) vertex numbers, anticlockwise seen from outside
    part: np.ndarray         # (T,) index into PARTS
    kind: np.ndarray         # (T,) SKIN, EYE or MOUTH
    landmark_vertices: np.ndarray    # (L, 4) vertices around each landmark
    landmark_weights: np.ndarray     # (L, 4)


class Grid(NamedTuple):
    """One part before it joins the mesh; R rows, C columns."""
    part: str
    shapes: np.ndarray                                       # (5, R, C, 3)
    rigid: np.ndarray                                        # (R, C)
    surface: np.ndarray                                      # (R, C, 5)
    two_sided: bool


# ---- the parts

def _expressions(a: Appearance, point, slit):
    """Displacements (4, ..., 3) of the face for a full jaw, smile, brow and pucker.

    Blend shapes: Lewis et al., Eurographics 2014, https://doi.org/10.2312/egst.20141042
    """
    x, y = point[..., 0], point[..., 1]
    side = np.abs(x)
    front = smoothstep(-0.1, 0.3, point[..., 2])
    below = np.maximum(a.mouth_y - y, 0)
    profile = lip_profile(a, x)

    # The chin swings down and back; the lower lip follows in the middle, the corners stay.
    chin = smoothstep(0.0, 0.30, below)
    lower = profile * (1 - chin) + np.exp(-(x / 0.52) ** 4) * chin
    upper = -0.13 * profile * np.exp(-((y - a.mouth_y) / 0.09) ** 2)
    drop = (upper * (1 - slit) + lower * slit) * front
    depth = 0.6 * slit * (1 - slit) * profile * front
    jaw = np.stack([-0.10 * x * np.exp(-((y - a.mouth_y) / 0.16) ** 2 - (x / 0.4) ** 4) * front, -JAW_DROP * drop,
                    -0.06 * np.maximum(drop, 0) - depth], -1)

    # A smile bends the mouth upwards, stretches it and lifts the cheeks.
    reach = x / a.mouth_width
    mouth = np.exp(-((y - a.mouth_y) / 0.14) ** 2 - np.maximum(np.abs(reach) - 0.8, 0) ** 2 / 0.5) * front
    cheek = bump(side, y, 0.36, -0.30, 0.16, 0.14) * front
    bend = np.minimum(reach ** 2, 1.2)
    smile = np.stack([0.06 * np.clip(reach, -1.1, 1.1) * mouth, (0.065 * bend - 0.012) * mouth + 0.03 * cheek,
                      0.03 * cheek - 0.03 * bend * mouth], -1)

    raised = bump(side, y, 0.25, a.brow_y, 0.24, 0.10) * front
    brow = np.stack([np.zeros_like(x), 0.075 * raised, 0.01 * raised], -1)

    # The corners of the mouth come together, and the lips forward.
    around = np.exp(-((y - a.mouth_y) / 0.13) ** 2 - (x / 0.38) ** 4) * front
    pucker = np.stack([-0.45 * x * around, np.zeros_like(x), 0.05 * around * profile], -1)
    return np.stack([jaw, smile, brow, pucker])


def _head(a: Appearance, num_rows, num_columns) -> Grid:
    above = round(num_rows * SLIT[0])
    v = np.concatenate([np.linspace(0, SLIT[0], above), np.linspace(*SLIT, 5)[1:-1],
                        np.linspace(SLIT[1], 1, num_rows - above)])
    u = np.linspace(0, 1, num_columns)
    v, u = np.meshgrid(v.astype(np.float32), u.astype(np.float32), indexing='ij')
    y, angle, slit = head_height(v, a.mouth_y), head_angle(u), slit_position(v)
    point = head_surface(a, y, angle)
    # The eye and mouth painters work on the bare face, in front.
    x = np.where(np.cos(angle) > 0.15, head_loft(a, y, angle)[0], 9)
    shapes = np.concatenate([point[None], _expressions(a, np.stack([point[..., 0], y, point[..., 2]], -1), slit)])
    return Grid('head', shapes, np.ones_like(y), np.stack([u, v, x, y, slit], -1), False)


def _coordinates(num_rows, num_columns):
    """Surface coordinates v and u (R, C) of an even grid."""
    rows, columns = (np.linspace(0, 1, count, dtype=np.float32) for count in (num_rows, num_columns))
    return np.meshgrid(rows, columns, indexing='ij')


def _body(num_rows, num_columns) -> Grid:
    v, u = _coordinates(num_rows, num_columns)
    point = body_loft(v, u)
    rigid = smoothstep(-1.35, -0.55, point[..., 1])
    return _rigid_grid('body', point, u, v, rigid, two_sided=False)


def _ear(a: Appearance, side, num_rows, num_columns) -> Grid:
    """A shell with a rim, hinged at the side of the head and open to the front."""
    v, u = _coordinates(num_rows, num_columns)
    around = 2 * np.pi * u
    outwards = np.array([0.62 * side, 0, -0.78], np.float32)
    upwards = np.array([0.05 * side, 1, -0.12], np.float32)
    facing = np.array([0.72 * side, 0.05, 0.60], np.float32)
    lobe = 1 - 0.28 * smoothstep(0.2, -1, np.sin(around))
    relief = (0.035 * np.exp(-((v - 0.88) / 0.12) ** 2) - 0.045 * np.exp(-((v - 0.35) / 0.3) ** 2)
              - 0.03 * smoothstep(0.9, 1.0, v))
    width, height = 0.105 * v * np.cos(around) * lobe, 0.215 * v * np.sin(around)
    root_x = head_loft(a, np.float32(-0.05), np.float32(np.pi / 2))[0]
    root = np.array([side * (root_x - 0.02), -0.06, -0.04], np.float32)
    size = a.ear_size
    point = root + size * ((width + 0.075)[..., None] * outwards + height[..., None] * upwards
                           + relief[..., None] * facing)
    return _rigid_grid('ear', point, u, v, np.ones_like(v), two_sided=True)


def _curtain(a: Appearance, num_rows, num_columns) -> Grid:
    """Long hair: a sheet around the sides and the back, open at the face."""
    v, u = _coordinates(num_rows, num_columns)
    end = -0.75 if a.hair_style == 'bob' else -1.75
    opening = 1.02 + 0.30 * smoothstep(0.0, 0.4, v)
    angle = opening + u * (2 * np.pi - 2 * opening)
    y = 0.62 + (end - 0.62) * v
    y = y + 0.05 * np.sin(9 * angle) * v ** 3
    inward = smoothstep(0.75, 1.0, v) * (0.16 if a.hair_style == 'bob' else -0.05)
    swell = (curve(y, (0.62, 0.60), (0.4, 0.735), (0.2, 0.775), (-0.3, 0.80), (-0.8, 0.80), (-1.8, 0.86))
             + 0.06 * (a.hair_volume - 1) - inward)
    wave = (0.03 * a.hair_wave * np.sin(7 * y + 2 * np.sin(2 * angle)) * smoothstep(0.2, -0.6, y)
            + 0.010 * np.sin(31 * angle))
    point = np.stack([(swell * a.face_width + wave) * signed_power(np.sin(angle), 0.9), y,
                      -0.10 + (swell * 1.12 + wave) * signed_power(np.cos(angle), 0.9)], -1)
    rigid = 1 - 0.7 * smoothstep(-0.8, -1.7, point[..., 1])
    return _rigid_grid('curtain', point, u, v, rigid, two_sided=True)


def _glasses(a: Appearance, num_columns) -> list[Grid]:
    """Two rims, a bridge and two temples, each a thin tube along a line."""
    t = np.linspace(0, 1, num_columns, dtype=np.float32)
    around, zero = 2 * np.pi * t, np.zeros_like(t)
    x, z = head_loft(a, np.float32(a.eye_y), np.float32(0.0))
    plane = float(z) + 0.10
    lines = []
    for side in (-1, 1):
        rim_x = side * (a.eye_x + 0.015) + 0.205 * signed_power(np.cos(around), 0.75)
        rim_y = a.eye_y - 0.02 + 0.15 * signed_power(np.sin(around), 0.8)
        lines.append(np.stack([rim_x, rim_y, plane - 0.35 * rim_x ** 2], -1))
        hinge = a.eye_x + 0.22
        temple = side * (hinge + (0.69 * a.face_width - hinge) * np.minimum(1.4 * t, 1))
        lines.append(np.stack([temple, zero + a.eye_y + 0.05, plane - 0.35 * hinge ** 2 - 0.68 * t], -1))
    bridge = (a.eye_x - 0.18) * (2 * t - 1)
    lines.append(np.stack([bridge, a.eye_y + 0.01 + 0.03 * (1 - (2 * t - 1) ** 2), plane + zero], -1))
    return [_tube(line, a.glasses) for line in lines]


def _tube(line, radius) -> Grid:
    along = np.gradient(line, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-6
    side = np.cross(along, [0.05, 0.03, 1.0])
    side /= np.linalg.norm(side, axis=1, keepdims=True) + 1e-6
    up = np.cross(side, along)
    turn = np.linspace(0, 2 * np.pi, 6, dtype=np.float32)[:, None, None]
    point = line + radius * (np.cos(turn) * side + np.sin(turn) * up)
    v, u = np.meshgrid(np.linspace(0, 1, 6), np.linspace(0, 1, len(line)), indexing='ij')
    return _rigid_grid('glasses', point.astype(np.float32), u, v, np.ones_like(u), two_sided=True)


def _rigid_grid(part, point, u, v, rigid, two_sided) -> Grid:
    shapes = np.concatenate([point[None], np.zeros((len(EXPRESSIONS), *point.shape), np.float32)])
    nowhere = np.full_like(u, 9)
    return Grid(part, shapes, rigid, np.stack([u, v, nowhere, nowhere, np.zeros_like(u)], -1), two_sided)


# ---- from grids to one mesh

@drawn_once
def build_mesh(a: Appearance, size: int) -> Mesh:
    """The mesh for images of `size` pixels; finer for larger ones."""
    rows = int(np.clip(24 + 0.26 * size, 38, 120))
    columns = int(np.clip(28 + 0.26 * size, 44, 128))
    small = max(rows // 5, 10)
    grids = [_head(a, rows, columns), _body(rows // 2, columns // 2)]
    grids += [_ear(a, side, small, small + 8) for side in (-1, 1)]
    if a.hair_style in ('bob', 'long'):
        grids.append(_curtain(a, rows // 2, columns // 2))
    if a.glasses:
        grids += _glasses(a, max(columns // 4, 16))
    return _join(a, grids)


def _join(a: Appearance, grids) -> Mesh:
    parts, first = [], 0
    for grid in grids:
        normals = np.stack([_normals(grid.shapes[0] + (extra if i else 0)) for i, extra in enumerate(grid.shapes)])
        normals[1:] -= normals[0]
        surface = grid.surface.reshape(-1, 5)
        for flip in (False, True)[:1 + grid.two_sided]:
            shapes = np.concatenate([grid.shapes, -normals if flip else normals], -1)
            corners = _grid_triangles(*grid.rigid.shape, flip)
            parts.append((shapes.reshape(len(grid.shapes), -1, 6), grid.rigid.ravel(), surface, corners + first,
                          np.full(len(corners), PARTS.index(grid.part)), _kind(a, surface[corners])))
            first += grid.rigid.size
    shapes, rigid, surface, triangles, part, kind = zip(*parts)
    vertices, weights = zip(*(_locate(grids[0], u, v) for u, v in landmark_positions(a)))
    to = lambda arrays, dtype, axis=0: np.ascontiguousarray(np.concatenate(arrays, axis).astype(dtype))
    return Mesh(to(shapes, np.float32, 1), to(rigid, np.float32), to(surface, np.float32), to(triangles, np.intp),
                to(part, np.uint8), to(kind, np.uint8), np.array(vertices), np.array(weights, np.float32))


def _normals(point):
    """Unit normals (R, C, 3) of a grid whose rows run down and whose columns run to the right, seen from outside."""
    normal = np.cross(np.gradient(point, axis=0), np.gradient(point, axis=1))
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    normal /= length + 1e-9
    # Rows folded onto each other have no normal of their own; where the fold is shut, its two edges are one surface.
    folded = length[..., 0] < 1e-6
    rows = np.flatnonzero(folded.any(1))
    inner = rows[(rows > 1) & (rows < len(normal) - 2)]
    if len(inner):
        fold, shut = slice(inner[0] - 1, inner[-1] + 2), folded[inner].any(0)
        middle = normal[fold][0, shut] + normal[fold][-1, shut]
        normal[fold, shut] = middle / np.linalg.norm(middle, axis=-1, keepdims=True)
    for pole, beside in ((0, 1), (-1, -2)):
        normal[pole, folded[pole]] = normal[beside, folded[pole]]
    return normal


def _grid_triangles(rows, columns, flip):
    number = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = number[:-1, :-1].ravel(), number[:-1, 1:].ravel(), number[1:, :-1].ravel(), number[1:, 1:].ravel()
    triangles = np.concatenate([np.stack([a, c, b], 1), np.stack([b, c, d], 1)])
    return triangles[:, ::-1] if flip else triangles


def _kind(a: Appearance, surface):
    """Class of each triangle: SKIN, EYE or MOUTH; from the surface coordinates of its corners (T, 3, 5)."""
    x, y, slit = surface[..., 2], surface[..., 3], surface[..., 4]
    eye = (np.abs(np.abs(x) - a.eye_x) < 1.7 * a.eye_width) & (np.abs(y - a.eye_y) < 1.3 * a.eye_width)
    mouth = (np.ptp(slit, axis=1) > 0) & (np.abs(x).min(1) < a.mouth_width)
    return np.where(mouth, MOUTH, np.where(eye.any(1), EYE, SKIN))


# ---- landmarks

def landmark_positions(a: Appearance):
    """Surface coordinates (u, v) of LANDMARK_NAMES; pupils at rest, lids at the middle of the eye."""
    tip, out, inn = nose_tip(a), a.eye_x + a.eye_width, a.eye_x - a.eye_width
    tilt = a.eye_tilt * a.eye_width
    left = {'eye_outer': (out, a.eye_y + tilt), 'eye_inner': (inn, a.eye_y - tilt), 'pupil': (a.eye_x, a.eye_y),
            'lid_upper': (a.eye_x, a.eye_y), 'lid_lower': (a.eye_x, a.eye_y),
            'brow_outer': (0.43, a.brow_y), 'brow_middle': (0.28, a.brow_y + a.brow_arch),
            'brow_inner': (0.12, a.brow_y),
            'cheek': (0.40, -0.22), 'jaw': (0.40, -0.72), 'nose': (0.11 * a.nose_width, tip - 0.045),
            'mouth': (a.mouth_width, a.mouth_y), 'upper_lip': (0.5 * a.mouth_width, a.mouth_y),
            'lower_lip': (0.5 * a.mouth_width, a.mouth_y),
            'lower_lip_bottom': (0.35 * a.mouth_width, a.mouth_y - 0.9 * a.lip_lower)}
    edge = {'temple': (0.21, 0.05), 'ear': (0.19, -0.25), 'jaw_corner': (0.20, -0.65)}      # column and height
    middle = {'nose_bridge': (a.eye_y, 0), 'nose_tip': (tip, 0), 'nose_base': (tip - 0.12, 0), 'chin': (-0.93, 0),
              'forehead': (0.48, 0),
              'upper_lip_top': (a.mouth_y + a.lip_upper, 0), 'upper_lip': (a.mouth_y, 0), 'lower_lip': (a.mouth_y, 1),
              'lower_lip_bottom': (a.mouth_y - a.lip_lower, 1)}
    for name in LANDMARK_NAMES:
        key = name.replace('left_', '').replace('right_', '').replace('_left', '').replace('_right', '')
        if name in middle:
            y, slit = middle[name]
            yield 0.5, _row_of(a, y, slit)
        elif key in edge:
            u, y = edge[key]
            yield u if 'left' in name else 1 - u, _row_of(a, y, 0)
        else:
            x, y = left[key]
            v = _row_of(a, y, 1 if 'lower_lip' in key else 0)
            yield _column_of(a, -x if 'left' in name else x, head_height(v, a.mouth_y)), v


def _row_of(a: Appearance, y, slit):
    v, heights = head_rows(a.mouth_y)
    rows = slice(None, len(v) // 2) if slit == 0 and y >= a.mouth_y else slice(len(v) // 2, None)
    return float(np.interp(-y, -heights[rows], v[rows]))


def _column_of(a: Appearance, x, y):
    u = np.linspace(0.2, 0.8, 1201)
    return float(np.interp(x, head_loft(a, np.full_like(u, y), head_angle(u))[0], u))


def _locate(head: Grid, u, v):
    """Four vertices of the head grid around (u, v), and their bilinear weights."""
    rows, columns = head.surface[:, 0, 1], head.surface[0, :, 0]
    i = int(np.clip(np.searchsorted(rows, v, 'right') - 1, 0, len(rows) - 2))
    j = int(np.clip(np.searchsorted(columns, u, 'right') - 1, 0, len(columns) - 2))
    s, t = (v - rows[i]) / (rows[i + 1] - rows[i]), (u - columns[j]) / (columns[j + 1] - columns[j])
    first = i * len(columns) + j
    return ([first, first + 1, first + len(columns), first + len(columns) + 1],
            [(1 - s) * (1 - t), (1 - s) * t, s * (1 - t), s * t])
