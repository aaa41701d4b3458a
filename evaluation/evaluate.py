"""Evaluation by a named protocol, of a model while it generates frames, or of existing videos.

    evaluation/<protocol>/metrics.json  metrics.csv  metrics.md  report.html  list.csv
                         /clips/        scores, features and a picture of every clip, to resume from

Every clip is scored alone, so neither an interruption nor the number of processes changes a bit of the result.
"""

import logging
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, Mapping

import torch
from PIL import Image
from tqdm import tqdm

from evaluation.cases import Selection, own_folder
from evaluation.protocols import Protocol, as_csv, fingerprint
from evaluation.published import published_tables
from evaluation.report import Report, versions, write_report
from evaluation.scores import ClipScores, Scorer, parts_of
from evaluation.store import Store
from evaluation.tables import as_html, as_markdown
from metrics.base import DistributionMetric, release_networks
from motion.settings import Motion
from support import distributed
from support.errors import UserError
from support.files import encoded, write_bytes, write_text
from visualizer import Strip

LOGGED = 3             # names of missing clips in the log; metrics.json lists all
STRIP_MOMENTS, STRIP_HEIGHT = 3, 112     # of the picture of a clip: frames, and their height in pixels

log = logging.getLogger(__name__)


# ---------------------------------------------------------------------------- frames

def _generated(driven, frames, totals):
    """Yields (driving frames, generated frames (B, H, W, 3) uint8), batch by batch.

    driven: DrivenSource that follows the `frames`
    totals: {codebook and scale: how often each code was chosen}; the counts of the first frame of every batch are
            added, of the codes that quantise the flow and the driving features (Eq. 1 and 4)
    """
    for batch in driven.render(frames):
        yield batch.driving, batch.frames
        with torch.inference_mode():
            chosen = driven.model.code_counts(driven.image, batch.images[:1])
        for key, counts in chosen.items():
            totals[key] = [a + b for a, b in zip(totals.get(key, [0] * len(counts)), counts.tolist())]


def _side_by_side(case, moments, batch_size):
    """Yields (driving frames, generated frames), batch by batch; UserError where numbers or sizes differ."""
    made, wanted = case.generated, len(moments)
    # Videos made elsewhere may contain the first frame though this protocol leaves it out.
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


def _passed(parts, *receivers):
    """Yields the batches, after each receiver that is not None got them."""
    for driving, made in parts:
        for receive in filter(None, receivers):
            receive(driving, made)
        yield driving, made


# ---------------------------------------------------------------------------- the run

@dataclass(frozen=True)
class EvaluationJob:
    """An evaluation: of what, by which protocol, list and metrics."""
    name: str
    protocol: Protocol              # PROTOCOLS[name]
    selection: Selection            # the report lists the cases that cannot be scored
    metric_ids: tuple               # of the catalogue
    subject: Mapping[str, Any] = field(default_factory=dict)     # of the model's weights or the evaluated folder
    batch_size: int = 8             # frames scored at once

    def settings(self, device):
        """All that the generated frames depend on, besides the clips' files; as JSON values."""
        return dict(subject=self.subject, protocol=asdict(self.protocol), batch_size=self.batch_size,
                    device=torch.device(device).type, versions=versions())

    def about(self):
        protocol = {key: getattr(self.protocol, key) for key in ('relative', 'adapt_scale', 'cross_identity',
                                                                 'include_first', 'text')}
        return {'protocol': {'name': self.name} | protocol, 'subject': self.subject,
                'list': {'name': self.selection.list_name, 'sha256': fingerprint(self.selection.items)}}

    def own_folder(self, folder):
        """As evaluation.cases.own_folder, for the subject and the list."""
        return own_folder(folder, self.selection.cases, subject=self.subject, list=fingerprint(self.selection.items))


def evaluate(job, folder, device, renderer=None, recorder=None):
    """Score all cases of an EvaluationJob, and write the report into `folder`, or next to it (`own_folder`).

    renderer: inference.Renderer of the model; None where the cases hold generated clips
    recorder: writes other files of each clip: `missing(case, store)` returns whether they are, and within
              `recording(case, store, source, num_frames)`, which returns a function, that gets the frames of each batch
    returns:  Report on the first process, None on the others
    raises:   UserError if no case can be scored
    """
    selection, cases = job.selection, job.selection.cases
    if not cases:
        raise UserError(f'no clip of the list {selection.list_name} is found'
                        + (f', such as {selection.missing[0]}' if selection.missing else '')
                        + ('; give the folder of the clips (--path_map FOLDER)' if renderer else '; give the videos in '
                           '--generated and --driving equal names, or a --list of SOURCE--DRIVING names'))
    # The copied source is a baseline for same-identity results only.
    scorer = Scorer(job.metric_ids, device, copies=not job.protocol.cross_identity)
    _announce(scorer, selection)
    if not scorer.metrics:
        raise UserError('none of the metrics can be computed here: ' + '; '.join(scorer.skipped.values()))
    folder = job.own_folder(folder)
    distributed.check_shared(folder)
    store = Store(folder / 'clips', job.settings(device), scorer.parts)
    # Keys hold size and time of the files, so copies of them need both (rsync -a, cp -p).
    keys = [store.key(case) for case in cases]
    distributed.agree({'weights and clips to score': distributed.digest([*keys, *store.parts.values()])})
    _score_all(job, scorer, renderer, store, recorder)
    release_networks()
    if distributed.rank() > 0:
        return None

    report = _report(job, scorer, store, folder)
    write_report(folder, report)
    write_text(folder / 'list.csv', as_csv(selection.items))
    write_text(folder / 'metrics.md', as_markdown(report))
    pictures = {case.item.name: store.path(case, '.jpg') for case in cases}
    write_text(folder / 'report.html', as_html(report, pictures))
    return report


