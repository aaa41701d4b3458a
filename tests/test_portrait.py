"""One animation from files: motion templates and moving sources, made by the command line of untrained tiny models."""

import io
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import run
from animate import animate_files, write_animation
from datasets.endless import EndlessClip
from datasets.video import open_clip
from datasets.video_writer import VideoWriter
from inference import Renderer
from modules.build import build_model
from motion import template as motion_template
from motion.settings import ABSOLUTE, AnimationSettings, Motion
from support.errors import UserError
from tests.support.command_line import refused, succeeds
from tests.support.toys import ToyClip
from tests.support.tiny import save_model, tiny
from tests.support.video_files import write_video

SIZE, RATE = 32, Fraction(30000, 1001)


@torch.no_grad()
def enliven(model):
    """Fresh Jacobians are the identity, and fresh keypoints hardly move."""
    for weight in (*model.keypoint_detector.kp.parameters(), *model.keypoint_detector.jacobian.parameters()):
        weight += torch.randn_like(weight) * 0.1


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """A folder with models of one method and other weights, ours.pt and other.pt, and clips of a toy."""
    folder = tmp_path_factory.mktemp('files')
    for seed, name in enumerate(('ours', 'other')):
        save_model(folder / f'{name}.pt', seed=seed, change=enliven)
    for name, count, seed in (('driver', 11, 0), ('source', 4, 3)):
        write_video(folder / f'{name}.mp4', ToyClip(num_frames=count, seed=seed).frames(), RATE)
    Image.fromarray(ToyClip(seed=3).frame(0)).save(folder / 'source.png')
    return folder


@pytest.fixture(scope='module')
def call(files):
    """--mode animate of one of the models; paths are those in the folder. Returns the exit code."""
    def called(*arguments, checkpoint='ours'):
        words = [str(files / word if Path(word).suffix in ('.png', '.mp4', '.npz') else word) for word in arguments]
        model = str(files / f'{checkpoint}.pt')
        return run.main(['--mode', 'animate', '--device', 'cpu', '--checkpoint', model, *words])
    return called


@pytest.fixture(scope='module')
def template(files, call):
    assert call('--driving_video', 'driver.mp4', '--save_motion', 'driver.npz') == 0
    return files / 'driver.npz'


@pytest.fixture
def written(monkeypatch):
    """{file: frames} that were handed to the encoder, which is not the same to the bit each time."""
    made, write = {}, VideoWriter.write

    def record(self, frame):
        made.setdefault(self.path.name, []).append(frame)
        write(self, frame)
    monkeypatch.setattr(VideoWriter, 'write', record)
    return made


def frames(path):
    return np.stack(list(open_clip(path).frames())).astype(int)


# ---------------------------------------------------------------------------- motion templates

@pytest.mark.parametrize('how', [(), ('--absolute',), ('--adapt_scale', '--smooth', '1'), ('--find_best_frame',)])
def test_a_template_moves_as_its_video_does(files, call, written, tmp_path, how):
    """Recorded while animating, it starts from the same frame; each frame is the same to the bit.

    To the last bit keypoints depend on how many are found at once, and the initial ones are found alone: so are all.
    """
    how = (*how, '--set', 'animate_params.batch_size=1')
    video, motion, template = tmp_path / 'video.mp4', tmp_path / 'motion.mp4', tmp_path / 'own.npz'
    assert call('--source_image', 'source.png', '--driving_video', 'driver.mp4', '--result_video', video, *how,
                '--save_motion', template) == 0
    how = [flag for flag in how if flag != '--find_best_frame']      # the template knows
    assert call('--source_image', 'source.png', '--driving_motion', template, '--result_video', motion, *how) == 0
    assert open_clip(motion).fps == RATE
    made, expected = (np.stack(written[name]) for name in ('motion.mp4', 'video.mp4'))
    assert len(made) == 11 and np.array_equal(made, expected)
    assert np.abs(made.astype(int) - made[0]).max() > 8      # and something moves


def test_a_template_holds_motion_alone(template, files):
    with np.load(template, allow_pickle=False) as arrays:
        assert set(arrays) == {'format', 'value', 'jacobian', 'fps', 'anchor', 'method', 'keypoint_detector'}
        assert arrays['value'].shape == (11, 4, 2) and arrays['jacobian'].shape == (11, 4, 2, 2)
        assert arrays['fps'].tolist() == [30000, 1001] and arrays['anchor'] == 0
    assert template.stat().st_size < 4000


