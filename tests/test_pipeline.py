"""The stages of a video run side by side; pairs are drawn and animated alike in all modes, and once."""

import threading
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from animate import write_animation
from animate_pairs import animate_pairs
from config.schema import DatasetParams
from datasets import build
from datasets.constant_rate import ConstantRateClip, open_constant_rate
from datasets.video import open_clip
from datasets.video_writer import VideoWriter
from evaluation.cases import Case, ClipFinder, choose_items, find_cases
from evaluation.pairs import find_pairs
from evaluation.protocols import PROTOCOLS, Item, as_csv, load_list
from inference import Renderer
from motion.settings import ABSOLUTE, Motion
from support import distributed
from support.errors import UserError
from support.files import make_folder
from support.streaming import DEPTH, read_ahead, write_behind
from support.transfer import Transfer
from tests.support.tiny import tiny
from tests.support.toys import SIZE, Mirror, ToyClip, names_in, picture, renderer
from tests.support.video_files import encode, number_in, write_video

pytestmark = pytest.mark.usefixtures('no_weights')
SIDE = 64
PATIENCE = 30      # seconds after which a stage that should be running is taken for standing still


# Stages

def test_items_are_made_while_others_are_worked_on():
    made = [threading.Event() for _ in range(6)]

    def items():
        for number, event in enumerate(made):
            event.set()
            yield number

    taken = []
    for number in read_ahead(items()):
        # While this item is in our hands, another thread makes the next ones, and not all of them.
        assert all(event.wait(PATIENCE) for event in made[:number + 1 + DEPTH])
        assert not any(event.is_set() for event in made[number + 2 + DEPTH:])
        taken.append(number)
    assert taken == list(range(6))


def test_writing_goes_on_behind_in_order_and_waits_when_it_is_late():
    going, written = threading.Event(), []

    def write(number):
        assert going.wait(PATIENCE)
        written.append(number)

    with write_behind(write) as later:
        for number in range(DEPTH):
            later(number)
        assert not written                     # we are ahead of it, and have not waited
        threading.Timer(0.05, going.set).start()
        later(DEPTH)
        assert written                         # now we had to
    assert written == list(range(DEPTH + 1))


def test_what_a_stage_raises_is_raised_in_the_loop():
    def items():
        yield 1
        raise UserError('clip: frame 1 does not decode')

    def write(number):
        raise UserError('disk full')

    with pytest.raises(UserError, match='does not decode'):
        list(read_ahead(items()))
    with pytest.raises(UserError, match='disk full'), write_behind(write) as later:
        later(1)
    with pytest.raises(KeyError), write_behind(lambda number: None) as later:
        raise KeyError                         # ours comes first


def test_leaving_the_loop_early_ends_the_thread():
    before = threading.active_count()
    ahead = read_ahead(range(100))
    assert next(ahead) == 0
    ahead.close()
    assert threading.active_count() == before