def _score_all(job, scorer, renderer, store, recorder):
    """Score what is not stored; the processes share the clips."""
    cases, rank = job.selection.cases, distributed.rank()
    pending = [case for case in cases if store.missing(case) or recorder and recorder.missing(case, store)]
    pending = list({store.key(case): case for case in pending}.values())      # a list may name a pair twice
    distributed.wait()      # nobody writes before all know what is pending
    if before := len({store.key(case) for case in cases}) - len(pending):
        log.info('%d clips were scored before', before)
    for case in tqdm(pending[rank::distributed.world()], unit='clip', desc='evaluation', disable=rank > 0,
                     dynamic_ncols=True):
        _score(case, job, scorer, renderer, store, recorder)
        distributed.beat()
    distributed.wait_long()


def _announce(scorer, selection):
    """Log skipped metrics and missing clips before scoring starts."""
    cases, missing = selection.cases, selection.missing
    for name, why in scorer.skipped.items():
        log.warning('%s skipped: %s', name, why)
    needy = [metric.id for metric in scorer.metrics if metric.needs_source]
    if needy and any(case.source is None for case in cases):
        log.warning('undefined without source images (--source): %s', ', '.join(needy))
    log.info('%d of %d clips found', len(cases), len(cases) + len(missing))
    for what, names in (('missing', missing), ('without a driving video', selection.extra)):
        if names:
            log.warning('%d %s: %s%s', len(names), what, ', '.join(names[:LOGGED]), ', ...' * (len(names) > LOGGED))


def _score(case, job, scorer, renderer, store, recorder):
    """Compute and store the missing scores of a case, or the reason why that fails."""
    try:
        at_source, moments = case.moments(job.protocol.first)
        source = None if case.source is None else case.source.read([at_source])[0]
        codes = {}
        if renderer is None:
            parts = _side_by_side(case, moments, job.batch_size)
        else:
            parts = _generated(_follow(case, job.protocol, renderer, source), case.frames(moments), codes)
        strip = Strip(source, len(moments), STRIP_MOMENTS)
        recording = recorder.recording(case, store, source, len(moments)) if recorder else nullcontext()
        with recording as record:
            clip = scorer.score(case.item.name, source, _passed(parts, strip.add, record), store.missing(case))
    except UserError as error:
        log.warning('%s is not scored: %s', case.item.name, error)
        store.write_problem(case, str(error))
        return
    clip.codes = codes
    picture = Image.fromarray(strip.stacked(STRIP_HEIGHT))
    write_bytes(store.path(case, '.jpg'), encoded(picture.save, format='JPEG', quality=88))
    store.write(case, clip)


def _follow(case, protocol, renderer, source):
    """The case's source, driven as the protocol defines."""
    if not protocol.relative:
        return renderer.follow(source)
    motion = Motion(adapt_scale=protocol.adapt_scale, start='nearest-keypoints')
    return renderer.follow(source, case.driving, motion, case.anchor)


def _report(job, scorer, store, folder):
    """The Report of what is stored; UserError where that is nothing."""
    selection, stored = job.selection, [(case, store.read(case)) for case in job.selection.cases]
    problems = {case.item.name: row for case, row in stored if isinstance(row, str)}
    scored = [(case, row) for case, row in stored if isinstance(row, ClipScores)]
    if not scored:
        raise UserError(f'none of {len(stored)} clips could be scored; the first: {next(iter(problems.values()))}')
    coverage = {'listed': len(stored) + len(selection.missing), 'found': len(stored), 'scored': len(scored),
                'missing': list(selection.missing), 'extra': list(selection.extra), 'problems': problems}
    rows = [row for _, row in scored]
    distances = {metric.id: metric.compute(_features(metric, [case for case, _ in scored], store))
                 for metric in scorer.metrics if isinstance(metric, DistributionMetric)}
    tables = published_tables(job.name, selection.list_name, {row.size for row in rows})
    return Report(rows, scorer.skipped, job.about() | {'coverage': coverage}, distances, tables, scorer.weights,
                  folder)


def _features(metric, cases, store):
    """Yields what DistributionMetric.compute takes; a source's features once per generated frame."""
    for case in cases:
        generated, reference = store.features(case, parts_of(metric))
        if metric.needs_source and len(reference):
            reference = reference.expand(len(generated), -1)
        yield generated, reference
