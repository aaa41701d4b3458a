"""What all long tests share."""

import random

import pytest

from tests.campaign import SEED


def pytest_ignore_collect(config):
    """Not even imported unless -m names them."""
    return True if 'campaign' not in config.option.markexpr.replace('not campaign', '') else None


@pytest.fixture
def rng(request):
    """random.Random of a trial, by its name."""
    return random.Random(f'{SEED} {request.node.name}')


@pytest.fixture(scope='session')
def scenarios(tmp_path_factory):
    from tests.campaign.scenarios import Scenarios
    return Scenarios(tmp_path_factory.mktemp('campaign'))
