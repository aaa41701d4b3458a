"""Same-identity reconstruction of test clips from their first frames, with scores.

The paper's Tables 1 and 2; a mode of FOMM: NeurIPS 2019, Sec. 4, https://github.com/AliaksandrSiarohin/first-order-model
"""

from collections import Counter
from contextlib import contextmanager, nullcontext

from datasets.video_writer import VideoWriter
from evaluation.cases import Case, Selection
from evaluation.evaluate import EvaluationJob, evaluate
from evaluation.protocols import PROTOCOLS, Item
from support.errors import UserError
from support.files import make_folder, write_text
from visualizer import Strip, beside, contact_sheet, rows_of_sheet, save_png

METRICS = ('l1.mean_abs', 'psnr.rgb', 'ssim.gauss11', 'lpips.vgg')     # --mode evaluate computes others


def reconstruct(renderer, clips, folder, *, subject=None, include_first=True, save_videos=True):
    """Reconstruct every clip from its first frame; score it and write pictures and videos.

    Writes an evaluation's reports into `folder`, contact_sheet.png and, with `save_videos`, videos/NAME.mp4 (source |
    driving | prediction, at the clip's frame rate). Each file appears whole or not at all, and the same call resumes
    after an interruption. Memory does not grow with the length of the clips.

    renderer:      inference.Renderer
    clips:         clips as in datasets/video.py, all at the model's image size
    subject:       {what: value} that identifies the model
    include_first: also reconstruct and score the first frame, which is the source (as FOMM does)
    returns:       evaluation.report.Report; None on processes other than the first
    raises:        UserError for a clip that is too short, for two clips of one name, for a folder that cannot be
                   written, or if no clip can be reconstructed
    """
    _check(clips, 0 if include_first else 1)
    cases = [Case(Item(clip.name), clip, clip) for clip in clips]
    name = 'same-identity' if include_first else 'same-identity-no-first'
    job = EvaluationJob(name, PROTOCOLS[name], Selection('all clips', [case.item for case in cases], cases), METRICS,
                        subject or {}, renderer.batch_size)
    shown = [cases[i] for i in rows_of_sheet(len(cases))]
    folder = job.own_folder(folder)
    recorder = _Recorder(folder, shown, save_videos)
    report = evaluate(job, folder, renderer.device, renderer, recorder)
    if report is not None:
        strips = {case.item.name: recorder.strip(case) for case in shown if recorder.strip(case).is_file()}
        save_png(recorder.folder / 'contact_sheet.png', contact_sheet(strips.values(), list(strips)))
    return report


class _Recorder:
    """Writes a clip's video, and its row of the contact sheet for the clips `shown`, while the clip is scored.

    NAME.key holds the key of the scores that video and row belong to: weights or settings may change.
    """

    def __init__(self, folder, shown, save_videos):
        self.folder, self.shown, self.save_videos = folder, shown, save_videos
        self.rows = make_folder(folder / 'clips')
        self.videos = make_folder(folder / 'videos') if save_videos else None

    def strip(self, case):
        return self.rows / f'{case.item.name}.png'

    def _video(self, case):
        return self.videos and self.videos / f'{case.item.name}.mp4'

    def _key(self, case):
        return self.rows / f'{case.item.name}.key'

    def missing(self, case, store):
        files = [path for path in (self._video(case), case in self.shown and self.strip(case)) if path]
        key = self._key(case)
        return (not all(path.is_file() for path in files)
                or not key.is_file() or key.read_text(encoding='utf-8') != store.key(case))

    @contextmanager
    def recording(self, case, store, source, num_frames):
        strip, path = Strip(source, num_frames), self._video(case)
        self._key(case).unlink(missing_ok=True)
        with VideoWriter(path, case.driving.fps) if path else nullcontext() as video:
            def record(driving, made):
                strip.add(driving, made)
                for pair in zip(driving, made) if video else ():
                    video.write(beside(source, *pair))
            yield record
        if case in self.shown:
            save_png(self.strip(case), beside(*strip.row()))
        write_text(self._key(case), store.key(case))


def _check(clips, skip):
    """UserError for clips that cannot be reconstructed, before the first is rendered."""
    if not clips:
        raise UserError('no clips to reconstruct: the test set is empty')
    twice = [name for name, count in Counter(clip.name for clip in clips).items() if count > 1]
    if twice:
        raise UserError(f'two clips are named {twice[0]}, their results would overwrite each other; rename one')
    for clip in clips:
        if len(clip) <= skip:
            raise UserError(f'{clip.name}: has {len(clip)} frame(s), too few to be reconstructed; remove the clip')
