"""Reconstruction of clips by a toy model: scores, files, interruptions, errors."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.video import open_clip
from inference import Renderer
from reconstruction import reconstruct
from support.errors import UserError
from tests.support.toys import NTSC, SIZE, BrokenClip, ToyClip, names_in, renderer, results_in
from visualizer import CELL

REPORTS = ['contact_sheet.png', 'list.csv', 'metrics.csv', 'metrics.json', 'metrics.md', 'report.html']
pytestmark = pytest.mark.usefixtures('no_weights')


def test_reconstruction_writes_scores_videos_and_a_sheet(model, tmp_path):
    clips = [ToyClip('a#1', 10, NTSC), ToyClip('b#2', 7, seed=2)]
    made = reconstruct(renderer(model), clips, tmp_path / 'new' / 'out')

    out = tmp_path / 'new' / 'out'
    assert results_in(out) == [*REPORTS, 'videos/a#1.mp4', 'videos/b#2.mp4']
    written = open_clip(out / 'videos' / 'a#1.mp4')
    assert written.fps == NTSC and len(written) == 10
    assert written.read([0])[0].shape == (SIZE, 3 * SIZE, 3)                 # source | driving | prediction
    report = json.loads((out / 'metrics.json').read_text())
    assert [clip['frames'] for clip in report['clips']] == [10, 7] and made.summary['frames'] == 17
    assert 'vgg16' in made.skipped['lpips.vgg'] and report['skipped'] == made.skipped
    assert [row['clip'] for row in csv.DictReader((out / 'metrics.csv').open())] == ['a#1', 'b#2', 'mean']
    assert model.sources_encoded == 2 and model.largest_batch == 4 and not model.training


def test_the_first_frame_is_reconstructed_from_itself_whatever_the_batch_size(model, tmp_path):
    summary = reconstruct(renderer(model), [ToyClip(num_frames=1)], tmp_path / 'one', save_videos=False).summary
    assert summary['copy'] == {'l1.mean_abs': 0, 'psnr.rgb': None, 'ssim.gauss11': pytest.approx(1)}
    assert summary['model']['l1.mean_abs'] < 1e-3
    assert results_in(tmp_path / 'one') == REPORTS
    one, four = (reconstruct(renderer(model, size), [ToyClip()], tmp_path, save_videos=False).summary
                 for size in (1, 4))
    assert one['model'] == pytest.approx(four['model'], rel=1e-4)


def test_leaving_out_the_first_frame(model, tmp_path):
    report = reconstruct(renderer(model), [ToyClip(num_frames=5)], tmp_path, include_first=False, save_videos=False)
    assert report.summary['frames'] == 4 and report.summary['copy']['l1.mean_abs'] > 0
    sheet = np.asarray(Image.open(tmp_path / 'contact_sheet.png'))
    assert sheet[-CELL // 2, -CELL // 2].max() > 50                       # the last moment was met, its cell is filled
    assert json.loads((tmp_path / 'metrics.json').read_text())['protocol']['name'] == 'same-identity-no-first'


def test_a_broken_clip_is_named_and_nothing_half_written_stays(model, tmp_path):
    report = reconstruct(renderer(model), [ToyClip('good'), BrokenClip('broken')], tmp_path)
    assert 'frame 3 does not decode' in report.about['coverage']['problems']['broken']
    assert results_in(tmp_path) == [*REPORTS, 'videos/good.mp4']
    assert not [name for name in names_in(tmp_path) if 'partial' in name]
    with pytest.raises(UserError, match='none of 1 clips could be scored; the first: broken: frame 3'):
        reconstruct(renderer(model), [BrokenClip('broken')], tmp_path / 'alone')


def test_an_interrupted_reconstruction_resumes_to_the_same_numbers(model, tmp_path, monkeypatch):
    clips = [ToyClip('a', 9), ToyClip('b', 6, seed=2), ToyClip('c', 5, seed=4)]
    reconstruct(renderer(model), clips, tmp_path / 'whole')
    follow, followed = Renderer.follow, []

    def interrupted(self, source, *rest):
        followed.append(source)
        if len(followed) == 3:
            raise KeyboardInterrupt
        return follow(self, source, *rest)

    monkeypatch.setattr(Renderer, 'follow', interrupted)
    with pytest.raises(KeyboardInterrupt):
        reconstruct(renderer(model), clips, tmp_path / 'parts')
    assert not [name for name in names_in(tmp_path / 'parts') if 'partial' in name]
    assert results_in(tmp_path / 'parts') == ['videos/a.mp4', 'videos/b.mp4']

    def rebuilt(**changes):
        followed[:] = [None] * 3
        reconstruct(renderer(model), clips, tmp_path / 'parts', **changes)
        return len(followed) - 3

    assert rebuilt() == 1
    for name in names_in(tmp_path / 'whole'):
        assert (tmp_path / 'whole' / name).read_bytes() == (tmp_path / 'parts' / name).read_bytes()
    (tmp_path / 'parts' / 'videos' / 'b.mp4').unlink()
    assert rebuilt() == 1 and rebuilt() == 0
    assert rebuilt(subject={'weights': 'others'}) == 3 and rebuilt() == 0       # each has its own folder


@pytest.mark.parametrize('clips, message', [
    ([], 'no clips'),
    ([ToyClip('same'), ToyClip('same')], 'two clips are named same'),
    ([ToyClip('short', 1)], 'short: has 1 frame'),
])
def test_clips_that_cannot_be_reconstructed_are_refused_before_the_work(model, tmp_path, clips, message):
    with pytest.raises(UserError, match=message):
        reconstruct(renderer(model), clips, tmp_path / 'out', include_first=False)
    assert not (tmp_path / 'out').exists()


def test_a_diverged_model_is_named(model, tmp_path):
    with torch.no_grad():
        model.heat.weight.fill_(float('nan'))
    with pytest.raises(UserError, match='not finite'):
        reconstruct(renderer(model), [ToyClip()], tmp_path)
    assert results_in(tmp_path) == []
