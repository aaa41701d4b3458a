"""The stages of a video run side by side, and a list of pairs is shared, finished once, and never half written."""

import threading
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from animate import write_animation
from animate_pairs import animate_pairs
from datasets.constant_rate import ConstantRateClip, open_constant_rate
from datasets.video import open_clip
from datasets.video_writer import VideoWriter
from evaluation.cases import Case
from evaluation.protocols import Item
from inference import Renderer
from motion.settings import ABSOLUTE, Motion
from support import distributed
from support.errors import UserError
from support.files import make_folder
from support.streaming import DEPTH, read_ahead, write_behind
from tests.support.toys import Mirror, picture

SIZE = 64
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


def write_video(path, fps=25, num_frames=12, size=SIZE):
    with VideoWriter(path, fps) as video:
        for i in range(num_frames):
            video.write(picture(size, size) // 2 + np.uint8(9 * i))
    return path


class Faulty(Mirror):
    def render(self, source, driving):
        raise UserError('the network failed')


@pytest.mark.parametrize('stage', ['decode', 'network', 'encode'])
def test_a_failing_stage_leaves_no_file(tmp_path, monkeypatch, stage):
    driving = open_clip(write_video(tmp_path / 'driving.mp4'))
    if stage == 'decode':
        data = (tmp_path / 'driving.mp4').read_bytes()
        (tmp_path / 'driving.mp4').write_bytes(data[:len(data) // 2] + bytes(len(data) - len(data) // 2))
    if stage == 'encode':
        def full(self, frame):
            raise UserError(f'{self.path}: cannot be written (No space left on device)')
        monkeypatch.setattr(VideoWriter, 'write', full)
    with pytest.raises(UserError, match={'decode': 'driving.mp4', 'network': 'failed', 'encode': 'No space'}[stage]):
        write_animation(Renderer(Faulty() if stage == 'network' else Mirror(), 'cpu', 2), picture(SIZE, SIZE), driving,
                tmp_path / 'out' / 'a.mp4')
    assert not list((tmp_path / 'out').iterdir())


# Rates

def write_uneven(path, numbers, tick):
    """Frame i is shown at numbers[i] * tick seconds."""
    with av.open(str(path), 'w') as output:
        stream = output.add_stream('libx264', rate=25)
        stream.width = stream.height = SIZE
        stream.codec_context.time_base = stream.time_base = tick
        for number in numbers:
            frame = av.VideoFrame.from_ndarray(np.full((SIZE, SIZE, 3), 10 * number % 256, np.uint8), format='rgb24')
            frame.pts, frame.time_base = number, tick
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def test_a_varying_rate_becomes_constant_in_step_with_time(tmp_path):
    numbers = [0, 1, 2, 3, 9, 10, 11, 12, 18, 19, 20]
    clip = open_constant_rate(write_uneven(tmp_path / 'a.mp4', numbers, Fraction(1, 25)))
    assert isinstance(clip, ConstantRateClip) and clip.fps == 25 and len(clip) in (20, 21, 22)
    shown = [round(frame.mean() / 10) for frame in clip.frames()]
    assert shown[:21] == [max(n for n in numbers if n <= tick) for tick in range(21)][:len(shown)]
    assert [round(frame.mean() / 10) for frame in clip.read([5, 13])] == [3, 12]


def test_a_constant_rate_is_left_as_it_is(tmp_path):
    clip = open_constant_rate(write_video(tmp_path / 'a.mp4', Fraction(30000, 1001)))
    assert not isinstance(clip, ConstantRateClip) and clip.fps == Fraction(30000, 1001)
    # Stamps in whole milliseconds are no other rate.
    rounded = open_constant_rate(write_uneven(tmp_path / 'b.mp4', [round(i * 33.367) for i in range(20)],
                                              Fraction(1, 1000)))
    assert not isinstance(rounded, ConstantRateClip) and len(rounded) == 20


# Lists of pairs

@pytest.fixture
def pairs(tmp_path):
    """Three pairs of files with awkward names."""
    names = ['plain', 'my clip #2 (café) 100%', 'c']
    clips = [open_clip(write_video(tmp_path / f'{name}.mp4', num_frames=2 + i)) for i, name in enumerate(names)]
    return [case_of(clips[i], clips[(i + 1) % 3]) for i in range(3)]


def case_of(source, driving):
    return Case(Item(source.name, driving=driving.name), source, driving)


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
    write_video(tmp_path / 'c.mp4', num_frames=9)                 # the source of the last, the driver of the middle one
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
