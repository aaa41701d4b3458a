"""Crops around faces and pasting back: where they land, what they leave alone, and what is refused by name."""

import shutil
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from animate import crop_to_faces, squeeze, write_animation
from animate_pairs import animate_pairs
from datasets.face_crop import (FACE_CENTRE, FACE_HEIGHT, FADE, MOST_HEIGHT, CroppedClip, PasteBack, Square, find_crop,
                                square_around, warn_of_small_faces)
from datasets.face_tracker import FaceDetector
from datasets.still import FrameList, read_image
from datasets.video import open_clip
from evaluation.pairs import find_pairs
from inference import Renderer
from support.errors import UserError
from support.streaming import spread
from tests.support.tiny import SHARED
from tests.support.toys import Mirror, picture
from tests.support.video_files import needs_shared, write_video

SIZE = 64
PORTRAIT = SHARED / 'real' / 'source' / 'src01_painting_uncropped_720x1280.jpg'
PHONE = SHARED / 'bad' / 'rotated_phone.mp4'


# Squares

def test_a_crop_frames_the_face_as_training_crops_do_and_moves_inside_of_the_frame():
    square = square_around([(500, 400, 580, 500)], (2000, 1000, 3))
    assert square.side == round(100 / FACE_HEIGHT)
    assert abs(square.left + square.side / 2 - 540) <= 1 and abs(square.top + FACE_CENTRE * square.side - 450) <= 1
    for box in ((0, 0, 80, 100), (920, 1900, 1000, 2000)):
        square = square_around([box], (2000, 1000, 3))
        assert 0 <= square.left <= 1000 - square.side and 0 <= square.top <= 2000 - square.side
    # A moving face stays inside of one square.
    square = square_around([(100, 100, 180, 200), (300, 130, 380, 230), (200, 110, 280, 210)], (1000, 1000, 3))
    assert square.left < 100 and square.left + square.side > 380 and square.top < 100 and square.side < 400


def test_a_face_that_fills_its_picture_gets_all_of_it_and_at_last_more():
    assert square_around([(20, 10, 80, 80)], (100, 100, 3)) == Square(0, 0, 100)
    square = square_around([(5, 2, 95, 98)], (100, 110, 3))
    assert square.side == round(96 / MOST_HEIGHT) and square.top < 0 and square.left < 0
    assert square.left + square.side >= 110


def test_cutting_keeps_pixels_and_repeats_the_edge_beyond_them():
    frame = picture(40, 50)
    assert np.array_equal(Square(7, 3, 20).cut(frame, 20), frame[3:23, 7:27])
    cut = Square(-5, 30, 20).cut(frame, 20)
    assert np.array_equal(cut[:10, 5:], frame[30:, :15]) and (cut[10:, 5:] == frame[39, :15]).all()
    assert (cut[:10, :5] == frame[30:, :1]).all()


def test_a_cropped_clip_is_a_clip():
    frames = [picture(40, 50) + np.uint8(i) for i in range(3)]
    clip = FrameList(frames, 'a', Fraction(30000, 1001))
    cropped = CroppedClip(clip, Square(7, 3, 20), 10)
    assert cropped.fps == clip.fps and cropped.name == 'a' and cropped.read([2])[0].shape == (10, 10, 3)
    assert np.array_equal(cropped.read([0, 1, 2]), list(cropped.frames()))


def test_looks_are_spread_over_the_whole_clip():
    assert spread(1, most=32, at_once=8) == [[0]] and spread(5, most=32, at_once=2) == [[0, 1], [2, 3], [4]]
    looks = sum(spread(10_000, most=9, at_once=4), [])
    assert looks[0] == 0 and looks[-1] == 9999 and len(looks) == 9


# Which face

def detector(*frames):
    """Finds in frame i, an image of the value i, the boxes that are given for it."""
    return SimpleNamespace(detect=lambda frame: [SimpleNamespace(box=box) for box in frames[frame[0, 0, 0]]])


def stills(count):
    return (np.full((500, 900, 3), i, np.uint8) for i in range(count))


LEFT, RIGHT = (100, 100, 180, 200), (600, 100, 690, 210)


