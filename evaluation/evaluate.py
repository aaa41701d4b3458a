"""Evaluation by a named protocol: of a model, which generates and is scored as frames stream by, or of videos
that were made elsewhere.

    evaluation/<protocol>/metrics.json  metrics.csv  metrics.md  report.html  list.csv
                         /clips/        scores and a picture of every clip, from which an interrupted run goes on

Every clip is scored alone, so neither an interruption nor the number of processes changes a bit of the result.
"""

import logging
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, Mapping

import torch
from PIL import Image
from tqdm import tqdm

from evaluation.cases import Selection
from evaluation.html import write_html
from evaluation.protocols import Protocol, fingerprint, write_list
from evaluation.report import Report, versions, write_report
from evaluation.scores import ClipScores, Scorer
from evaluation.store import Store
from evaluation.tables import as_markdown
from motion.settings import Motion
from support import distributed
from support.errors import UserError
from support.files import make_folder, write_picture, written_whole
from visualizer import Strip

NAMED = 3              # missing clips named in the log; metrics.json names all
STRIP_MOMENTS, STRIP_HEIGHT = 3, 112     # of the picture of a clip; frames are so many pixels high

log = logging.getLogger(__name__)


# ---------------------------------------------------------------------------- frames

class CodeCounter:
    """Notes which codes a model uses while its frames stream by.

    counts: {codebook and scale: how often each code was chosen} for the first frame of every batch
    """

    def __init__(self):
        self.counts = {}

    def watch(self, driven, frames):
        """Yields (driving frames, frames made of the source (B, H, W, 3) uint8), batch by batch.

        driven: DrivenSource that follows the `frames`
        """
        for batch in driven.render(frames):
            yield batch.driving, batch.frames
            self._note(driven.model, driven.image, batch.images[:1])

    @torch.inference_mode()
    def _note(self, model, source, driving):
        """What quantisation makes of the flow and of the driving features (Eq. 1 and 4)."""
        for key, counts in model.code_counts(source, driving).items():
            counts = counts.tolist()
            self.counts[key] = [a + b for a, b in zip(self.counts.get(key, [0] * len(counts)), counts)]


def _side_by_side(case, moments, batch_size):
    """(driving frames, generated frames), batch by batch; UserError where they do not fit together."""
    made, wanted = case.generated, len(moments)
    # Other people's code may leave out the first frame, as this protocol does, or not.
    skip = moments.start if isinstance(moments, range) and len(made) == moments.stop else 0
    if len(made) - skip != wanted:
        raise UserError(f'{made.name}: has {len(made)} frames, its driving video {len(case.driving)}')
    pairs = zip(case.frames(moments), islice(made.frames(), skip, None))
    while batch := list(islice(pairs, batch_size)):
        for driving, generated in batch:
            if driving.shape != generated.shape:
                raise UserError('{}: is {}x{}, its driving video {}x{}; resize one, or give --resize'.format(
                    made.name, *generated.shape[1::-1], *driving.shape[1::-1]))
        yield tuple(zip(*batch))


def _watched(parts, strip):
    for driving, made in parts:
        strip.add(driving, made)
        yield driving, made


def _save_strip(strip, path):
    with written_whole(path) as unfinished:
        write_picture(unfinished, Image.fromarray(strip.stacked(STRIP_HEIGHT)).save, format='JPEG', quality=88)


# ---------------------------------------------------------------------------- the run

@dataclass(frozen=True)
class EvaluationJob:
    """What is evaluated, and how.

    name, protocol: PROTOCOLS[name], or the like
    selection:      Selection of a list; cases with a problem are counted and named in the report
    metric_ids:     of the catalogue
    subject:        {what: value} that tells what is evaluated: weights, or a folder
    batch_size:     frames scored at once
    """
    name: str
    protocol: Protocol
    selection: Selection
    metric_ids: tuple
    subject: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 8

    def settings(self, scorer):
        """All that a clip's scores depend on, besides its files."""
        return dict(subject=self.subject, protocol=asdict(self.protocol), batch_size=self.batch_size,
                    device=torch.device(scorer.device).type, weights=scorer.weights, versions=versions(),
                    metrics={metric.id: metric.definition for metric in scorer.metrics})

    def about(self):
        """What the report says of it."""
        protocol = {key: getattr(self.protocol, key) for key in ('relative', 'cross_identity', 'include_first', 'text')}
        return {'protocol': {'name': self.name} | protocol, 'subject': self.subject,
                'list': {'name': self.selection.list_name, 'sha256': fingerprint(self.selection.items)}}


