"""Config -> clips: the data set in a folder, or the embedded heads where none is given."""

from datasets.frames import find_people
from datasets.synthetic import synthetic_people

TRAIN_SEED, TEST_SEED = 0, 1_000_000    # of the embedded identities: no test head is ever trained on


def training_people(params, size):
    """Training clips of DatasetParams at `size` px: person -> list of clips."""
    if params.root_dir is None:
        heads = params.synthetic_params
        return synthetic_people(heads.train_people, heads.clips_per_person, heads.frames, size, TRAIN_SEED)
    return find_people(params.root_dir, 'train', params.id_sampling, size)


def test_people(params, size):
    """Test clips of DatasetParams at `size` px: person -> list of clips."""
    if params.root_dir is None:
        heads = params.synthetic_params
        return synthetic_people(heads.test_people, 1, heads.frames, size, TEST_SEED)
    return find_people(params.root_dir, 'test', params.id_sampling, size)


def test_clips(params, size):
    """All test clips, in order of their names."""
    people = test_people(params, size)
    return sorted((clip for clips in people.values() for clip in clips), key=lambda clip: clip.name)
