"""Readers of every kind of file that users give, with what must hold of any file: read right, or refused in one line.

READERS: {kind: function of (path, folder to work in)}; it returns 'right' or 'refused', and asserts what must hold.
"""

import shutil
from functools import cache, partial

import numpy as np
import torch

from config import schema
from datasets.constant_rate import open_constant_rate
from datasets.frames import find_people
from datasets.manifest import NAME as MANIFEST
from datasets.manifest import read_manifest
from datasets.prepare.run import DatasetSettings, prepare
from datasets.still import read_image
from datasets.video import open_clip
from evaluation.cases import ClipFinder, cases_of_list, find_cases
from evaluation.protocols import load_list
from motion import template as motion_template
from modules.build import build_discriminator, build_model
from modules.memory import check_frame
from support.gpu_path import gpu_path
from support.errors import UserError, one_line
from tests.support import inputs
from tests.support.inputs import IDS


def right_or_refused(read, *places):
    """'right' if read() returns, 'refused' if it raises a UserError whose line names one of the `places`, if any."""
    try:
        read()
    except UserError as error:
        message = one_line(error)
        assert not places or any(str(place) in message for place in places), f'no file is named: {message[:300]!r}'
        return 'refused'
    return 'right'


def read_config(path, folder):
    return right_or_refused(lambda: check_config(schema.load(path), folder), path, 'model_params: a frame of ')


def check_config(config, folder):
    """A config that was accepted can be written and read, and its networks be made and run, as far as shapes go."""
    assert schema.parse(config.as_dict(), 'itself') == config
    networks = folder / 'networks' / f'{hash((config.method, repr(config.model_params)))}'
    if networks.exists():                   # tried before: seconds each
        return
    check_frame(config, torch.device('cpu'))
    with gpu_path():
        model, _ = build_model(config), build_discriminator(config)
        size = config.model_params.image_size
        if size <= 1024:
            model.eval()(*(torch.zeros(1, 3, size, size) for _ in range(2)))
    networks.parent.mkdir(exist_ok=True)
    networks.touch()


def _clips(folder):
    """A folder of three videos and an image that the lists name."""
    clips = folder / 'clips'
    if not clips.is_dir():
        clips.mkdir()
        for name in IDS:
            (clips / f'{name}.mp4').write_bytes(inputs.videos()[0][1])
        (clips / 'still.png').write_bytes(inputs.pictures()['.png'][0])
    return clips


def read_eval_list(path, folder):
    """A list of --mode evaluate: its clips stay in their folder, and its names can be those of files."""
    clips = _clips(folder)

    def read():
        cases, _ = find_cases(load_list(str(path), IDS), ClipFinder({}, [str(clips)], 16))
        for case in cases:
            assert all(clip.path.resolve().is_relative_to(clips.resolve()) for clip in (case.source, case.driving))
            assert not {'/', '\0'} & set(case.item.name) and case.item.name not in ('', '.', '..')
    return right_or_refused(read, path, clips)


def read_pairs_list(path, folder):
    """A list of --mode animate."""
    clips = _clips(folder)
    finder = ClipFinder({}, (), 16, [clips], open_constant_rate)
    return right_or_refused(lambda: [(case.driving.fps, case.anchor) for case in cases_of_list(str(path), finder)],
                            path, clips)


def read_metadata(dataset, path, folder):
    """--mode prepare; whatever the metadata say, nothing appears outside of the dataset's folder."""
    root, videos = folder / 'arena' / 'out' / 'set', folder / 'videos'
    videos.mkdir(exist_ok=True)
    (videos / 'aaaaaaaaaaa.mp4').write_bytes(inputs.videos()[0][1])
    shutil.rmtree(folder / 'arena', ignore_errors=True)
    root.parent.mkdir(parents=True)

    def run():
        records = prepare(DatasetSettings(dataset, root, videos, path, size=16))
        assert read_manifest(root) == records
        assert all((root / record.file).is_file() for record in records.values() if record.status == 'ok')
    word = right_or_refused(run, path, root)
    known = {root.parent, root, root / 'train', root / 'test', root / MANIFEST}
    for found in (folder / 'arena').rglob('*'):
        assert (found in known or found.is_relative_to(root / '.parts')         # of a dataset that is not done
                or found.parent in (root / 'train', root / 'test')), f'{found} was written'
    return word


def read_manifest_file(path, folder):
    """As training and as preparation read it; nothing outside of the dataset is touched."""
    root = folder / 'arena' / 'set'
    shutil.rmtree(folder / 'arena', ignore_errors=True)
    for part in ('train', 'test'):
        (root / part).mkdir(parents=True)
    for name in IDS:
        (root / 'train' / f'{name}.mp4').write_bytes(inputs.videos()[0][1])
    (root / MANIFEST).write_bytes(path.read_bytes())
    precious, metadata = folder / 'arena' / 'precious.mp4', folder / 'metadata.csv'
    precious.write_text('not of the dataset')
    metadata.write_text(inputs.VOX)
    words = {right_or_refused(lambda: list(find_people(root, 'train', True, 16)), root),
             right_or_refused(lambda: prepare(DatasetSettings('voxceleb1', root, folder, metadata, size=16)), root)}
    assert precious.is_file()
    return 'right' if words == {'right'} else 'refused'


def _check_frame(frame):
    assert isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3


def read_still(path, folder):
    return right_or_refused(lambda: [_check_frame(read_image(path, size)) for size in (None, 16)], path)


def read_video(path, folder):
    """Its frames in order and at random agree; at a constant rate there are not many more of them."""
    def read():
        clip = open_clip(path)
        count, streamed = len(clip), 0
        assert count > 0 and 0 < clip.fps <= 1000
        some = sorted({0, count // 2, count - 1})
        at_random = dict(zip(some, clip.read(some)))
        for n, frame in enumerate(clip.frames()):
            _check_frame(frame)
            streamed += 1
            assert np.array_equal(frame, at_random.get(n, frame)), f'frame {n} at random is not frame {n} in order'
        assert streamed == count
        constant = open_constant_rate(path, 16)
        assert sum(1 for _ in constant.frames()) == len(constant) <= 100 * count
    return right_or_refused(read, path)


@cache
def model():
    """That of the motion templates."""
    return build_model(inputs.smallest())


def read_template(path, folder):
    def read():
        for frame in motion_template.load(path, model()).frames():
            assert frame.value.shape == (1, 4, 2) and frame.value.isfinite().all()
    return right_or_refused(read, path)


READERS = {'config': read_config, 'eval-list': read_eval_list, 'pairs-list': read_pairs_list,
           'vox-metadata': partial(read_metadata, 'voxceleb1'),
           'celebvhq-metadata': partial(read_metadata, 'celebvhq'), 'manifest': read_manifest_file,
           'image': read_still, 'video': read_video, 'template': read_template}
