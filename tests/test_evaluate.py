"""Evaluation of a model and of videos made elsewhere: scores, coverage, resuming, processes, reports, mistakes."""

import csv
import json
import math
import os
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.still import FrameList
from evaluation import evaluate
from evaluation import cases as case_module
from evaluation.cases import Case, ClipFinder, Selection, choose_items, clips_in, find_cases, match_cases
from evaluation.evaluate import EvaluationJob
from evaluation.protocols import PROTOCOLS, Item
from evaluation.published import published_tables
from evaluation.report import Report, summarize, write_report
from evaluation.scores import ClipScores
from evaluation.tables import as_markdown, format_table
from inference import Renderer
from metrics.base import DistributionMetric
from metrics.catalogue import CATALOGUE
from modules.build import build_model
from motion.best_frame import find_best_frame
from support import streaming
from support.errors import UserError
from tests.support.agents import run_in_two_processes
from tests.support.command_line import refused, succeeds
from tests.support.tiny import tiny
from tests.support.toys import SIZE, ToyClip
from tests.support.video_files import write_video
from visualizer import save_png

CHEAP = ['l1.mean_abs', 'psnr.rgb', 'jitter.pixels']
EVALUATE = '--mode', 'evaluate', '--device', 'cpu'


class Brightness(DistributionMetric):
    """Mean difference of levels over all frames: a distribution metric without a network."""
    id, column, definition, source, network = 'test.brightness', 'level', 'difference of levels', 'this test', 'level'

    def __init__(self, device):
        super().__init__(device)
        self.features = lambda frames: frames.mean((1, 2, 3))[:, None]

    @staticmethod
    def compute(clips):
        generated, reference = (torch.cat(side) for side in zip(*clips))
        return (generated.mean() - reference.mean()).item()


class SourceBrightness(Brightness):
    id, needs_source = 'test.source_brightness', True


@pytest.fixture(autouse=True)
def distribution_metrics(monkeypatch, no_weights):
    for metric in (Brightness, SourceBrightness):
        monkeypatch.setitem(CATALOGUE, metric.id, metric)


