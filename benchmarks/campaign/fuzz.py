"""Damaged inputs of every kind: read right, or refused in one line that names the file; never run, never a hang.

A case begins with a valid input and breaks it, by a seeded generator; it runs in a process with 4 GiB and a minute.
"""

import io
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch
import yaml

from benchmarks.campaign import flags, material, weightfiles
from benchmarks.campaign.isolated import Isolated
from benchmarks.campaign.mutate import NUMBERS, damaged_bytes, damaged_text, damaged_tree, value
from benchmarks.campaign.promises import canary, inside, right_or_refused
from benchmarks.campaign.runner import Failure, Kind
from config import schema
from datasets.constant_rate import open_constant_rate
from datasets.frames import find_people
from datasets.manifest import NAME as MANIFEST
from datasets.manifest import Record, read_manifest
from datasets.prepare.run import Wanted, prepare
from datasets.still import read_image
from datasets.video import open_clip
from evaluation.cases import ClipFinder, cases_of_list, find_cases
from evaluation.protocols import load_list
from motion import template as motion_template
from modules.build import build_discriminator, build_model
from modules.frame_memory import check_frame
from modules.warp import shapes_alone


class Input(NamedTuple):
    """One kind of file.

    make: (random.Random, path that only code in the file would make) -> (suffix, bytes), broken
    read: (path of such a file, folder to work in) -> what came of it, as of `right_or_refused`; Failure
    """
    make: Callable
    read: Callable


def case(kind):
    @canary
    def tried(number, rng, folder, tripwire):
        suffix, data = INPUTS[kind].make(rng, tripwire)
        path = folder / f'case{suffix}'
        path.write_bytes(data)
        try:
            return INPUTS[kind].read(path, folder)
        except BaseException:
            (folder / f'failed-{kind}-{number}{suffix}').write_bytes(data)
            raise
    return tried


# ---------------------------------------------------------------------------- configs

def make_config(rng, tripwire):
    """Nested values of any kind, or text that is hardly YAML; tags that would construct objects."""
    tree = schema.load(rng.choice(material.CONFIGS)).as_dict()
    if rng.random() < 0.7:
        return '.yaml', yaml.safe_dump(damaged_tree(rng, tree), allow_unicode=True).encode('utf-8', 'surrogatepass')
    text = yaml.safe_dump(tree)
    if rng.random() < 0.5:
        return '.yaml', damaged_text(rng, text, ':\n')
    odd = (f'!!python/object/apply:os.system ["touch {tripwire}"]', f'!!python/object/new:open ["{tripwire}", "w"]',
           '!!python/name:os.system', '!!binary aGk=', '!!set {a, b}', '!!timestamp 2001-01-01', '&a [*a]',
           '[' * 3000, '{a: ' * 3000, '? ' * 3000, '- ' * 3000, '<<: *x', '{<<: {a: 1}}', '2001-99-99', '.base: x',
           'a: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: &c [*b, *b, *b]\nmodel_params: {method: *c}', '9' * 5000,
           '\n'.join(f'k{i}: &k{i} [{", ".join([f"*k{i - 1}"] * 9) if i else "x"}]' for i in range(12)))
    lines = text.split('\n')
    n = rng.randrange(len(lines))
    lines[n] = lines[n].partition(':')[0] + ': ' + rng.choice(odd) if rng.random() < 0.6 else rng.choice(odd)
    return '.yaml', '\n'.join(lines).encode()


def read_config(path, folder):
    return right_or_refused(lambda: built(schema.load(path)), path, 'model_params: a frame of ')     # memory ends there


_RUN = set()         # descriptions of networks that have been run: seconds each


def built(checked):
    """What a config that was accepted leads to: networks that can be made and run, as far as shapes go."""
    if schema.parse(checked.as_dict(), 'itself') != checked:
        raise Failure('the config differs once it is written and read')
    networks = checked.method, repr(checked.model_params)
    if networks in _RUN:
        return
    check_frame(checked, torch.device('cpu'))
    with shapes_alone():
        model, _ = build_model(checked), build_discriminator(checked)
        size = checked.model_params.image_size
        if size <= 1024:
            model.eval()(*(torch.zeros(1, 3, size, size) for _ in range(2)))
    _RUN.add(networks)