def evaluate(job, folder, device, renderer=None):
    """Score all cases of an EvaluationJob, and write the report into `folder`.

    renderer: inference.Renderer of the model; None where the cases hold what was generated
    returns:  Report on the first process, None on the others
    raises:   UserError if no case can be scored
    """
    selection, cases = job.selection, job.selection.cases
    if not cases:
        raise UserError(f'no clip of the list {selection.list_name} is there'
                        + (f', such as {selection.missing[0]}' if selection.missing else '')
                        + '; say where the clips are (--path_map FOLDER)')
    # The copy of the source is a measure for a same-identity result alone.
    scorer = Scorer(job.metric_ids, device, copies=not job.protocol.cross_identity)
    _announce(scorer, selection)
    if not scorer.metrics:
        raise UserError('none of the metrics can be computed here: ' + '; '.join(scorer.skipped.values()))
    folder = make_folder(folder)
    distributed.check_shared(folder)
    store = Store(folder / 'clips', job.settings(scorer), distributed.rank())
    # Keys hold size and time of the files, so copies of them need both (rsync -a, cp -p).
    distributed.agree({'weights and clips to score': distributed.digest([store.key(case) for case in cases])})
    _score_all(job, scorer, renderer, store)
    if distributed.rank() > 0:
        return None

    store.gather(cases)
    store.tidy(cases)
    report = _report(job, scorer, store)
    write_report(folder, report)
    write_list(folder / 'list.csv', selection.items)
    with written_whole(folder / 'metrics.md') as path:
        path.write_text(as_markdown(report), encoding='utf-8')
    write_html(folder / 'report.html', report, {case.item.name: store.path(case, '.jpg') for case in cases})
    return report


def _score_all(job, scorer, renderer, store):
    """Score what is not in the store yet; the processes share it."""
    cases, rank = job.selection.cases, distributed.rank()
    if rank == 0:
        store.gather(cases)
    distributed.wait()
    pending = _pending(cases, store, with_sums=bool(scorer.sets))
    distributed.wait()      # nobody writes before all know what there is to do
    if before := len({store.key(case) for case in cases}) - len(pending):
        log.info('%d clips were scored before', before)
    for case in tqdm(pending[rank::distributed.world()], unit='clip', desc='evaluation', disable=rank > 0,
                     dynamic_ncols=True):
        _score(case, job, scorer, renderer, store)
        distributed.beat()
    store.save()
    distributed.wait_long()


def _pending(cases, store, with_sums):
    """The cases without scores; each once, though a list may name a pair twice."""
    summed = store.summed()[0]
    todo = (case for case in cases if not isinstance(store.read(case), ClipScores)
            or with_sums and store.key(case) not in summed)
    return list({store.key(case): case for case in todo}.values())


def _announce(scorer, selection):
    """Say what will not be scored, before the long part."""
    cases, missing = selection.cases, selection.missing
    for name, why in scorer.skipped.items():
        log.warning('%s skipped: %s', name, why)
    needy = [metric.id for metric in scorer.metrics if metric.needs_source]
    if needy and any(case.source is None for case in cases):
        log.warning('undefined where the source is not known (--source): %s', ', '.join(needy))
    log.info('%d of %d clips found', len(cases), len(cases) + len(missing))
    for what, names in (('missing', missing), ('without a driving video', selection.extra)):
        if names:
            log.warning('%d %s: %s%s', len(names), what, ', '.join(names[:NAMED]), ', ...' * (len(names) > NAMED))


def _score(case, job, scorer, renderer, store):
    """Score a case and store its scores, or what is wrong with it."""
    try:
        at_source, moments = case.moments(job.protocol.first)
        source = None if case.source is None else case.source.read([at_source])[0]
        codes = CodeCounter()
        if renderer is None:
            parts = _side_by_side(case, moments, job.batch_size)
        else:
            parts = codes.watch(_follow(case, job.protocol, renderer, source), case.frames(moments))
        strip = Strip(source, len(moments), STRIP_MOMENTS)
        clip = scorer.score(case.item.name, source, _watched(parts, strip))
    except UserError as error:
        log.warning('%s is not scored: %s', case.item.name, error)
        store.write(case, {'problem': str(error)})
        return
    clip.codes = codes.counts
    _save_strip(strip, store.path(case, '.jpg'))
    store.write(case, clip.as_json())
    if scorer.sets:
        store.add(case, scorer.states(), clip.frames)


def _follow(case, protocol, renderer, source):
    """The case's source, driven as the protocol says."""
    if not protocol.relative:
        return renderer.follow(source)
    return renderer.follow(source, case.driving, Motion(adapt_scale=True, start='nearest-keypoints'), case.anchor)


def _report(job, scorer, store):
    """The Report of all that is in the store; UserError where that is nothing."""
    selection, stored = job.selection, [(case, store.read(case)) for case in job.selection.cases]
    problems = {case.item.name: row for case, row in stored if isinstance(row, str)}
    rows = [row for _, row in stored if isinstance(row, ClipScores)]
    if not rows:
        raise UserError(f'none of {len(stored)} clips could be scored; the first: {next(iter(problems.values()))}')
    coverage = {'listed': len(stored) + len(selection.missing), 'found': len(stored), 'scored': len(rows),
                'missing': list(selection.missing), 'extra': list(selection.extra), 'problems': problems}
    return Report(rows, scorer.skipped, job.about() | {'coverage': coverage}, store.summed()[1], job.protocol.tables,
                  scorer.weights)
