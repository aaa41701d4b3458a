"""Stills and folders of them: pixels are right, what is no still or no clip is refused by name."""

import logging

import numpy as np
import pytest
from PIL import Image

from datasets.frame_folder import FrameFolder
from datasets.still import read_image
from datasets.video import open_any, open_clip
from support.errors import UserError
from tests.support.video_files import assert_exact, number_in, numbered


def test_stills_of_every_kind_are_pixel_right(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    grey = rgb[..., 0]
    saved = {
        'rgb.png': (Image.fromarray(rgb), rgb),
        'grey.png': (Image.fromarray(grey), np.stack([grey] * 3, -1)),
        'grey16.png': (Image.fromarray(grey.astype(np.uint16) * 257), np.stack([grey] * 3, -1)),
        'palette.png': (Image.fromarray(rgb).quantize(256), rgb),
        'opaque.png': (Image.fromarray(np.dstack([rgb, np.full_like(grey, 255)])), rgb),
        'clear.png': (Image.fromarray(np.dstack([rgb, np.zeros_like(grey)])), np.full_like(rgb, 255)),
    }
    for name, (image, expected) in saved.items():
        image.save(tmp_path / name)
        assert np.array_equal(read_image(tmp_path / name), expected), name


@pytest.mark.parametrize('head, kind', [
    (b'\0\0\0\x18ftypheic', 'HEIC, which'), (b'\0\0\0\x1cftypmif1\0\0\0\0mif1heic', 'HEIC, which'),
    (b'\0\0\0\x20ftypisom', 'a video, not an image'), (b'<svg xmlns', 'SVG'), (b'', 'empty or not an image'),
    (b'some text', 'empty or not an image')])
def test_an_image_of_a_kind_that_cannot_be_read_is_named(tmp_path, head, kind):
    """HEIC is what phones take; it was called empty."""
    (tmp_path / 'a.jpg').write_bytes(head)
    with pytest.raises(UserError, match=rf'a.jpg: is {kind}.*; (convert it|replace|--source_video)'):
        read_image(tmp_path / 'a.jpg')


@pytest.mark.parametrize('orientation, undo', [(3, lambda a: np.rot90(a, 2)), (6, lambda a: np.rot90(a, -1)),
                                               (8, lambda a: np.rot90(a, 1)), (2, np.fliplr)])
def test_exif_orientation_is_applied(tmp_path, orientation, undo):
    rgb = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(rgb).save(tmp_path / 'turned.png', exif=exif)
    assert np.array_equal(read_image(tmp_path / 'turned.png'), undo(rgb))


def test_an_animated_png_is_a_clip_of_all_its_frames(tmp_path):
    frames = [Image.fromarray(np.full((16, 16, 3), value, np.uint8)) for value in (0, 90, 200)]
    for name, count in (('still.png', 1), ('moving.png', 3)):
        frames[0].save(tmp_path / name, save_all=count > 1, append_images=frames[1:count], duration=40)
        assert len(open_any(tmp_path / name)) == count


def test_shrinking_a_still_averages_instead_of_skipping(tmp_path):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 254
    Image.fromarray(stripes).save(tmp_path / 'stripes.png')
    assert np.abs(read_image(tmp_path / 'stripes.png', 8)[1:-1, 1:-1].astype(int) - 127).max() < 4


@pytest.mark.parametrize('name', ['bad.png', 'bad.jpg'])
@pytest.mark.parametrize('content', [b'', b'text', None])
def test_damaged_stills_are_refused_by_name(tmp_path, content, name):
    path = tmp_path / name
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2] if content is None else content)
    with pytest.raises(UserError, match=name):
        read_image(path)
    with pytest.raises(UserError, match='gone.png'):
        read_image(tmp_path / 'gone.png')


def folder_of(path, names, side=16):
    path.mkdir()
    for number, name in enumerate(names):
        Image.fromarray(numbered(number, side, side)).save(path / name)
    return path


def test_a_folder_is_read_in_natural_order_and_ignores_other_files(tmp_path):
    folder = folder_of(tmp_path / 'id1#v#0#12.mp4', [f'frame{n}.png' for n in range(12)])
    (folder / '.hidden.png').write_text('x')
    (folder / 'notes.txt').write_text('x')
    clip = open_clip(folder)
    assert isinstance(clip, FrameFolder) and clip.name == 'id1#v#0#12' and clip.fps == 25 and len(clip) == 12
    assert [number_in(frame) for frame in assert_exact(clip)] == list(range(12))


def test_a_gap_is_reported_once_and_a_constant_step_is_none(tmp_path, caplog):
    gap = open_clip(folder_of(tmp_path / 'gap', [f'{n:07d}.png' for n in (0, 1, 2, 4, 5)]))
    step = open_clip(folder_of(tmp_path / 'step', [f'{n:07d}.png' for n in (0, 5, 10)]))
    with caplog.at_level(logging.WARNING):
        for clip in (gap, gap, step):
            clip.read([0])
    assert [('gap' in record.getMessage(), 'after 2' in record.getMessage())
            for record in caplog.records] == [(True, True)]


def test_a_still_of_another_size_is_named_whatever_the_size_asked(tmp_path):
    folder = folder_of(tmp_path / 'mixed', ['0.png', '1.png', '2.png'])
    Image.fromarray(numbered(0, 20, 16)).save(folder / '1.png')
    for size in (None, 8):
        with pytest.raises(UserError, match=r'1\.png: is 16x20 but .* 16x16'):
            open_clip(folder, size).read([2, 1])


def test_folders_that_are_no_clip_are_refused(tmp_path):
    empty = folder_of(tmp_path / 'empty', [])
    twice = folder_of(tmp_path / 'twice', ['1.png', '1.jpg'])
    for folder, what in ((empty, 'no PNG'), (twice, 'twice')):
        with pytest.raises(UserError, match=f'{folder.name}.*{what}'):
            len(open_clip(folder))