def override(number, rng, folder):
    """A --set value, of a key that there is or nearly."""
    base = schema.load(rng.choice(material.CONFIGS))
    key = rng.choice(list(_keys(base.as_dict())))
    if rng.random() < 0.2:
        key = rng.choice((key + 'x', key[:-1], '.' + key, key + '.x', key.replace('.', '..'), '', '=', key.upper()))
    text = str(value(rng)) if rng.random() < 0.5 else json.dumps(rng.choice(NUMBERS))
    text = rng.choice((text, text, f'[{text}]', f'{{a: {text}}}', f'[{text}, {text}]', f'!!python/name:{text}'))
    return right_or_refused(lambda: built(schema.override(base, [f'{key}={text}'])))


def _keys(tree, prefix=''):
    for key, below in tree.items():
        yield prefix + key
        if isinstance(below, dict):
            yield from _keys(below, f'{prefix}{key}.')


# ---------------------------------------------------------------------------- lists

IDS = ('id10280#aaaaaaaaaaa#000010#000020', 'id10281#bbbbbbbbbbb#000030#000040', 'id10282#aaaaaaaaaaa#000050#000060')


def clips(folder):
    """A folder of three tiny videos that the lists name."""
    videos = folder / 'clips'
    if not videos.is_dir():
        videos.mkdir()
        for name in IDS:
            (videos / f'{name}.mp4').write_bytes(material.videos()[0][1])
        (videos / 'still.png').write_bytes(material.pictures()['.png'][0])
    return videos


def make_eval_list(rng, tripwire):
    """A list of --mode evaluate, ours or of DaGAN's form."""
    ours = 'source,source_time,driving,driving_time,anchor_time\n' + ''.join(
        f'{a},{rng.choice(("", "0", "0.04"))},{b},,0.08\n' for a in IDS for b in IDS)
    theirs = 'source,driving,best_frame\n' + ''.join(f'/data/{a}.mp4/0000001.png,/data/{b}.mp4/0000002.png,3\n'
                                                     for a in IDS for b in IDS)
    return '.csv', damaged_text(rng, rng.choice((ours, theirs)))


def read_eval_list(path, folder):
    """The clips that it finds stay in their folder, and its names can be those of files."""
    places = clips(folder)

    def read():
        cases, _ = find_cases(load_list(str(path), IDS), ClipFinder({}, [str(places)], 16))
        for found in cases:
            inside(places, found.source.path, found.driving.path)
            if '/' in found.item.name or '\0' in found.item.name or found.item.name in ('', '.', '..'):
                raise Failure(f'{found.item.name!r} becomes a file name')
    return right_or_refused(read, path, places)


def make_pairs(rng, tripwire):
    """A list of --mode animate."""
    return '.csv', damaged_text(rng, 'source,driving,anchor\n' + ''.join(
        f'{a}.mp4,{b}.mp4,{rng.choice(("", "0", "3"))}\n' for a in IDS for b in IDS) + f'still.png,{IDS[0]}.mp4,\n')


def read_pair_list(path, folder):
    places = clips(folder)
    finder = ClipFinder({}, (), 16, [places], open_constant_rate)
    return right_or_refused(lambda: [(case.driving.fps, case.anchor) for case in cases_of_list(str(path), finder)],
                            path, places)


# ---------------------------------------------------------------------------- metadata, manifests

VOX = 'video_id,start,end,bbox,fps,width,height,partition,person_id\n'


def make_vox_metadata(rng, tripwire):
    listed = (('aaaaaaaaaaa', 0, 'train'), ('aaaaaaaaaaa', 4, 'test'), ('bbbbbbbbbbb', 0, 'train'))
    return '.csv', damaged_text(rng, VOX + ''.join(f'{video},{start},{start + 8},4-2-28-22,25,32,24,{part},id{n}\n'
                                                   for n, (video, start, part) in enumerate(listed)))


def make_celebvhq_metadata(rng, tripwire):
    entry = {'ytb_id': 'aaaaaaaaaaa', 'duration': {'start_sec': 0.0, 'end_sec': 0.32},
             'bbox': {'top': 0.1, 'bottom': 0.9, 'left': 0.2, 'right': 0.8}, 'version': 'v0.1'}
    tree = {'meta_info': {}, 'clips': {'aaaaaaaaaaa_0': entry, 'aaaaaaaaaaa_1': entry,
                                       'bbbbbbbbbbb_0': entry | {'ytb_id': 'bbbbbbbbbbb'}}}
    if rng.random() < 0.7:
        return '.json', json.dumps(damaged_tree(rng, tree), default=str, skipkeys=True).encode()
    return '.json', damaged_text(rng, json.dumps(tree, indent=1))


