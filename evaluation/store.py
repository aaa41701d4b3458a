"""What is kept of every clip while an evaluation runs, so that it goes on where it was stopped."""

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import astuple

from evaluation.scores import ClipScores, add_states
from support.errors import UserError
from support.files import make_folder, written_whole
from support.weights import load_tensors, save_tensors

SUFFIXES = '.json', '.jpg', '.png'     # scores of a clip, and pictures
SAVE_EVERY = 64        # frames between two savings of the set metrics' sums, which are some 100 MB


class Store:
    """The scores of every clip, on disk as soon as they are known, and found again by what they depend on.

    A file's name holds a hash of the settings (model, protocol, metrics and their weights, versions, code) and of the
    clip's own files, so whatever changes is scored anew. Sums of the set metrics are kept for many clips together:
    they are large, and exact in whatever order they are added.
    """

    def __init__(self, folder, settings, rank=0):
        self.folder = make_folder(folder)
        self.settings = json.dumps(settings, sort_keys=True)
        self.own_sums = self.folder / f'sums-{rank}.pt'
        self.keys, self.states, self.unsaved = [], {}, 0
        self._key_of = {}

    def key(self, case):
        if id(case) not in self._key_of:
            parts = [self.settings, astuple(case.item), *map(_signature, (case.source, case.driving, case.generated))]
            self._key_of[id(case)] = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        return self._key_of[id(case)]

    def path(self, case, suffix='.json'):
        readable = re.sub(r'[^\w#@.,=+-]', '_', case.item.name)[:100]
        return self.folder / f'{readable}-{self.key(case)[:16]}{suffix}'

    def read(self, case):
        """ClipScores, or a text that says why there are none; None if the case has not been scored."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            stored = json.loads(self.path(case).read_text(encoding='utf-8'))
            return stored['problem'] if 'problem' in stored else ClipScores.from_json(stored)

    def write(self, case, stored):
        with written_whole(self.path(case)) as path:
            path.write_text(json.dumps(stored, allow_nan=False), encoding='utf-8')

    # Sums

    def add(self, case, states, frames):
        """Take in the sums of a clip; they are on disk after SAVE_EVERY frames or `save`."""
        add_states(self.states, states)
        self.keys.append(self.key(case))
        self.unsaved += frames
        if self.unsaved >= SAVE_EVERY:
            self.save()

    def save(self):
        if self.unsaved:
            save_tensors(self.own_sums, {'keys': self.keys, 'states': self.states})
            self.unsaved = 0

    def gather(self, cases):
        """Add up the sums of all processes and earlier runs into one file; what is not of these cases is dropped."""
        wanted, keys, states = {self.key(case) for case in cases}, [], {}
        files = sorted(self.folder.glob('sums*.pt'))
        for path in files:
            with suppress(UserError):
                found = load_tensors(path)
                # A file that overlaps was merged before an interruption; one with foreign clips cannot be undone.
                if wanted.issuperset(found['keys']) and not set(keys) & set(found['keys']):
                    keys += found['keys']
                    add_states(states, found['states'])
        merged = self.folder / 'sums.pt'
        if keys:
            save_tensors(merged, {'keys': keys, 'states': states})
        for path in files:
            if path != merged or not keys:
                path.unlink()

    def summed(self):
        """(keys of the clips that are in, {metric id: summed state}), as `gather` left them."""
        path = self.folder / 'sums.pt'
        found = load_tensors(path) if path.is_file() else {'keys': [], 'states': {}}
        return set(found['keys']), found['states']

    def tidy(self, cases):
        """Remove what belongs to other settings or clips."""
        kept = {self.path(case, suffix) for case in cases for suffix in SUFFIXES} | {self.folder / 'sums.pt'}
        for path in self.folder.glob('*'):          # none where the folder has vanished meanwhile
            if path not in kept:
                path.unlink(missing_ok=True)


def _signature(clip):
    """What changes when a clip's files do."""
    path = getattr(clip, 'path', None)
    if path is None:
        return None if clip is None else [clip.name, len(clip)]
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
