"""Damaged inputs of every kind: read right, or refused in one line that names the file; never run, never a hang.

A failing input is written, as small as Hypothesis makes it, below log/campaign; in tests/corpus/KIND it is a test.
"""

import copy
import io
import json
import logging
import math
import os
import pickle
import re
import resource
import select
import shutil
import signal
import time
import traceback

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip('hypothesis')

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config import schema
from logger import RunFolder
from load import load_model
from modules.build import build_discriminator, build_model
from modules.training_state import State
from tests.campaign import share_of
from tests.campaign.processes import used
from tests.support import inputs
from tests.support.readers import READERS, check_config, right_or_refused
from tests.support.tiny import ROOT
from tools.import_checkpoint import import_published
from resume import restore

pytestmark = pytest.mark.campaign
fuzz = settings(max_examples=share_of(1000), deadline=None, database=None, print_blob=True,
                suppress_health_check=list(HealthCheck))
MEMORY, SECONDS = 4 * 2 ** 30, 60           # bytes and CPU seconds of a case
RESERVED = 12 * 2 ** 30                     # above MEMORY: who is refused this much may ask for less, and answer well

NUMBERS = (0, 1, -1, 2 ** 31 - 1, 2 ** 31, 2 ** 63, 10 ** 30, 0.5, -0.0, 1e308, math.inf, -math.inf, math.nan)
WORDS = ('', ' ', 'null', '~', '1:30', '08', 'a' * 5000, '名前', '\u202etxt', 'р' + 'aypal', '\x00', '\n', '"', '#',
         '{}', '%s%n', '${HOME}', '$(id)', '/', '/etc/passwd', '..', '../../../../tmp/out', '~/x', '.hidden', '--help',
         'x' * 255, 'x/' * 2000, 'file:///etc/passwd', 'http://127.0.0.1:1/', 'fd:0', 'concat:a|b')
WORD, TAG = r'[^,\s]+', rb'[a-zA-Z]{4}'     # a cell or value; a box of a video or an image
words = st.sampled_from(WORDS) | st.text(max_size=20)
values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(NUMBERS) | words,
                      lambda low: st.lists(low, max_size=3) | st.dictionaries(words, low, max_size=3), max_leaves=4)


def isolated(case, folder):
    """Fails if case() does so in a forked process with limits of memory and time, or if code in its input was run."""
    reading, writing = os.pipe()
    pid, end = os.fork(), time.monotonic() + 10 * SECONDS
    if not pid:
        failed = ''
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1), os.dup2(1, 2), os.setpgid(0, 0)
            logging.disable(logging.CRITICAL)
            resource.setrlimit(resource.RLIMIT_DATA, (RESERVED, RESERVED))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            case()
        except BaseException:
            failed = traceback.format_exc()[-3000:]
        os.write(writing, (failed or 'done').encode(errors='replace'))
        os._exit(0)
    os.close(writing)
    failed = None
    while not failed and not select.select([reading], [], [], 0.02)[0]:
        seconds, memory = used(pid)
        if memory > MEMORY or seconds > SECONDS or time.monotonic() > end:
            failed = f'after {seconds:.0f} s of computing no answer, and {memory / 2 ** 30:.1f} GiB of memory taken'
    if failed:
        os.kill(pid, signal.SIGKILL)
    answer = failed or os.read(reading, 2 ** 16).decode()
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    assert answer == 'done', answer or f'the process ended with code {os.waitstatus_to_exitcode(status)}'
    assert not (folder / 'canary').exists(), 'code in the input was run'


def read(kind, path, folder, data, reader):
    """Write the data, read them in a process of its own, and keep them if that fails."""
    path.write_bytes(data)
    try:
        isolated(lambda: reader(path, folder), folder)
    except AssertionError:
        kept = ROOT / 'log' / 'campaign' / f'{kind}{path.suffix}'
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(data)
        (folder / 'canary').unlink(missing_ok=True)
        raise


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('fuzz')


@st.composite
def spliced(draw, data):
    """`data`, bytes or text, with one to three parts cut, overwritten, repeated or inserted: anywhere, or at a word."""
    for _ in range(draw(st.integers(1, 3))):
        marks = [found.span() for found in re.finditer(WORD if isinstance(data, str) else TAG, data)] or [(0, 0)]
        at, end = draw(st.sampled_from(marks))
        if draw(st.booleans()):
            at = draw(st.integers(0, len(data)) | st.just(max(0, at + 4 * draw(st.integers(-1, 12)))))
            end = at + draw(st.sampled_from((0, 1, 1, 2, 4, 4, 8, 512, 4096, len(data))))
        new = words if isinstance(data, str) else st.binary(max_size=16) | st.integers(0, 2 ** 32 - 1).map(
            lambda number: number.to_bytes(4)) | st.sampled_from((b'\xff' * 8, b'\x7f' + b'\xff' * 3, bytes(8)))
        data = data[:at] + draw(new | st.just(2 * data[at:end])) + data[end:]
    return data