def test_a_template_of_another_model_is_refused_by_name(template, call, capsys):
    for arguments in (('--source_image', 'source.png'), ('--source_video', 'source.mp4')):
        assert call(*arguments, '--driving_motion', 'driver.npz', checkpoint='other') == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert str(template) in line and 'of another model, Synergy with keypoint detector' in line


def rewritten(template, **changes):
    with np.load(template) as arrays:
        changed = dict(arrays) | changes
    file = io.BytesIO()
    np.savez(file, **{name: value for name, value in changed.items() if value is not None})
    return file.getvalue()


def damages(template):
    """(content of the file, what the message says)."""
    whole, value = template.read_bytes(), np.load(template)['value']
    yield b'', 'is empty'
    yield b'smile', 'is no motion template'
    yield whole[:-200], 'is no motion template'
    yield whole[:200] + b'damage' + whole[206:], 'is no motion template'
    yield rewritten(template, value=None), "'value' is missing"
    yield rewritten(template, value=value[:, :, :1]), 'its keypoints are'
    yield rewritten(template, value=value.astype(np.float64)), 'its keypoints are'
    yield rewritten(template, value=np.full_like(value, np.nan)), 'its keypoints are'
    yield rewritten(template, value=value[:0], jacobian=None), 'its keypoints are'
    yield rewritten(template, value=np.array([print], dtype=object)), 'is no motion template'      # a pickle
    yield rewritten(template, fps=[25, 0]), 'is no motion template'
    yield rewritten(template, fps=[-25, 1]), '-25 frames per second'
    yield rewritten(template, anchor=11), 'from frame 11 of 11'
    yield rewritten(template, format=2), 'format 2, expected 1'
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, 'w', zipfile.ZIP_DEFLATED) as archive, archive.open('value.npy', 'w') as entry:
        for _ in range(257):
            entry.write(bytes(2 ** 20))
    yield bomb.getvalue(), 'bytes unpacked'


def test_damaged_templates_are_refused_in_one_line(template, tmp_path):
    model, file = build_model(tiny()), tmp_path / 'smile.npz'
    for content, message in damages(template):
        file.write_bytes(content)
        with pytest.raises(UserError, match=message) as error:
            motion_template.load(file, model)
        assert str(error.value).startswith(f'{file}: ') and len(str(error.value).splitlines()) == 1
    with pytest.raises(UserError, match='no such file'):
        motion_template.load(tmp_path / 'gone.npz', model)


# ---------------------------------------------------------------------------- moving sources

@pytest.mark.parametrize('end, expected', [('loop', [0, 1, 2, 3, 0, 1, 2, 3, 0]),
                                           ('hold', [0, 1, 2, 3, 3, 3, 3, 3, 3])])
def test_an_endless_clip_loops_or_holds(end, expected):
    clip = ToyClip(num_frames=4)
    shown = [frame for frame, _ in zip(EndlessClip(clip, end).frames(), range(9))]
    assert all(np.array_equal(frame, clip.frame(i)) for frame, i in zip(shown, expected))
    assert len(shown) == 9


@pytest.mark.parametrize('motion', [ABSOLUTE, Motion(), Motion(adapt_scale=True, smooth=1)])
def test_frame_i_of_the_source_moves_as_motion_i(motion):
    """A moving source gives what each of its frames gives as a still."""
    model, driving, source = build_model(tiny()), ToyClip(num_frames=7), ToyClip(num_frames=3, seed=3)
    renderer = Renderer(model, 'cpu', batch_size=4)
    driven = renderer.follow(EndlessClip(source, 'hold'), driving, motion)
    moving = list(driven.render(driving.frames()))
    assert [len(batch.frames) for batch in moving] == [4, 3]
    made = np.concatenate([batch.frames for batch in moving]).astype(int)
    scale = getattr(driven.transfer, 'scale', 1)
    for i, of in enumerate((0, 1, 2, 2, 2, 2, 2)):
        still = renderer.follow(source.frame(of), driving, motion)
        if motion.relative:
            still.transfer.scale = scale      # that of the first frame, or faces would pump
        expected = np.concatenate([batch.frames for batch in still.render(driving.frames())]).astype(int)
        assert np.abs(made[i] - expected[i]).max() <= 1
    assert np.array_equal(moving[1].source[-1], source.frame(2))


