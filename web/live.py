"""Live: the visitor's camera drives a portrait, frame by frame.

A frame that comes while the worker is busy, with an earlier one or with somebody's animation, is dropped: what is shown
is as old as one frame takes, however slow the machine.
"""

import io
import time
from collections import OrderedDict, deque
from typing import NamedTuple

from support.errors import UserError
from web.limits import MOST_PIXELS, check_picture

MOST_SESSIONS = 4          # portraits that are held ready in the worker; the longest unused one makes room
RATE_OVER = 2.0            # seconds over which the frame rate is averaged


# ---------------------------------------------------------------------------- in the worker

class LiveFrame(NamedTuple):
    """A JPEG of what was made of a camera frame, and how long the model took, seconds."""
    jpeg: bytes
    seconds: float


def render(bench, session, checkpoint, source, camera, anew):
    """LiveFrame of a camera frame, a JPEG, PNG or WebP in bytes.

    source: path of the portrait
    anew:   take this frame's pose as the reference from which motion is counted; the first of a session always is
    """
    from visualizer import to_uint8
    started = time.monotonic()
    model = bench.model(checkpoint)
    frame = _square(camera, model.size)
    held = bench.state.setdefault('live', OrderedDict())
    key = (checkpoint, source)
    if anew or held.get(session, (None,))[0] != key:
        held[session] = key, _follow(model, source, frame)
        while len(held) > MOST_SESSIONS:
            held.popitem(last=False)
    held.move_to_end(session)
    _, _, generated = held[session][1]([frame])
    return LiveFrame(_jpeg(to_uint8(generated.prediction)[0]), time.monotonic() - started)


def forget(bench, session):
    """Let go of a session's portrait."""
    bench.state.get('live', {}).pop(session, None)


def _follow(model, source, frame):
    """The DrivenSource of a portrait whose motion counts from this frame."""
    from datasets.still import read_image, resized
    from inference import DrivenSource
    check_picture(source)
    return DrivenSource(model.renderer, resized(read_image(source), model.size), initial=frame)


def _square(camera, size):
    """The middle square of an encoded frame, (size, size, 3) uint8."""
    import numpy as np
    from PIL import Image

    from datasets.still import resized
    try:
        with Image.open(io.BytesIO(camera)) as image:
            if image.width * image.height > MOST_PIXELS:
                raise UserError('the camera sends too many pixels')
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            return resized(np.asarray(image.convert('RGB').crop((left, top, left + side, top + side))), size)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError('the camera sends no pictures that can be read') from error


def _jpeg(frame):
    from PIL import Image
    file = io.BytesIO()
    Image.fromarray(frame).save(file, format='JPEG', quality=90)
    return file.getvalue()


# ---------------------------------------------------------------------------- in the server

class Meter:
    """How fast frames came out lately, and how long each took from its arrival at the server."""

    def __init__(self):
        self.shown, self.latency, self.dropped = deque(), 0.0, 0

    def add(self, arrived):
        now = time.monotonic()
        self.latency = now - arrived
        self.shown.append(now)
        while self.shown[0] < now - RATE_OVER:
            self.shown.popleft()

    @property
    def rate(self):
        """Frames per second."""
        span = self.shown[-1] - self.shown[0] if len(self.shown) > 1 else 0
        return (len(self.shown) - 1) / span if span else 0.0