def text(valid):
    """Damaged text as bytes."""
    return st.builds(lambda text, encoding: text.encode(encoding, 'surrogatepass'), spliced(valid),
                     st.sampled_from(('utf-8', 'utf-8', 'utf-8', 'utf-8-sig', 'utf-16')))


@st.composite
def changed(draw, tree):
    """A copy of nested dicts and lists with one value replaced, removed or added."""
    holder = tree = copy.deepcopy(tree)
    while True:
        key = draw(st.sampled_from(list(holder) if isinstance(holder, dict) else range(len(holder))))
        if not isinstance(holder[key], (dict, list)) or not holder[key] or draw(st.integers(0, 4)) == 0:
            break
        holder = holder[key]
    action = draw(st.sampled_from(('replace', 'near', 'near', 'remove', 'add')))
    if action == 'remove':
        del holder[key]
    elif action == 'add' and isinstance(holder, dict):
        holder[draw(words | st.just(3) | st.just(f'{key}x'))] = draw(values)
    else:
        holder[key] = draw(values if action == 'replace' else near(holder[key]))
    return tree


def near(old):
    """Values of the same type, plausible or not."""
    if isinstance(old, torch.Tensor):
        return st.sampled_from(TENSORS).map(lambda change: change(old))
    if isinstance(old, (int, float)):
        return st.sampled_from((not old, -old, 2 * old + 3, old / 2, 10 ** 12, math.nan, math.inf))
    return st.sampled_from((2 * old, old[:-1], old[::-1], [old])) if isinstance(old, (list, str)) else values


TENSORS = (torch.Tensor.double, torch.Tensor.half, torch.Tensor.long, lambda old: old.to(torch.complex64),
           lambda old: old.unsqueeze(0), lambda old: old.reshape(-1)[:0], lambda old: old.reshape(-1).repeat(2),
           lambda old: old.reshape(-1)[:1].expand(10 ** 6, 10 ** 6), lambda old: torch.empty(10 ** 13, device='meta'),
           lambda old: torch.zeros(()), lambda old: old.float() * math.nan, lambda old: old.float().to_sparse(),
           lambda old: torch.quantize_per_tensor(old.float(), 0.1, 0, torch.qint8))


class Code:
    """Makes the file `canary` if anybody unpickles it."""

    def __init__(self, canary, how):
        self.canary, self.how = str(canary), how

    def __reduce__(self):
        return [(open, (self.canary, 'w')), (os.system, (f'touch {self.canary}',)), (torch.save, (1, self.canary)),
                (eval, (f'open({self.canary!r}, "w")',))][self.how]


@st.composite
def weights(draw, contents, canary):
    """(bytes of a file that held `contents`, whether they may be the same after all)."""
    kind = draw(st.sampled_from(('bytes', 'contents', 'contents', 'code')))
    if kind == 'bytes':
        return draw(spliced(inputs.saved(contents))), True
    if kind == 'contents':
        return inputs.saved(draw(changed(contents))), False
    code = Code(canary, draw(st.integers(0, 3)))
    inside = draw(st.sampled_from((code, contents | {'step': code}, contents | {'config': {'model_params': code}})))
    return draw(st.sampled_from((inputs.saved(inside), pickle.dumps(inside),
                                 inputs.saved(inside, _use_new_zipfile_serialization=False)))), False


TREES = [schema.load(path).as_dict() for path in inputs.CONFIGS]
ODD = ('!!python/object/apply:os.system ["touch canary"]', '!!python/object/new:open ["canary", "w"]', '&a [*a]',
       '!!python/name:os.system', '!!binary aGk=', '!!set {a, b}', '!!timestamp 2001-01-01', '2001-99-99', '9' * 5000,
       *(opening * 3000 for opening in ('[', '{a: ', '? ', '- ')), '<<: *x', '{<<: {a: 1}}',
       '\n'.join(f'k{i}: &k{i} [{", ".join([f"*k{i - 1}"] * 9) if i else "x"}]' for i in range(12)))


def as_json(tree):
    return json.dumps(tree, default=str, skipkeys=True).encode()


@st.composite
def configs(draw):
    """A changed config as YAML, its text damaged, or one line of another tag."""
    tree = draw(st.sampled_from(TREES))
    lines = yaml.safe_dump(tree).split('\n')
    n = draw(st.integers(0, len(lines) - 1))
    odd = [*lines[:n], lines[n].partition(':')[0] + ': ' + draw(st.sampled_from(ODD)), *lines[n + 1:]]
    return draw(st.just('\n'.join(odd).encode()) | text('\n'.join(lines)) | changed(tree).map(
        lambda tree: yaml.safe_dump(tree, allow_unicode=True).encode('utf-8', 'surrogatepass')))


