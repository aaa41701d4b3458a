"""Choice of the frames of a comparison by a named rule, and of the region to enlarge.

Modules that are slow to import wait for a call: the command line checks its words here.
"""

from itertools import islice

from support.errors import UserError

RULES = ('largest_pose', 'worst', 'best')
BY_SCORE = RULES[1:]                 # need the truth, and every frame
LEAST = 4                            # side of a region, pixels


def parse_frames(words):
    """One of RULES, or a tuple of frame numbers. UserError."""
    if len(words) == 1 and words[0] in RULES:
        return words[0]
    if not words or not all(word.isdecimal() for word in words):
        raise UserError(f'--frames {" ".join(words)}: expected {", ".join(RULES)}, or frame numbers from 0')
    return tuple(dict.fromkeys(map(int, words)))


def rule_text(rule, methods, rendered):
    """How frames were chosen, as a sentence.

    rule:              as `parse_frames` returns it
    methods, rendered: names of all methods, and of those rendered here
    """
    if rule in BY_SCORE:
        return f'Shown: the frame with the {"lowest" if rule == "worst" else "highest"} PSNR of {methods[0]}.'
    if rule == 'largest_pose':
        what = ('largest keypoint displacement from frame 0 (keypoints of {})'.format(rendered[0]) if rendered else
                'largest pixel difference from frame 0')
        return f'Shown: the driving frame with the {what}.'
    return f'Frame{"s" * (len(rule) > 1)} {", ".join(map(str, rule))} of each driving video, counted from 0.'


def select(frames, rule, indices):
    """The ClipFrames to show: those at `indices`, in that order, or the first method's 'worst' or 'best' by PSNR."""
    if rule in BY_SCORE:
        from metrics.image import psnr
        from visualizer import to_unit_range
        choose = min if rule == 'worst' else max
        return [choose(frames, key=lambda frame: float(psnr(*to_unit_range([frame.made[0], frame.driving])[:, None])))]
    kept = {frame.index: frame for frame in frames if frame.index in indices}
    return [kept[index] for index in indices]


def largest_pose(driving, renderer=None):
    """Index of the frame of a clip that differs most from its first; the earliest of several.

    renderer: measures the mean distance of its model's keypoints; without one, the mean absolute difference of pixels
    """
    from visualizer import to_unit_range
    frames, distances, first = driving.frames(), [], None
    while batch := list(islice(frames, renderer.batch_size if renderer else 1)):
        # Pixels are points of one coordinate.
        points = (renderer.keypoints(batch).value.float() if renderer else
                  to_unit_range(batch).flatten(1)[..., None])                                # (B, K, 2)
        first = points[:1] if first is None else first
        distances += (points - first).norm(dim=-1).mean(1).tolist()
    return distances.index(max(distances))


def parse_zoom(words):
    """A region (x, y, w, h) to enlarge, or None. UserError."""
    if len(words) not in (0, 4) or not all(word.isdecimal() for word in words):
        raise UserError(f'--zoom {" ".join(words)}: expected x y w h in pixels')
    return tuple(map(int, words)) or None


def check_zoom(zoom, shape, name):
    """UserError for a region outside of frames of this shape (H, W, 3) of the clip `name`."""
    x, y, w, h = zoom
    if min(w, h) < LEAST or x + w > shape[1] or y + h > shape[0]:
        raise UserError(f'--zoom {x} {y} {w} {h}: must lie within {shape[1]}x{shape[0]} pixels ({name}), '
                        f'at least {LEAST} wide and high')
