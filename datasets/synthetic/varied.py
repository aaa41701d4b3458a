"""Training pairs of synthetic heads with landmarks, and with varied background, light, camera and image quality.

Models trained on synthetic heads transfer to real faces where everything but the face varies more than it does in
reality: domain randomisation (Tobin et al., IROS 2017, arXiv 1703.06907; Wood et al., ICCV 2021, Sec. 3).
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from datasets.synthetic.mesh import LANDMARK_NAMES
from datasets.synthetic.renderer import render
from support.files import make_folder


UNCERTAINTY = 0.002        # largest standard deviation of landmarks, in [-1, 1]: detected ones are not exact


class VariedPairs:
    """Reads two frames of a SyntheticClip and their landmarks; called as PairDataset's `read`.

    names:   of LANDMARK_NAMES, in the order of the landmarks
    augment: background, light, blur, noise and an affine map, drawn once for both frames
    cutouts: Cutouts of the clips
    """

    def __init__(self, names, augment, cutouts):
        self._rows = [LANDMARK_NAMES.index(name) for name in names]
        self._augment, self._cutouts = augment, cutouts

    def __call__(self, clip, indices, rng):
        """(2, H, W, 3) uint8 frames, dict(landmarks=(2, K, 2) float32 in [-1, 1], corners of pixels at -1 and 1)."""
        if not self._augment:
            found = [render(clip.identity, clip.state(index), clip.size) for index in indices]
            frames, places = [one.image for one in found], np.stack([one.landmarks for one in found])
        else:
            images, places = zip(*(self._cutouts(clip, index) for index in alike(clip, *indices, rng)))
            frames, places = varied(np.stack(images), np.stack(places), rng)
        places = places[:, self._rows] * (2 / (clip.size - 1)) - 1
        if self._augment and rng.random() < 0.6:
            places = places + rng.normal(0, UNCERTAINTY * rng.random(), places.shape)
        return frames, dict(landmarks=places.astype(np.float32))


class Cutouts:
    """Heads on black with their cover, drawn when first read, and kept in a file if `folder` is given.

    Frames are rendered when first read. All processes render the same bytes, so they may share the file.
    """

    def __init__(self, folder, people):
        clips = [clip for clips in people.values() for clip in clips]
        self._first = {clip.name: n * len(clip) for n, clip in enumerate(clips)}
        self._files = None
        if folder is not None:
            count, size = sum(map(len, clips)), clips[0].size
            name = hashlib.sha256(repr(clips).encode()).hexdigest()[:16]
            path = make_folder(Path(folder)) / name
            self._files = [_open(path.with_suffix(f'.{part}'), (count, *shape), kind) for part, shape, kind in (
                ('images', (size, size, 4), np.uint8), ('landmarks', (len(LANDMARK_NAMES), 2), np.float32),
                ('drawn', (), np.uint8))]

    def __call__(self, clip, index):
        """(H, W, 4) uint8 colour times cover, and cover; (L, 2) float32 pixel positions of LANDMARK_NAMES."""
        if self._files is None:
            return _cutout(clip, index)
        images, landmarks, drawn = self._files
        row = self._first[clip.name] + index
        if not drawn[row]:
            images[row], landmarks[row] = _cutout(clip, index)
            drawn[row] = 1
        return images[row], landmarks[row]


def _open(path, shape, kind):
    if not path.is_file():
        with open(path, 'wb') as file:
            file.truncate(int(np.prod(shape)) * np.dtype(kind).itemsize)
    return np.memmap(path, kind, 'r+', shape=shape)


def _cutout(clip, index):
    found = render(clip.identity, clip.state(index), clip.size, np.zeros((clip.size, clip.size, 3), np.float32))
    return np.concatenate([found.image, found.cover[..., None]], -1), found.landmarks


# ---- what varies

def alike(clip, first, second, rng):
    """Indices of two frames, from two random ones.

    `second` becomes, in three of five pairs, the one of four whose pose is nearest `first`: arbitrary poses differ more
    than those of a video, so that expressions would count little. In one of five it is `first`, as in a driver's first
    frame: a model that never saw an image stand still paints spots on it.
    """
    others = [index for index in rng.integers(len(clip), size=4).tolist() if index != first]
    if (chance := rng.random()) < 0.2 or not others:
        return first, second
    if chance < 0.4:
        return first, first
    pose = lambda index: np.array([getattr(clip.state(index), name) for name in ('yaw', 'pitch', 'roll')])
    return first, min(others, key=lambda index: np.abs(pose(index) - pose(first)).sum())


def varied(cutouts, landmarks, rng):
    """Frames (2, H, W, 3) uint8 and landmarks (2, L, 2) from cutouts (2, H, W, 4) and theirs, in pixels.

    Light, background and image quality are the same for both frames: only the person moves.
    """
    size = cutouts.shape[1]
    image = torch.from_numpy(cutouts).permute(0, 3, 1, 2).float().div_(255)
    image, landmarks = _moved(image, landmarks, rng)
    person, cover = image[:, :3], image[:, 3:]
    person = _lit(person / cover.clamp(min=1e-3), rng) * cover
    picture = person + (1 - cover) * _background(size, rng)
    picture = _filmed(picture.clamp_(0, 1), rng)
    return (picture * 255 + 0.5).to(torch.uint8).permute(0, 2, 3, 1).numpy(), landmarks


def _moved(image, landmarks, rng):
    """Random affine warp of the cutouts (2, 4, H, W): one of the camera for both, often a smaller one of each.

    Below the cutout, the shoulders continue.
    """
    size, middle = image.shape[-1], (image.shape[-1] - 1) / 2
    angle, stretch, shear = rng.normal(0, 8), rng.uniform(0.93, 1.07), rng.uniform(-0.06, 0.06)
    scale, shift, own = rng.uniform(0.76, 1.2), rng.uniform(-0.1, 0.1, 2), rng.random() < 0.7
    moves, places = [], []
    for points in landmarks:
        turn = np.deg2rad(angle + own * rng.normal(0, 5))
        size_here, offset = scale * rng.uniform(0.93, 1.07) ** own, shift + own * rng.uniform(-0.12, 0.12, 2)
        forward = size_here * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        forward = forward @ np.array([[stretch, shear], [0, 1 / stretch]])
        backward = np.linalg.inv(forward)
        moves.append(np.concatenate([backward, -backward @ offset[:, None]], 1))
        places.append((points - middle) @ forward.T + middle + offset * size / 2)
    image[:, :, 0] = 0                        # hair does not continue above
    grid = F.affine_grid(torch.from_numpy(np.stack(moves)).float(), list(image.shape), align_corners=False)
    moved = F.grid_sample(image, grid, padding_mode='border', align_corners=False)
    return moved, np.stack(places).astype(np.float32)


def _lit(person, rng):
    """Colours (2, 3, H, W) under another light, exposure and white balance, and in a shadow from one side."""
    gain = torch.from_numpy(rng.uniform(0.7, 1.3) * rng.uniform(0.9, 1.1, 3)).float()[:, None, None]
    axis = torch.linspace(-1, 1, person.shape[-1])
    slope = rng.normal(0, 0.15, 2)
    shadow = (1 + slope[0] * axis[:, None] + slope[1] * axis).clamp(0.5, 1.6)
    person = (person * gain * shadow).clamp(0, 1) ** float(rng.uniform(0.7, 1.25))
    grey = person.mean(1, keepdim=True)
    return (grey + float(rng.uniform(0.4, 1.3)) * (person - grey)).clamp(0, 1)


def _background(size, rng):
    """(3, H, W): random fields of two scales, and some shapes with sharp edges."""
    picture = torch.from_numpy(rng.uniform(0, 1, (3, 1, 1))).float().expand(3, size, size)
    for low, high, strength in ((2, 5, 0.35), (6, 33, 0.2)):
        cells = int(rng.integers(low, high))
        field = torch.from_numpy(rng.normal(0, strength * rng.random(), (1, 3, cells, cells))).float()
        if rng.random() < 0.5:
            field = field.mean(1, keepdim=True).expand(-1, 3, -1, -1)
        mode = dict(mode='bicubic', align_corners=False) if rng.random() < 0.7 else dict(mode='nearest')
        picture = picture + F.interpolate(field, size=(size, size), **mode)[0]
    picture = picture.clone()
    for _ in range(rng.integers(0, 6)):
        x, y = rng.integers(-size // 4, size, 2)
        width, height = rng.integers(2, size, 2)
        picture[:, max(y, 0):max(y + height, 0), max(x, 0):max(x + width, 0)] += torch.from_numpy(
            rng.normal(0, 0.25, (3, 1, 1))).float()
    return picture.clamp(0, 1)


def _filmed(picture, rng):
    """Blur or a lower resolution, contrast, and noise of each frame's own; (2, 3, H, W) in [0, 1] -> same."""
    size = picture.shape[-1]
    if rng.random() < 0.6:
        small = int(size * rng.uniform(0.3, 0.9))
        picture = F.interpolate(picture, size=(small, small), mode='bilinear', align_corners=False, antialias=True)
        picture = F.interpolate(picture, size=(size, size), mode='bicubic', align_corners=False)
    contrast, level = float(rng.uniform(0.75, 1.2)), float(rng.uniform(-0.08, 0.08))
    picture = (picture - 0.5) * contrast + 0.5 + level
    if rng.random() < 0.6:
        generator = torch.Generator().manual_seed(int(rng.integers(2 ** 31)))
        picture = picture + float(rng.uniform(0, 0.03)) * torch.randn(picture.shape, generator=generator)
    return picture.clamp(0, 1)
