"""Configs: every mistake stops at once and says which key, what was expected, and the nearest name."""

import dataclasses
import math
import types
import typing
from typing import Annotated

import pytest

from config import schema
from modules.build import METHODS
from support.errors import UserError
from support.ranges import Range
from tests.support.tiny import ROOT, tiny

VOX = ROOT / 'config/vox-256.yaml'


@pytest.mark.parametrize('override, message', [
    ('train_params.batchsize=3', 'unknown key train_params.batchsize; did you mean batch_size'),
    ('trainparams.batch_size=3', 'unknown key trainparams; did you mean train_params'),
    ('train_params.batch_size=many', "train_params.batch_size='many': expected int"),
    ('train_params.batch_size=2.5', 'train_params.batch_size=2.5: expected int'),
    ('train_params.batch_size=true', 'expected int'),
    ('dataset_params.augmentation_params.hue=0.6', 'augmentation_params.hue=0.6: expected at least 0 and at most 0.5'),
    ('train_params.betas=[2,3]', 'train_params.betas[0]=2.0: expected at least 0 and below 1'),
    ('train_params.betas=[0.5]', 'betas=[0.5]: expected two values'),
    ('model_params.autoencoder_params.channels=[]', 'channels=[]: expected the width of at least one scale'),
    ('model_params.autoencoder_params.norm_groups=7', 'channels=[256, 128, 128, 64]: 256 is not a multiple of'),
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


@pytest.mark.parametrize('text, message', [
    ('train_params: [1', 'not valid YAML'), ('base: x.yaml', 'is its own base'),
    ('', 'x.yaml is empty'), ('# nothing\n', 'x.yaml is empty')])
def test_broken_yaml_circles_and_empty_files_are_named(tmp_path, text, message):
    (tmp_path / 'x.yaml').write_text(text)
    with pytest.raises(UserError, match=message):
        schema.load(tmp_path / 'x.yaml')


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


def test_keys_of_earlier_configs_mean_the_same(tmp_path):
    (tmp_path / 'old.yaml').write_text(f"""base: {VOX}
model_params: {{motion_codebook_params: {{scales: 2}}}}
train_params: {{objective_params: {{loss_weights: {{coarse: 0.25}}}}}}""")
    config = schema.load(tmp_path / 'old.yaml')
    assert config.model_params.motion_codebook_params.num_scales == 2
    assert config.train_params.objective_params.loss_weights['first_scale'] == 0.25
    raw = config.as_dict()                                      # as a checkpoint holds it
    raw['model_params']['motion_codebook_params']['scales'] = raw['model_params']['motion_codebook_params'].pop(
        'num_scales')
    assert schema.parse(raw, 'x.pt') == config
    new = schema.load(tmp_path / 'old.yaml', ['model_params.motion_codebook_params.num_scales=1'])
    assert new.model_params.motion_codebook_params.num_scales == 1


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


# Ranges

def numbers_in(hint):
    """The Ranges of all numbers that a type has in it; None for a number without one."""
    if hint in (int, float):
        yield None
    elif typing.get_origin(hint) is Annotated:
        yield hint.__metadata__[0]
    elif typing.get_origin(hint) in (tuple, dict, types.UnionType):
        for part in typing.get_args(hint):
            yield from numbers_in(part)


def numeric_fields():
    """(method, keys of the field, its Range) of all Params that a config may hold."""
    def walk(cls, keys):
        for name, hint in typing.get_type_hints(cls, include_extras=True).items():
            if dataclasses.is_dataclass(hint):
                yield from walk(hint, (*keys, name))
            for found in numbers_in(hint):
                yield (*keys, name), typing.get_origin(hint), found
    sections = typing.get_type_hints(schema.Config)
    for name in set(sections) - {'method', 'model_params'}:
        yield from (('synergy', *field) for field in walk(sections[name], (name,)))
    for method, parts in METHODS.items():
        yield from ((method, *field) for field in walk(parts.model.Params, ('model_params',)))


FIELDS = sorted(numeric_fields(), key=lambda field: field[:2])


def test_every_number_has_a_range():
    assert len(FIELDS) > 100
    assert not ['.'.join(keys) for _, keys, _, allowed in FIELDS if not isinstance(allowed, Range)]


@pytest.mark.parametrize('method, keys, container, allowed', FIELDS, ids=lambda value: '.'.join(value)
                         if isinstance(value, tuple) else value if isinstance(value, str) else '')
def test_no_number_is_taken_outside_of_its_range(method, keys, container, allowed):
    outside = [allowed.least if allowed.above else allowed.least - 1, math.inf, math.nan]
    if allowed.most < math.inf:
        outside.append(allowed.most if allowed.below else allowed.most + 1)
    for number in outside:
        value = {tuple: [number], dict: {'l1': number}}.get(container, number)
        for key in reversed(keys):
            value = {key: value}
        value['model_params'] = {'method': method} | value.get('model_params', {})
        with pytest.raises(UserError) as error:
            schema.parse(value, 'x.yaml')
        assert f'x.yaml: {".".join(keys)}' in str(error.value) and 'expected' in str(error.value)


def test_a_range_holds_its_ends_unless_they_are_left_out():
    assert all(number in Range(0, 1) for number in (0, 0.5, 1)) and not any(n in Range(0, 1) for n in (-1e-9, 1.1))
    assert 0 not in Range(0, above=True) and 1e-9 in Range(0, above=True) and 1 not in Range(0, 1, below=True)
    assert not any(number in Range(0) for number in (math.inf, math.nan))
    assert [str(r) for r in (Range(1), Range(0, 1, above=True, below=True))] == ['at least 1', 'above 0 and below 1']
