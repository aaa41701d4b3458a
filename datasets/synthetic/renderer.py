"""The renderer of synthetic heads: pose, rasterise, shade.

Pixel positions count from the centre of the top left pixel: (x, y) in [0, size - 1]. The projection is the
same at every size, so that a small picture is a large one seen from further away.
"""

from typing import NamedTuple

import numpy as np

from datasets.synthetic.identity import HeadState, Identity, Light
from datasets.synthetic.mesh import BODY_PIVOT, EYE, LANDMARK_NAMES, MOUTH, PIVOT, Mesh, build_mesh
from datasets.synthetic.paint import Atlas, atlas, eye_lids, paint_backdrop, paint_eyes, paint_mouth, pupil_position

ZOOM, RAISE, DISTANCE = 0.80, 0.06, 7.0    # image units per head unit; upward offset; camera in head units
SUPER = 2                                                    # raster samples per pixel and axis
FAR = np.float32(-1e9)


class Rendered(NamedTuple):
    """A rendered frame with its ground truth."""
    image: np.ndarray        # (H, W, 3) uint8 RGB
    landmarks: np.ndarray    # (L, 2) float32 pixel positions (x, y) of LANDMARK_NAMES, 0 at the first pixel's centre
    cover: np.ndarray        # (H, W) uint8 alpha mask, 255 where the person fills the pixel


class Posed(NamedTuple):
    """A mesh in one state; V vertices."""
    pixel: np.ndarray     # (V, 2) position at `size`
    depth: np.ndarray     # (V,) larger is nearer
    normal: np.ndarray    # (V, 3) not of unit length


# ---- posing

def rotation(yaw, pitch, roll):
    """(3, 3) matrix of angles in degrees, with the signs of HeadState: first yaw, then pitch, then roll."""
    yaw, pitch, roll = np.deg2rad([yaw, -pitch, -roll])
    about_y = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    about_z = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    return (about_z @ about_x @ about_y).astype(np.float32)


def pose(mesh: Mesh, state: HeadState, size: int) -> Posed:
    """Deform, turn and project every vertex."""
    weights = np.array([1, state.jaw, state.smile, state.brow, state.pucker], np.float32)
    shape = np.tensordot(weights, mesh.shapes, 1)                                         # (V, 6)
    head = rotation(state.yaw, state.pitch, state.roll)
    # The shoulders take little part in the movements of the head.
    body = rotation(0.15 * state.yaw, 0.05 * state.pitch, 0.12 * state.roll)
    share = mesh.rigid[:, None]
    of_head = (shape[:, :3] - PIVOT) @ head.T + PIVOT
    of_body = (shape[:, :3] - BODY_PIVOT) @ body.T + BODY_PIVOT
    position = of_body + share * (of_head - of_body)
    normal = shape[:, 3:] @ body.T
    normal += share * (shape[:, 3:] @ head.T - normal)
    return Posed(project(position, state, size), position[:, 2], normal)


def project(position, state: HeadState, size: int):
    """Pixel positions (N, 2) of points (N, 3) in head units."""
    zoom = ZOOM * state.scale * DISTANCE / (DISTANCE - position[:, 2:])
    image = position[:, :2] * (zoom * np.float32([1, -1])) + np.float32([state.x, state.y - RAISE])
    return ((image + 1) * (size / 2) - 0.5).astype(np.float32)


# ---- rasterising

