"""Checks of the dataset: readable clips, people in one partition only, decoding speed."""

import os
import time
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from datasets.build import test_people, training_people
from datasets.frames import Augmentation, PairDataset, find_people, sort_entries
from datasets.still import STILL_SUFFIXES
from datasets.video import open_clip
from support.errors import UserError
from support.hardware import available_memory
from tools.doctor.finding import BLOCKS, NOTE, OK, WARNING, Finding, from_error

CLIPS_OPENED = 400        # of each partition, evenly spaced: an index takes milliseconds, a dataset has 20,000
PAIRS_TIMED = 24          # training pairs that are read to time the loader ...
SECONDS_TIMED = 10        # ... as far as this allows


def check_clips(partition, case):
    """Check the clips of 'train' or 'test': readable, large enough, people and epochs."""
    data, params = case.config.dataset_params, case.config.train_params
    if data.root_dir is None:
        yield Finding(OK, f'{partition}: the synthetic heads, rendered on demand')
        return
    folder = Path(data.root_dir, partition)
    try:
        people = find_people(data.root_dir, partition, data.id_sampling, None)
    except UserError as error:
        yield from_error(error)
        return
    yield from _left_out(data.root_dir, partition, folder)
    clips = [clip for group in people.values() for clip in group]
    opened = clips[::-(-len(clips) // CLIPS_OPENED)]
    frames, sizes, broken = [], {}, {}          # of each clip; the first clip of each size; UserErrors
    for clip in tqdm(opened, desc=f'{partition} clips', leave=False, dynamic_ncols=True):
        try:
            count, size = _frames_and_size(clip.path)
            frames.append(count)
            sizes.setdefault(size, clip.name)
        except UserError as error:
            broken[clip.name] = error
    fewest, most = (min(frames), max(frames)) if frames else (0, 0)
    yield Finding(OK if frames else BLOCKS, f'{len(clips)} clips of {len(people)} people; {len(opened)} opened: '
                  f'{fewest} to {most} frames, ' + ', '.join(f'{w}x{h}' for w, h in sorted(sizes)[:4]),
                  str(folder), '' if frames else 'put clips there that can be read')
    if broken:
        # Training passes over broken clips up to a limit; validation and evaluation do not.
        fatal = partition == 'test' or len(broken) > data.max_broken or not frames
        severity = BLOCKS if fatal else WARNING
        yield from (from_error(error, severity) for error in list(broken.values())[:10])
        yield Finding(severity, f'{len(broken)} of {len(opened)} clips cannot be read: {", ".join(list(broken)[:10])}',
                      str(folder), 'replace or remove these clips')
    if frames and fewest < 2:
        yield Finding(WARNING, 'some clips have one frame and thus no motion', str(folder), 'remove them')
    yield from _sizes(sizes, case.size, folder)
    if partition == 'train' and frames:
        epochs = params.num_iterations * params.batch_size / len(people)
        yield Finding(OK, f'{len(people)} samples per epoch (one per person); {epochs:,.0f} epochs in all', str(folder))


def _left_out(root, partition, folder):
    """The entries that look like clips and are none: folders and links; files of other kinds may lie there."""
    others = {name: reason for name, reason in sort_entries(root, partition)[1].items() if reason != 'not a video'}
    if others:
        listed = ', '.join(f'{name} ({reason})' for name, reason in list(others.items())[:10])
        yield Finding(WARNING, f'{len(others)} entries are no clips and left out: {listed}', str(folder),
                      'replace or remove them')


def _sizes(sizes, image_size, folder):
    for (width, height), name in sizes.items():
        if width != height:
            yield Finding(WARNING, f'{name} is {width}x{height} and would be squeezed into a square', str(folder),
                          'crop the faces first: --mode prepare')
            break
    largest = max(map(min, sizes), default=image_size)
    if largest < image_size:
        power = 2 ** (largest.bit_length() - 1)
        yield Finding(WARNING, f'no clip has {image_size} px, so all are enlarged', str(folder),
                      f'--set model_params.image_size={power}, or prepare larger clips')


def _frames_and_size(path):
    """(number of frames, (width, height)) of a clip; UserError if it is damaged or its stills have several sizes.

    Of a video the complete index is read, and the first and the middle frame are decoded.
    """
    clip = open_clip(path)
    if path.is_dir():
        sizes = {}
        for still in sorted(path.iterdir()):
            if still.suffix.lower() in STILL_SUFFIXES and not still.name.startswith('.'):
                sizes.setdefault(_still_size(still), still.name)
        if len(sizes) > 1:
            named = ', '.join(f'{name} is {width}x{height}' for (width, height), name in list(sizes.items())[:3])
            raise UserError(f'{path}: its frames have {len(sizes)} sizes: {named}; crop and resize them to one size')
        return len(clip), next(iter(sizes))
    first, _ = clip.read([0, len(clip) // 2])
    return len(clip), first.shape[1::-1]


def _still_size(path):
    try:
        with Image.open(path) as image:      # reads the header alone
            return image.size
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f'{path}: cannot be read as an image ({error}); replace or remove the file') from None


def check_people(case):
    """Check that no person is in both partitions, which would bias the test."""
    data = case.config.dataset_params
    both = sorted(set(training_people(data, case.size)) & set(test_people(data, case.size)))
    if both and data.id_sampling:
        yield Finding(WARNING, f'{len(both)} people are in both train and test, such as {", ".join(both[:3])}',
                      str(data.root_dir), 'move their clips to one of the two')


def check_loader(case):
    """Seconds per batch, from pairs read here, one after the other."""
    data, params, limit = case.config.dataset_params, case.config.train_params, available_memory()
    if case.memory is not None and limit is not None and case.memory.total > limit:
        yield Finding(NOTE, 'not measured, since a training step does not fit memory')
        return
    pairs = PairDataset(training_people(data, case.size), params.seed, Augmentation(**vars(data.augmentation_params)),
                        data.max_broken)
    pairs[0]                                       # the first one builds what later ones find built
    start, count = time.perf_counter(), 0
    while count < PAIRS_TIMED and time.perf_counter() - start < SECONDS_TIMED:
        count += 1
        pairs[count]
    each = (time.perf_counter() - start) / count
    workers = max(1, min(params.num_workers, os.cpu_count()))
    yield Finding(OK, f'about {each * params.batch_size / workers:.2g} s per batch of {params.batch_size}, {workers}'
                      f' process(es): {1000 * each:.0f} ms per pair, over {count} pairs')
