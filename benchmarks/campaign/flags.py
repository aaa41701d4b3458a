"""All pairs of flags of every mode, tried for real on tiny files: each flag that is given is read, or refused."""

import argparse
import json
import os
import random
import shutil
import sys
from contextlib import contextmanager, nullcontext
from functools import cache
from itertools import combinations
from types import ModuleType

import torch
import yaml

import run
from benchmarks.campaign import material
from benchmarks.campaign.promises import right_or_refused
from benchmarks.campaign.runner import Failure
from datasets.video import open_clip
from evaluation.study.build import StudyJob, StudyPair
from evaluation.study.build import build as build_study
from motion import template as motion_template
from modules.build import build_model
from tests.support.study import answer

# (mode, flags that it cannot do without in this use of it); names in braces are `places`.
USES = (
    ('train', ('--config', '{config}')),
    ('reconstruction', ('--checkpoint', '{checkpoint}')),
    ('animate', ('--checkpoint', '{checkpoint}', '--source_image', '{source}', '--driving_video', '{driving}')),
    ('animate', ('--checkpoint', '{checkpoint}', '--set', 'animate_params.num_pairs=1')),
    ('evaluate', ('--checkpoint', '{checkpoint}')),
    ('evaluate', ('--generated', '{videos}', '--driving', '{videos}')),
    ('inspect', ('--checkpoint', '{checkpoint}', '--source_image', '{source}', '--driving_video', '{driving}')),
    ('inspect', ('--checkpoint', '{checkpoint}',)),
    ('prepare', ('--dataset', 'voxceleb1', '--videos', '{videos}', '--metadata', '{metadata}')),
    ('import', ('--from', 'smac', '{published0}', '{published1}', '{published2}', '--config', '{config}')),
    ('doctor', ('--checkpoint', '{checkpoint}')),
    ('compare', ('--checkpoints', '{checkpoint}', '--source_image', '{source}', '--driving_video', '{driving}')),
    ('study', ('--checkpoints', 'a={checkpoint}', 'b={checkpoint}', '--pairs', '1', '--checks', '1')),
    ('study', ('--collect', '{answers}', '--out', '{study}')),
    ('web', ('--checkpoint', '{checkpoint}')),
    ('curves', ('--run', '{logged}')),
    ('demo', ('--config', '{config}')),
    ('pack', ('--clips', '{set}', '--out', '{out}/shards')),
    ('export', ('--checkpoint', '{checkpoint}')),
)

VALUES = {
    '--config': '{config}', '--set': 'train_params.seed=1', '--log_dir': '{out}/log', '--run_name': 'x',
    '--device': 'cpu', '--checkpoint': '{checkpoint}', '--resume': '{run}', '--source_image': '{source}',
    '--driving_video': '{driving}', '--result_video': '{out}/result.mp4', '--smooth': '0.5', '--face_index': '0',
    '--crop': {'animate': 'none', 'prepare': 'legacy'}, '--protocol': 'same-identity-no-first',
    '--metrics': 'psnr.rgb', '--list': {'compare': '{pairs}', 'study': '{pairs}', None: '{list}'},
    '--path_map': '{videos}',
    '--generated': {'compare': 'x={generated}', 'study': 'x={generated}', None: '{videos}'},
    '--driving': '{videos}', '--source': '{videos}', '--resize': '16', '--dataset': 'voxceleb1',
    '--videos': '{videos}', '--metadata': '{metadata}', '--download': 'true', '--out': '{out}/out.png', '--size': '16',
    '--min_face': '1', '--part': '1/1', '--format': 'png', '--workers': '1', '--frames': '1',
    '--at': ('3', '4'), '--code_frames': '2', '--from': 'smac',
    '--source_video': '{driving}', '--source_end': 'hold', '--driving_motion': '{motion}',
    '--save_motion': '{out}/motion.npz', '--pairs': '1', '--zoom': ('1', '2', '8', '8'), '--width_cm': '9',
    '--background': 'dark', '--design': 'pairwise', '--comparisons': '1', '--checks': '1', '--seed': '1',
    '--checkpoints': '{checkpoint}', '--collect': '{answers}', '--port': '7861', '--host': '127.0.0.1',
    '--auth': 'ann:secret', '--share': 'never', '--reference': 'demo-64', '--shard_mb': '1',
}
BARE = ('--relative', '--absolute', '--adapt_scale', '--find_best_frame', '--paste_back', '--side_by_side', '--error',
        '--pictures_only', '--status',
        '--keep_shared_people', '--arrows', '--json')


@cache
def _pairs():
    """[(use, flags)]: none, each alone and all pairs of what the mode reads beyond the flags of the use.

    Shuffled, so that a budget that ends early has tried something of every mode.
    """
    found = []
    for use in USES:
        free = sorted(run.flags_of(use[0]) - set(use[1]) - {'--mode'})
        found += [(use, flags) for count in range(3) for flags in combinations(free, count)]
    random.Random(0).shuffle(found)
    return found


def count():
    return len(_pairs())