def rasterise(pixel, depth, triangles, size):
    """Nearest triangle at every sample of a size x size grid: scan lines and a depth buffer (Catmull, 1974).

    pixel:   (V, 2) vertex positions in samples; depth: (V,); triangles: (T, 3)
    returns: (size * size,) triangle number, -1 where there is none, and (size * size,) depth
    """
    x, y = (np.ascontiguousarray(pixel[:, axis]).take(triangles.T) for axis in (0, 1))      # (3, T) each
    # Rows run downwards, so a triangle that faces the viewer has negative area; many small ones fall between the rows.
    area = (x[1] - x[0]) * (y[2] - y[0]) - (y[1] - y[0]) * (x[2] - x[0])
    top = np.ceil(np.maximum(np.minimum(np.minimum(y[0], y[1]), y[2]), 0))
    rows = np.floor(np.minimum(np.maximum(np.maximum(y[0], y[1]), y[2]), size - 1)) - top + 1
    shown = np.flatnonzero((area < -1e-6) & (rows > 0))
    x, y, area, top, rows = (values.take(shown, -1) for values in (x, y, area, top, rows))
    z = depth.take(triangles.take(shown, 0).T)

    # One span for every row of every triangle, between the edges on its left and those on its right.
    of, row = _expand(rows)
    row += top.take(of)
    low, high = np.zeros(len(of), np.float32), np.full(len(of), size - 1, np.float32)
    z_x, z_y = 0, 0
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        rise, run = y[k] - y[j], x[k] - x[j]
        z_x, z_y = z_x - z[i] * rise / area, z_y + z[i] * run / area
        level = np.abs(rise) < 1e-6                                                         # a level edge bounds no row
        run = run / np.where(level, 1, rise)
        cross = x[j].take(of) + (row - y[j].take(of)) * run.take(of)
        left, right = ((rise > 0) & ~level).take(of), ((rise < 0) & ~level).take(of)
        low = np.where(left, np.maximum(low, cross), low)
        high = np.where(right, np.minimum(high, cross), high)
    low = np.ceil(low - 1e-4)
    span = np.flatnonzero(high + 1e-4 >= low)
    of, row, low, high = (values.take(span) for values in (of, row, low, high))

    # Every sample of every span; the nearest one wins.
    start = z[0].take(of) + z_x.take(of) * (low - x[0].take(of)) + z_y.take(of) * (row - y[0].take(of))
    first, step = row.astype(np.intp) * size + low.astype(np.intp), z_x.take(of)
    span, along = _expand(np.floor(high + 1e-4) - low + 1)
    sample = first.take(span) + along.astype(np.intp)
    near = start.take(span) + step.take(span) * along
    nearest = np.full(size * size, FAR, np.float32)
    np.maximum.at(nearest, sample, near)
    winner = np.flatnonzero(near == nearest.take(sample))
    number = np.full(size * size, -1)
    number[sample.take(winner)] = shown.take(of).take(span.take(winner))
    return number, nearest


def _expand(count):
    """For counts (N,): each index repeated count times, and its running number 0 .. count - 1 as float32."""
    count = count.astype(np.intp)
    index = np.repeat(np.arange(len(count)), count)
    running = np.arange(len(index)) - (np.cumsum(count) - count).take(index)
    return index, running.astype(np.float32)


def barycentric(pixel, corners, position):
    """Weights (N, 3) of positions (N, 2) in triangles with vertex numbers (N, 3)."""
    p0, p1, p2 = (pixel.take(corners[:, i], 0) for i in range(3))
    edge1, edge2, offset = p1 - p0, p2 - p0, position - p0
    area = edge1[:, 0] * edge2[:, 1] - edge1[:, 1] * edge2[:, 0]
    first = (offset[:, 0] * edge2[:, 1] - offset[:, 1] * edge2[:, 0]) / area
    second = (edge1[:, 0] * offset[:, 1] - edge1[:, 1] * offset[:, 0]) / area
    return np.stack([1 - first - second, first, second], 1)


def interpolate(values, corners, weights):
    """Vertex values (V, C) at barycentric weights (N, 3)."""
    return sum(values.take(corners[:, i], 0) * weights[:, i:i + 1] for i in range(3))


# ---- shading

def shade(identity: Identity, state: HeadState, mesh: Mesh, posed: Posed, textures: Atlas, number, position, size):
    """Display colours (N, 3) in [0, 1] of triangles `number` (N,) at pixel positions (N, 2)."""
    corners = mesh.triangles.take(number, 0)
    weights = barycentric(posed.pixel, corners, position)
    values = interpolate(np.concatenate([posed.normal, mesh.surface], 1), corners, weights)       # (N, 8)
    normal = values[:, :3] / (np.sqrt((values[:, :3] ** 2).sum(1, keepdims=True)) + 1e-6)
    paint = sample_texture(textures, values[:, 3], values[:, 4], mesh.part.take(number))

    # Eyes and mouth are painted anew as they move.
    kind, a, blur = mesh.kind.take(number), identity.appearance, 2 / (ZOOM * state.scale * size)
    eye, mouth = np.flatnonzero(kind == EYE), np.flatnonzero(kind == MOUTH)
    if len(eye):
        paint[eye] = paint_eyes(a, state, paint[eye], values[eye, 5], values[eye, 6], blur)
    if len(mouth):
        paint[mouth] = paint_mouth(a, state, values[mouth, 5], values[mouth, 7], blur)
    # The teeth face forwards; the fold they are painted on does not.
    normal[mouth] = rotation(state.yaw, state.pitch, state.roll)[:, 2]
    return lit(identity.light, normal, paint)


