"""Scores of every clip on disk, so that an interrupted evaluation resumes and a second one computes what is missing."""

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import astuple

from evaluation.cases import file_states
from evaluation.scores import ClipScores
from support.errors import UserError
from support.files import make_folder, write_text
from support.weights import load_tensors, save_tensors


class Store:
    """The scores of clips, in one file per clip, and next to them the features of the distribution metrics.

    A file's name holds a hash of all that its frames depend on: settings (model, protocol, versions, code) and the
    clip's files. In it, each metric has a hash of its definition and weights. What has changed is computed again;
    nothing is deleted.

    settings: all that the generated frames depend on, as JSON values
    parts:    {part: hash} of the metrics, Scorer.parts
    """

    def __init__(self, folder, settings, parts):
        self.folder, self.parts = make_folder(folder), parts
        self.settings = json.dumps(settings, sort_keys=True)
        self._key_of = {}

    def key(self, case):
        if id(case) not in self._key_of:
            parts = [self.settings, astuple(case.item), *map(file_states, (case.source, case.driving, case.generated))]
            self._key_of[id(case)] = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        return self._key_of[id(case)]

    def path(self, case, suffix='.json'):
        readable = re.sub(r'[^\w#@.,=+-]', '_', case.item.name)[:100]
        return self.folder / f'{readable}-{self.key(case)[:16]}{suffix}'

    def read(self, case):
        """The stored ClipScores that are current, without features; the reason (str) if scoring failed; else None."""
        stored = self._stored(case)
        if 'problem' in stored or not stored:
            return stored.get('problem')
        outdated = self._outdated(case, stored)
        return ClipScores.from_json(stored['scores']).of([part for part in self.parts if part not in outdated])

    def missing(self, case):
        """The parts that are not stored, or stored under another definition or other weights."""
        return self._outdated(case, self._stored(case))

    def features(self, case, parts):
        """The stored features (T, D) of these parts."""
        tensors = load_tensors(self.path(case, '.pt'))
        return tuple(tensors[part] for part in parts)

    def write(self, case, scores):
        """Store the ClipScores, and keep what is stored of other metrics."""
        stored, features = self._stored(case), self.path(case, '.pt')
        hashes = stored.get('parts', {}) | {part: self.parts[part] for part in [*scores.scores, *scores.features]}
        if 'scores' in stored:
            older = ClipScores.from_json(stored['scores'])
            if scores.features and features.is_file():
                with suppress(UserError):
                    older.features = load_tensors(features)
            scores = scores.with_older(older)
        if scores.features:
            save_tensors(features, scores.features)
        self._write(case, {'parts': hashes, 'scores': scores.as_json()})

    def write_problem(self, case, problem):
        """Store why the case cannot be scored, and keep what is stored of it."""
        self._write(case, self._stored(case) | {'problem': problem})

    def _write(self, case, stored):
        write_text(self.path(case), json.dumps(stored, allow_nan=False))

    def _stored(self, case):
        """The content of the clip's file; {} without a readable one."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            stored = json.loads(self.path(case).read_text(encoding='utf-8'))
            if 'scores' in stored:
                ClipScores.from_json(stored['scores'])
            return stored
        return {}

    def _outdated(self, case, stored):
        known, scores = stored.get('parts', {}), stored.get('scores', {}).get('scores', {})
        without_features = not self.path(case, '.pt').is_file()
        return {part for part, hash_ in self.parts.items()
                if known.get(part) != hash_ or part not in scores and without_features}
