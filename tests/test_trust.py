"""Nothing reaches for the network but --download, nothing leaves its folder, and permissions are the user's choice."""

import argparse
import csv
import json
import socket
import stat
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import run
from datasets.manifest import NAME, Record, read_manifest
from datasets.prepare.download import download
from datasets.prepare.metadata import read_celebvhq, read_voxceleb
from datasets.video import open_clip
from evaluation.cases import ClipFinder
from support.errors import UserError
from tests.support.alone import alone
from tests.support.command_line import commands
from tests.support.inputs import VOX, videos

ALIKE = ('\uff0e\uff0e\uff0fx', '..\u2215x', '\u2024\u2024/x', '..\\x')     # full width, division slash, leaders
AWAY = ('../x', '/etc/passwd', '..', 'a/b', 'a\0b', '.hidden', 'x' * 300, 'a\nb', '')

# Runs modes one after the other, in one process.
IN_TURN = '''
import json, sys
import run
for arguments in json.load(sys.stdin):
    code = run.main(arguments)
    assert code == 0, (arguments, code)
'''


def test_no_mode_reaches_for_the_network_and_files_follow_umask(places, tmp_path):
    """Of what the modes write, too: a group may write, others may read nothing, as umask 007 says."""
    environment, reached = alone(tmp_path)
    of_all = commands(*places)
    if find_spec('onnx') and find_spec('onnxruntime'):
        of_all.append(['--mode', 'export', '--checkpoint', str(places[1]['checkpoint']), '--out',
                       str(tmp_path / 'onnx')])
    done = subprocess.run([sys.executable, '-c', IN_TURN], cwd=places[0], umask=0o007, text=True,
                          input=json.dumps(of_all), capture_output=True,
                          env=environment | {'NUMBA_DISABLE_JIT': '1', 'TORCH_HOME': str(places[0] / 'torch')})
    assert done.returncode == 0 and not reached.exists(), done.stderr[-2000:]
    written = [path for path in places[0].rglob('*') if 'inputs' not in path.relative_to(places[0]).parts]
    assert len(written) > 30
    wrong = {str(path): oct(stat.S_IMODE(path.stat().st_mode)) for path in written
             if stat.S_IMODE(path.stat().st_mode) != (0o770 if path.is_dir() else 0o660)}
    assert not wrong


def test_every_mode_is_among_them(places):
    """But for the two that need packages beyond the requirements: export above, where they are, and test_web.py."""
    assert {command[1] for command in commands(*places)} | {'web', 'export'} == set(run.MODES)


def test_a_playlist_in_the_clothes_of_a_video_opens_no_address(tmp_path):
    """FFmpeg looks at what is in a file, not at its name; a playlist names other files and addresses."""
    with socket.socket() as listening:
        listening.bind(('127.0.0.1', 0))
        listening.listen()
        listening.settimeout(0.2)
        address = f'http://127.0.0.1:{listening.getsockname()[1]}/x.ts'
        for suffix in ('.mp4', '.mkv', '.avi'):
            path = tmp_path / f'x{suffix}'
            for text in (f'#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{address}\n#EXT-X-ENDLIST\n',
                         f"ffconcat version 1.0\nfile '{address}'\n"):
                path.write_text(text)
                with pytest.raises(UserError, match=path.name):
                    len(open_clip(path))
        with pytest.raises(TimeoutError):
            listening.accept()


# ---------------------------------------------------------------------------- names

@pytest.mark.parametrize('name', AWAY)
def test_names_of_metadata_stay_in_their_folder(tmp_path, name):
    row = dict(zip(VOX.strip().split(','), ['aaaaaaaaaaa', 0, 8, '4-2-28-22', 25, 32, 24, 'train', 'id1']))
    for column in ('video_id', 'person_id'):
        with open(tmp_path / 'x.csv', 'w', newline='') as file:
            writer = csv.DictWriter(file, row)
            writer.writeheader()
            writer.writerow(row | {column: name})
        if column == 'person_id' and name in ('', '..'):
            continue        # '#video#0#8' and '..#video#0#8'
        with pytest.raises(UserError, match='x.csv'):
            read_voxceleb(tmp_path / 'x.csv')
    entry = {'ytb_id': name, 'duration': {'start_sec': 0, 'end_sec': 1},
             'bbox': {'top': 0, 'bottom': 1, 'left': 0, 'right': 1}}
    (tmp_path / 'x.json').write_text(json.dumps({'clips': {'a_0': entry}}))
    with pytest.raises(UserError, match='x.json'):
        read_celebvhq(tmp_path / 'x.json')


@pytest.mark.parametrize('name', AWAY)
def test_names_of_manifests_stay_in_their_folder(tmp_path, name):
    (tmp_path / NAME).write_text(json.dumps({'id': name, 'person': 'p', 'partition': 'train', 'status': 'ok'}) + '\n')
    with pytest.raises(UserError, match='line 1 is no record of a clip'):
        read_manifest(tmp_path)


@pytest.mark.parametrize('name', ALIKE)
def test_names_that_look_like_ways_out_are_no_ways(tmp_path, name):
    """Nobody makes '../x' of them (Unicode's NFKC would): a list finds nothing there, a manifest stays below."""
    (tmp_path / 'clips').mkdir()
    (tmp_path / 'x.mp4').write_bytes(videos()[0][1])
    assert ClipFinder({}, [str(tmp_path / 'clips')], 16)(name) is None
    try:
        file = Record(f'{name}#v', name, 'train', 'ok').file
    except ValueError:          # refused
        return
    assert (tmp_path / 'clips' / file).resolve().is_relative_to(tmp_path / 'clips')


def test_lists_stay_in_the_folders_of_the_path_map(tmp_path):
    (tmp_path / 'clips').mkdir()
    (tmp_path / 'x.mp4').write_bytes(videos()[0][1])
    find = ClipFinder({}, [str(tmp_path / 'clips')], 16)
    with pytest.raises(UserError, match='leads out of it'):
        find('../x')
    for name in (str(tmp_path / 'x'), 'x' * 300, 'a\0b'):
        assert find(name) is None


def test_yt_dlp_gets_an_id_and_no_shell(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(subprocess, 'run', lambda command, **options: called.append((command, options)) or
                        argparse.Namespace(returncode=1, stderr='ERROR: no', stdout=''))
    with pytest.raises(Exception, match='no'):
        download(['yt-dlp'], '--exec=id', Path(tmp_path))
    (command, options), = called
    assert command[-2:] == ['--', 'https://www.youtube.com/watch?v=--exec=id'] and not options.get('shell')