def test_one_face_is_followed_though_the_larger_one_changes():
    nearer = (95, 90, 190, 215)
    crop = find_crop(detector([RIGHT, LEFT], [], [nearer, RIGHT], [RIGHT, LEFT]), stills(4), 'clip', which=1)
    assert crop.square == square_around([LEFT, nearer, LEFT], (500, 900, 3))
    assert crop.boxes == [RIGHT, LEFT] and crop.frame.max() == 0 and crop.height == 100


def test_the_largest_face_is_taken_from_the_first_frame_that_has_one_and_a_missing_one_is_named():
    crop = find_crop(detector([], [RIGHT, LEFT]), stills(2), 'clip')
    assert crop.square == square_around([RIGHT], (500, 900, 3)) and crop.frame.max() == 1
    for faces, which, message in (([[], []], 0, 'no face was found'), ([[], [LEFT]], 1, 'no face 1 was found, only 1')):
        with pytest.raises(UserError, match=f'dir/a.mp4: {message}'):
            find_crop(detector(*faces), stills(2), 'dir/a.mp4', which)


def test_faces_too_small_or_too_restless_are_warned_of(caplog):
    def warned(*boxes):
        caplog.clear()
        warn_of_small_faces(find_crop(detector(*([box] for box in boxes)), stills(len(boxes)), 'a.mp4'), 'a.mp4', 256)
        return caplog.text

    assert not warned(LEFT) and not warned(LEFT, (110, 105, 190, 205))
    assert 'a.mp4: the face is only 50 px high and gets enlarged to 151' in warned((100, 100, 140, 150))
    assert 'moves so far' in warned(LEFT, (300, 100, 380, 200))


# Pasting back

@pytest.mark.parametrize('square', [Square(30, 20, 64), Square(-10, 70, 64), Square(100, -5, 60)])
def test_pasting_changes_the_square_alone_and_without_a_seam(square):
    image, tint = picture(120, 160), 40
    assert np.array_equal(PasteBack(image, square)(square.cut(image, square.side)), image)    # no trace
    changed = PasteBack(image, square)(np.minimum(square.cut(image, 64).astype(int) + tint, 255).astype(np.uint8))
    added = changed.astype(int) - image
    inside = np.zeros(image.shape[:2], bool)
    inside[max(square.top, 0):square.top + square.side, max(square.left, 0):square.left + square.side] = True
    assert not added[~inside].any()
    # A smooth step over FADE of the side is nowhere steeper than 1.5 / (FADE * side); pixels that clip do not count.
    flat = np.where(image[..., 2] < 200, added[..., 2], tint)
    middle = square.top + square.side // 2, square.left + square.side // 2
    assert added[(*middle, 2)] == tint
    for axis in (0, 1):
        usable = (np.roll(image[..., 2], -1, axis) < 200) & (image[..., 2] < 200)
        steps = np.abs(np.diff(flat, axis=axis))[usable[:119] if axis == 0 else usable[:, :159]]
        assert steps.max() <= tint * 1.5 / (FADE * square.side) + 3


def test_at_the_edge_of_the_picture_there_is_nothing_to_blend_with():
    image = np.zeros((100, 100, 3), np.uint8)
    assert (PasteBack(image, Square(0, 0, 100))(np.full((32, 32, 3), 200, np.uint8)) == 200).all()
    corner = PasteBack(image, Square(-3, -3, 60))(np.full((32, 32, 3), 200, np.uint8))
    assert (corner[:40, :40] == 200).all() and corner[56, 56].max() < 20


def test_an_animation_lies_in_its_place_in_the_whole_source(tmp_path):
    image, square = picture(90, 121), Square(31, 12, 70)
    driving = open_clip(write_video(tmp_path / 'driving.mp4', [picture(SIZE, SIZE)] * 5))
    paste_back = PasteBack(image, square)
    write_animation(Renderer(Mirror(), 'cpu'), square.cut(image, SIZE), driving, tmp_path / 'made.mp4',
                    show=lambda source, driving, frame: paste_back(frame))
    frame = open_clip(tmp_path / 'made.mp4').read([4])[0].astype(int)
    assert frame.shape == (90, 122, 3)                              # yuv420p wants even sides
    assert np.abs(frame[:, :121] - image).mean() < 4


# Real pictures

def sound_of(path):
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


