"""Configs: every mistake stops at once and says which key, what was expected, and the nearest name."""

import pytest

from config import schema
from support.errors import UserError
from tests.tiny import ROOT, tiny

VOX = ROOT / 'config/vox-256.yaml'


@pytest.mark.parametrize('override, message', [
    ('train_params.batchsize=3', 'unknown key train_params.batchsize; did you mean batch_size'),
    ('trainparams.batch_size=3', 'unknown key trainparams; did you mean train_params'),
    ('train_params.batch_size=many', "train_params.batch_size='many': expected int"),
    ('train_params.batch_size=2.5', 'train_params.batch_size=2.5: expected int'),
    ('train_params.batch_size=true', 'expected int'),
    ('train_params.batch_size=0', 'batch_size=0: expected at least 1'),
    ('train_params.precision=fp8', "precision='fp8': expected one of fp32, bf16"),
    ('train_params.betas=0.5', 'train_params.betas=0.5: expected a list'),
    ('train_params.objective_params.loss_weights.perceptal=1', 'did you mean perceptual'),
    ('model_params.method=synergi', 'did you mean synergy'),
    ('model_params.image_size=100', 'image_size=100 cannot be halved 3 times'),
    ('model_params.motion_codebook_params.allocation=fair', 'expected one of progressive, shared, equal'),
    ('model_params.motion_codebook_params.num_codes=1022', 'num_codes=1022 cannot be split evenly over num_scales=4'),
    ('model_params.appearance_codebook_params.num_scales=8', 'the model has 4 scales'),
    ('model_params=7', 'model_params: expected keys and values'),
    ('nonsense', '--set nonsense: expected section.key=value'),
    ('train_params.betas=[1', 'the value is not valid YAML'),
])
def test_a_mistake_is_named(override, message):
    with pytest.raises(UserError) as error:
        schema.load(VOX, [override])
    assert message in str(error.value) and '\n' not in str(error.value)


def test_a_missing_file_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match='did you mean .*vox-256.yaml'):
        schema.load(ROOT / 'config/vox-265.yaml')
    with pytest.raises(UserError, match='does not exist'):
        schema.load(tmp_path / 'nowhere' / 'x.yaml')


def test_broken_yaml_and_circles_are_named(tmp_path):
    (tmp_path / 'a.yaml').write_text('train_params: [1')
    with pytest.raises(UserError, match='not valid YAML'):
        schema.load(tmp_path / 'a.yaml')
    (tmp_path / 'b.yaml').write_text('base: b.yaml')
    with pytest.raises(UserError, match='based on itself'):
        schema.load(tmp_path / 'b.yaml')


def test_a_config_inherits_and_changes_only_what_it_names(tmp_path):
    (tmp_path / 'child.yaml').write_text(f'base: {VOX}\ntrain_params:\n  learning_rate: 1e-3\n')
    child, parent = schema.load(tmp_path / 'child.yaml').as_dict(), schema.load(VOX).as_dict()
    assert child['train_params'].pop('learning_rate') == 1e-3    # YAML 1.1 reads 1e-3 as a string
    parent['train_params'].pop('learning_rate')
    assert child == parent


def test_of_several_bases_later_ones_win(tmp_path):
    (tmp_path / 'sizes.yaml').write_text('train_params: {batch_size: 3, gamma: 0.2}')
    (tmp_path / 'child.yaml').write_text(f'base: [{VOX}, sizes.yaml]\ntrain_params: {{gamma: 0.7}}')
    params = schema.load(tmp_path / 'child.yaml').train_params
    assert (params.batch_size, params.gamma, params.num_iterations) == (3, 0.7, 250_000)
    for bases in ('3', '[{a: 1}]', '{a: 1}'):
        (tmp_path / 'child.yaml').write_text(f'base: {bases}')
        with pytest.raises(UserError, match='expected the name of a file, or a list'):
            schema.load(tmp_path / 'child.yaml')


def test_a_config_survives_being_written(tmp_path):
    config = tiny()
    schema.save(config, tmp_path / 'x.yaml')
    assert schema.load(tmp_path / 'x.yaml') == config


def test_the_papers_numbers():
    config = schema.load(VOX)
    model, train = config.model_params, config.train_params
    assert (model.motion_codebook_params.num_codes, model.motion_codebook_params.code_dim) == (1024, 32)
    assert (model.appearance_codebook_params.num_codes, model.appearance_codebook_params.code_dim) == (1024, 256)
    assert (model.grid, model.flow_size, len(model.autoencoder_params.channels)) == (32, 64, 4)
    assert (train.learning_rate, train.batch_size, train.num_iterations) == (8e-5, 16, 250_000)
    weights = train.objective_params.loss_weights
    assert (weights['adversarial'], weights['first_scale'], weights['motion_reconstruction']) == (0.8, 0.5, 32)
