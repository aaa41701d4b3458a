"""Evaluation by a named protocol: of a model, which generates and is scored as frames stream by, or of videos
that were made elsewhere.

    evaluation/<protocol>/metrics.json  metrics.csv  metrics.md  report.html  list.csv
                         /clips/        scores and a picture of every clip, from which an interrupted run goes on

Every clip is scored alone, so neither an interruption nor the number of processes changes a bit of the result.
"""

import logging
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from datasets.still import Still, open_any
from datasets.video import STILL_SUFFIXES, VIDEO_SUFFIXES, has_stills
from evaluation.html import write_html
from evaluation.protocols import Item, as_csv, draw_pairs, fingerprint, frame_at, load_list
from evaluation.report import ClipScores, Report, Scorer, as_markdown, versions, write_report
from evaluation.store import Store
from inference import Motion
from support import distributed
from support.errors import UserError
from support.files import make_folder, written_whole
from visualizer import Strip

NAMED = 3              # missing clips named in the log; metrics.json names all
STRIP_MOMENTS, STRIP_HEIGHT = 3, 112     # of the picture of a clip; frames are so many pixels high

log = logging.getLogger(__name__)


# ---------------------------------------------------------------------------- clips

def clips_in(folder, size=None):
    """The videos, folders of frames and stills of a folder, as clips by name; in the order of their names.

    Hidden files and those of other kinds are passed over. Raises UserError where there is none, or two of one name.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f'{folder}: no such folder of videos')
    clips = {}
    for path in sorted(folder.iterdir()):
        known = path.is_dir() and has_stills(path) or path.suffix.lower() in VIDEO_SUFFIXES + STILL_SUFFIXES
        if path.name.startswith('.') or not known:
            continue
        clip = open_any(path, size)
        if clip.name in clips:
            raise UserError(f'{folder}: {clips[clip.name].path.name} and {path.name} have one name; rename one')
        clips[clip.name] = clip
    if not clips:
        raise UserError(f'{folder}: holds no videos, folders of frames or stills')
    return clips


class ClipFinder:
    """Where the clips of a list lie.

    clips:    {name: clip} at hand
    path_map: ['PREFIX=FOLDER' or 'FOLDER']: ids that begin with PREFIX, or all, are looked for in FOLDER,
              with or without the suffix of a video
    size:     frames are resized to (size, size)
    """

    def __init__(self, clips, path_map, size):
        self.clips, self.size = clips, size
        self.places = [(prefix.strip('/'), Path(folder)) for prefix, _, folder in
                       (text.rpartition('=') for text in path_map)]
        for _, folder in self.places:
            if not folder.is_dir():
                raise UserError(f'--path_map: {folder} is no folder')

    def __call__(self, clip_id):
        """The clip of this id, None if it is not there."""
        for prefix, folder in self.places:
            if clip_id.startswith(prefix):
                stem = clip_id.removeprefix(prefix).strip('/')
                for path in (folder / f'{stem}{suffix}' for suffix in ('', *VIDEO_SUFFIXES)):
                    if path.exists():
                        return open_any(path, self.size)
        return self.clips.get(clip_id)


# ---------------------------------------------------------------------------- cases

@dataclass(frozen=True)
class Case:
    """An item of a list with its clips at hand.

    source:    clip that the source image is taken from, or None where it is not known
    generated: clip that was made elsewhere; None where the model makes it
    """
    item: Item
    source: Any
    driving: Any
    generated: Any = None

    def moments(self, protocol):
        """(index of the source frame, indices of the driving frames); UserError where the clips are too short."""
        item, driving = self.item, self.driving
        source = 0 if self.source is None else _index(self.source, item.source_time or 0)
        if item.driving_time is not None:
            return source, [_index(driving, item.driving_time)]
        first = 0 if protocol.include_first or protocol.cross_identity else 1
        if len(driving) <= first:
            raise UserError(f'{driving.name}: has {len(driving)} frame(s), too few for this protocol')
        return source, range(first, len(driving))

    def frames(self, moments):
        """The driving frames at the moments, streaming."""
        if isinstance(moments, range):
            return islice(self.driving.frames(), moments.start, None)
        return iter(self.driving.read(moments))


def _index(clip, time):
    """Of the frame at `time` seconds; UserError if the clip is shorter."""
    index = frame_at(time, clip.fps)
    if index >= len(clip):
        raise UserError(f'{clip.name}: has no frame at {time:g} s, it is {float(len(clip) / clip.fps):.2f} s long')
    return index


def test_set(path_map, size):
    """{name: clip} of all FOLDERs of a path map that have no PREFIX."""
    return {name: clip for text in path_map if '=' not in text for name, clip in clips_in(text, size).items()}


def choose_items(protocol, list_name, clips, num_pairs=None, seed=0):
    """(name of the list, its items): the list that is asked for, else the protocol's, else all clips or random pairs.

    clips: names of the clips at hand
    """
    list_name = list_name or protocol.list
    if list_name is not None:
        return Path(list_name).name, load_list(list_name, clips)
    if protocol.cross_identity:
        items = draw_pairs(clips, count=num_pairs, seed=seed)
        return f'{len(items)} random pairs, seed {seed}', items
    return 'all clips', [Item(name) for name in sorted(clips)]


def find_cases(items, find):
    """The items whose clips are there, as cases, and the names of those whose clips are not."""
    cases, missing = [], []
    for item in items:
        source, driving = find(item.source), find(item.driver)
        if source is None or driving is None:
            missing.append(item.name)
        else:
            cases.append(Case(item, source, driving))
    return cases, missing


def match_cases(items, protocol, generated, driving, sources):
    """The same for videos that were made elsewhere; (cases, missing, extra).

    items:   of a list, or one per driving clip, whose name the generated clip and the source then share
    sources: {name: clip}, or None: then a same-identity source is taken from the driving clip
    """
    cases, missing = [], []
    for item in items:
        driver, made = driving.get(_stem(item.driver)), generated.get(item.name)
        if driver is None or made is None:
            missing.append(item.name)
            continue
        # A lone driving frame is no source: it would be compared with itself.
        own = None if protocol.cross_identity or isinstance(driver, Still) else driver
        source = own if sources is None else sources.get(_stem(item.source))
        if sources is not None and source is None:
            missing.append(item.name)
            continue
        cases.append(Case(item, source, driver, made))
    known = {item.name for item in items}
    return cases, missing, [name for name in generated if name not in known]


def _stem(clip_id):
    """The name by which `clips_in` knows the clip or still."""
    path = PurePosixPath(clip_id)
    return path.stem if path.suffix.lower() in STILL_SUFFIXES else path.name


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
        Image.fromarray(strip.stacked(STRIP_HEIGHT)).save(unfinished, format='JPEG', quality=88)


# ---------------------------------------------------------------------------- the run

def evaluate(cases, folder, *, items, list_name, name, protocol, subject, metric_ids, device, renderer=None,
             missing=(), extra=(), batch_size=8):
    """Score all cases, and write the report into `folder`.

    cases:     Cases; those with a problem are counted and named in the report
    items, list_name: the whole list
    name, protocol:   PROTOCOLS[name], or the like
    subject:   {what: value} that tells what is evaluated: weights, or a folder
    renderer:  inference.Renderer of the model; None where the cases hold what was generated
    missing, extra: names of items without clips, and of generated clips without an item
    returns:   Report on the first process, None on the others
    raises:    UserError if no case can be scored
    """
    if not cases:
        raise UserError(f'no clip of the list {list_name} is there' + (f', such as {missing[0]}' if missing else '')
                        + '; say where the clips are (--path_map FOLDER)')
    # The copy of the source is a measure for a same-identity result alone.
    scorer = Scorer(metric_ids, device, copies=not protocol.cross_identity)
    _announce(scorer, cases, missing, extra)
    if not scorer.metrics:
        raise UserError('none of the metrics can be computed here: ' + '; '.join(scorer.skipped.values()))
    weights = {file: sha for metric in scorer.metrics for file, sha in metric.weights.items()}
    settings = dict(subject=subject, protocol=asdict(protocol), batch_size=batch_size, device=torch.device(device).type,
                    metrics={metric.id: metric.definition for metric in scorer.metrics}, weights=weights,
                    versions=versions())
    folder, rank = make_folder(folder), distributed.rank()
    store = Store(folder / 'clips', settings, rank)

    if rank == 0:
        store.gather(cases)
    distributed.wait()
    pending = _pending(cases, store, with_sums=bool(scorer.sets))
    distributed.wait()      # nobody writes before all know what there is to do
    if before := len({store.key(case) for case in cases}) - len(pending):
        log.info('%d clips were scored before', before)
    for case in tqdm(pending[rank::distributed.world()], unit='clip', desc='evaluation', disable=rank > 0,
                     dynamic_ncols=True):
        _score(case, protocol, scorer, renderer, store, batch_size)
    store.save()
    distributed.wait_long()
    if rank > 0:
        return None

    store.gather(cases)
    store.tidy(cases)
    about = {'protocol': {'name': name, 'relative': protocol.relative, 'cross_identity': protocol.cross_identity,
                          'include_first': protocol.include_first, 'text': protocol.text},
             'subject': subject, 'list': {'name': list_name, 'sha256': fingerprint(items)}}
    with written_whole(folder / 'list.csv') as path:
        path.write_text(as_csv(items), encoding='utf-8')
    return _report(folder, cases, store, scorer, protocol, about, weights, missing, extra)


def _pending(cases, store, with_sums):
    """The cases without scores; each once, though a list may name a pair twice."""
    summed = store.summed()[0]
    todo = (case for case in cases if not isinstance(store.read(case), ClipScores)
            or with_sums and store.key(case) not in summed)
    return list({store.key(case): case for case in todo}.values())


def _announce(scorer, cases, missing, extra):
    """Say what will not be scored, before the long part."""
    for name, why in scorer.skipped.items():
        log.warning('%s skipped: %s', name, why)
    needy = [metric.id for metric in scorer.metrics if metric.needs_source]
    if needy and any(case.source is None for case in cases):
        log.warning('undefined where the source is not known (--source): %s', ', '.join(needy))
    log.info('%d of %d clips found', len(cases), len(cases) + len(missing))
    for what, names in (('missing', missing), ('without a driving video', extra)):
        if names:
            log.warning('%d %s: %s%s', len(names), what, ', '.join(names[:NAMED]), ', ...' * (len(names) > NAMED))


def _score(case, protocol, scorer, renderer, store, batch_size):
    """Score a case and store its scores, or what is wrong with it."""
    try:
        at_source, moments = case.moments(protocol)
        source = None if case.source is None else case.source.read([at_source])[0]
        codes = CodeCounter()
        if renderer is None:
            parts = _side_by_side(case, moments, batch_size)
        else:
            parts = codes.watch(_follow(case, protocol, renderer, source), case.frames(moments))
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
    time = case.item.anchor_time
    motion = Motion(adapt_scale=True, start='nearest-keypoints')
    return renderer.follow(source, case.driving, motion, None if time is None else _index(case.driving, time))


def _report(folder, cases, store, scorer, protocol, about, weights, missing, extra):
    stored = [(case, store.read(case)) for case in cases]
    problems = {case.item.name: row for case, row in stored if isinstance(row, str)}
    rows = [row for _, row in stored if isinstance(row, ClipScores)]
    if not rows:
        raise UserError(f'none of {len(cases)} clips could be scored; the first: {next(iter(problems.values()))}')
    about['coverage'] = {'listed': len(cases) + len(missing), 'found': len(cases), 'scored': len(rows),
                         'missing': list(missing), 'extra': list(extra), 'problems': problems}
    report = Report(rows, scorer.skipped, about, store.summed()[1], protocol.tables, weights)
    write_report(folder, report)
    with written_whole(folder / 'metrics.md') as path:
        path.write_text(as_markdown(report), encoding='utf-8')
    write_html(folder / 'report.html', report, {case.item.name: store.path(case, '.jpg') for case in cases})
    return report
