"""A model of one image size begins with the weights of another's: what is taken, by which rules, and what is said."""

import shutil
from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F

from config import schema
from logger import RunFolder, read_checkpoint, write_checkpoint
from modules.appearance_compensation import partition_windows, reverse_windows
from modules.autoencoder import Fusion
from modules.build import build_discriminator, build_model
from modules.layers import Downsample, ResBlock, Upsample
from modules.resize_checkpoint import (
    check_scales, grouped, init_identity, resize_checkpoint, resized_positions, resized_unembedding, resized_windows)
from modules.training_step import build_training_step
from resume import find_resume_point, restore
from support.errors import UserError
from tests.support.small import SMALL_METHOD, small_config
from tests.support.tiny import tiny
from tests.support.training import assert_bit_equal
from tools.doctor.weights import check_checkpoint
from train import train

CPU = torch.device('cpu')
SAVES = 'train_params.save_every=2'
FOUR = ['model_params.image_size=64']                             # the token grid grows
FIVE = [*FOUR, 'model_params.autoencoder_params.channels=[16, 16, 8, 8, 8]',
        'model_params.dense_motion_params.scale_factor=0.125', 'model_params.kp_detector_params.scale_factor=0.25']
CODES_TOO = [*FIVE, *(f'model_params.{book}_codebook_params.{key}' for book in ('motion', 'appearance')
                      for key in ('num_scales=5', 'num_codes=40'))]
NEW_SCALE = 'encoder.levels.0, encoder.downs.0, decoder.levels.4, decoder.ups.4, fusions.3'


def train_in(folder, *overrides, checkpoint=None):
    run = RunFolder(folder)
    try:
        train(tiny(SAVES, *overrides), run, CPU, checkpoint)
    finally:
        run.close()


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    """The last checkpoint of a run at 32 px."""
    folder = tmp_path_factory.mktemp('small')
    train_in(folder, 'train_params.learning_rate=1e-3', 'train_params.ema_decay=0.9')
    return folder / 'checkpoints' / '00000004.pt'


@pytest.fixture(scope='module')
def large(small, tmp_path_factory):
    """The folder of an undisturbed run at 64 px, with a scale more, that began with it."""
    folder = tmp_path_factory.mktemp('large')
    train_in(folder, *FIVE, checkpoint=small)
    return folder


# ---------------------------------------------------------------------------- the rules

def test_models_of_one_size_are_alike():
    theirs, network = (build_model(tiny()) for _ in range(2))
    resized = resize_checkpoint(theirs.state_dict(), network)
    assert_bit_equal(resized.tensors, theirs.state_dict())
    assert not (resized.resized or resized.new or resized.unused) and str(resized).endswith('; new: nothing')


@pytest.mark.parametrize('name', SMALL_METHOD)
def test_all_tensors_of_the_other_methods_fit(name):
    config = small_config(name)
    theirs = build_model(config), build_discriminator(config)
    for network, there in zip((build_model, build_discriminator), theirs):
        larger = network(schema.override(config, ['model_params.image_size=128']))
        resized, model = resize_checkpoint(there.state_dict(), larger), network is build_model
        # Sines and cosines of more patches are those of the new size.
        assert resized.new == resized.unused == (['keypoint_detector.position'] if name == 'mrfa' and model else [])
        assert resized.resized == (['structure.position'] if name.startswith('mrfa') and model else [])


def test_positions_are_interpolated_between_the_middles_of_tokens():
    """2 x 2 tokens become 4 x 4: the corners stay, others lie a quarter or three quarters between two."""
    grown = resized_positions(torch.tensor([[0.0, 1], [4, 1], [8, 1], [12, 1]]), (16, 2))
    assert grown[:, 0].view(4, 4).tolist() == [[0, 1, 3, 4], [2, 3, 5, 6], [6, 7, 9, 10], [8, 9, 11, 12]]
    assert grown[:, 1].tolist() == [1] * 16
    picture = torch.randn(1, 3, 4, 4)
    rows = resized_positions(picture[0].flatten(1).t(), (64, 3))
    torch.testing.assert_close(rows.t().view(1, 3, 8, 8), resized_positions(picture, (1, 3, 8, 8)))


