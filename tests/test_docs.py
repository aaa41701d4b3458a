"""Commands and links of README and docs are valid; what needs data or GPUs is parsed by the real parser. Notebooks."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

import run
from config import schema
from datasets.synthetic.clips import synthetic_people
from datasets.video import open_clip
from evaluation.protocols import LISTS
from tests.support import docs
from tests.support.video_files import write_video
from visualizer import save_png

COMMANDS = sorted({command for page in docs.PAGES for command in docs.commands(page)})
IMPORTS = [f'run.py --mode import {arguments}' for arguments in re.findall(
    r'`(--from [^`]+ --out [^`]+)`', (docs.ROOT / 'docs' / 'weights.md').read_text())]
TOY = 'config/toy.yaml'                  # which docs/add-a-method.md makes


def runs(program, among=COMMANDS):
    """Arguments of the commands that run `program`."""
    words = [shlex.split(command) for command in among]
    return [line[line.index(program) + 1:] for line in words if program in line]


@pytest.mark.parametrize('arguments', runs('run.py') + runs('run.py', IMPORTS), ids=' '.join)
def test_run_accepts(arguments):
    options, _ = run.parse([re.sub(r'\$\w+', '1', argument) for argument in arguments if argument != '&'])
    if getattr(options, 'config', None) not in (None, TOY):
        schema.load(options.config, getattr(options, 'set', []))
    if getattr(options, 'list', None) and '.' not in options.list:
        assert (LISTS / f'{options.list}.csv').is_file()


def test_other_commands_exist():
    makefile = (docs.ROOT / 'Makefile').read_text()
    assert {target for target, *_ in runs('make')} <= set(re.findall(r'^(\w+):', makefile, re.M))
    for command in COMMANDS:
        module = re.search(r'python -m ([\w.]+)', command)
        if module and module[1] != 'pytest':
            code = Path(importlib.util.find_spec(module[1]).origin)
            code = code.with_name('__main__.py') if code.name == '__init__.py' else code
            flags = re.findall(r'--[a-z_]+', command)
            assert set(flags) <= set(re.findall(r"'(--[a-z_]+)'", code.read_text())), command
        for path in re.findall(r'(?:tests|config)/[\w./-]+\.(?:py|yaml)', command):
            assert path == TOY or (docs.ROOT / path).is_file(), command


@pytest.mark.parametrize('page', docs.PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r'\]\((?!https?:|#)([^)]+)\)', page.read_text(encoding='utf-8')):
        path, _, anchor = target.partition('#')
        linked = page.parent / path
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r'^#+ (.*)$', linked.read_text(encoding='utf-8'), re.M)
            assert anchor in {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


def test_the_python_example_runs(tmp_path, monkeypatch):
    """The API of docs/animation.md, which README shows in short, on synthetic heads, with the bundled model."""
    monkeypatch.chdir(tmp_path)
    (portrait,), (driver,) = synthetic_people(2, clips_per_person=1, num_frames=2, size=128, seed=7).values()
    image, frames = portrait.read([0])[0], list(driver.frames())
    save_png(tmp_path / 'me.jpg', image)
    write_video(tmp_path / 'clip.mp4', frames)
    code, = docs.blocks(docs.ROOT / 'docs' / 'animation.md', 'python')
    readme, = docs.blocks(docs.ROOT / 'README.md', 'python')
    assert all(line in code for line in readme.splitlines() if 'load()' not in line)
    if importlib.util.find_spec('mediapipe') is None:
        code = code.replace(", crop='auto'", '')
    exec(code.replace("load()", "load(device='cpu')"), dict(image=image, frames=frames))
    assert open_clip(tmp_path / 'out.mp4').read([1])[0].shape == (512, 512, 3)


@pytest.mark.parametrize('name, output', [('animate', 'example.mp4'), ('train', 'log/notebook/inspect/inspect.html')])
def test_notebook_runs(name, output, tmp_path):
    nbformat, nbclient = pytest.importorskip('nbformat'), pytest.importorskip('nbclient')
    pytest.importorskip('ipykernel')
    for path in docs.ROOT.iterdir():                       # so that results land elsewhere
        if not path.name.startswith('.') and path.name != 'log':
            (tmp_path / path.name).symlink_to(path)
    notebook = nbformat.read(docs.ROOT / 'notebooks' / f'{name}.ipynb', 4)
    for cell in notebook.cells:
        for slow, quick in (('STEPS = 600', 'STEPS = 4'), ('num_frames=48', 'num_frames=4'), ("'16'", "'2'"), (
                "num_workers=0'", "num_workers=0', 'train_params.val_pairs=1', "
                "'dataset_params.synthetic_params={train_people: 2, test_people: 1, frames: 4}'")):
            cell.source = cell.source.replace(slow, quick)
    nbclient.NotebookClient(notebook, timeout=170, resources={'metadata': {'path': tmp_path}}).execute()
    assert (tmp_path / output).is_file()
