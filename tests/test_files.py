"""What the system refuses, and processes that end in the middle of a write: one line, and no incomplete file."""

import errno
import json
import os
import resource
import subprocess
import sys
import threading

import numpy as np
import pytest

import run
from config import schema
from datasets.loader import check_queues
from datasets.prepare.metadata import read_celebvhq
from datasets.video import open_clip
from evaluation.cases import Case, own_folder
from evaluation.protocols import Item, load_list
from logger import RunFolder
from support.errors import LONGEST, UserError, one_line
from support.files import UNFINISHED, make_folder, refuse_overwriting, written_whole
from tests.support.command_line import refused
from tests.support.tiny import ROOT
from tests.support.training import steps_of
from tests.support.video_files import encode
from visualizer import save_png


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    left, left_folder = (tmp_path / f'.{name}.1{UNFINISHED}' for name in ('a.pt', 'export'))
    left.write_text('half')
    left_folder.mkdir()
    (left_folder / 'x').touch()
    with written_whole(tmp_path / 'b.pt') as mine, written_whole(tmp_path / 'folder', folder=True) as folder:
        mine.write_text('whole')
        (folder / 'y').touch()
        make_folder(tmp_path)
        assert not left.exists() and not left_folder.exists() and mine.exists() and folder.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['b.pt', 'folder']


def test_a_folder_is_replaced_whole(tmp_path):
    for name in 'xy':
        with written_whole(tmp_path / 'export', folder=True) as folder:
            (folder / name).touch()
    assert [path.name for path in (tmp_path / 'export').iterdir()] == ['y']
    with pytest.raises(ValueError), written_whole(tmp_path / 'export', folder=True) as folder:
        raise ValueError
    assert [path.name for path in tmp_path.rglob('*')] == ['export', 'y']


@pytest.mark.parametrize('way', ['same', 'dotted', 'link', 'hard link', 'linked folder'])
def test_a_result_never_replaces_an_input(tmp_path, monkeypatch, way):
    """By whatever name it is called: the user's video was lost."""
    driver = tmp_path / 'driver.mp4'
    driver.write_text('precious')
    names = {'same': 'driver.mp4', 'dotted': f'../{tmp_path.name}/driver.mp4', 'linked folder': 'here/driver.mp4'}
    result = tmp_path / names.get(way, 'result.mp4')
    (tmp_path / 'here').symlink_to(tmp_path)
    if 'link' in way and not result.exists():
        (result.symlink_to if way == 'link' else result.hardlink_to)(driver)
    refuse_overwriting([tmp_path / 'new.mp4', None], [driver, object(), None])
    with pytest.raises(UserError, match='would replace an input'):
        refuse_overwriting([None, str(result)], ['gone.png', driver])


@pytest.mark.parametrize('command', [
    '--mode animate --checkpoint gone.pt --source_image s.png --driving_video d.mp4 --result_video d.mp4',
    '--mode animate --checkpoint gone.pt --source_video s.mp4 --driving_video d.mp4 --result_video s.mp4',
    '--mode animate --checkpoint gone.pt --source_image d_crop.png --driving_video s.mp4 --crop auto '
    '--result_video d.mp4',
    '--mode animate --checkpoint gone.pt --source_image s.png --driving_motion d.npz --result_video d.npz',
    '--mode animate --checkpoint gone.pt --driving_video d.mp4 --save_motion d.mp4',
    '--mode animate --checkpoint a.pt --driving_video d.mp4 --save_motion a.pt',
    '--mode import --from smac a.pt d.pt --config config/demo-64.yaml --out d.pt',
    '--mode prepare --dataset folder --videos . --out .',
    '--mode prepare --dataset folder --videos out/train --out out',
    '--mode animate --source_image s.png --driving_video out --crop auto --result_video out/r.mp4',
    '--mode compare --source_image out/comparison.png --driving_video d.mp4 --out out',
    '--mode compare --source_image s.png --driving_video out/videos/d.mp4 --out out',
    '--mode inspect --source_image out/flow.png --driving_video d.mp4 --out out',
    '--mode inspect --source_image s.png --driving_video out --out out'])
