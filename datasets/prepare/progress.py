"""Progress of the parts of a dataset: counters that each part stores in its folder."""

import json
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from support.files import write_text

NAME = 'progress.json'


@dataclass
class Progress:
    """Progress of a part.

    folder:           of the part
    listed:           number of videos of the complete dataset
    videos:           number of videos of this part
    todo, done:       videos that were unfinished at its start, and those finished since
    started, updated: times of its start and of its last finished video, seconds since 1970
    host:             name of its machine
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
        """Count and store one more finished video. Raises UserError if it cannot be stored."""
        self.done, self.updated = self.done + 1, time.time()
        self._keep()

    def _keep(self):
        kept = asdict(self)
        del kept['folder']
        write_text(self.folder / NAME, json.dumps(kept))

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
