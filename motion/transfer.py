"""Motion transfer at test time: absolute or relative keypoints, best frame, smoothing.

FOMM, Sec. 3.4; the smoothing is the One Euro filter.
"""

import copy
import math

import numpy as np
import torch
import torch.nn.functional as F

from modules.talking_head import Keypoints
from modules.warp import invert_2x2

# Lids and lips may meet but not cross: upper landmark, lower landmark, those that give way, 1 for down or -1 for up.
MEETING = (('left_lid_upper', 'left_lid_lower', ('left_lid_upper',), -1),
           ('right_lid_upper', 'right_lid_lower', ('right_lid_upper',), -1),
           ('upper_lip', 'lower_lip', ('lower_lip', 'lower_lip_bottom', 'chin'), 1),
           ('upper_lip_left', 'lower_lip_left', ('lower_lip_left', 'lower_lip_bottom_left'), 1),
           ('upper_lip_right', 'lower_lip_right', ('lower_lip_right', 'lower_lip_bottom_right'), 1))
FACE = 'nose_bridge', 'chin'       # from the one to the other is down
LEAST_AREA = 1e-8      # hulls below this are points or lines: their size says nothing about scale
OTHER_POSE = 0.1       # root mean square distance in sizes of the face; people who look ahead differ by 0.03 to 0.09
SPEED_GAIN = 15.0      # Hz of cutoff per unit of speed (half a picture per second): lips lag by half a frame at 25 fps
SPEED_CUTOFF = 1.0     # Hz, of the speed's own average, as the One Euro filter has it


def hull_area(points):
    """Area of the convex hull of points (P, 2), in squared units of the points.

    0 for points on a line, NaN where a coordinate is not finite.
    """
    from scipy.spatial import ConvexHull, QhullError      # slow to import
    points = np.asarray(points, dtype=np.float64)
    if not np.isfinite(points).all():
        return math.nan
    try:
        return ConvexHull(points).volume      # in two dimensions; its `area` is the circumference
    except QhullError:                        # no three points off one line
        return 0.0


def movement_scale(source, initial):
    """How much larger the source is than the driver: the ratio of hull sizes (lengths, not areas).

    source, initial: Keypoints of one image each (B = 1)
    returns:         float; 1 where either hull is degenerate
    """
    source_area, initial_area = (hull_area(kp.value[0].detach().float().cpu()) for kp in (source, initial))
    if min(source_area, initial_area) < LEAST_AREA:
        return 1.0
    return float(np.sqrt(source_area / initial_area))


def absolute_motion(driving):
    """The driver's Keypoints (B, K, 2) as they are: right within one identity, leaks the face shape across two."""
    return driving


class RelativeMotion:
    """Adds to the source what has changed in the driver since its initial frame.

        value    = source + (driving - initial) * scale
        jacobian = driving initial^-1 source

    source, initial: Keypoints of one image each (B = 1)
    adapt_scale:     scale is movement_scale(source, initial), else 1
    landmarks:       names of the keypoints where they are landmarks: lids and lips that are closed close no further,
                     though a driver who begins with an open mouth asks for it
    """

    def __init__(self, source, initial, adapt_scale, landmarks=()):
        # Jacobian inverses lose too much in bf16; keypoints are tiny, so fp32 costs nothing.
        self.initial = initial.map(torch.Tensor.float)
        self.scale = movement_scale(source, initial) if adapt_scale else 1.0
        self.meeting = [part for part in MEETING if {*FACE, *part[:2], *part[2]} <= set(landmarks)]
        self.row = {name: row for row, name in enumerate(landmarks)}
        self._set(source)

    def _set(self, source):
        self.source = source.map(torch.Tensor.float)
        if source.jacobian is not None:
            self.from_initial = invert_2x2(self.initial.jacobian) @ self.source.jacobian   # (1 or B, K, 2, 2)

    def of(self, source):
        """The same motion, at the same scale, of a source that moves: its Keypoints (B, K, 2), one a driving frame."""
        other = copy.copy(self)
        other._set(source)
        return other

    def __call__(self, driving):
        """Keypoints to render, for driving Keypoints (B, K, 2)."""
        value = self.source.value + (driving.value.float() - self.initial.value) * self.scale
        if self.meeting:
            value = self._uncrossed(value)
        if driving.jacobian is None:
            return Keypoints(value)
        return Keypoints(value, driving.jacobian.float() @ self.from_initial)

    def _uncrossed(self, value):
        """Landmarks (B, K, 2) with lids and lips that have crossed brought together."""
        bridge, chin = (value[:, self.row[name]] for name in FACE)
        down, value = F.normalize(chin - bridge, dim=-1), value.clone()                        # (B, 2)
        for upper, lower, giving_way, direction in self.meeting:
            crossed = ((value[:, self.row[upper]] - value[:, self.row[lower]]) * down).sum(-1, keepdim=True)
            for name in giving_way:
                value[:, self.row[name]] += direction * crossed.clamp(min=0) * down
        return value


