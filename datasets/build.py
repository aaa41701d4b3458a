"""Clips of a config: the dataset in a folder, or the synthetic heads without one."""

from itertools import zip_longest

from datasets.frames import find_people, read_frames
from datasets.synthetic.clips import synthetic_people
from datasets.synthetic.varied import Cutouts, VariedPairs

# Seeds of the synthetic people: test heads serve neither training nor validation.
TRAIN_SEED, TEST_SEED, VALIDATION_SEED = 0, 1_000_000, 2_000_000


def training_people(params, size):
    """Training clips of DatasetParams at `size` px: person -> list of clips."""
    if params.root_dir is None:
        heads = params.synthetic_params
        return synthetic_people(heads.train_people, heads.clips_per_person, heads.frames, size, TRAIN_SEED, heads.even)
    return find_people(params.root_dir, 'train', params.id_sampling, size)


def pair_reader(params, people):
    """`read` of the PairDataset of the training clips `people`."""
    heads = params.synthetic_params
    if params.root_dir is not None or not heads.landmarks:
        return read_frames
    return VariedPairs(heads.landmarks, heads.augment, Cutouts(heads.cache, people))


def test_people(params, size, seed=TEST_SEED):
    """Test clips of DatasetParams at `size` px: person -> list of clips. `seed` selects the synthetic people."""
    if params.root_dir is None:
        heads = params.synthetic_params
        return synthetic_people(heads.test_people, 1, heads.frames, size, seed)
    return find_people(params.root_dir, 'test', params.id_sampling, size)


def test_clips(params, size):
    """All test clips, in order of their names."""
    return _in_order(clip for clips in test_people(params, size).values() for clip in clips)


def validation_clips(params, size):
    """Clips that training is validated on: of datasets on disk the test clips, else of other synthetic heads.

    One clip of every person comes first, then a second of each, so that the first few show as many people as they can.
    """
    people = {}
    for person, clips in test_people(params, size, VALIDATION_SEED).items():
        people.setdefault(person.partition('#')[0], []).extend(clips)      # without id_sampling, `person` is a clip
    return [clip for clips in zip_longest(*map(_in_order, people.values())) for clip in clips if clip is not None]


def _in_order(clips):
    return sorted(clips, key=lambda clip: clip.name)
