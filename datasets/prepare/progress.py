"""Progress of the parts of a dataset: counters that each part stores in its folder."""

import json
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from support.files import write_text

NAME = 'progress.json'


@dataclass
class Progress:
    """Progress of the part in `folder`; times are in seconds since 1970."""
    folder: Path
    listed: int       # videos of the complete dataset
    videos: int       # videos of this part
    todo: int         # videos that were unfinished at its start
    started: float
    updated: float    # when it finished its last video
    host: str         # name of its machine
    done: int = 0     # videos finished since its start

    @classmethod
    def begin(cls, folder, listed, videos, todo):
        now = time.time()
        progress = cls(folder, listed, videos, todo, now, now, socket.gethostname())
        progress._keep()
        return progress

    def count(self):
        """Count and store one more finished video. Raises UserError if it cannot be stored."""
        self.done, self.updated = self.done + 1, time.time()
        self._keep()

    def _keep(self):
        write_text(self.folder / NAME, json.dumps({key: value for key, value in vars(self).items() if key != 'folder'}))

    @classmethod
    def read(cls, folder):
        """The Progress stored in the folder of a part; None if it has stored none."""
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
        """Videos per second; 0 if unknown."""
        return self.done / (self.updated - self.started) if self.updated > self.started else 0.0