class OneEuroFilter:
    """Smooths a stream of keypoints: strongly where they rest, hardly where they move.

    The One Euro filter (Casiez, Roussel and Vogel, CHI 2012): a causal exponential average

        smooth += a(cutoff) (new - smooth),   a(cutoff) = 1 / (1 + fps / (2 pi cutoff)),
        cutoff  = 1 / strength + SPEED_GAIN |speed|    per keypoint, in Hz

    whose cutoff rises with the speed, itself averaged the same way. Jacobians share the averages of their keypoints.

    strength: seconds over which a resting keypoint is averaged, above 0; 1 calms a jittery detector
    fps:      frames per second of the stream
    """

    def __init__(self, strength, fps):
        self.cutoff, self.fps = 1 / strength, float(fps)
        self.last = self.speed = None

    def __call__(self, keypoints):
        """The next Keypoints of the stream, (B, K, 2) in the order of time -> smoothed, float32."""
        smoothed = [self._step(keypoints.map(lambda part: part[i].float())) for i in range(len(keypoints.value))]
        return Keypoints(*(None if parts[0] is None else torch.stack(parts) for parts in zip(*smoothed)))

    def _step(self, new):
        """One frame: Keypoints of (K, 2) and (K, 2, 2)."""
        if self.last is None:
            self.last, self.speed = new, torch.zeros_like(new.value)
            return new
        speed = (new.value - self.last.value) * self.fps
        self.speed = self.speed.lerp(speed, self._share(SPEED_CUTOFF))
        share = self._share(self.cutoff + SPEED_GAIN * self.speed.norm(dim=-1, keepdim=True))       # (K, 1)
        value = self.last.value.lerp(new.value, share)
        jacobian = None if new.jacobian is None else self.last.jacobian.lerp(new.jacobian, share[..., None])
        self.last = Keypoints(value, jacobian)
        return self.last

    def _share(self, cutoff):
        """Weight of the new value in the average, for a cutoff in Hz."""
        return 1 / (1 + self.fps / (2 * math.pi * cutoff))


def pose_distance(source, driving):
    """Squared distance of two shapes after centring each and dividing by the size of its hull.

    source, driving: (P, 2) keypoints or landmarks, in any unit
    """
    return float(((_normalised(source) - _normalised(driving)) ** 2).sum())


def poses_differ(source, driving):
    """Whether two Keypoints at landmarks, (1, K, 2) each, show different poses rather than different faces."""
    source, driving = (keypoints.value[0].float().cpu() for keypoints in (source, driving))
    return pose_distance(source, driving) > len(source) * OTHER_POSE ** 2


def _normalised(points):
    points = np.asarray(points, dtype=np.float64)
    return (points - points.mean(axis=0)) / np.sqrt(max(hull_area(points), LEAST_AREA))


def best_frame_by_keypoints(source, driving):
    """Which driving frame has the pose nearest to the source's: the best initial frame for relative motion.

    source:  Keypoints of one image (B = 1)
    driving: Keypoints of T frames
    returns: index in 0..T-1, the first of equals
    """
    source = source.value[0].detach().float().cpu()
    return int(np.argmin([pose_distance(source, frame) for frame in driving.value.detach().float().cpu()]))