@needs_shared
def test_portrait_and_phone_video_are_cropped_upright_and_pasted_back_with_sound(landmarker, tmp_path):
    portrait, phone = read_image(PORTRAIT), open_clip(PHONE)
    source, driving, paste_back = crop_to_faces(portrait, phone, 256, tmp_path / 'crop.png', names=(PORTRAIT, PHONE))
    # By its README the face is at about x 270-470, y 228-454.
    square = paste_back.square
    assert abs(square.side - 226 / FACE_HEIGHT) < 12 and abs(square.left + square.side / 2 - 370) < 6
    assert abs(square.top + FACE_CENTRE * square.side - 341) < 8
    assert np.asarray(Image.open(tmp_path / 'crop.png')).shape == (480, 270 + 270, 3)

    assert driving.square.side == 360 and len(driving) == 60        # all of the upright frame's width
    with FaceDetector() as faces:
        face, = faces.detect(driving.read([30])[0])
    forehead, chin = face.landmarks[10], face.landmarks[152]
    assert chin[1] - forehead[1] > 0.5 * 256 and abs(chin[0] - forehead[0]) < 25

    tinted = tmp_path / 'tinted.mp4'
    sounding = write_video(tmp_path / 'sounding.mp4', [source] * 10,
                           audio_from=next((SHARED / 'real' / 'test').glob('id10001*.mp4')))
    write_animation(Renderer(Mirror(tint=0.1), 'cpu'), source, open_clip(sounding), tinted,
                    show=lambda source, driving, frame: paste_back(frame), audio_from=sounding)
    assert sound_of(tinted) == sound_of(sounding) != []
    added = open_clip(tinted).read([9])[0].astype(int) - portrait
    assert added[300:380, 330:410].mean() == pytest.approx(12.7, abs=2)     # the face is brighter, all else is not
    assert abs(added[:100].mean()) < 2 and abs(added[560:].mean()) < 2


@needs_shared
def test_a_list_of_uncropped_pairs(landmarker, tmp_path):
    shutil.copy(PORTRAIT, tmp_path / 'a portrait #1 (ü) 100%.jpg')
    (tmp_path / 'pairs.csv').write_text(f'source,driving\na portrait #1 (ü) 100%.jpg,{SHARED}/bad/one_frame.mp4\n')
    pairs = find_pairs(tmp_path / 'pairs.csv', None, None, 99, 0)
    result, = animate_pairs(Renderer(Mirror(), 'cpu'), pairs, tmp_path / 'out', crop_size=SIZE)
    assert open_clip(result).read([0])[0].shape == (SIZE, 3 * SIZE, 3)
    assert sorted(path.name for path in (tmp_path / 'out' / 'moments').iterdir()) == [
        f'{result.stem}.png', f'{result.stem}_crop.png']


@needs_shared
def test_no_face_is_one_line_that_names_the_file(landmarker, tmp_path):
    for source, driving, name in ((PORTRAIT, SHARED / 'bad' / 'no_face.mp4', 'no_face.mp4'),
                                  (SHARED / 'bad' / 'no_face.mp4', PHONE, 'source')):
        image = read_image(source) if source == PORTRAIT else open_clip(source).read([0])[0]
        with pytest.raises(UserError, match=f'{name}: no face was found'):
            crop_to_faces(image, open_clip(driving), SIZE, tmp_path / 'out' / 'crop.png', names=('source', driving))
    assert not list(tmp_path.glob('out/*'))


# Without crops

def test_what_is_not_square_is_squeezed_with_a_warning(tmp_path, caplog):
    for name, shape in (('wide.mp4', (32, 48)), ('square.mp4', (32, 32))):
        write_video(tmp_path / name, [picture(*shape)])
    source, driving = squeeze(picture(80, 60), open_clip(tmp_path / 'square.mp4'), SIZE, ('tall.png', 'square.mp4'))
    assert source.shape == driving.read([0])[0].shape == (SIZE, SIZE, 3)
    assert 'tall.png: is 60x80' in caplog.text and 'square.mp4' not in caplog.text
    squeeze(picture(60, 60), open_clip(tmp_path / 'wide.mp4'), SIZE, ('square.png', 'wide.mp4'))
    assert 'wide.mp4: is 48x32' in caplog.text
