"""Damaged checkpoints and published files: of bytes, of the zip around them, of what they hold, with code inside."""

import io
import pickle
import shutil
import zipfile
from functools import cache

import torch

from benchmarks.campaign import material
from benchmarks.campaign.mutate import damaged_bytes, damaged_tree, value
from benchmarks.campaign.promises import canary, right_or_refused
from benchmarks.campaign.runner import Failure
from load import load_model
from logger import RunFolder
from resume import restore
from modules.build import build_discriminator, build_model
from tools.import_checkpoint import import_published
from modules.training_state import State

CPU = torch.device('cpu')


class Code:
    """Makes the file `tripwire` if anybody unpickles it."""

    def __init__(self, tripwire, how):
        self.tripwire, self.how = str(tripwire), how

    def __reduce__(self):
        import os
        return [(open, (self.tripwire, 'w')), (os.system, (f'touch {self.tripwire}',)),
                (eval, (f'open({self.tripwire!r}, "w")',)), (torch.save, (1, self.tripwire)),
                (torch.serialization.load, (self.tripwire,))][self.how]


def damaged_file(rng, contents, tripwire):
    """(bytes of a file that held `contents`, whether they may still be the same)."""
    change = rng.randrange(10)
    if change < 3:
        return damaged_bytes(rng, material.saved(contents)), True
    if change < 5:
        return rezipped(rng, material.saved(contents)), False        # with checksums that are right
    if change < 9:
        return material.saved(damaged_contents(rng, contents)), False
    code = Code(tripwire, rng.randrange(5))
    inside = rng.choice((code, contents | {'step': code}, contents | {'config': {'model_params': code}}))
    options = rng.choice(({}, {'_use_new_zipfile_serialization': False}, {'pickle_protocol': 4}))
    return rng.choice((material.saved(inside, **options), pickle.dumps(inside, rng.randint(0, 5)))), False


