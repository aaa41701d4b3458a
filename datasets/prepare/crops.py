"""Rules that turn the box of a head into the crop of a clip.

Boxes are (x0, y0, x1, y1) in pixels, returned ones in integers; `frame_size` is (width, height).
"""

import math


def square(box, frame_size):
    """The smallest square around a box: shifted into the frame where it fits, else centred on the box."""
    side = round(max(box[2] - box[0], box[3] - box[1]))
    corner = []
    for low, high, length in ((box[0], box[2], frame_size[0]), (box[1], box[3], frame_size[1])):
        start = round((low + high - side) / 2)
        corner.append(min(max(start, 0), length - side) if side <= length else start)
    return corner[0], corner[1], corner[0] + side, corner[1] + side


def celebvhq_square(box, frame_size):
    """CelebV-HQ's published crop: the box grown by 2 % of the frame, then the square of its smaller side at its centre.

    https://github.com/CelebV-HQ/CelebV-HQ, download_and_process.py
    """
    width, height = frame_size
    x0, x1 = round(max(box[0] - 0.02 * width, 0)), round(min(box[2] + 0.02 * width, width))
    y0, y1 = round(max(box[1] - 0.02 * height, 0)), round(min(box[3] + 0.02 * height, height))
    half, x, y = min(x1 - x0, y1 - y0) // 2, (x0 + x1) // 2, (y0 + y1) // 2
    return x - half, y - half, x + half, y + half


def as_listed(box, frame_size):
    """VoxCeleb's published crop: the box itself. Most are narrower than high (median 0.82), so heads come out wide.

    https://github.com/AliaksandrSiarohin/video-preprocessing, load_videos.py
    """
    return tuple(math.floor(side) for side in box)