def sample_texture(textures: Atlas, u, v, part):
    """Colour and gloss (N, 4) in [0, 1], bilinear."""
    column, row = textures.locate(np.clip(u, 0, 1), np.clip(v, 0, 1), part)
    height, width = textures.texels.shape[:2]
    left, top = np.minimum(column.astype(np.int32), width - 2), np.minimum(row.astype(np.int32), height - 2)
    s, t = ((column - left) / 255)[:, None], (row - top)[:, None]
    texels = textures.texels.reshape(-1, 4)
    first = top * width + left
    at = lambda offset: texels.take(first + offset, 0).astype(np.float32)
    upper = at(0) * (np.float32(1 / 255) - s) + at(1) * s
    lower = at(width) * (np.float32(1 / 255) - s) + at(width + 1) * s
    return upper + t * (lower - upper)


def lit(light: Light, normal, paint):
    """Display colours (N, 3) of painted surfaces (N, 4) with unit normals (N, 3).

    Diffuse light that wraps around (GPU Gems, 2004, Sec. 16.2, https://developer.nvidia.com/gpugems/gpugems) and a
    highlight along the half vector (Blinn, SIGGRAPH 1977).
    """
    azimuth, elevation = np.deg2rad([light.azimuth, light.elevation])
    key = np.array([np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)],
                   np.float32)
    tint = np.float32([1 + 0.07 * light.warmth, 1.0, 1 - 0.09 * light.warmth])
    half = key + np.float32([0, 0, 1])
    half /= np.linalg.norm(half)

    # Light wraps around the terminator, more so in red: skin scatters it.
    facing = (normal @ key)[:, None]
    wrap = np.float32([0.30, 0.18, 0.14])
    diffuse = np.maximum((facing + wrap) / (1 + wrap), 0)
    sky = (0.80 + 0.20 * normal[:, 1:2]) * light.ambient
    fill = 0.18 * np.maximum(-0.8 * np.sign(key[0]) * normal[:, :1] + 0.5 * normal[:, 2:], 0)
    gleam = np.square(np.square(np.square(np.square(np.maximum(normal @ half, 0)))))
    # Albedo is a display value: square it to get light, and take the root at the end; sRGB's curve, nearly
    # (https://www.w3.org/Graphics/Color/sRGB).
    shine = (0.22 * light.key) * (paint[:, 3] * gleam)[:, None]
    radiance = np.square(paint[:, :3]) * (1.35 * light.key * diffuse * tint + sky + fill) + shine
    return np.sqrt(np.minimum(radiance, 1))


# ---- pictures

def render(identity: Identity, state: HeadState, size: int, backdrop=None) -> Rendered:
    """The image of a person in a state, size x size pixels; antialiased at edges only (Whitted, SIGGRAPH 1979).

    backdrop: (size, size, 3) float32 in [0, 1], shown behind the person instead of the identity's own
    """
    mesh, textures = build_mesh(identity.appearance, size), atlas(identity.appearance, size)
    posed = pose(mesh, state, size)
    fine = posed.pixel * SUPER + (SUPER - 1) / 2    # the same positions in samples
    number, depth = rasterise(fine, posed.depth, mesh.triangles, SUPER * size)
    number, depth = number.reshape(SUPER * size, -1), depth.reshape(SUPER * size, -1)

    # Away from edges one colour will do for a pixel; at an edge every sample gets its own.
    edges = _edges(mesh, number, depth)
    rows, columns = np.nonzero(~edges & (number[::2, ::2] >= 0))
    fine_rows, fine_columns = _samples_of(edges)
    hit = number[fine_rows, fine_columns] >= 0
    fine_rows, fine_columns = fine_rows[hit], fine_columns[hit]
    which = np.concatenate([number[2 * rows, 2 * columns], number[fine_rows, fine_columns]])
    place = np.stack([np.concatenate([columns, fine_columns / 2 - 0.25]),
                      np.concatenate([rows, fine_rows / 2 - 0.25])], 1)
    colours = shade(identity, state, mesh, posed, textures, which, place.astype(np.float32), size)

    if backdrop is None:
        backdrop = paint_backdrop(identity.backdrop, size)
    # The fourth channel is what the person covers.
    picture = np.concatenate([backdrop, np.zeros((size, size, 1), np.float32)], -1)
    colours = np.concatenate([colours, np.ones((len(colours), 1), np.float32)], -1)
    picture[rows, columns] = colours[:len(rows)]
    _blend_edges(picture, edges, fine_rows, fine_columns, colours[len(rows):])
    picture = (picture * 255 + 0.5).astype(np.uint8)
    return Rendered(np.ascontiguousarray(picture[..., :3]), _landmarks(identity, state, mesh, posed, size),
                    picture[..., 3])