def read_metadata(dataset, path, folder):
    """Run --mode prepare over them; whatever they say, nothing appears outside of the data set's folder."""
    root, videos = folder / 'arena' / 'out' / 'set', folder / 'videos'
    videos.mkdir(exist_ok=True)
    (videos / 'aaaaaaaaaaa.mp4').write_bytes(material.videos()[0][1])
    shutil.rmtree(folder / 'arena', ignore_errors=True)
    root.parent.mkdir(parents=True)

    def run():
        records = prepare(Wanted(dataset, root, videos, path, size=16))
        if read_manifest(root) != records:
            raise Failure('the manifest is not what was returned')
        for record in records.values():
            if record.status == 'ok' and not (root / record.file).is_file():
                raise Failure(f'{record.id!r} is in the manifest, not in the folder')
    word = right_or_refused(run, path, root)
    known = {'arena/out', 'arena/out/set', 'arena/out/set/train', 'arena/out/set/test', f'arena/out/set/{MANIFEST}'}
    for found in (folder / 'arena').rglob('*'):
        name = found.relative_to(folder).as_posix()
        if name.startswith('arena/out/set/.parts'):      # of a data set that is not done
            continue
        if name not in known and (found.parent.name not in ('train', 'test') or found.parent.parent != root):
            raise Failure(f'{name} was written')
    return word


def make_manifest(rng, tripwire):
    lines = [json.dumps(vars(Record(name, name.split('#')[0], 'train', 'ok', None, 'aaaaaaaaaaa', 0.0, 12, 25, 'square',
                                    (0, 0, 24, 24), 16, 'mp4', f'{n:064x}'))) + '\n' for n, name in enumerate(IDS)]
    if rng.random() < 0.7:
        n = rng.randrange(len(lines))
        lines[n] = json.dumps(damaged_tree(rng, json.loads(lines[n])), default=str, skipkeys=True) + '\n'
        return '.jsonl', ''.join(lines).encode()
    return '.jsonl', damaged_text(rng, ''.join(lines), ',:\n')


def read_manifest_file(path, folder):
    """As training reads it, and as preparation goes on with it; nothing outside of the data set is touched."""
    root = folder / 'arena' / 'set'
    shutil.rmtree(folder / 'arena', ignore_errors=True)
    for part in ('train', 'test'):
        (root / part).mkdir(parents=True)
    for name in IDS:
        (root / 'train' / f'{name}.mp4').write_bytes(material.videos()[0][1])
    (root / MANIFEST).write_bytes(path.read_bytes())
    precious, metadata = folder / 'arena' / 'precious.mp4', folder / 'metadata.csv'
    precious.write_text('not of the data set')
    metadata.write_text(VOX)
    words = {right_or_refused(lambda: list(find_people(root, 'train', True, 16)), root),
             right_or_refused(lambda: prepare(Wanted('voxceleb1', root, folder, metadata, size=16)), root)}
    if not precious.is_file():
        raise Failure('a file outside of the data set was removed')
    return ' and '.join(sorted(words))


# ---------------------------------------------------------------------------- images and videos

def _check_frame(frame):
    if not (isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3):
        raise Failure('not a uint8 frame (H, W, 3)')


def make_image(rng, tripwire):
    suffix = rng.choice(list(material.pictures()))
    data = damaged_bytes(rng, rng.choice(material.pictures()[suffix]))
    if rng.random() < 0.2:
        data = with_size(data, rng.choice((60_000, 1_000_000, 2 ** 31 - 1, 0, 1)), rng.choice((60_000, 1, 0, 10_000)))
    return suffix, data


def with_size(data, width, height):
    """The picture with another size in its header; checksums are right, so that the header is believed."""
    if data[:4] == b'\x89PNG' and len(data) > 33:
        head = b'IHDR' + struct.pack('>II', width, height) + data[24:29]
        return data[:12] + head + struct.pack('>I', zlib.crc32(head)) + data[33:]
    at = max(data.find(b'\xff\xc0'), data.find(b'\xff\xc2'))
    if at < 0:
        return data
    return data[:at + 5] + struct.pack('>HH', height % 65536, width % 65536) + data[at + 9:]


def read_still(path, folder):
    return right_or_refused(lambda: [_check_frame(read_image(path, size)) for size in (None, 16)], path)