@st.composite
def templates(draw):
    """A motion template with its bytes or one of its arrays changed, pickled objects among them."""
    file, arrays = io.BytesIO(), dict(np.load(io.BytesIO(inputs.motion())))
    name = draw(st.sampled_from(sorted(arrays)))
    arrays[name] = draw(st.sampled_from((arrays[name][None], np.asarray([]), math.nan, arrays[name].astype(str),
                                         np.array([Code('canary', 0)], object))))
    np.savez_compressed(file, allow_pickle=True, **arrays)
    return draw(st.just(file.getvalue()) | spliced(inputs.motion()))


def one_of(*files):
    """(suffix, damaged bytes) of one of (suffix, valid bytes)."""
    return st.sampled_from(files).flatmap(lambda file: st.tuples(st.just(file[0]), spliced(file[1])))


FILES = {'image': one_of(*((suffix, data) for suffix, images in inputs.pictures().items() for data in images)),
         'video': one_of(*inputs.videos())}
RECORDS = ''.join(as_json(record).decode() + '\n' for record in inputs.RECORDS)
for kind, suffix, contents in (
        ('config', '.yaml', configs()), ('template', '.npz', templates()),
        ('celebvhq-metadata', '.json', changed(inputs.CELEBVHQ).map(as_json) | text(json.dumps(inputs.CELEBVHQ))),
        ('manifest', '.jsonl', changed(inputs.RECORDS[0]).map(as_json) | text(RECORDS)),
        *((kind, '.csv', st.sampled_from(tables).flatmap(text)) for kind, tables in inputs.TABLES.items())):
    FILES[kind] = st.tuples(st.just(suffix), contents)


@pytest.mark.parametrize('kind', FILES)
@fuzz
@given(data=st.data())
def test_a_damaged_file_is_read_right_or_refused(kind, folder, data):
    suffix, content = data.draw(FILES[kind])
    os.chdir(folder)                                     # where code in it would make the canary
    read(kind, folder / f'case{suffix}', folder, content, READERS[kind])


@fuzz
@given(st.sampled_from(TREES), st.data())
def test_a_set_value_is_taken_right_or_refused(folder, config, data):
    os.chdir(folder)
    key = data.draw(st.sampled_from([f'{part}.{key}' for part, below in config.items() if isinstance(below, dict)
                                     for key in below]).flatmap(lambda key: st.just(key) | spliced(key)))
    value = data.draw(values.map(str) | values.map(as_json).map(bytes.decode) | st.sampled_from(ODD))
    isolated(lambda: right_or_refused(lambda: check_config(schema.override(schema.parse(config, 'x'),
                                                                           [f'{key}={value}']), folder)), folder)


CONTENTS = torch.load(io.BytesIO(inputs.checkpoint()), weights_only=True)


def equal(found, wanted):
    return found.keys() == wanted.keys() and all(map(torch.equal, found.values(), wanted.values()))


@fuzz
@given(st.data())
def test_a_damaged_checkpoint_gives_its_weights_or_is_refused(folder, data):
    content, same = data.draw(weights(CONTENTS, folder / 'canary'))

    def load(path):
        _, network = load_model(str(path), device=torch.device('cpu'))
        assert not same or equal(network.state_dict(), CONTENTS['ema']), 'other weights than were saved, without a word'
    read('checkpoint', folder / 'case.pt', folder, content, lambda path, _: right_or_refused(lambda: load(path), path))


@fuzz
@given(st.data())
def test_training_resumes_from_a_damaged_checkpoint_or_the_one_before(folder, data):
    content, same = data.draw(weights(CONTENTS, folder / 'canary'))
    checkpoints = folder / 'run' / 'checkpoints'
    shutil.rmtree(folder / 'run', ignore_errors=True)
    checkpoints.mkdir(parents=True)
    (checkpoints / '00000001.pt').write_bytes(inputs.checkpoint())

    def resume():
        config = inputs.smallest()
        networks = build_model(config), build_discriminator(config)
        state = State(config.train_params, *networks)
        step = restore(RunFolder(folder / 'run'), config, state).step
        assert step != 2 or not same or equal(state.ema.state_dict(), CONTENTS['ema'])
        for parameter in [parameter for network in networks for parameter in network.parameters()]:
            parameter.grad = torch.zeros_like(parameter)
        state.update(True, None)
    read('resume', checkpoints / '00000002.pt', folder, content, lambda path, _: right_or_refused(resume, path))


@fuzz
@given(st.data())
def test_damaged_published_files_are_imported_whole_or_refused_with_nothing_written(folder, data):
    source = data.draw(st.sampled_from(('smac', 'fomm', 'mcnet')))
    files, config = inputs.published(source)
    paths, out = [folder / f'case{n}.pth' for n in range(len(files))], folder / 'imported.pt'
    for path, contents in zip(paths, files):
        path.write_bytes(inputs.saved(contents))
    damaged = data.draw(st.integers(0, len(files) - 1))
    content, _ = data.draw(weights(files[damaged], folder / 'canary'))

    def load(path, _):
        out.unlink(missing_ok=True)
        word = right_or_refused(lambda: import_published(source, paths, config, out), path)
        assert (word == 'right') == out.is_file(), word
    read('published', paths[damaged], folder, content, load)
