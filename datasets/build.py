"""Config -> clips: the data set in a folder, or the embedded heads where none is given."""

from datasets.frames import find_people
from datasets.synthetic.clips import synthetic_people

# Of the embedded identities: no test head is ever trained on, and no decision rests on one.
TRAIN_SEED, TEST_SEED, VALIDATION_SEED = 0, 1_000_000, 2_000_000


def training_people(params, size):
    """Training clips of DatasetParams at `size` px: person -> list of clips."""
    if params.root_dir is None:
        heads = params.synthetic_params
        return synthetic_people(heads.train_people, heads.clips_per_person, heads.frames, size, TRAIN_SEED)
    return find_people(params.root_dir, 'train', params.id_sampling, size)


def test_people(params, size, seed=TEST_SEED):
    """Test clips of DatasetParams at `size` px: person -> list of clips. `seed` is of the embedded identities."""
    if params.root_dir is None:
        heads = params.synthetic_params
        return synthetic_people(heads.test_people, 1, heads.frames, size, seed)
    return find_people(params.root_dir, 'test', params.id_sampling, size)


def test_clips(params, size):
    """All test clips, in order of their names."""
    return _in_order(test_people(params, size))


def validation_clips(params, size):
    """Clips that training is validated on: other people than the test's, but of data sets on disk the test's."""
    return _in_order(test_people(params, size, VALIDATION_SEED))


def _in_order(people):
    return sorted((clip for clips in people.values() for clip in clips), key=lambda clip: clip.name)