def test_a_window_that_is_enlarged_gives_the_token_that_it_gave_and_back():
    torch.manual_seed(0)
    embed, unembed, bias = torch.randn(5, 2 * 2 * 3), torch.randn(2 * 2 * 3, 5), torch.randn(2 * 2 * 3)
    feature = torch.randn(2, 3, 8, 8)
    enlarged = F.interpolate(feature, scale_factor=2, mode='nearest')
    token = partition_windows(feature, 4) @ embed.t()
    torch.testing.assert_close(partition_windows(enlarged, 4) @ resized_windows(embed, 2, 4).t(), token)
    small, large = (reverse_windows(token @ weight.t() + offset, 4, 3) for weight, offset in (
        (unembed, bias), (resized_unembedding(unembed, 2, 4), resized_unembedding(bias, 2, 4))))
    torch.testing.assert_close(large, F.interpolate(small, scale_factor=2, mode='nearest'))
    assert resized_windows(torch.tensor([[1.0, 2]]), 1, 2).tolist() == [[0.25, 0.5] * 4]


def test_blocks_of_a_new_scale_pass_what_they_get():
    torch.manual_seed(0)
    x, feature = torch.randn(2, 2, 8, 6, 6)
    blocks = [ResBlock(8, 8, 4), Upsample(8), Downsample(8), Fusion(8, 4)]
    for block in blocks:
        init_identity(block)
    residual, up, down, fusion = blocks
    torch.testing.assert_close(residual(x), x)
    torch.testing.assert_close(up(x), F.interpolate(x, scale_factor=2, mode='nearest'))
    torch.testing.assert_close(down(x), F.avg_pool2d(x, 2))
    torch.testing.assert_close(fusion(x, feature), x)


def test_levels_of_the_encoder_are_counted_from_the_coarsest():
    theirs, network = build_model(tiny()).state_dict(), build_model(tiny(*FIVE))
    resized = resize_checkpoint(theirs, network)
    assert grouped(resized.new, resized.tensors) == NEW_SCALE.split(', ') and not (resized.resized or resized.unused)
    for level in range(4):
        ours, old = (state[f'encoder.levels.{number}.blocks.0.0.conv1.weight']
                     for state, number in ((resized.tensors, level + 1), (theirs, level)))
        assert torch.equal(ours, old)
    down = resize_checkpoint(resized.tensors, build_model(tiny()))            # and the way back
    assert_bit_equal(down.tensors, theirs)
    assert not down.new and down.unused == NEW_SCALE.split(', ')


def test_further_codes_and_compensated_scales():
    theirs, network = build_model(tiny()).state_dict(), build_model(tiny(*CODES_TOO))
    fresh = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = resize_checkpoint(theirs, network).tensors
    for book in ('motion', 'appearance'):
        codes, old, new = (state[f'{book}.codebook.embedding'] for state in (found, theirs, fresh))
        assert torch.equal(codes[:32], old) and torch.equal(codes[32:], new[32:])
    assert torch.equal(found['motion.context.4.weight'], theirs['motion.context.3.weight'])
    assert torch.equal(found['appearance.embed.4.weight'], resized_windows(theirs['appearance.embed.3.weight'], 8, 16))


def test_parts_are_named_once():
    every = ['a.x.weight', 'a.x.bias', 'a.y.weight', 'b.weight', 'b.bias']
    assert grouped(every[:3], every) == ['a'] and grouped(['a.x.bias', *every[3:]], every) == ['a.x.bias', 'b']
    assert grouped([], every) == []


# ---------------------------------------------------------------------------- training

@pytest.mark.parametrize('sets, resized, new', [
    (FOUR, 'resized: motion.retrieval.position, appearance.retrieval.position; ', 'nothing'), (FIVE, '', NEW_SCALE)],
    ids=['four', 'five'])
