"""Animation of many pairs: videos with a contact sheet, or results alone for a study; finished videos are kept.

The paper's Table 3 scores such pairs.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, astuple, replace
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from animate import crop_to_faces, write_animation, write_frames
from datasets.video_writer import VideoWriter
from evaluation.cases import Case, file_states, own_folder
from evaluation.protocols import as_csv, fingerprint
from evaluation.videos import pair_name
from motion.settings import Motion
from support import distributed
from support.errors import UserError
from support.files import make_folder, write_text
from support.weights import weights_hash
from visualizer import Strip, beside, contact_sheet, rows_of_sheet, save_png


class _Job(NamedTuple):
    """A pair, its files, and the stamp of a strip that was made with these weights, settings and files."""
    name: str
    case: Case
    result: Path
    strip: Path
    stamp: str

    def finished(self):
        with suppress(OSError), Image.open(self.strip) as strip:      # missing, or damaged
            return self.result.is_file() and strip.info.get('stamp') == self.stamp
        return False

    @property
    def crop(self):
        """Path of the picture of both crops."""
        return self.strip.with_name(f'{self.name}_crop.png')


def animate_pairs(renderer, cases, folder, motion=Motion(), *, crop_size=None, detail=None, made_by=''):
    """Animate every Case into `folder`: NUMBER_SOURCE--DRIVING.mp4 (source | driving | result), contact_sheet.png and
    list.csv, which `--mode evaluate --list` and this mode read. Results of others stay (evaluation.cases.own_folder).

    Several processes (torchrun) share the pairs. What is finished is not made again by the same call: moments/
    keeps a strip of pictures per video, written after it, with a stamp of the weights, settings and files used.

    crop_size: cut source and driving to this size around their faces first; None where they are crops already
    detail:    see `Renderer.follow`; results have the size of the clips or crops unless it is None
    made_by:   whatever else makes this model differ from another one with the same weights
    The other arguments, and what is raised, as in `animate`.
    returns: paths of the videos, in the order of the pairs
    """
    if not cases:
        raise UserError('no pairs to animate')
    weights = weights_hash(renderer.model)
    folder = own_folder(folder, cases, weights=weights, list=fingerprint([case.item for case in cases]))
    distributed.check_shared(folder)
    moments = make_folder(folder / 'moments')
    made_by = [made_by, weights, asdict(motion), crop_size, detail, renderer.precision]
    names = [f'{i:03d}_{pair_name(case)}' for i, case in enumerate(cases)]
    jobs = [_Job(name, case, folder / f'{name}.mp4', moments / f'{name}.png', _stamp(made_by, case))
            for name, case in zip(names, cases)]
    distributed.agree({'weights and pairs to animate': distributed.digest([job.stamp for job in jobs])})
    todo = [job for job in jobs[distributed.rank()::distributed.world()] if not job.finished()]
    with tqdm(total=sum(len(job.case.moments()[1]) for job in todo), unit='frame', desc='animation', dynamic_ncols=True,
              disable=distributed.rank() > 0) as progress:
        for job in todo:
            progress.set_postfix_str(job.name[:40])
            _animate_pair(renderer, job, motion, crop_size, detail, progress)
    shown = [jobs[i] for i in rows_of_sheet(len(jobs))]
    if all(job.finished() for job in shown):      # else another process has not come so far, and draws it
        sheet = contact_sheet([job.strip for job in shown], [job.name.partition('_')[2] for job in shown])
        save_png(folder / 'contact_sheet.png', sheet)
        write_text(folder / 'list.csv', as_csv([case.item for case in cases]))
    return [job.result for job in jobs]


def animate_alone(renderer, cases, folder, motion=Motion(), made_by=''):
    """The result alone of every Case as SOURCE--DRIVING.mp4 in `folder`, silent: first frames follow whole clips.

    What is finished is not made again by the same call: NAME.stamp, written after each video, identifies the weights,
    settings and files used. Arguments, and what is raised, as in `animate_pairs`.
    """
    folder = make_folder(folder)
    made_by = [made_by, weights_hash(renderer.model), asdict(motion), renderer.precision]
    for case in cases:
        result, stamp = folder / f'{pair_name(case)}.mp4', _stamp(made_by, case)
        kept = result.with_suffix('.stamp')
        if result.is_file() and kept.is_file() and kept.read_text(encoding='utf-8') == stamp:
            continue
        kept.unlink(missing_ok=True)
        write_animation(renderer, case.source.read([0])[0], case.driving, result, motion, anchor=case.anchor)
        write_text(kept, stamp)


def _animate_pair(renderer, job, motion, crop_size, detail, progress):
    """Write the video of a pair, then its strip."""
    case, (at_source, moments) = job.case, job.case.moments()
    job.strip.unlink(missing_ok=True)
    image = case.source.read([at_source])[0]
    if crop_size is not None:
        image, driving, _ = crop_to_faces(image, case.driving, crop_size, job.crop,
                                          names=[_file(clip) for clip in (case.source, case.driving)])
        case = replace(case, driving=driving)
    strip, driven = Strip(image, len(moments)), renderer.follow(image, case.driving, motion, case.anchor, detail)

    def watch(made):
        strip.add(made.driving, made.frames)
        progress.update(len(made.frames))

    with VideoWriter(job.result, case.driving.fps, job.case.sound) as video:
        write_frames(video, driven, case.frames(moments), beside, watch)
    save_png(job.strip, beside(*strip.row()), stamp=job.stamp)


def _stamp(made_by, case):
    """Hash of all that a result depends on; a result on disk with the same stamp is kept."""
    files = [[_file(clip), file_states(clip)] for clip in (case.source, case.driving)]
    return hashlib.sha256(json.dumps([made_by, files, astuple(case.item)]).encode()).hexdigest()


def _file(clip):
    return str(getattr(clip, 'path', clip.name))