def make_video(rng, tripwire):
    """Any damage, or a box of an mp4 (sizes, times, counts, offsets) with absurd numbers in it."""
    suffix, data = rng.choice(material.videos())
    boxes = [at for name in (b'mvhd', b'tkhd', b'mdhd', b'stts', b'ctts', b'stsz', b'stsc', b'stco', b'elst', b'avc1',
                             b'stss', b'avcC', b'moov', b'trak', b'mdat', b'avih', b'strh', b'idx1')
             if (at := data.find(name)) >= 0]
    if not boxes or rng.random() < 0.5:
        return suffix, damaged_bytes(rng, data)
    data, at = bytearray(data), rng.choice(boxes)
    for _ in range(rng.randint(1, 2)):
        place = at + 4 * rng.randint(-1, 12)
        data[place:place + 4] = rng.choice((0, 1, 60_000, 2 ** 16 * 60_000 % 2 ** 32, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1,
                                            rng.getrandbits(32))).to_bytes(4, 'big')
    return suffix, bytes(data)


def read_video(path, folder):
    """Its frames in order and at random agree; at a constant rate there are not many more of them."""
    def read():
        clip = open_clip(path)
        count = len(clip)
        if not (count > 0 and 0 < clip.fps <= 1000):
            raise Failure(f'{count} frames at {clip.fps} fps')
        some = sorted({0, count // 2, count - 1})
        at_random, streamed = clip.read(some), 0
        for n, frame in enumerate(clip.frames()):
            _check_frame(frame)
            streamed += 1
            if n in some and not np.array_equal(frame, at_random[some.index(n)]):
                raise Failure(f'frame {n} at random is not frame {n} in order')
        if streamed != count:
            raise Failure(f'{streamed} frames, said to be {count}')
        constant = open_constant_rate(path, 16)
        shown = sum(1 for _ in constant.frames())
        if shown != len(constant) or shown > 100 * count:
            raise Failure(f'{shown} frames at a constant rate, said to be {len(constant)}, of {count}')
    return right_or_refused(read, path)


# ---------------------------------------------------------------------------- motion templates

@cache
def _model():
    return build_model(material.smallest())


def make_template(rng, tripwire):
    """A motion template: its bytes, the zip around it, its arrays, pickled objects among them."""
    file, template = io.BytesIO(), material.template(_model())
    arrays = dict(value=template.keypoints.value.numpy(), jacobian=template.keypoints.jacobian.numpy(), fps=(25, 1),
                  format=motion_template.FORMAT, anchor=1, method=template.fingerprint[0],
                  keypoint_detector=template.fingerprint[1])
    if rng.random() < 0.5:
        name = rng.choice(list(arrays))
        arrays[name] = rng.choice((value(rng), np.asarray(arrays[name])[None], np.asarray([]),
                                   np.array([weightfiles.Code(tripwire, 0)], object), float('nan')))
        if rng.random() < 0.2:
            del arrays[name]
        arrays = {name: array if _savable(array) else str(array) for name, array in arrays.items()}
    np.savez_compressed(file, allow_pickle=True, **arrays)
    data = file.getvalue()
    return '.npz', rng.choice((lambda: data, lambda: damaged_bytes(rng, data),
                               lambda: weightfiles.rezipped(rng, data)))()


def _savable(array):
    try:
        np.asarray(array)
        return True
    except (ValueError, OverflowError):
        return False


def read_template(path, folder):
    def read():
        template = motion_template.load(path, _model())
        for frame in template.frames():
            if frame.value.shape != (1, 4, 2) or not frame.value.isfinite().all():
                raise Failure(f'keypoints {tuple(frame.value.shape)}')
    return right_or_refused(read, path)


# ---------------------------------------------------------------------------- campaign

INPUTS = {'config': Input(make_config, read_config), 'eval-list': Input(make_eval_list, read_eval_list),
          'pairs-list': Input(make_pairs, read_pair_list),
          'vox-metadata': Input(make_vox_metadata, partial(read_metadata, 'voxceleb1')),
          'celebvhq-metadata': Input(make_celebvhq_metadata, partial(read_metadata, 'celebvhq')),
          'manifest': Input(make_manifest, read_manifest_file), 'image': Input(make_image, read_still),
          'video': Input(make_video, read_video), 'template': Input(make_template, read_template)}

CASES = {kind: case(kind) for kind in INPUTS} | {
    'set': override, 'checkpoint': weightfiles.checkpoint, 'resume': weightfiles.resume,
    'published': weightfiles.published, 'flags': flags.pair}

_isolated = Isolated('benchmarks.campaign.fuzz')
KINDS = {kind: Kind(1000, partial(_isolated, kind)) for kind in CASES}
KINDS['flags'] = Kind(flags.count(), partial(_isolated, 'flags'))
