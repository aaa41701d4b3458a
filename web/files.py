"""Where the page keeps what visitors bring and get: one folder, of which each visitor's part goes when they go."""

import tempfile
import threading
import uuid
from pathlib import Path

from support.errors import UserError
from support.files import make_folder, remove


class Files:
    """A folder that is gone when the server stops; Gradio's uploads go there too. A context manager."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(prefix='talking-heads-')
        self.root = Path(self._folder.name).resolve()
        self._own, self._lock = {}, threading.Lock()

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        self._folder.cleanup()

    def new(self, session):
        """A folder for the results of one job of a visitor."""
        folder = make_folder(self.root / 'results' / uuid.uuid4().hex)
        self._remember(session, folder)
        return folder

    def take(self, session, path):
        """An uploaded file that a visitor refers to; None for none. UserError for a path that no upload gave."""
        if not path:
            return None
        path = Path(path).resolve()
        if self.root not in path.parents or not path.is_file():
            raise UserError('a file is not there any more; bring it again')
        self._remember(session, path)
        return str(path)

    def forget(self, session):
        """Remove what a visitor has brought and got; examples stay."""
        with self._lock:
            paths = self._own.pop(session, set()) - {path for paths in self._own.values() for path in paths}
        for path in paths:
            if self.root / 'examples' not in path.parents:
                remove(path)

    def shown(self, text, *paths):
        """A message without this machine's folders."""
        for path in filter(None, paths):
            text = text.replace(str(path), Path(path).name)
        return text.replace(f'{self.root}/', '')

    def _remember(self, session, path):
        with self._lock:
            self._own.setdefault(session, set()).add(path)