def write_clip(path, fps=25, num_frames=12):
    return write_video(path, (picture(SIDE, SIDE) // 2 + np.uint8(9 * i) for i in range(num_frames)), fps)


class Faulty(Mirror):
    def render(self, source, driving):
        raise UserError('the network failed')


@pytest.mark.parametrize('stage', ['decode', 'network', 'encode'])
def test_a_failing_stage_leaves_no_file(tmp_path, monkeypatch, stage):
    driving = open_clip(write_clip(tmp_path / 'driving.mp4'))
    if stage == 'decode':
        data = (tmp_path / 'driving.mp4').read_bytes()
        (tmp_path / 'driving.mp4').write_bytes(data[:len(data) // 2] + bytes(len(data) - len(data) // 2))
    if stage == 'encode':
        def full(self, frame):
            raise UserError(f'{self.path}: cannot be written (No space left on device)')
        monkeypatch.setattr(VideoWriter, 'write', full)
    with pytest.raises(UserError, match={'decode': 'driving.mp4', 'network': 'failed', 'encode': 'No space'}[stage]):
        write_animation(Renderer(Faulty() if stage == 'network' else Mirror(), 'cpu', 2), picture(SIDE, SIDE), driving,
                tmp_path / 'out' / 'a.mp4')
    assert not list((tmp_path / 'out').iterdir())


def case_of(source, driving, **moments):
    return Case(Item(source.name, driving=driving.name, **moments), source, driving)


# Rates

def test_a_varying_rate_becomes_constant_in_step_with_time(tmp_path):
    times = [0, 1, 2, 3, 9, 10, 11, 12, 18, 19, 20]
    clip = open_constant_rate(encode(tmp_path / 'a.mp4', times=times))
    assert isinstance(clip, ConstantRateClip) and clip.fps == 25 and len(clip) in (20, 21, 22)
    shown = [times[number_in(frame)] for frame in clip.frames()]
    assert shown[:21] == [max(time for time in times if time <= tick) for tick in range(21)][:len(shown)]
    assert [times[number_in(frame)] for frame in clip.read([5, 13])] == [3, 12]


def test_a_constant_rate_is_left_as_it_is(tmp_path):
    clip = open_constant_rate(write_clip(tmp_path / 'a.mp4', Fraction(30000, 1001)))
    assert not isinstance(clip, ConstantRateClip) and clip.fps == Fraction(30000, 1001)
    # Stamps in whole milliseconds are no other rate.
    rounded = open_constant_rate(encode(tmp_path / 'b.mp4', times=[round(i * 33.367) for i in range(20)],
                                        tick=Fraction(1, 1000)))
    assert not isinstance(rounded, ConstantRateClip) and len(rounded) == 20


# Lists of pairs

@pytest.fixture
def pairs(tmp_path):
    """Three pairs of files with awkward names."""
    names = ['plain', 'my clip #2 (café) 100%', 'c']
    clips = [open_clip(write_clip(tmp_path / f'{name}.mp4', num_frames=2 + i)) for i, name in enumerate(names)]
    return [case_of(clips[i], clips[(i + 1) % 3]) for i in range(3)]


def run_pairs(pairs, folder, model=None, *, motion=Motion(), batch_size=8, **changes):
    """Names of the videos that were made by this call."""
    before = {path: path.stat().st_mtime_ns for path in folder.glob('*.mp4')}
    results = animate_pairs(Renderer(model or Mirror(), 'cpu', batch_size), pairs, folder, motion, **changes)
    assert len(results) == len(pairs)
    return [path.name[:3] for path in results if path.is_file() and path.stat().st_mtime_ns != before.get(path)]


def test_processes_share_the_pairs_and_the_last_draws_the_sheet(pairs, tmp_path, monkeypatch):
    out = tmp_path / 'out'
    monkeypatch.setattr(distributed, 'world', lambda: 2)
    for together in 'check_shared', 'agree':             # here one runs after the other
        monkeypatch.setattr(distributed, together, lambda given: None)
    monkeypatch.setattr('animate_pairs.own_folder', lambda folder, *_, **__: make_folder(folder))
    monkeypatch.setattr(distributed, 'rank', lambda: 1)
    assert run_pairs(pairs, out) == ['001'] and not (out / 'contact_sheet.png').exists()
    monkeypatch.setattr(distributed, 'rank', lambda: 0)
    assert run_pairs(pairs, out) == ['000', '002'] and (out / 'contact_sheet.png').is_file()


def test_what_is_finished_is_kept_and_the_sheet_is_the_same(pairs, tmp_path):
    out = tmp_path / 'out'
    assert run_pairs(pairs, out) == ['000', '001', '002']
    sheet = (out / 'contact_sheet.png').read_bytes()
    (out / 'contact_sheet.png').unlink()
    next(out.glob('001_*.mp4')).unlink()
    next(out.glob('moments/002_*.png')).write_bytes(b'cut')
    assert run_pairs(pairs, out) == ['001', '002']
    assert (out / 'contact_sheet.png').read_bytes() == sheet
    assert run_pairs(pairs, out, batch_size=3) == []


def test_other_weights_settings_or_files_make_it_anew(pairs, tmp_path):
    class Weighty(Mirror):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(3))

    out, model = tmp_path / 'out', Weighty()
    run_pairs(pairs, out, model)
    assert run_pairs(pairs, out, model) == []
    for change in ({'motion': ABSOLUTE}, {'motion': Motion(smooth=1.0)}, {'made_by': 'another config'}):
        assert run_pairs(pairs, out, model, **change) == ['000', '001', '002']
    run_pairs(pairs, out, model)
    with torch.no_grad():
        model.weight[1] = 1e-3
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert run_pairs(pairs, out, model) == ['000', '001', '002']
    assert before == {path.name: path.stat().st_mtime_ns for path in out.iterdir()}     # the new ones lie beside them
    out = tmp_path / 'out-2'
    write_clip(tmp_path / 'c.mp4', num_frames=9)                 # the source of the last, the driver of the middle one
    pairs = [case_of(open_clip(case.source.path), open_clip(case.driving.path)) for case in pairs]
    assert run_pairs(pairs, out, model) == ['001', '002']


def test_a_run_that_dies_between_two_settings_does_not_pass_for_finished(pairs, tmp_path, monkeypatch):
    out = tmp_path / 'out'
    run_pairs(pairs, out)

    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr('animate_pairs.save_png', die)      # the video of the other setting is there, its strip is not
        run_pairs(pairs, out, motion=Motion(smooth=1.0))
    assert run_pairs(pairs, out) == ['000']


# To a device and back: the same frames, in order, however late they are read. (On a GPU: test_gpu.py.)

class Late(Transfer):
    """What a GPU's would do, by hand: a batch arrives when the next one has been sent."""

    def __init__(self):
        super().__init__('cpu')
        self.behind, self.sent, self.read = 1, 0, []

    def down(self, tensor):
        self.sent += 1
        number, wait = self.sent, super().down(tensor)

        def array():
            self.read.append((number, self.sent))
            return wait()
        return array


@pytest.mark.parametrize('frames', [1, 4, 11])
def test_frames_that_are_read_late_are_the_same_in_order(model, frames):
    clip, renderer = ToyClip(num_frames=frames), Renderer(model, 'cpu', 4)
    wanted = [batch.frames for batch in renderer.follow(clip.frame(0)).render(clip.frames())]
    renderer.transfer = Late()
    found = [batch.frames for batch in renderer.follow(clip.frame(0)).render(clip.frames())]
    assert len(found) == len(wanted) and all(map(np.array_equal, found, wanted))
    behind = [sent - number for number, sent in renderer.transfer.read]
    assert len(wanted) == 1 or min(behind[:-2]) >= 2, 'a batch, which is two tensors, was waited for at once'


def test_a_batch_that_is_not_finite_is_an_error_before_it_is_given(model):
    clip, renderer = ToyClip(num_frames=12), Renderer(model, 'cpu', 4)
    renderer.transfer = Late()
    given = []
    with pytest.raises(UserError, match='not finite'):
        for batch in renderer.follow(clip.frame(0)).render(clip.frames()):
            given.append(batch)
            if len(given) == 1:
                with torch.no_grad():
                    model.heat.weight.fill_(float('nan'))
    assert 1 <= len(given) < 3


# ---------------------------------------------------------------------------- pairs

def test_the_same_seed_gives_the_same_pairs_in_all_modes():
    config = tiny('dataset_params.synthetic_params.test_people=5')
    dataset, size = config.dataset_params, config.model_params.image_size
    names = [clip.name for clip in build.test_clips(dataset, size)]
    for seed in (0, 1):
        animated = [case.item for case in find_pairs(None, dataset, size, 4, seed)]
        assert animated == choose_items(PROTOCOLS['cross-identity-relative'], None, names[::-1], 4, seed)[1]
        assert len(animated) == 4 and all(item.source != item.driver for item in animated)


def test_a_list_that_one_mode_has_written_is_read_by_the_others(model, tmp_path):
    config = tiny('dataset_params.synthetic_params.test_people=4')
    dataset, size = config.dataset_params, config.model_params.image_size
    drawn = find_pairs(None, dataset, size, 3, 0)
    animate_pairs(renderer(model), drawn, tmp_path / 'animation')
    written = tmp_path / 'animation' / 'list.csv'
    assert load_list(written) == [case.item for case in drawn]                                  # --mode evaluate
    assert [case.item for case in find_pairs(written, dataset, size, 99, 5)] == load_list(written)    # --mode animate
    (tmp_path / 'timed.csv').write_text(as_csv([replace(drawn[0].item, source_time=0.08, anchor_time=0.2)]))
    case, = find_pairs(tmp_path / 'timed.csv', dataset, size, 99, 5)
    assert case.moments() == (2, range(12)) and case.anchor == 5


def test_pairs_are_animated_side_by_side_with_a_sheet(model, tmp_path):
    first, second, third = (ToyClip(name, 5, seed=i) for i, name in enumerate(('id1#a', 'id2#a', 'id3#b')))
    cases = [case_of(first, second), case_of(third, first)]
    results = animate_pairs(renderer(model), cases, tmp_path, Motion(start='nearest'))
    assert [path.name for path in results] == ['000_id1#a--id2#a.mp4', '001_id3#b--id1#a.mp4']
    assert names_in(tmp_path) == sorted([path.name for path in results] + ['contact_sheet.png', 'list.csv'] +
                                        [f'moments/{path.stem}.png' for path in results])
    assert open_clip(results[0]).read([0])[0].shape == (SIZE, 3 * SIZE, 3)


def test_a_pair_may_name_its_moments_and_its_anchor(model, tmp_path):
    source, driving = ToyClip('a', seed=3), ToyClip('b')
    result, = animate_pairs(renderer(model), [case_of(source, driving, source_time=0.16, driving_time=0.4)], tmp_path)
    clip = open_clip(result)
    assert len(clip) == 1
    shown = clip.read([0])[0].astype(int)
    assert np.abs(shown[:, :SIZE] - source.frame(4)).mean() < 8                      # H.264 with subsampled colour
    assert np.abs(shown[:, SIZE:2 * SIZE] - driving.frame(10)).mean() < 8
    with pytest.raises(UserError, match='no frame 99'):
        animate_pairs(renderer(model), [case_of(source, driving, anchor=99)], tmp_path / 'refused')
    assert names_in(tmp_path / 'refused') == []


@pytest.fixture
def dataset(tmp_path):
    """Two clips in root/test, and an image beside the list of pairs: the DatasetParams of root."""
    for name in ('id1#a.mp4', 'id2#b.mp4'):
        write_video(tmp_path / 'root' / 'test' / name, ToyClip(num_frames=3).frames())
    (tmp_path / 'lists').mkdir()
    Image.fromarray(ToyClip().frame(0)).resize((50, 50)).save(tmp_path / 'lists' / 'portrait.png')
    return DatasetParams(root_dir=str(tmp_path / 'root'))


def test_lists_that_count_frames_and_name_files_are_read_by_all_modes(model, dataset, tmp_path):
    path, root = tmp_path / 'lists' / 'pairs.csv', tmp_path / 'root' / 'test'
    path.write_text(f'\ufeffsource, driving, anchor\nid1#a.mp4, id2#b.mp4, 2\n\n'
                    f'portrait.png, {root}/id1#a.mp4,\n', encoding='utf-8')
    cases = find_pairs(path, dataset, SIZE, 99, 0)
    assert [(case.source.name, case.driving.name, case.anchor) for case in cases] == [
        ('id1#a', 'id2#b', 2), ('portrait', 'id1#a', None)]
    assert [case.sound for case in cases] == [root / 'id2#b.mp4', root / 'id1#a.mp4']
    assert len(animate_pairs(renderer(model), cases, tmp_path / 'out')) == 2

    # --mode evaluate, which knows the test set by name; and the videos that another one made
    clips = {clip.name: clip for clip in build.test_clips(dataset, SIZE)}
    _, items = choose_items(PROTOCOLS['cross-identity-relative'], str(path), clips)
    found, missing = find_cases(items, ClipFinder(clips, [], SIZE, [path.parent]))
    assert [(case.source.name, case.driving.name, case.anchor) for case in found] == [
        ('id1#a', 'id2#b', 2), ('portrait', 'id1#a', None)] and not missing
    assert found[0].item.name == 'id1#a--id2#b'
    assert load_list(tmp_path / 'out' / 'list.csv') == items


@pytest.mark.parametrize('text, message', [
    ('clip,driver\na,b\n', 'pairs.csv: the first row must name'),
    ('', 'pairs.csv: the first row must name'),
    ('source,driver\na,b\n', "pairs.csv: unknown column 'driver'"),
    ('source,driving\n', 'pairs.csv: has no rows'),
    ('source,source_time\nid1#a.mp4,first\n', "pairs.csv, row 2: source_time is 'first'"),
    ('source,driving\nid1#a.mp4,id2#b.mp4\n,id1#a.mp4\n', 'pairs.csv, row 3: source is empty'),
    ('source,driving\nid1#a.mp4,gone.mp4\n', "pairs.csv, row 2: driving 'gone.mp4' is not found in .*lists or .*test"),
    ('source,driving,anchor\nid1#a.mp4,id2#b.mp4,first\n', "pairs.csv, row 2: anchor is 'first'"),
    ('source,driving,anchor,anchor_time\nid1#a.mp4,id2#b.mp4,1,0.5\n', 'pairs.csv, row 2: anchor is .* anchor_time'),
    ('source,driving\nid1#a.mp4,id2,b.mp4\n', 'pairs.csv, row 2: has more fields'),
    ('source,driving\nid1#a.mp4,pairs.csv\n', 'pairs.csv, row 2: .*cannot be decoded'),
])
def test_mistakes_in_a_list_are_named_by_file_and_row(dataset, tmp_path, text, message):
    path = tmp_path / 'lists' / 'pairs.csv'
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        find_pairs(path, dataset, SIZE, 99, 0)
    assert '\n' not in str(error.value)