def test_no_mode_replaces_what_it_reads(tmp_path, monkeypatch, capsys, command):
    """Refused before anything is read: none of these files is what its name says."""
    names = ['s.png', 's.mp4', 'd.npz', 'a.pt', 'd.pt', 'd_crop.png', 'out/comparison.png', 'out/flow.png',
             'out/videos/d.mp4', *(() if 'd_crop' in command else ['d.mp4'])]
    (tmp_path / 'out' / 'videos').mkdir(parents=True)
    (tmp_path / 'out' / 'train').mkdir()
    for name in names:
        (tmp_path / name).write_text(name)
    command = command.replace('config/', f'{ROOT}/config/').split()
    monkeypatch.chdir(tmp_path)
    said = refused(capsys, *command)
    assert 'would replace an input' in said or 'would mix with its raw videos' in said
    assert all((tmp_path / name).read_text() == name for name in names)


@pytest.mark.parametrize('mode', ['animate', 'inspect', 'compare'])
def test_a_missing_file_is_named_before_a_model_is_loaded(tmp_path, capsys, mode):
    checkpoint = '--checkpoints' if mode == 'compare' else '--checkpoint'
    (tmp_path / 'd.mp4').touch()
    assert f'{tmp_path}/s.png: no such file or folder' in refused(
        capsys, '--mode', mode, checkpoint, tmp_path / 'gone.pt', '--source_image', tmp_path / 's.png',
        '--driving_video', tmp_path / 'd.mp4')


def test_clips_among_their_own_results_are_left_alone(tmp_path):
    (tmp_path / 'videos').mkdir()
    clip = open_clip(encode(tmp_path / 'videos' / 'a.mp4', count=2))
    case = Case(Item('a'), clip, clip)
    with pytest.raises(UserError, match='would replace an input'):
        own_folder(tmp_path, [case], weights='w')


def test_a_run_that_goes_on_drops_what_it_is_about_to_log_again(tmp_path):
    for last in (3, 5):
        run = RunFolder(tmp_path)
        run.rewind(last - 3)
        for step in range(last - 2, last + 1):
            run.scalars(step, {'total': float(step)})
        run.close()
    with open(tmp_path / 'log.jsonl', 'a') as file:
        file.write('{"step": 6, "tot')             # killed in the middle
    run.rewind(5)
    assert [json.loads(line)['step'] for line in (tmp_path / 'log.jsonl').read_text().splitlines()] == [1, 2, 3, 4, 5]
    assert [int(line.split()[0]) for line in (tmp_path / 'log.txt').read_text().splitlines()] == [1, 2, 3, 4, 5]
    assert steps_of(tmp_path / 'tensorboard') == {'loss/total': [1, 2, 3, 4, 5]}