def rezipped(rng, data):
    """The zip file with one record changed, left out, doubled, renamed, packed or blown up."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        records = [(info.filename, old.read(info)) for info in old.infolist()]
    n = rng.choice((0, rng.randrange(len(records)), len(records) - 1))
    name, content = records[n]
    change = rng.randrange(8)
    if change == 0:
        records[n] = name, damaged_bytes(rng, content)
    elif change == 1:
        del records[n]
    elif change == 2:
        records.append((name, damaged_bytes(rng, content)))
    elif change == 3:
        records[n] = rng.choice((name + 'x', '../' + name, '/etc/x', 'x/data.pkl', '')) or 'x', content
    elif change == 4:
        records[n] = name, content[:len(content) // 2]
    elif change == 5:
        records[n] = name, bytes(rng.choice((10 ** 6, 10 ** 8)))
    elif change == 6:
        rng.shuffle(records)
    packing = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', packing) as new:
        for name, content in records:
            new.writestr(name, content)
    return file.getvalue()


def damaged_contents(rng, contents):
    """A copy of nested dicts of tensors with other tensors, values or keys in it."""
    if rng.random() < 0.2:
        return rng.choice((value(rng), {}, [], torch.zeros(3), None))
    contents = dict(contents)
    key = rng.choice(list(contents))
    if not isinstance(contents[key], dict) or rng.random() < 0.15:
        contents.pop(key)
        if rng.random() < 0.6:
            contents[key] = value(rng)
    elif key == 'config':
        contents[key] = damaged_tree(rng, contents[key])
    else:
        contents[key] = damaged_tensors(rng, contents[key])
    return contents


def damaged_tensors(rng, tensors):
    """A copy of a (nested) dict of tensors with one exchanged."""
    tensors = dict(tensors)
    name = rng.choice(list(tensors))
    old = tensors[name]
    if isinstance(old, dict) and old:
        return tensors | {name: damaged_tensors(rng, old)}
    if isinstance(old, list) and old:
        return tensors | {name: [damaged_tensors(rng, old[0]) if isinstance(old[0], dict) else value(rng), *old[1:]]}
    if not isinstance(old, torch.Tensor) or rng.random() < 0.3:
        tensors.pop(name)
        if rng.random() < 0.7:
            tensors[rng.choice((name, f'{name}x', 'x', 3))] = value(rng)
        return tensors
    return tensors | {name: other_tensor(rng, old)}


def other_tensor(rng, old):
    return rng.choice((
        lambda: old.double(), lambda: old.half(), lambda: old.bfloat16(), lambda: old.long(), lambda: old.bool(),
        lambda: old.to(torch.complex64), lambda: old.unsqueeze(0), lambda: old.flatten(), lambda: old.reshape(-1)[:0],
        lambda: torch.cat([old.reshape(-1), old.reshape(-1)]), lambda: old.reshape(-1)[:1].expand(10 ** 6, 10 ** 6),
        lambda: torch.empty(10 ** 13, device='meta'), lambda: torch.zeros(1), lambda: torch.zeros(()),
        lambda: torch.sparse_coo_tensor(torch.zeros(2, 0), [], (10 ** 6, 10 ** 6)), lambda: old.float() * float('nan'),
        lambda: torch.nn.Parameter(old.float()), lambda: old.float().to_sparse(),
        lambda: torch.quantize_per_tensor(old.float(), 0.1, 0, torch.qint8)))()


# ---------------------------------------------------------------------------- cases

def equal(found, wanted):
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in found)


@cache
def valid():
    """(contents of a valid checkpoint, its EMA)."""
    contents = torch.load(io.BytesIO(material.checkpoint()), weights_only=True)
    return contents, contents['ema']


@canary
def checkpoint(number, rng, folder, tripwire):
    """A checkpoint, as every mode but training reads it: the weights as they were, or a refusal."""
    contents, wanted = valid()
    path = folder / 'case.pt'
    data, same = damaged_file(rng, contents, tripwire)
    path.write_bytes(data)

    def read():
        _, model = load_model(str(path), device=CPU)
        found = model.state_dict()
        if same and not equal(found, wanted):
            raise Failure('other weights than were saved, without a word')
    return right_or_refused(read, path)


@canary
def resume(number, rng, folder, tripwire):
    """The newest checkpoint of a run, as training goes on from it: as it was, or named, and the one before is used."""
    contents, _ = valid()
    run = folder / 'run'
    shutil.rmtree(run, ignore_errors=True)
    (run / 'checkpoints').mkdir(parents=True)
    (run / 'checkpoints' / '00000001.pt').write_bytes(material.checkpoint())
    path = run / 'checkpoints' / '00000002.pt'
    data, same = damaged_file(rng, contents, tripwire)
    path.write_bytes(data)

    def go_on():
        config = material.smallest()
        model, discriminator = build_model(config), build_discriminator(config)
        state = State(config.train_params, model, discriminator)
        step = restore(RunFolder(run), config, state).step
        if step == 2 and same and not equal(state.ema.state_dict(), contents['ema']):
            raise Failure('other weights than were saved, without a word')
        for network in (model, discriminator):
            for parameter in network.parameters():
                parameter.grad = torch.zeros_like(parameter)
        state.update(True, None)
    return right_or_refused(go_on, path)


@canary
def published(number, rng, folder, tripwire):
    """Published files: imported whole, or refused by name with nothing written."""
    source = rng.choice(('smac', 'fomm', 'mcnet'))
    files, config = material.published(source)
    paths, out = [folder / f'case{n}.pth' for n in range(len(files))], folder / 'imported.pt'
    out.unlink(missing_ok=True)
    for path, contents in zip(paths, files):
        path.write_bytes(material.saved(contents))
    broken = rng.randrange(len(files))
    data, _ = damaged_file(rng, files[broken], tripwire)
    paths[broken].write_bytes(data)
    word = right_or_refused(lambda: import_published(source, paths, config, out), paths[broken])
    if (word == 'right') != out.is_file():
        raise Failure(f'{word}, but the checkpoint is {"there" if out.is_file() else "not there"}')
    return word