def test_the_first_step_runs_and_the_message_names_what_is_new(small, tmp_path, caplog, sets, resized, new):
    with caplog.at_level('INFO'):
        train_in(tmp_path, *sets, 'train_params.num_iterations=1', checkpoint=small)
    line, = (message for message in caplog.messages if message.startswith('from 32 to 64 px, model'))
    assert line.endswith(f'tensors copied; {resized}new: {new}') and '\n' not in line
    assert any(message.startswith('from 32 to 64 px, discriminator') for message in caplog.messages)
    assert RunFolder(tmp_path).origin()['step'] == 4 and read_checkpoint(tmp_path / 'checkpoints' / '00000001.pt')


def test_it_begins_with_the_average_and_without_the_optimiser(small, tmp_path):
    config, theirs = tiny(*FIVE), read_checkpoint(small)
    state = build_training_step(config, CPU).state
    assert restore(RunFolder(tmp_path), config, state, small).step == 0
    for network in (state.model, state.ema):
        assert torch.equal(network.state_dict()['decoder.head.1.weight'], theirs['ema']['decoder.head.1.weight'])
    assert_bit_equal(state.model.state_dict(), state.ema.state_dict())
    assert_bit_equal(state.discriminator.state_dict(), theirs['discriminator'])
    assert not state.optimizer.state and not state.discriminator_optimizer.state


@pytest.mark.parametrize('step', [2, None], ids=['saved', 'unsaved'])
def test_a_run_that_goes_on_is_not_carried_again(small, large, tmp_path, step, caplog):
    run = RunFolder(tmp_path)
    shutil.copy(large / 'origin.json', run.path)
    if step is not None:
        shutil.copy(large / 'checkpoints' / f'{step:08d}.pt', run.checkpoints)
    with caplog.at_level('INFO'):
        train_in(run.path, *FIVE)
    assert any('from 32 to 64 px' in message for message in caplog.messages) == (step is None)
    assert_bit_equal(*(torch.load(folder / 'checkpoints' / '00000004.pt', weights_only=True)
                       for folder in (run.path, large)))


def test_imported_weights_climb_too(small, tmp_path):
    """They have no discriminator and no optimiser."""
    imported = {name: value for name, value in read_checkpoint(small).items() if name in ('config', 'model', 'ema')}
    write_checkpoint(tmp_path / 'model.pt', imported | {'step': 0})
    config = tiny(*FIVE)
    state = build_training_step(config, CPU).state
    untrained = {name: value.clone() for name, value in state.discriminator.state_dict().items()}
    restore(RunFolder(tmp_path / 'run'), config, state, tmp_path / 'model.pt')
    assert_bit_equal(state.discriminator.state_dict(), untrained)
    assert torch.equal(state.model.state_dict()['encoder.stem.weight'], imported['ema']['encoder.stem.weight'])


@pytest.mark.parametrize('sets, said', [
    (['model_params.flow_update_width=8'], 'model_params.flow_update_width is 16 there and 8 in the config'),
    (['model_params.kp_detector_params.padding=0'], 'model_params.kp_detector_params.padding is 3 there'),
    (['model_params.autoencoder_params.channels=[16, 8, 8, 8]'],
     r'autoencoder_params.channels is \[16, 16, 8, 8\] there and .* in the config: scales have the same'),
    (['model_params.motion_codebook_params.num_codes=16'],
     'has 32 codes for 4 scales there and 16 for 4 in the config: keep as many codes per scale')])
def test_other_models_are_refused(small, tmp_path, sets, said):
    with pytest.raises(UserError, match=f'{small}: .*{said}'):
        find_resume_point(RunFolder(tmp_path, writes=False), tiny(*FOUR, *sets), small)


def test_another_method_is_refused(small, tmp_path):
    with pytest.raises(UserError, match="model_params.method is 'synergy' there and 'fomm' in the config"):
        find_resume_point(RunFolder(tmp_path, writes=False), small_config('fomm'), small)


def test_first_order_methods_have_no_scales_to_check():
    check_scales(*(small_config('fomm').model_params,) * 2)


def test_doctor_says_what_is_taken(small, tmp_path):
    config = tiny(*FIVE)
    case = Namespace(config=config, size=64, checkpoint=small, run_folder=tmp_path / 'run')
    said = [finding.what for finding in check_checkpoint(case)]
    assert any(line.startswith('from 32 to 64 px: ') and line.endswith(f'new: {NEW_SCALE}') for line in said)