def test_a_moving_source_streams(model, tmp_path):
    """No more frames of source and driver live at once for a long clip than for a short one."""
    most = []
    for length in (60, 400):
        source, driving = ToyClip(num_frames=7, seed=3), ToyClip(num_frames=length)
        assert write_animation(Renderer(model, 'cpu', 4), EndlessClip(source), driving, tmp_path / 'r.mp4') == length
        most.append((source.most_alive, driving.most_alive))
    assert max(most[0]) < 40 and max(most[1]) < 40      # as many as the threads happen to hold, not as there are


def test_a_source_video_from_the_command_line(files, call, template, written, tmp_path, capsys):
    for name, driver in (('video', ('--driving_video', 'driver.mp4')), ('motion', ('--driving_motion', 'driver.npz'))):
        assert call('--source_video', 'source.mp4', *driver, '--source_end', 'hold', '--result_video',
                    tmp_path / f'{name}.mp4') == 0
        assert f'{name}.mp4: 11 frames at 29.97' in capsys.readouterr().out
    by_video, by_motion = (np.stack(written[f'{name}.mp4']).astype(int) for name in ('video', 'motion'))
    assert np.abs(by_video - by_motion).max() <= 1      # the initial keypoints are found alone, or among others
    assert call('--source_video', 'source.mp4', *driver, '--result_video', tmp_path / 'loop.mp4') == 0
    held, looped = frames(tmp_path / 'motion.mp4'), frames(tmp_path / 'loop.mp4')
    assert np.abs(held[:4] - looped[:4]).mean() < np.abs(held[4:] - looped[4:]).mean()


# ---------------------------------------------------------------------------- drivers and defaults

BOTH = dict(source_image='a.png', driving_video='b.mp4', result_video='c.mp4')


def test_settings_are_their_command_line():
    assert AnimationSettings(**BOTH).arguments() == ['--source_image', 'a.png', '--driving_video', 'b.mp4',
                                            '--result_video', 'c.mp4']
    settings = AnimationSettings(**BOTH, motion=Motion(relative=False, smooth=0.5), crop='auto', face_index=(1, 0),
                                 paste_back=True)
    words = settings.arguments()
    assert AnimationSettings.of(run.parse(['--mode', 'animate', *words])[0]) == settings
    assert words[6:] == ['--absolute', '--smooth', '0.5', '--size', 'source', '--crop', 'auto', '--face_index', '1',
                         '0', '--paste_back']


@pytest.mark.parametrize('kind', ['still.png', 'one', 'one.gif'])
def test_a_driver_of_one_frame_needs_absolute_motion(files, call, tmp_path, capsys, kind):
    driver, frame = tmp_path / kind, Image.fromarray(ToyClip(seed=5).frame(0))
    if not driver.suffix:
        driver.mkdir()
    frame.save(driver if driver.suffix else driver / '0.png')
    result = tmp_path / 'r.mp4'
    words = '--source_image', 'source.png', '--driving_video', str(driver), '--result_video', str(result)
    assert call(*words) == 2 and not result.exists()
    said = capsys.readouterr().err.splitlines()
    assert len([line for line in said if line.startswith('error: ')]) == 1 and '--absolute' in said[-1]
    assert call(*words, '--absolute') == 0 and len(open_clip(result)) == 1


def test_what_is_raised_while_watching_ends_the_animation(files, tmp_path):
    def watch():
        raise KeyboardInterrupt

    settings = AnimationSettings(str(files / 'source.png'), driving_video=str(files / 'driver.mp4'),
                                 result_video=str(tmp_path / 'r.mp4'))
    with pytest.raises(KeyboardInterrupt):
        animate_files(settings, Renderer(build_model(tiny()), 'cpu', 4), watch)
    assert not list(tmp_path.iterdir())


def test_where_no_run_exists_the_shipped_weights_are_the_default(files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ['--mode', 'animate', '--device', 'cpu', '--source_image', str(files / 'source.png'),
             '--driving_video', str(files / 'driver.mp4'), '--size', '64']
    monkeypatch.setattr('support.checkpoints.SHIPPED', files / 'gone.safetensors')
    assert 'no --checkpoint is given' in refused(capsys, *words)
    monkeypatch.setattr('support.checkpoints.SHIPPED', files / 'ours.pt')
    succeeds(capsys, *words)
    assert open_clip(tmp_path / 'log' / 'ours' / 'animation' / 'source--driver.mp4').read([0])[0].shape == (64, 64, 3)
    assert 'no checkpoint in log/mine' in refused(capsys, *words, '--run_name', 'mine')        # it has to be there
