"""How far the parts of a data set are: counters that each keeps in its folder."""

import json
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from support.files import written_whole

NAME = 'progress.json'


@dataclass
class Progress:
    """How far a part is.

    folder:           of the part
    listed:           videos of the whole data set
    videos:           of them, those of this part
    todo, done:       those that were left to do when it began, and those of them that it has done since
    started, updated: when it began, and when a video was done last, seconds since 1970
    host:             the machine it runs on
    """
    folder: Path
    listed: int
    videos: int
    todo: int
    started: float
    updated: float
    host: str
    done: int = 0

    @classmethod
    def begin(cls, folder, listed, videos, todo):
        now = time.time()
        progress = cls(folder, listed, videos, todo, now, now, socket.gethostname())
        progress._keep()
        return progress

    def count(self):
        """Another video is done. Raises UserError where that cannot be kept."""
        self.done, self.updated = self.done + 1, time.time()
        self._keep()

    def _keep(self):
        kept = asdict(self)
        del kept['folder']
        with written_whole(self.folder / NAME) as path:
            path.write_text(json.dumps(kept))

    @classmethod
    def read(cls, folder):
        """As it was kept in the folder of a part; None where it has only just begun."""
        try:
            return cls(folder, **json.loads((folder / NAME).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    @property
    def complete(self):
        """How many of its videos are done, by this run or by one before."""
        return self.videos - self.todo + self.done

    @property
    def rate(self):
        """Videos per second; 0 where it is not known yet."""
        return self.done / (self.updated - self.started) if self.updated > self.started else 0.0
