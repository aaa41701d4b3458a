"""Uploads and results of the page in a temporary folder, deleted when their visitor leaves."""

import tempfile
import threading
import uuid
from pathlib import Path

from support.errors import UserError
from support.files import make_folder, remove


class Files:
    """The folder, also of Gradio's uploads, as a context manager that deletes it at the end."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(prefix='talking-codebooks-')
        self.root = Path(self._folder.name).resolve()
        self._own, self._lock = {}, threading.Lock()

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        self._folder.cleanup()

    def new(self, session):
        folder = make_folder(self.root / 'results' / uuid.uuid4().hex)
        self._remember(session, folder)
        return folder

    def take(self, session, path):
        """The absolute path of a visitor's upload; None for None. UserError for any other path."""
        if not path:
            return None
        path = Path(path).resolve()
        if self.root not in path.parents or not path.is_file():
            raise UserError('a file no longer exists; upload it again')
        self._remember(session, path)
        return str(path)

    def forget(self, session):
        """Delete the uploads and results of a visitor; examples stay."""
        with self._lock:
            paths = self._own.pop(session, set()) - {path for paths in self._own.values() for path in paths}
        for path in paths:
            if self.root / 'examples' not in path.parents:
                remove(path)

    def shown(self, text, *paths):
        """`text` without the folders of these paths."""
        for path in filter(None, paths):
            text = text.replace(str(path), Path(path).name)
        return text.replace(f'{self.root}/', '')

    def _remember(self, session, path):
        with self._lock:
            self._own.setdefault(session, set()).add(path)