class Watched(argparse.Namespace):
    """Options that note which of them are read."""

    def __getattribute__(self, name):
        if not name.startswith('_'):
            super().__getattribute__('_read').add(name)
        return super().__getattribute__(name)


def pair(number, rng, folder):
    """The pair of this number; the use's own flags have to be read, too."""
    (mode, needed), extra = _pairs()[number]
    places = _places(folder)
    shutil.rmtree(places['out'], ignore_errors=True)
    os.makedirs(places['out'])
    os.chdir(places['out'])         # what a mode writes by default
    arguments = ['--mode', mode, *needed]
    for flag in extra:
        value = VALUES.get(flag, ())
        value = value.get(mode, value.get(None)) if isinstance(value, dict) else value
        if not value and flag not in BARE:
            raise Failure(f'the campaign knows no value for {flag}')
        arguments += [flag, *([value] if isinstance(value, str) else value)]
    return right_or_refused(lambda: _run([text.format(**places) for text in arguments]))


def _run(arguments):
    options, module = run.parse(arguments)
    actions = run.build_parser(options.mode)[0]._option_string_actions
    watched = Watched(_read=set(), **vars(options))
    with _page_that_ends() if options.mode == 'web' else nullcontext():
        code = module.run(watched) or 0
    if code and options.mode != 'doctor':
        raise Failure(f'{" ".join(arguments)}: code {code}')
    unread = [flag for flag in options.given - {'--mode'} if actions[flag].dest not in watched._read]
    if unread:
        raise Failure(f'{", ".join(sorted(unread))} taken and not read: {" ".join(arguments)}')


@contextmanager
def _page_that_ends():
    """Within it, the page of --mode web loads its models, and is not served: that would have no end."""
    page = ModuleType('web.page')
    page.Address = lambda *where, share: None
    page.serve = lambda models, load, address: [load(path) for path in models.values()]
    before = sys.modules.get('web.page')
    sys.modules['web.page'] = page
    try:
        yield
    finally:
        del sys.modules['web.page']
        if before:
            sys.modules['web.page'] = before


@cache
def _places(folder):
    """{name: path} of the files that the flags name; made once."""
    torch.set_num_threads(1)
    home = folder / 'flags'
    shutil.rmtree(home, ignore_errors=True)
    (home / 'videos').mkdir(parents=True)
    config = material.smallest('train_params.num_iterations=2', 'train_params.log_every=1')
    files = {'config': home / 'config.yaml', 'checkpoint': home / 'model.pt', 'source': home / 'source.png',
             'driving': home / 'driving.mp4', 'metadata': home / 'metadata.csv', 'list': home / 'list.csv',
             'motion': home / 'motion.npz'}
    files['config'].write_text(yaml.safe_dump(config.as_dict()))
    files['checkpoint'].write_bytes(material.checkpoint())
    files['source'].write_bytes(material.pictures()['.png'][0])
    files['driving'].write_bytes(material.videos()[0][1])
    (home / 'videos' / 'aaaaaaaaaaa.mp4').write_bytes(material.videos()[0][1])
    files['metadata'].write_text('video_id,start,end,bbox,fps,width,height,partition,person_id\n'
                                 'aaaaaaaaaaa,0,8,4-2-28-22,25,32,24,train,id1\n')
    files['list'].write_text('source\naaaaaaaaaaa\n')
    model = build_model(config)
    model.load_state_dict(torch.load(files['checkpoint'], weights_only=True)['ema'])
    motion_template.save(material.template(model), files['motion'])
    (home / 'run' / 'checkpoints').mkdir(parents=True)
    shutil.copy(files['config'], home / 'run')
    for n, contents in enumerate(material.published('smac')[0]):
        files[f'published{n}'] = home / f'published{n}.pth'
        files[f'published{n}'].write_bytes(material.saved(contents))
    files |= _results(home, files)
    return {name: str(path) for name, path in files.items()} | {
        name: str(home / name) for name in ('out', 'videos', 'run', 'generated', 'set', 'logged', 'study')}


def _results(home, files):
    """{name: path} of what other modes have made: a logged run, a data set, videos of a method, an answered study."""
    for folder in ('generated', 'set/train', 'set/test', 'logged'):
        (home / folder).mkdir(parents=True)
    for name in ('generated/source--driving.mp4', 'set/train/a#1.mp4', 'set/test/b#1.mp4'):
        shutil.copy(files['driving'], home / name)
    pairs, answers = home / 'pairs.csv', home / 'answers.json'
    pairs.write_text('source,driving\nsource.png,driving.mp4\n')
    shutil.copy(files['config'], home / 'logged')
    (home / 'logged' / 'log.jsonl').write_text(''.join(
        json.dumps({'step': step, 'total': 1 / step}) + '\n' for step in range(50, 1000, 50)))
    study = build_study(StudyJob(home / 'study', (StudyPair('source--driving', open_clip(files['driving']),
                                                            open_clip(files['driving'])),),
                                 {name: home / 'generated' for name in 'ab'}, checks=1)).parents[1]
    answers.write_text(json.dumps(answer(study, 1, lambda question, pair, method: method == 'a')))
    return {'pairs': pairs, 'answers': answers}
