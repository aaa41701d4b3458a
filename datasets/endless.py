"""Source videos looped, or held at the last frame, for as long as the driving motion."""

from itertools import repeat

ENDS = ('loop', 'hold')


class EndlessClip:
    """A clip without end: it repeats from the beginning ('loop'), or repeats its last frame ('hold').

    One frame is in memory at a time. The driver determines the length.
    """

    def __init__(self, clip, end='loop'):
        assert end in ENDS, f'end is {end!r}, must be one of {ENDS}'
        self.clip, self.end = clip, end
        self.name, self.fps = clip.name, clip.fps

    def frames(self):
        while True:
            for frame in self.clip.frames():
                yield frame
            if self.end == 'hold':
                yield from repeat(frame)
