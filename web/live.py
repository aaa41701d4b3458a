"""Rendering of camera frames for the tab Live.

A frame that arrives while the worker is busy is dropped, so the latency is that of one frame on any machine.
"""

import io
import time
from collections import OrderedDict

from support.errors import UserError
from support.files import encoded
from web.limits import MOST_PIXELS, check_picture

MOST_SESSIONS = 4          # encoded portraits kept in the worker; the least recently used one goes first


def render(worker, session, checkpoint, source, camera, size, reset):
    """The result for a camera frame, bytes of a JPEG, PNG or WebP: (bytes of a JPEG, seconds that the model took).

    source: path of the portrait
    size:   side of the result in pixels; a larger model keeps its own
    reset:  use this frame as the reference of relative motion, as the first of a session always is
    """
    from PIL import Image

    from datasets.still import read_image, resized
    from inference import DrivenSource
    started = time.monotonic()
    model = worker.model(checkpoint)
    frame = _square(camera, model.renderer.size)
    held = worker.state.setdefault('live', OrderedDict())
    key = (checkpoint, source, size)
    if reset or held.get(session, (None,))[0] != key:
        check_picture(source)
        own = model.renderer.size
        image = resized(read_image(source), max(size, own))
        held[session] = key, DrivenSource(model.renderer, image, initial=frame, detail=True if size > own else None)
        while len(held) > MOST_SESSIONS:
            held.popitem(last=False)
    held.move_to_end(session)
    driven = held[session][1]
    _, _, generated = driven([frame])
    picture = Image.fromarray(driven.pixels(generated, [driven.source])[0].cpu().numpy())
    return encoded(picture.save, format='JPEG', quality=90), time.monotonic() - started


def forget(worker, session):
    """Release the encoded portrait of a session."""
    worker.state.get('live', {}).pop(session, None)


def _square(camera, size):
    """The central square of an encoded frame, (size, size, 3) uint8."""
    import numpy as np
    from PIL import Image

    from datasets.still import resized
    try:
        with Image.open(io.BytesIO(camera)) as image:
            if image.width * image.height > MOST_PIXELS:
                raise UserError('the frames of the camera are too large')
            image.draft('RGB', (size, size))         # of a JPEG, decode no more than is needed
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            return resized(np.asarray(image.convert('RGB').crop((left, top, left + side, top + side))), size)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError('the frames of the camera cannot be decoded') from error
