"""The campaigns of benchmarks/campaign, seconds of each; and every input that ever failed, small ones, in corpus/."""

import random
from pathlib import Path

import pytest

from benchmarks.campaign import fuzz, material, runner, weightfiles
from benchmarks.campaign.runner import Failure, Kind, run_campaign
from logger import RunFolder, read_checkpoint
from support.errors import LONGEST, UserError, one_line

CORPUS = sorted(path for path in (Path(__file__).parent / 'corpus').rglob('*') if path.is_file())


# ---------------------------------------------------------------------------- the runner

def test_a_campaign_goes_on_and_names_the_command_that_repeats_a_failure(tmp_path, capsys):
    made = []

    def trial(number, rng, work):
        made.append((number, rng.random()))
        if number == 1:
            raise Failure('it broke')
        return 'right'
    kinds = {'a': Kind(3, trial)}
    report = run_campaign('x', kinds, tmp_path, trials=2)
    assert [number for number, _ in made] == [0, 1]
    assert report['kinds']['a'] == report['kinds']['a'] | {'planned': 3, 'tried': 2, 'survived': 1}
    run_campaign('x', kinds, tmp_path)
    assert [number for number, _ in made] == [0, 1, 2]
    run_campaign('x', kinds, tmp_path, only=['a/1'])
    assert made[-1] == made[1]                        # the same random numbers
    text = (tmp_path / 'x-0' / 'report.md').read_text()
    assert 'a/1: it broke' in text and 'python -m benchmarks.campaign x --seed 0 --only a/1' in text


def test_a_budget_that_is_spent_begins_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(runner.time, 'monotonic', iter(range(0, 1000, 61)).__next__)
    assert run_campaign('x', {'a': Kind(3, lambda *_: None)}, tmp_path, minutes=1)['kinds']['a']['tried'] == 0


# ---------------------------------------------------------------------------- fuzz

@pytest.mark.parametrize('kind, count', [(kind, 12) for kind in fuzz.INPUTS if kind != 'config']
                         + [('config', 3), ('set', 3), ('checkpoint', 6), ('resume', 3), ('published', 6)])
def test_damaged_inputs_are_read_right_or_refused(tmp_path, kind, count):
    for number in range(count):
        assert fuzz.CASES[kind](number, random.Random(f'short {kind} {number}'), tmp_path)


@pytest.mark.parametrize('path', CORPUS, ids=lambda path: f'{path.parent.name}-{path.name}')
def test_inputs_that_once_failed(tmp_path, path):
    """corpus/KIND/NAME"""
    copy = tmp_path / f'case{path.suffix}'
    copy.write_bytes(path.read_bytes())
    assert fuzz.INPUTS[path.parent.name].read(copy, tmp_path)


def test_a_failure_of_a_child_process_is_a_failure(tmp_path):
    isolated = fuzz.Isolated('tests.test_campaign')
    assert isolated('number', 7, random.Random(0), tmp_path) == 7
    for kind, why in (('memory', 'MemoryError'), ('end', 'ended with code 3'), ('bug', 'KeyError at ')):
        with pytest.raises(Failure, match=why):
            isolated(kind, 0, random.Random(0), tmp_path)
    isolated.close()


def _end(*_):
    import os
    os._exit(3)


CASES = {'number': lambda number, rng, folder: number, 'memory': lambda *_: bytearray(5 * 2 ** 30),
         'end': _end, 'bug': lambda *_: {}['x']}          # of the test above, in its child process


# ---------------------------------------------------------------------------- what the campaigns found

def test_one_flipped_byte_of_a_checkpoint_is_noticed(tmp_path):
    """PyTorch itself reads it without a word."""
    whole, path = material.checkpoint(), tmp_path / 'x.pt'
    for place in range(1000, len(whole), len(whole) // 8):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1:])
        try:
            assert weightfiles.equal(read_checkpoint(path)['ema'], weightfiles.valid()[1])    # in what is not read
        except UserError as error:
            assert 'damaged' in str(error)


def test_the_newest_whole_checkpoint_is_found_and_a_run_without_any_is_not_begun_anew(tmp_path, caplog):
    run, whole = RunFolder(tmp_path), material.checkpoint()
    assert run.newest() is None
    (tmp_path / 'checkpoints' / '00000001.pt').write_bytes(whole)
    middle = len(whole) // 2
    broken = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1:]
    (tmp_path / 'checkpoints' / '00000002.pt').write_bytes(broken)
    assert run.newest()[0].name == '00000001.pt' and '00000002.pt: is cut short or damaged' in caplog.text
    (tmp_path / 'checkpoints' / '00000001.pt').write_bytes(broken)
    with pytest.raises(UserError, match='all 2 checkpoints are damaged'):
        run.newest()


def test_messages_are_one_line_whatever_they_quote():
    assert one_line(UserError('a\x0bb\u2028c\x1b[2J')) == 'a\\x0bb\\u2028c\\x1b[2J'
    assert len(one_line(UserError('x' * 10_000))) <= LONGEST
    assert one_line(UserError('Traceback ...\nsupport.errors.UserError: no clip\n')) == 'no clip'
