"""Every input that once failed: corpus/KIND/NAME, and those too large, or too bound to a test, to be kept as files."""

import zipfile
from pathlib import Path

import pytest
import torch

from datasets.still import read_image
from logger import RunFolder, read_checkpoint
from motion import template as motion_template
from modules.build import build_model
from support.errors import UserError
from support.weights import load_optimizer, load_weights
from tests.support import inputs
from tests.support.readers import READERS
from tests.support.training import assert_bit_equal

CORPUS = sorted(path for path in (Path(__file__).parent / 'corpus').rglob('*') if path.is_file())


@pytest.mark.parametrize('path', CORPUS, ids=lambda path: f'{path.parent.name}-{path.name}')
def test_inputs_that_once_failed(tmp_path, path):
    copy = tmp_path / f'case{path.suffix}'
    copy.write_bytes(path.read_bytes())
    assert READERS[path.parent.name](copy, tmp_path)


def test_a_template_with_a_large_member_that_is_no_array_is_refused_in_few_words(tmp_path):
    """Its bytes were quoted, gigabytes of them."""
    path = tmp_path / 'x.npz'
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr('format.npy', bytes(10 ** 6))
    with pytest.raises(UserError, match='not all of it are arrays') as refused:
        motion_template.load(path, build_model(inputs.smallest()))
    assert len(str(refused.value)) < 500


def test_a_jpeg_of_absurd_size_is_refused_before_it_is_decoded(tmp_path):
    """torchvision would allot, and fill with grey, 10.8 GB."""
    path = tmp_path / 'x.jpg'
    jpeg = inputs.pictures()['.jpg'][0]
    size = jpeg.find(b'\xff\xc0') + 5
    path.write_bytes(jpeg[:size] + 2 * (60_000).to_bytes(2) + jpeg[size + 4:])
    with pytest.raises(UserError, match='x.jpg.*exceeds limit'):
        read_image(path)


def test_one_flipped_byte_of_a_checkpoint_is_noticed(tmp_path):
    """PyTorch itself reads it without a word."""
    whole, path = inputs.checkpoint(), tmp_path / 'x.pt'
    path.write_bytes(whole)
    ema = read_checkpoint(path)['ema']
    for place in range(1000, len(whole), len(whole) // 8):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1:])
        try:
            assert_bit_equal(read_checkpoint(path)['ema'], ema)             # the byte is one that is not read
        except UserError as error:
            assert 'damaged' in str(error)


def test_the_newest_whole_checkpoint_is_found_and_a_run_without_any_is_not_begun_anew(tmp_path, caplog):
    run, whole = RunFolder(tmp_path), inputs.checkpoint()
    assert run.newest() is None
    (tmp_path / 'checkpoints' / '00000001.pt').write_bytes(whole)
    middle = len(whole) // 2
    broken = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1:]
    (tmp_path / 'checkpoints' / '00000002.pt').write_bytes(broken)
    assert run.newest()[0].name == '00000001.pt' and '00000002.pt: is truncated or damaged' in caplog.text
    (tmp_path / 'checkpoints' / '00000001.pt').write_bytes(broken)
    with pytest.raises(UserError, match='all 2 checkpoints are damaged'):
        run.newest()


@pytest.mark.parametrize('weights', [3, True, None])
def test_weights_that_are_no_dict_are_refused(weights):
    with pytest.raises(UserError, match='x.pt: does not fit the model: its weights are a '):
        load_weights(torch.nn.Linear(2, 2), weights, 'x.pt')


@pytest.mark.parametrize('step', [torch.zeros(()).to_sparse(), torch.zeros((), dtype=torch.complex64), 3])
def test_an_optimiser_whose_step_is_no_plain_number_is_refused(step):
    """It was taken, and the first update ended in a traceback."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([parameter])
    moments = {'step': step, 'exp_avg': torch.zeros(2), 'exp_avg_sq': torch.zeros(2)}
    with pytest.raises(UserError, match='state of its optimiser is damaged'):
        load_optimizer(optimizer, {'state': {0: moments}}, 'x.pt')