def test_a_picture_of_which_the_disk_takes_only_a_part_is_none(tmp_path):
    """PIL writes to a path without a look at how many bytes were taken."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(UserError, match='x.png: cannot be written'):
            save_png(tmp_path / 'x.png', np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def full(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize('call', [lambda run: run.scalars(1, {'total': 1.0}), lambda run: run.alarm(1, 'rule', 'text'),
                                  lambda run: run.save({'step': 1}, 1, keep=1)], ids=['scalars', 'alarm', 'save'])
def test_a_disk_that_is_full_is_said_in_one_line(tmp_path, monkeypatch, call):
    run = RunFolder(tmp_path)
    for target in ('builtins.open', 'os.open', 'torch.save'):
        monkeypatch.setattr(target, full)
    with pytest.raises(UserError, match='cannot be written .No space left on device'):
        call(run)


def test_queues_that_do_not_fit_shared_memory_are_one_line(monkeypatch):
    monkeypatch.setattr('multiprocessing.Queue', full)
    with pytest.raises(UserError, match=r'shared memory \(/dev/shm\) has no room .* train_params.num_workers=0'):
        check_queues(2)
    check_queues(0)


@pytest.mark.parametrize('number', run.ADVICE)
def test_what_the_system_refuses_anywhere_is_one_line(monkeypatch, capsys, number):
    def refuse(arguments):
        raise OSError(number, os.strerror(number))
    monkeypatch.setattr(run, 'parse', refuse)
    assert refused(capsys, '--mode', 'train') == f'error: [Errno {number}] {os.strerror(number)}; {run.ADVICE[number]}'


def test_tensorboards_thread_ends_quietly_and_others_do_not(monkeypatch, capsys):
    """Its error is raised again by the next call; it printed a traceback besides."""
    monkeypatch.setattr('threading.excepthook', run.thread_ended)

    def end():
        raise OSError('disk full')
    theirs = type('Writer', (threading.Thread,), {'__module__': 'tensorboard.summary'})
    for kind, quiet in ((theirs, True), (threading.Thread, False)):
        thread = kind(target=end)
        thread.start()
        thread.join()
        assert ('Traceback' in capsys.readouterr().err) != quiet


def test_messages_are_one_line_whatever_they_quote():
    assert one_line(UserError('a\x0bb\u2028c\x1b[2J')) == 'a\\x0bb\\u2028c\\x1b[2J'
    assert len(one_line(UserError('x' * 10_000))) <= LONGEST
    assert one_line(UserError('Traceback ...\nsupport.errors.UserError: no clip\n')) == 'no clip'
    said = 'Caught MemoryError in a worker.\nTraceback (most recent call last):\n  File "x"\nMemoryError'
    assert one_line(MemoryError(said)) == 'MemoryError'


@pytest.mark.parametrize('encoding, right', [('utf-8', True), ('utf-8-sig', True), ('utf-16', 'UTF-16'),
                                             ('utf-16-le', 'UTF-16'), ('cp1252', 'line 2 is not UTF-8')])
@pytest.mark.parametrize('kind, text', [
    ('config', '# run\ntrain_params: {seed: 1}  # Größe\n'),
    ('eval-list', 'source,driving\naaaaaaaaaaa,Größe\n'),
    ('celebvhq-metadata', '{"clips":\n{"a_0": {"ytb_id": "a", "duration": {"start_sec": 0, "end_sec": 1}, '
                          '"bbox": {"top": 0, "bottom": 1, "left": 0, "right": 1}, "note": "Größe"}}}\n')],
    ids=['config', 'list', 'metadata'])
def test_texts_are_utf_8_whatever_the_locale(tmp_path, encoding, right, kind, text):
    path = tmp_path / 'Größe.txt'
    path.write_bytes(text.encode(encoding))
    read = {'config': schema.load, 'eval-list': load_list, 'celebvhq-metadata': read_celebvhq}[kind]
    if right is True:
        assert read(path)
    else:
        with pytest.raises(UserError, match=f'Größe.txt: .*{right}'):
            read(path)


def test_a_config_is_utf_8_under_another_locale(tmp_path):
    (tmp_path / 'a.yaml').write_text('dataset_params: {root_dir: Größe}', encoding='utf-8')
    program = f'from config import schema; print(ascii(schema.load("{tmp_path}/a.yaml").dataset_params.root_dir))'
    shown = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True, check=True,
                           env=os.environ | {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'}).stdout
    assert shown.strip() == ascii('Größe')


@pytest.mark.parametrize('closed, encoding', [((), 'cp1252'), ((0, 1, 2), 'ascii')])
def test_what_is_printed_ends_no_work(tmp_path, closed, encoding):
    for folder in ('made', 'wanted'):
        (tmp_path / folder).mkdir()
        save_png(tmp_path / folder / 'ä.png', np.zeros((16, 16, 3), np.uint8))
    command = [sys.executable, 'run.py', '--mode', 'evaluate', '--generated', f'{tmp_path}/made', '--driving',
               f'{tmp_path}/wanted', '--metrics', 'l1.mean_abs', '--log_dir', f'{tmp_path}/log ↑']
    ended = subprocess.run(command, cwd=ROOT, env=os.environ | {'PYTHONIOENCODING': encoding}, stdout=subprocess.PIPE,
                           preexec_fn=lambda: [os.close(number) for number in closed])
    assert ended.returncode == 0 and (tmp_path / 'log ↑' / 'made' / 'evaluation' / 'same-identity').is_dir()
    assert 1 in closed or b'/log ?/made/' in ended.stdout