def _edges(mesh: Mesh, number, depth):
    """Mask (size, size) of pixels that need all their samples: at a border of two surfaces, or in the open mouth."""
    part = np.append(mesh.part, np.uint8(255)).take(number)
    mixed = np.append(mesh.kind == MOUTH, False).take(number[::2, ::2])
    first = part[::2, ::2], depth[::2, ::2]
    for i, j in ((0, 1), (1, 0), (1, 1)):
        mixed |= (part[i::2, j::2] != first[0]) | (np.abs(depth[i::2, j::2] - first[1]) > 0.08)
    return _dilated(mixed)


TENT = np.float32([1, 3, 3, 1]) / 8                          # over the samples of a pixel and of its neighbours


def _blend_edges(picture, edges, fine_rows, fine_columns, colours):
    """Average samples around edge pixels into picture (size, size, C), in place; colours (N, C) of those that hit."""
    size = SUPER * len(picture)
    samples = np.empty((size * size, picture.shape[-1]), np.float32)    # filled around the edges only
    rows, columns = _samples_of(_dilated(edges))
    samples[rows * size + columns] = picture[rows // 2, columns // 2]
    samples[fine_rows * size + fine_columns] = colours

    rows, columns = np.nonzero(edges)
    blend = np.zeros((len(rows), picture.shape[-1]), np.float32)
    above, beside = (np.clip(2 * pixels + np.arange(-1, 3)[:, None], 0, size - 1) for pixels in (rows, columns))
    for down, row in zip(TENT, above * size):
        for across, column in zip(TENT, beside):
            blend += (down * across) * samples.take(row + column, 0)
    picture[rows, columns] = blend


def _samples_of(pixels):
    """Rows and columns of the four samples of each marked pixel (size, size)."""
    rows, columns = np.nonzero(pixels)
    return (2 * rows + np.array([0, 0, 1, 1])[:, None]).ravel(), (2 * columns + np.array([0, 1, 0, 1])[:, None]).ravel()


def _dilated(mask):
    """A mask (H, W) grown by one pixel in all eight directions."""
    wide = mask.copy()
    wide[1:] |= mask[:-1]
    wide[:-1] |= mask[1:]
    tall = wide.copy()
    wide[:, 1:] |= tall[:, :-1]
    wide[:, :-1] |= tall[:, 1:]
    return wide


# ---- landmarks

def _landmarks(identity, state, mesh: Mesh, posed: Posed, size):
    """Positions (L, 2) of LANDMARK_NAMES in pixels."""
    position = (posed.pixel[mesh.landmark_vertices] * mesh.landmark_weights[..., None]).sum(1)
    return (position + _eye_shift(identity, state, size)).astype(np.float32)


def _eye_shift(identity, state, size):
    """How far from the middle of its eye each landmark (L, 2) is, in pixels: pupils and lids; 0 for all others."""
    a = identity.appearance
    # From movements on an eye, in half widths, to pixels.
    zoom = ZOOM * state.scale * size / 2 * a.eye_width
    to_pixels = zoom * rotation(state.yaw, state.pitch, state.roll)[:2, :2] * np.float32([[1], [-1]])
    upper, lower = (float(height) for height in eye_lids(a, state, np.float32(0)))
    shift = np.zeros((len(LANDMARK_NAMES), 2), np.float32)
    for name, place in (('pupil', pupil_position(state)), ('lid_upper', (0, upper)), ('lid_lower', (0, lower))):
        for side in ('left', 'right'):
            shift[LANDMARK_NAMES.index(f'{side}_{name}')] = to_pixels @ np.float32(place)
    return shift
