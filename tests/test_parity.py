"""benchmarks.parity: what is cheap enough of it, and that it can fail.

By hand, over ten minutes of one core: python -m benchmarks.parity ../shared/facts/reference
"""

import numpy as np
import pytest
import torch

from benchmarks.parity import __main__ as command
from benchmarks.parity.comparison import Comparison, relative
from benchmarks.parity.kinds import compare
from tests.tiny import ROOT, SHARED

REFERENCE = SHARED / 'facts' / 'reference'
FORWARD = ['fomm_fixture_A', 'mcnet_fixture_A', 'mrfa_fomm_fixture_A', 'dagan_fixture_A', 'openface_fixture_A']


@pytest.mark.skipif(not REFERENCE.is_dir(), reason='reference fixtures are not here')
@pytest.mark.parametrize('name', FORWARD)
def test_a_forward_pass_is_the_public_codes(name):
    comparisons = compare(REFERENCE / f'{name}.npz')
    assert len(comparisons) >= 2
    assert [comparison.name for comparison in comparisons if not comparison.verdict()[-1]] == []


@pytest.mark.parametrize('ours, passes', [(1.0005, True), (0.998, False), (float('nan'), False)])
def test_a_comparison_can_fail(ours, passes):
    assert relative('loss', ours, 1.0).verdict()[-1] == passes
    assert not Comparison('shape', np.zeros(2), np.zeros(3), 1, 1).verdict()[-1]


@pytest.mark.parametrize('keys, config, complaint', [
    (['deformation', 'mask_s4'], None, 'of no known kind'),
    (['prediction', 'feat_list_0_sub'], 'fomm-vox-256.yaml', 'of method mcnet, the config of fomm')])
def test_a_fixture_of_another_kind_is_one_clear_line(keys, config, complaint, tmp_path, capsys):
    np.savez(tmp_path / 'fixture.npz', **{key: np.zeros(1) for key in keys})
    arguments = [str(tmp_path / 'fixture.npz')] + (['--config', str(ROOT / 'config' / config)] if config else [])
    assert command.main(arguments) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count('\n') == 1


def test_a_value_out_of_tolerance_is_a_failure(tmp_path, capsys):
    np.savez(tmp_path / 'fixture.npz', image=np.zeros((1, 3, 96, 96), np.float32), pooled=np.ones((1, 736), np.float32),
             embedding=np.zeros((1, 128), np.float32))
    threads = torch.get_num_threads()
    assert command.main([str(tmp_path / 'fixture.npz')]) == 1
    output = capsys.readouterr().out
    assert 'OUT' in output and 'fixture.npz: 0 of 2 within tolerance' in output and torch.get_num_threads() == threads