def write_clip(path, clip, frames=None, change=lambda frame: frame):
    write_video(path, map(change, clip.read(range(len(clip)) if frames is None else frames)), clip.fps, crf=0)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """Five driving clips, and what somebody's code made of them: one equal, four darker."""
    root = tmp_path_factory.mktemp('folders')
    for i in range(5):
        clip = ToyClip(num_frames=8 + i, seed=i)
        write_clip(root / 'driving' / f'id{i}#clip.mp4', clip)
        write_clip(root / 'generated' / f'id{i}#clip.mp4', clip, change=lambda frame: frame // (1 + (i > 0)))
    return root


def score_folders(root, out, metric_ids=CHEAP, protocol='same-identity', sources=None, **changes):
    """evaluate.evaluate on root/generated and root/driving; (report, metrics.json)."""
    driving, generated = clips_in(root / 'driving'), clips_in(root / 'generated')
    items = [Item(name) for name in driving]
    selection = Selection('test', items, *match_cases(items, PROTOCOLS[protocol], generated, driving, sources))
    return run_evaluation(selection, out, metric_ids=metric_ids, protocol=protocol, **changes)


def run_evaluation(selection, out, *, protocol='same-identity', metric_ids=CHEAP, renderer=None, subject={}):
    """Of a Selection, or of cases that are all there is."""
    if not isinstance(selection, Selection):
        selection = Selection('test', [case.item for case in selection], selection)
    job = EvaluationJob(protocol, PROTOCOLS[protocol], selection, tuple(metric_ids), subject, batch_size=3)
    report = evaluate.evaluate(job, out, 'cpu', renderer)
    return report, json.loads((out / 'metrics.json').read_text()) if report is not None else None


# Videos made elsewhere

def test_a_folder_of_videos_gets_all_reports(folders, tmp_path):
    report, written = score_folders(folders, tmp_path)
    assert {'metrics.json', 'metrics.csv', 'metrics.md', 'report.html', 'list.csv'} <= set(os.listdir(tmp_path))
    assert written['coverage'] == {'listed': 5, 'found': 5, 'scored': 5, 'missing': [], 'extra': [], 'problems': {}}
    equal, darker = written['clips'][:2]
    assert equal['model'] == {'l1.mean_abs': 0, 'psnr.rgb': None, 'jitter.pixels': 0}
    assert equal['equal_frames'] == {'model': 8, 'copy': 1} and darker['model']['psnr.rgb'] < 20
    rows = list(csv.DictReader((tmp_path / 'metrics.csv').open()))
    assert [row['clip'] for row in rows] == [f'id{i}#clip' for i in range(5)] + ['mean']
    assert float(rows[1]['l1.mean_abs']) == darker['model']['l1.mean_abs']
    assert 'Follow-Your-Emoji' not in (tmp_path / 'metrics.md').read_text()        # other clips, another size
    assert written['metrics']['jitter.pixels']['undefined'] == 2 * 5        # no motion before the third frame


def test_values_are_those_worked_out_by_hand(tmp_path):
    clip = ToyClip(num_frames=4)
    made = FrameList([frame // 2 for frame in clip.frames()], 'made', clip.fps)
    report, _ = run_evaluation([Case(Item('clip'), clip, clip, made)], tmp_path, protocol='same-identity-no-first')
    expected = np.mean([np.abs(frame // 2 - frame.astype(float)).mean() / 255 for frame in clip.read([1, 2, 3])])
    assert report.summary['model']['l1.mean_abs'] == pytest.approx(expected, rel=1e-5)
    copied = np.mean([np.abs(clip.frame(0).astype(float) - frame).mean() / 255 for frame in clip.read([1, 2, 3])])
    assert report.summary['copy']['l1.mean_abs'] == pytest.approx(copied, rel=1e-5)


def test_whatever_does_not_fit_is_counted_and_named_and_the_rest_is_scored(folders, tmp_path):
    root = tmp_path / 'data'
    shutil.copytree(folders, root)
    (root / 'generated' / 'id0#clip.mp4').rename(root / 'generated' / 'stranger.mp4')       # missing, and extra
    write_clip(root / 'generated' / 'id1#clip.mp4', ToyClip(num_frames=5))                  # of another length
    write_clip(root / 'generated' / 'id2#clip.mp4', ToyClip(num_frames=10), change=lambda frame: frame[:16, :16])
    (root / 'generated' / 'id3#clip.mp4').write_text('no video')
    _, written = score_folders(root, tmp_path / 'out')
    coverage = written['coverage']
    assert (coverage['listed'], coverage['found'], coverage['scored']) == (5, 4, 1)
    assert coverage['missing'] == ['id0#clip'] and coverage['extra'] == ['stranger']
    problems = coverage['problems']
    assert 'has 5 frames, its driving video 9' in problems['id1#clip']
    assert 'is 16x16, its driving video 32x32' in problems['id2#clip'] and 'cannot be decoded' in problems['id3#clip']
    assert 'not scored: id3#clip' in (tmp_path / 'out' / 'metrics.md').read_text()
    assert 'id3#clip' in (tmp_path / 'out' / 'report.html').read_text()

    shutil.copy(root / 'driving' / 'id3#clip.mp4', root / 'generated' / 'id3#clip.mp4')      # mended: it counts now
    assert score_folders(root, tmp_path / 'out')[1]['coverage']['scored'] == 2


def test_nothing_to_score_is_an_error(folders, tmp_path):
    root = tmp_path / 'data'
    shutil.copytree(folders / 'driving', root / 'driving')
    write_clip(root / 'generated' / 'stranger.mp4', ToyClip())
    with pytest.raises(UserError, match='no clip of the list test is found, such as id0#clip'):
        score_folders(root, tmp_path / 'out')
    for path in (root / 'driving').iterdir():
        (root / 'generated' / path.name).write_text('no video')
    with pytest.raises(UserError, match='none of 5 clips could be scored; the first: .*cannot be decoded'):
        score_folders(root, tmp_path / 'out')


def test_videos_without_the_first_frame_fit_the_protocol_that_leaves_it_out(folders, tmp_path):
    root = tmp_path / 'data'
    shutil.copytree(folders / 'driving', root / 'driving')
    for i in range(5):
        write_clip(root / 'generated' / f'id{i}#clip.mp4', ToyClip(num_frames=8 + i, seed=i), range(1, 8 + i))
    _, written = score_folders(root, tmp_path / 'out', protocol='same-identity-no-first')
    assert written['mean']['model']['l1.mean_abs'] == 0 and written['num_frames'] == sum(range(8, 13)) - 5


def test_stills_are_pairs_and_sources_come_by_name(tmp_path):
    for i in range(3):
        for folder, shift in (('driving', 0), ('generated', 1), ('source', 5)):
            (tmp_path / folder).mkdir(exist_ok=True)
            save_png(tmp_path / folder / f'{i:04d}.png', ToyClip(seed=i).frame(shift))
    report, _ = score_folders(tmp_path, tmp_path / 'out')
    assert report.summary['clips'] == report.summary['frames'] == 3 and report.summary['copy'] == {}
    report, _ = score_folders(tmp_path, tmp_path / 'out', sources=clips_in(tmp_path / 'source'))
    assert report.summary['copy']['l1.mean_abs'] > report.summary['model']['l1.mean_abs'] > 0


# Resuming, and several processes

@pytest.mark.parametrize('metric_ids', [CHEAP, CHEAP + [Brightness.id]])
def test_an_interrupted_run_goes_on_to_the_same_numbers(folders, tmp_path, monkeypatch, metric_ids):
    _, whole = score_folders(folders, tmp_path / 'whole', metric_ids)
    score, scored = evaluate._score, []

    def interrupted(case, *rest):
        scored.append(case.item.name)
        if len(scored) == 4:
            raise KeyboardInterrupt
        score(case, *rest)

    monkeypatch.setattr(evaluate, '_score', interrupted)
    with pytest.raises(KeyboardInterrupt):
        score_folders(folders, tmp_path / 'parts', metric_ids)
    assert not (tmp_path / 'parts' / 'metrics.json').exists()
    for _ in range(2):
        assert score_folders(folders, tmp_path / 'parts', metric_ids)[1] == whole
        assert scored[4:] == ['id3#clip', 'id4#clip']


@pytest.fixture
def scored(monkeypatch):
    """[(clip, metric ids)] of what is computed."""
    score, scored = evaluate.Scorer.score, []

    def counted(self, *arguments):
        clip = score(self, *arguments)
        scored.append((clip.clip, [*clip.scores, *clip.features]))
        return clip
    monkeypatch.setattr(evaluate.Scorer, 'score', counted)
    return scored


def test_what_has_changed_is_scored_again(folders, tmp_path, scored):
    root = tmp_path / 'data'
    shutil.copytree(folders, root)

    def scored_by(**changes):
        scored.clear()
        score_folders(root, tmp_path / 'out', **changes)
        return len(scored)

    assert scored_by() == 5 and scored_by() == 0
    assert scored_by(subject={'weights': 'others'}) == 5 and scored_by() == 0
    write_clip(root / 'generated' / 'id2#clip.mp4', ToyClip(num_frames=10, seed=7))
    assert scored_by() == 1


def test_only_missing_metrics_are_computed(folders, tmp_path, scored, monkeypatch):
    ids = CHEAP + [Brightness.id, SourceBrightness.id]
    score_folders(folders, tmp_path, CHEAP[:2] + [Brightness.id])
    scored.clear()
    _, more = score_folders(folders, tmp_path, ids)
    # Metrics of one network share their features; those of the source image are new.
    assert {clip: names for clip, names in scored} == {
        f'id{i}#clip': ['jitter.pixels', 'level.generated', 'level.source'] for i in range(5)}
    assert more == score_folders(folders, tmp_path / 'at once', ids)[1]
    scored.clear()
    assert list(score_folders(folders, tmp_path, CHEAP[:1])[1]['mean']['model']) == CHEAP[:1]     # the others are kept
    assert score_folders(folders, tmp_path, ids)[1] == more and scored == []
    monkeypatch.setattr(CATALOGUE['psnr.rgb'], 'definition', 'another one')
    score_folders(folders, tmp_path, CHEAP + [Brightness.id])
    assert [names for _, names in scored] == [['psnr.rgb']] * 5


def test_a_failure_keeps_the_scores_of_the_clip(folders, tmp_path, scored, monkeypatch):
    _, first = score_folders(folders, tmp_path, CHEAP[:1])

    def fail(*arguments):
        raise UserError('disk full')
    with monkeypatch.context() as patch:
        patch.setattr(evaluate.Scorer, 'score', fail)
        with pytest.raises(UserError, match='none of 5 clips could be scored; the first: disk full'):
            score_folders(folders, tmp_path, CHEAP)
    scored.clear()
    _, again = score_folders(folders, tmp_path, CHEAP)
    assert again['mean']['model']['l1.mean_abs'] == first['mean']['model']['l1.mean_abs']
    assert 'l1.mean_abs' not in scored[0][1]


def test_two_processes_give_the_same_files(folders, tmp_path, capsys):
    arguments = [*EVALUATE, '--generated', folders / 'generated', '--driving', folders / 'driving', '--metrics',
                 *CHEAP, '--run_name', 'x', '--log_dir']
    succeeds(capsys, *arguments, tmp_path / '1')
    run_in_two_processes(*arguments, tmp_path / '2')
    one, two = (tmp_path / out / 'x' / 'evaluation' / 'same-identity' for out in '12')
    for name in ('metrics.json', 'metrics.csv', 'metrics.md', 'report.html', 'list.csv'):
        assert (one / name).read_bytes() == (two / name).read_bytes()


# Models

def cases_of(clips, items):
    cases, missing = find_cases(items, ClipFinder({clip.name: clip for clip in clips}, [], SIZE))
    assert not missing
    return cases


def test_a_model_is_generated_and_scored_while_frames_stream_by(model, tmp_path):
    clip = ToyClip(num_frames=120)
    cases = cases_of([clip], [Item('clip')])
    report, _ = run_evaluation(cases, tmp_path, renderer=Renderer(model, 'cpu', 8))
    assert report.summary['frames'] == 120 and report.summary['psnr_gain'] is not None
    assert clip.most_alive <= (streaming.DEPTH + 3) * 8 and model.sources_encoded == 1


def test_relative_motion_starts_at_the_lists_anchor_or_at_the_nearest_frame(model, tmp_path):
    source, driving = ToyClip('a', seed=3), ToyClip('b', num_frames=10)
    renderer = Renderer(model, 'cpu', 4)
    made = {}
    for name, item in {'anchor': Item('a', 0.0, 'b', anchor_time=0.28), 'nearest': Item('a', None, 'b')}.items():
        case, = cases_of([source, driving], [item])
        driven = evaluate._follow(case, PROTOCOLS['cross-identity-relative'], renderer, source.frame(0))
        made[name] = np.concatenate([batch.frames for batch in driven.render(driving.frames())])
    errors = {name: np.abs(frames.astype(int) - source.frame(0)).mean((1, 2, 3)) for name, frames in made.items()}
    assert errors['anchor'].argmin() == 7 and errors['anchor'][7] < 0.1
    nearest = find_best_frame(renderer, source.frame(0), driving, landmarks=False)
    assert errors['nearest'].argmin() == nearest and errors['nearest'][nearest] < 0.1

    scales = [evaluate._follow(case, PROTOCOLS[name], renderer, source.frame(0)).transfer.scale
              for name in ('cross-identity-relative', 'pairs-cross')]
    assert scales[0] != 1 and scales[1] == 1

    report, written = run_evaluation([case], tmp_path, protocol='cross-identity-relative', renderer=renderer,
                                     metric_ids=['jitter.pixels', Brightness.id])
    assert report.summary['copy'] == {} and set(written['mean']['model']) == {'jitter.pixels', Brightness.id}


def test_pairs_of_frames_are_taken_at_their_times(model, tmp_path):
    clip = ToyClip('a')
    cases = cases_of([clip], [Item('a', 0.08, driving_time=0.2), Item('a', 0.08, driving_time=9.0)])
    assert cases[0].moments() == (2, [5])
    report, written = run_evaluation(cases, tmp_path, protocol='pairs-same', renderer=Renderer(model, 'cpu', 4))
    assert report.summary['frames'] == 1
    assert 'no frame at 9 s, it is 0.48 s long' in written['coverage']['problems']['a@0.08s--a@9s']


def test_codes_in_use_are_counted_over_all_clips(tmp_path):
    renderer = Renderer(build_model(tiny()), 'cpu', 3)
    cases = cases_of([ToyClip('a', 4), ToyClip('b', 2, seed=1)], [Item('a'), Item('b')])
    report, written = run_evaluation(cases, tmp_path, renderer=renderer)
    assert [use['codes'] for use in written['codebooks'].values()] == [8, 16, 24, 32] * 2
    assert all(1 <= use['perplexity'] <= use['used'] <= use['codes'] for use in written['codebooks'].values())
    assert 'Codes in use' in (tmp_path / 'report.html').read_text()
    assert report.rows[1].codes['motion 0'] != report.rows[0].codes['motion 0']


# Lists and clips

def test_clips_are_found_with_any_suffix_below_any_prefix(folders, tmp_path):
    (tmp_path / 'root' / 'id9#frames.mp4').mkdir(parents=True)
    save_png(tmp_path / 'root' / 'id9#frames.mp4' / '0000000.png', ToyClip().frame(0))
    save_png(tmp_path / 'root' / 'face.jpg', ToyClip().frame(0))
    find = ClipFinder({}, [f'vox/test={folders / "driving"}', str(tmp_path / 'root')], SIZE)
    assert len(find('vox/test/id0#clip')) == 8 and len(find('id9#frames')) == len(find('face.jpg')) == 1
    assert find('id0#clip') is None
    (tmp_path / 'a=b').symlink_to(folders / 'driving')
    assert len(ClipFinder({}, [f'vox/test={tmp_path}/a=b'], SIZE)('vox/test/id0#clip')) == 8
    assert len(case_module.test_set([f'{tmp_path}/a=b'], SIZE)) == 5
    with pytest.raises(UserError, match='--path_map: .*nowhere is not a folder'):
        ClipFinder({}, ['nowhere'], SIZE)


def test_all_clips_are_chosen_in_whatever_order_they_are_listed():
    assert choose_items(PROTOCOLS['same-identity'], None, 'cab') == ('all clips', [Item(name) for name in 'abc'])


def test_a_list_is_covered_as_far_as_clips_are_there():
    clips = [ToyClip('a'), ToyClip('b')]
    cases, missing = find_cases([Item('a'), Item('c'), Item('b', driving='c')],
                                ClipFinder({clip.name: clip for clip in clips}, [], SIZE))
    assert [case.item.name for case in cases] == ['a'] and missing == ['c', 'b--c']


def test_two_clips_of_one_name_are_refused(tmp_path):
    for suffix in ('mp4', 'gif'):
        write_clip(tmp_path / f'a.{suffix}', ToyClip(num_frames=2))
    with pytest.raises(UserError, match='a.gif and a.mp4 have one name'):
        clips_in(tmp_path)


# Report

def two_clips():
    """A clip of three frames, whose first is the source; and one of one frame."""
    long, short = ClipScores('long'), ClipScores('short')

    def scores(psnr):
        return {name: torch.tensor(psnr, dtype=torch.float64) for name in ('psnr.rgb', 'ard.mediapipe')}

    long.add(scores([40., math.nan]), scores([math.inf, 14.]))
    long.add(scores([24.]), scores([16.]))
    long.misses = {'ard.mediapipe': {'generated': 1}}
    short.add(scores([31.]), scores([32.]))
    long.frames, short.frames = 3, 1
    return [long, short]


def test_means_over_clips_and_over_frames_differ_as_defined():
    summary = summarize(two_clips())
    assert summary['clips'] == 2 and summary['frames'] == 4
    assert summary['model']['psnr.rgb'] == pytest.approx((32 + 31) / 2)
    assert summary['frame_weighted_model']['psnr.rgb'] == pytest.approx((64 + 31) / 3)
    assert summary['copy']['psnr.rgb'] == pytest.approx((15 + 32) / 2)        # the infinite one is left out
    assert summary['psnr_gain'] == pytest.approx((8 - 1) / 2)                 # only frames where both are finite
    assert summary['psnr_compared'] == {'model': pytest.approx((24 + 31) / 2), 'copy': pytest.approx((16 + 32) / 2)}
    assert summary['counts']['ard.mediapipe'] == {'finite': 3, 'infinite': 0, 'undefined': 1,
                                                  'misses': {'generated': 1}}


def test_tables_name_the_copy_the_misses_and_what_was_skipped(tmp_path):
    about = {'protocol': {'name': 'p', 'text': 't'}}
    rows = two_clips()
    rows[0].details = {'ard.mediapipe': {'jaw': 0.5, 'smile': None}}
    report = Report(rows, {'lpips.vgg': 'get it there'}, about, {'fid.source_vs_generated': 20.0}, tables=('Table 3',))
    write_report(tmp_path, report)
    written = json.loads((tmp_path / 'metrics.json').read_text())
    assert written['skipped'] == {'lpips.vgg': 'get it there'} and written['mean']['model']['psnr.rgb'] == 31.5
    assert written['clips'][0]['equal_frames'] == {'model': 0, 'copy': 1}
    assert written['mean']['details'] == {'ard.mediapipe': {'jaw': 0.5, 'smile': None}}
    assert list(csv.DictReader((tmp_path / 'metrics.csv').open()))[0]['ard.mediapipe: jaw'] == '0.5'
    for text in (format_table(report), as_markdown(report)):
        assert 'source copied, without the source frame' in text and 'lpips.vgg skipped: get it there' in text
        assert 'mean over clips' in text and '31.50' in text and 'mean over frames' in text and '31.67' in text
        assert 'no face in 1 generated frame' in text and 'within clips: jaw 0.50; smile –' in text
        assert 'fid.source_vs_generated: 4 frames are fewer than 2048 features' in text
        assert 'PSNR without the source frame: 3.50 dB better than the copied source' in text
    assert '| MRFA | 77.63 |' in as_markdown(report) and 'as published: mean over frames' in as_markdown(report)


@pytest.mark.parametrize('protocol, list_name, size, tables', [
    ('same-identity', 'voxceleb1-50', 256, 3), ('same-identity', 'voxceleb1-50', 64, 0),
    ('same-identity', 'all clips', 256, 0), ('same-identity-no-first', 'voxceleb1-50', 256, 0),
    ('celebv-hq', 'celebv-hq-50', 256, 1), ('pairs-same', 'pairs-2083-same', 256, 0),
    ('cross-identity-relative', 'voxceleb1-50-cross', 256, 1), ('cross-identity-relative', 'pairs.csv', 256, 0)])
def test_published_rows_appear_for_their_dataset_and_size_only(protocol, list_name, size, tables):
    assert len(published_tables(protocol, list_name, {(size, size)})) == tables
    assert published_tables(protocol, list_name, {(size, size), (size, 2 * size)}) == ()


def test_the_page_is_whole_in_itself(folders, tmp_path):
    score_folders(folders, tmp_path)
    text = (tmp_path / 'report.html').read_text()
    links = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(links) == 4 and '<script' not in text             # two worst clips and two best ones
    assert all(link.startswith('data:image/jpeg;base64,') for link in links)
    assert 'Follow-Your-Emoji' not in text and text.count('<figcaption>') == 4 * 3 - 1     # equal frames have no PSNR


# Command line

def test_a_metric_without_its_weights_is_skipped_and_the_run_goes_on(folders, tmp_path, capsys):
    videos = ['--generated', folders / 'generated', '--driving', folders / 'driving', '--log_dir', tmp_path]
    out = succeeds(capsys, *EVALUATE, *videos, '--metrics', 'l1.mean_abs', 'lpips.vgg')
    assert 'lpips.vgg skipped: weights not found: download https://' in out
    assert 'vgg16-397923af.pth' in (tmp_path / 'generated/evaluation/same-identity/report.html').read_text()
    assert 'none of the metrics can be computed here' in refused(capsys, *EVALUATE, *videos, '--metrics', 'lpips.vgg')


def test_videos_of_other_names_are_matched_in_order(folders, tmp_path, capsys, caplog):
    for folder, names in (('generated', ['out_2', 'out_10']), ('driving', ['b', 'a'])):
        (tmp_path / folder).mkdir()
        for n, name in enumerate(names):
            shutil.copy(folders / folder / f'id{1 - n}#clip.mp4', tmp_path / folder / f'{name}.mp4')
    command = (*EVALUATE, '--generated', tmp_path / 'generated', '--driving', tmp_path / 'driving', '--metrics',
               'l1.mean_abs', '--log_dir', tmp_path / 'log')
    refused(capsys, *command, logged=True)
    assert 'in order of the names, out_2 with a' in caplog.text                     # so they are of the other clip each
    for name in 'ab':
        (tmp_path / 'driving' / f'{name}.mp4').rename(tmp_path / 'driving' / f'c{"ba".index(name)}.mp4')
    assert '2 clips of 2 listed' in succeeds(capsys, *command)
    (tmp_path / 'driving' / 'c1.mp4').unlink()
    message = refused(capsys, *command)
    assert 'equal names' in message and '--path_map' not in message


def test_results_of_others_are_not_written_over(folders, tmp_path, capsys):
    """Two folders of one name, as everybody's results have: here the second has other frames."""
    for name, made in (('a', 'generated'), ('b', 'driving')):
        shutil.copytree(folders / made, tmp_path / name / 'results')
    places = []
    for name in 'aba':
        out = succeeds(capsys, *EVALUATE, '--generated', tmp_path / name / 'results', '--driving', folders / 'driving',
                         '--metrics', 'l1.mean_abs', '--log_dir', tmp_path / 'log')
        places.append(Path(out.splitlines()[-1].rpartition(' ')[2]))
    first, second, again = ((place, (place / 'metrics.json').read_text()) for place in places)
    assert first == again and first[0] != second[0] and first[1] != second[1]


def test_mistakes_on_the_command_line(folders, tmp_path, capsys):
    message = partial(refused, capsys, *EVALUATE, '--log_dir', tmp_path / 'log')
    videos = ['--generated', folders / 'generated', '--driving', folders / 'driving']
    assert 'did you mean same-identity' in message(*videos, '--protocol', 'same-identiti')
    assert 'did you mean psnr.rgb' in message(*videos, '--metrics', 'psnr.rbg')
    assert 'belong together' in message('--generated', folders / 'generated')
    assert 'no such folder' in message('--generated', tmp_path / 'nowhere', '--driving', folders / 'driving')
    (tmp_path / 'empty').mkdir()
    assert 'contains no videos' in message('--generated', tmp_path / 'empty', '--driving', folders / 'driving')
    assert 'no clip of the list voxceleb1-50 is found' in message(*videos, '--list', 'voxceleb1-50')
    assert not (tmp_path / 'log').exists()
