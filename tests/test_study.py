"""The user study: balanced, blind, counted right, and clicked through in a browser where there is one."""

import json
import shutil
from collections import Counter
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
from PIL import Image

import animate_pairs
import run
from datasets import build as datasets_build
from datasets.video import open_clip
from evaluation.cases import Case
from evaluation.protocols import Item
from evaluation.study.answers import read_key, read_participants
from evaluation.study.build import QUESTIONS, StudyJob, build
from evaluation.study.collect import collect
from evaluation.study.schedule import PARTICIPANTS, draw_schedules
from evaluation.study.statistics import krippendorff_alpha, share_intervals
from support.errors import UserError
from tests.support.command_line import refused, succeeds
from tests.support.tiny import save_models, tiny
from tests.support.video_files import write_video

METHODS = ('Zebrafish', 'Quagga-Net', 'okapi')
PAIRS = ('anna--bert', 'carl--dora', 'emil--fritz')


def write_square(path, shade, size=32, count=10, fps=25):
    """A bright square that moves over a plain background."""
    frames = np.full((count, size, size, 3), shade, np.uint8)
    for i, frame in enumerate(frames):
        frame[size // 4:size // 2, i * size // count:][:, :size // 4] = 255
    write_video(path, frames, fps)


def make_job(folder, methods=METHODS, pairs=PAIRS, **how):
    """A job whose videos are made first, in `folder`."""
    cases = []
    for p, pair in enumerate(pairs):
        source, driver = pair.split('--')
        for name in (source, driver):
            write_square(folder / 'clips' / f'{name}.mp4', 20)
        cases.append(Case(Item(source, driving=driver), *(open_clip(folder / 'clips' / f'{name}.mp4')
                                                          for name in (source, driver))))
        for m, method in enumerate(methods):      # one of them larger, one of another rate, numbered as animate does
            name = f'{p:03d}_{pair}.mp4' if m == 1 else f'{pair}.mp4'
            write_square(folder / method / name, 40 + 60 * m, 64 if m == 0 else 32, *((12, 30) if m == 1 else (10, 25)))
    return StudyJob(folder / 'study', tuple(cases), {method: folder / method for method in methods}, **how)


@pytest.fixture(scope='module')
def ranking(tmp_path_factory):
    build(job := make_job(tmp_path_factory.mktemp('ranking')))
    return job.out


@pytest.fixture(scope='module')
def choice(tmp_path_factory):
    build(job := make_job(tmp_path_factory.mktemp('choice'), METHODS[:2], checks=1))
    return job.out


def answer(study, participant, prefer, careless=False):
    """What the page saves for a participant: `prefer(question, pair, method)` is largest for the best."""
    key = read_key(study)
    row, trials = participant % len(key['schedules']), []
    for pair, options in key['schedules'][row]:
        pair = key['pairs'][pair]
        shown = [pair['options'][i] for i in options]

        def value(question, file):
            method = key['owners'][file]
            if method is None:
                return float('inf') if careless else float('-inf')
            return prefer(question, pair['name'], method)

        trials.append({'options': shown, 'seconds': 1.0, 'order': {
            question: sorted(shown, key=lambda file: -value(question, file)) for question in QUESTIONS}})
    return {'format': key['format'], 'study': key['study'], 'participant': str(participant), 'schedule': row,
            'started': '', 'finished': '', 'trials': trials}


def save(folder, *answers):
    folder.mkdir(exist_ok=True)
    for data in answers:
        (folder / f'answers-{data["participant"]}.json').write_text(json.dumps(data))
    return folder


# ---------------------------------------------------------------------------- balance

@pytest.mark.parametrize('num_methods', [2, 5])
def test_rankings_are_balanced_over_participants_for_each_pair_and_position(num_methods):
    schedules = draw_schedules(num_methods, 10, [3, 7])
    assert len(schedules) == PARTICIPANTS
    placed = Counter((pair, position, method) for row in schedules for pair, options in row
                     if num_methods not in options for position, method in enumerate(options))
    assert len(placed) == 10 * num_methods ** 2 and set(placed.values()) == {PARTICIPANTS // num_methods}
    neighbours = Counter(pair for row in schedules for _, options in row if num_methods not in options
                         for pair in zip(options, options[1:]))
    assert set(neighbours) == set(permutations(range(num_methods), 2)) and len(set(neighbours.values())) == 1
    assert len({tuple(pair for pair, _ in row) for row in schedules}) > PARTICIPANTS * 0.9      # orders differ


def test_checks_are_neither_first_nor_beside_their_pair_and_move():
    positions = []
    for row in draw_schedules(3, 6, [1, 4]):
        checks = [i for i, (_, options) in enumerate(row) if 3 in options]
        assert len(checks) == 2 and 0 not in checks and sorted(row[i].pair for i in checks) == [1, 4]
        positions += [row[i].options.index(3) for i in checks]
    counts = [positions.count(position) for position in range(3)]
    assert max(counts) - min(counts) <= 2


# ---------------------------------------------------------------------------- the folder

def test_nothing_published_tells_a_method(ranking, choice):
    page = ranking / 'page'
    files = [path for path in page.rglob('*') if path.is_file()]
    assert len(files) == 1 + 3 * (3 + 2) + 2
    names = [method.lower().encode() for method in METHODS]
    for path in files:
        content = str(path.relative_to(page)).lower().encode() + path.read_bytes().lower()
        assert not any(name in content for name in names), path
    assert read_key(ranking)['salt'] not in (page / 'study.html').read_text()
    # The secret salt is in the names: the same pair and method is called otherwise in another study.
    assert not set(read_key(ranking)['owners']) & set(read_key(choice)['owners'])


def test_the_videos_of_a_pair_are_alike_and_show_the_method_that_the_key_says(ranking):
    key, media, broken = read_key(ranking), ranking / 'page' / 'media', 0
    shades = dict(zip(METHODS, (40, 100, 160)))
    for pair in key['pairs']:
        assert Image.open(media / pair['source']).size == (64, 64)
        for name in (*pair['options'], pair['driver']):
            clip = open_clip(media / name)
            frames = np.stack(clip.read(range(10))).astype(float)
            assert clip.fps == Fraction(25) and len(clip) == 10 and frames.shape == (10, 64, 64, 3)
            method = key['owners'].get(name)
            if method:
                assert abs(frames[5, -8:, -8:].mean() - shades[method]) < 4
            elif name != pair['driver']:           # the broken video of a check: a mosaic that holds a moment
                broken += 1
                assert np.abs(frames[1:4] - frames[0]).mean() < 4
    assert broken == 2


def test_a_second_study_in_the_folder_is_refused_and_failure_leaves_nothing(ranking, tmp_path):
    before = (ranking / 'key.json').read_bytes()
    with pytest.raises(UserError, match='contains a study'):
        build(make_job(ranking.parent))
    assert (ranking / 'key.json').read_bytes() == before
    job = make_job(tmp_path)
    (tmp_path / METHODS[2] / f'{PAIRS[1]}.mp4').unlink()
    with pytest.raises(UserError, match=f'{METHODS[2]}.*1 of 3 pairs; expected {PAIRS[1]}.mp4$'):
        build(job)
    write_square(tmp_path / METHODS[2] / f'{PAIRS[1]}.mp4', 160, count=4)
    with pytest.raises(UserError, match=f'{PAIRS[1]}: lasts 0.16 s by {METHODS[2]} but 0.40 s'):
        build(job)
    assert not list((tmp_path / 'study').iterdir())


# ---------------------------------------------------------------------------- counting

def test_counts_of_known_rankings(ranking, tmp_path):
    """Okapi is best of all in appearance; in motion on one pair of three only; who is careless is excluded."""
    def prefer(question, pair, method):
        if question == 'motion':
            return METHODS.index(method) * (1 if pair == PAIRS[0] else -1)
        return METHODS.index(method)

    people = [answer(ranking, n, prefer) for n in range(7)]
    people += [answer(ranking, n, lambda *_: 0, careless=True) for n in (7, 8)]
    study = shutil.copytree(ranking, tmp_path / 'study')
    report = collect(study, [save(tmp_path / 'answers', *people)])
    assert sorted(report['participants']) == list('0123456') and report['excluded'] == {'7': 2, '8': 2}
    zebrafish, quagga, okapi = (report['questions']['appearance']['methods'][method] for method in METHODS)
    assert (okapi['share'], okapi['interval'], okapi['first'], okapi['shown']) == (1, [1, 1], 21, 21)
    assert (zebrafish['share'], quagga['share']) == (0, 0)
    assert (zebrafish['mean_rank'], quagga['mean_rank'], okapi['mean_rank']) == (3, 2, 1)
    motion = report['questions']['motion']
    assert [motion['methods'][method]['first'] for method in METHODS] == [14, 0, 7]
    assert motion['methods']['okapi']['share'] == pytest.approx(1 / 3)
    assert [motion['methods'][method]['mean_rank'] for method in METHODS] == pytest.approx([5 / 3, 2, 7 / 3])
    assert motion['krippendorff_alpha'] == 1
    text = (study / 'study.md').read_text()
    assert '7 participants (2 excluded), 3 pairs' in text
    assert '| okapi | 100.0 [100.0, 100.0] | 33.3 [0.0, 100.0] |' in text
    assert json.loads((study / 'study.json').read_text()) == report
    assert Image.open(study / 'study.png').width > 1000


@pytest.mark.parametrize('change, message', [
    (lambda data: data['trials'].pop(), 'holds 4 trials, expected 5'),
    (lambda data: data['trials'][1]['order'].update(motion=2 * data['trials'][1]['order']['motion'][:1]),
     'trial 2: motion must rank each'),
    (lambda data: data['trials'][0]['order'].pop('overall'), 'trial 1: must answer appearance'),
    (lambda data: data['trials'][0]['options'].reverse(), 'trial 1: differs from its schedule'),
    (lambda data: data.update(study='0' * 12), 'belongs to another study'),
    (lambda data: data.update(schedule=True), 'schedule True is not one'),
    (lambda data: data.update(participant='../x'), 'no valid participant'),
    (lambda data: data.pop('trials'), 'is not a file of answers')])
def test_altered_answers_are_refused_by_name(ranking, tmp_path, change, message):
    data = answer(ranking, 3, lambda question, pair, method: METHODS.index(method))
    change(data)
    file = tmp_path / 'answers.json'
    file.write_text(json.dumps(data))
    with pytest.raises(UserError, match=message) as error:
        read_participants([file], read_key(ranking))
    assert str(file) in str(error.value)


def test_duplicate_careless_and_missing_answers_are_refused(ranking, tmp_path):
    key, data = read_key(ranking), answer(ranking, 3, lambda *_: 0, careless=True)
    one, other = tmp_path / 'a.json', tmp_path / 'b.json'
    one.write_text(json.dumps(data)), other.write_text(json.dumps(data))
    with pytest.raises(UserError, match='all 1 participants failed'):
        collect(ranking, [one])
    (tmp_path / 'cut.json').write_text('{"format": 1,')
    for read, message in ((lambda: read_participants([one, other], key),
                           r'b\.json: is of participant 3, like .*a\.json; remove one'),
                          (lambda: read_participants([tmp_path / 'cut.json'], key), 'is not readable JSON'),
                          (lambda: read_participants([tmp_path / 'c.json'], key), 'no such file'),
                          (lambda: read_key(tmp_path), 'give the folder of the study with --out')):
        with pytest.raises(UserError, match=message):
            read()
    assert not (ranking / 'study.json').exists()


# ---------------------------------------------------------------------------- statistics

def test_krippendorff_alpha_of_the_published_example():
    """Four observers, twelve units, gaps: alpha of interval data is 0.849 (Krippendorff 2011, section E)."""
    observers = ['123321412...', '1233224125.3', '.3332342251.', '12332441251.']
    values = np.array([[np.nan if number == '.' else int(number) for number in observer] for observer in observers])
    assert krippendorff_alpha(values) == pytest.approx(0.849, abs=5e-4)
    assert krippendorff_alpha(np.array([[1., 2, 3], [1, 2, 3]])) == 1
    assert krippendorff_alpha(np.array([[1., 2, 3], [np.nan] * 3])) is None


@pytest.mark.parametrize('axes', [(0, 1, 2), (1, 0, 2)])
def test_intervals_are_over_participants_and_pairs(axes):
    """Where half of 20 people (or pairs) say one thing and half the other, the error is that of 20, not of 400."""
    ranks = np.full((20, 20, 2), 2)
    ranks[:10, :, 0] = ranks[10:, :, 1] = 1
    low, high = share_intervals(ranks.transpose(axes), seed=0)
    error = 1.96 * np.sqrt(0.25 / 20)
    assert low == pytest.approx(0.5 - error, abs=0.04) and high == pytest.approx(0.5 + error, abs=0.04)


# ---------------------------------------------------------------------------- in a browser

def open_study(browser, study, participant):
    page = browser.new_page(viewport={'width': 1400, 'height': 900})
    page.set_default_timeout(5000)
    page.troubles = []
    page.on('pageerror', lambda error: page.troubles.append(str(error)))
    page.on('request', lambda request: page.troubles.append(request.url) if request.url.startswith('http') else None)
    page.goto(f'{(study / "page" / "study.html").as_uri()}?participant={participant}')
    return page


def finish(page, folder):
    """Save the answers on the last page; returns them."""
    with page.expect_download() as download:
        page.click('#save')
    folder.mkdir(exist_ok=True)
    download.value.save_as(folder / download.value.suggested_filename)
    assert not page.troubles      # no error, nothing fetched from the network
    page.close()
    return folder / download.value.suggested_filename


def shown(page):
    return [source.rpartition('/')[2] for source in
            page.eval_on_selector_all('#options video', 'videos => videos.map(video => video.src)')]


def test_a_whole_ranking_study_by_mouse(browser, ranking, tmp_path):
    """Okapi, Quagga-Net, Zebrafish in this order throughout; gone back once, closed in between."""
    owners = read_key(ranking)['owners']
    best_first = [*reversed(METHODS), None]
    page = open_study(browser, ranking, 5)
    page.click('#start')
    for trial in range(5):
        assert page.inner_text('#title') == f'{trial + 1} of 5' and page.is_disabled('#next')
        files = shown(page)
        order = sorted(range(3), key=lambda i: best_first.index(owners[files[i]]))
        for question in range(3):
            buttons = page.locator('fieldset').nth(question).locator('button')
            buttons.nth(order[0]).click()
            buttons.nth(order[1]).click()
            assert buttons.nth(order[2]).get_attribute('aria-label').endswith(', 3rd')
        if trial == 1:
            page.click('#back')
            assert page.inner_text('#title') == '1 of 5' and page.is_enabled('#next')
            page.click('#next')
            page.reload()
            assert page.inner_text('#title') == '2 of 5' and page.is_enabled('#next')
        if page.evaluate("document.createElement('video').canPlayType('video/mp4; codecs=\"avc1.64000a\"')"):
            page.wait_for_function("[...document.querySelectorAll('video')].every(video => video.readyState >= 2)")
            assert page.is_hidden('#trouble')
        page.click('#next')
    study = shutil.copytree(ranking, tmp_path / 'study')
    report = collect(study, [finish(page, tmp_path / 'answers')])
    assert report['participants'] == ['5'] and not report['excluded']
    for question in report['questions'].values():
        assert [question['methods'][method]['mean_rank'] for method in METHODS] == [3, 2, 1]


def test_a_study_of_two_methods_by_keyboard(browser, choice, tmp_path):
    """A to every question: the page saves the keys that were pressed."""
    page = open_study(browser, choice, '')              # a link without a participant makes one
    made, left = page.inner_text('.who'), []
    page.keyboard.press('Tab')
    page.keyboard.press('Enter')
    while page.is_visible('#trial'):
        left.append(shown(page)[0])
        page.keyboard.type('aab')
        page.keyboard.press('Enter')
    participant, = read_participants([file := finish(page, tmp_path / 'answers')], read_key(choice))
    assert participant.name == made and participant.failed_checks() == 1      # one of the two sides is broken
    assert [trial['order']['motion'][0] for trial in json.loads(file.read_text())['trials']] == left


# ---------------------------------------------------------------------------- the command line

@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp('models'), 'ours', 'rival')


def test_from_checkpoints_and_a_folder_to_the_result(checkpoints, tmp_path, capsys, monkeypatch):
    """Two models and videos made elsewhere, on both pairs of the synthetic heads; the third animation is interrupted.

    The same command resumes; with other settings, all videos are made again.
    """
    out, made, whole = tmp_path / 'study', [], animate_pairs.write_animation
    heads = datasets_build.test_people(tiny().dataset_params, 32)
    names = [f'{one.name}--{other.name}' for (one,), (other,) in permutations(heads.values(), 2)]
    for name in names:
        write_square(tmp_path / 'elsewhere' / f'{name}.mp4', 90, count=12)
    command = ('--mode', 'study', '--checkpoints', *checkpoints.values(), '--generated',
               f'third={tmp_path / "elsewhere"}', '--pairs', 2, '--checks', 1, '--device', 'cpu', '--out', out)

    def watched(renderer, source, driving, result, *rest, **more):
        made.append(result)
        if len(made) == 3:
            raise KeyboardInterrupt
        return whole(renderer, source, driving, result, *rest, **more)

    monkeypatch.setattr(animate_pairs, 'write_animation', watched)
    assert run.main([*map(str, command)]) == 130
    first = [path.read_bytes() for path in made[:2]]
    assert not made[2].exists() and not (out / 'key.json').exists()
    assert 'study.html?participant=1' in succeeds(capsys, *command)
    assert made[3] == made[2] and len(made) == 5 and len(set(made)) == 4
    assert [path.read_bytes() for path in made[:2]] == first
    key = read_key(out)
    assert key['methods'] == ['ours', 'rival', 'third'] and {pair['name'] for pair in key['pairs']} == set(names)
    for name, method in key['owners'].items():      # what is shown is what animate made
        if method in checkpoints:
            pair = next(pair['name'] for pair in key['pairs'] if name in pair['options'])
            ours, shown = (np.stack(list(open_clip(path).frames())).astype(float) for path in
                           (out / 'generated' / method / f'{pair}.mp4', out / 'page' / 'media' / name))
            assert np.abs(ours - shown).mean() < 8
    answers = save(tmp_path / 'answers', answer(out, 1, lambda question, pair, method: method == 'rival'))
    text = succeeds(capsys, '--mode', 'study', '--collect', answers, '--out', out)
    assert '| rival | 100.0 [100.0, 100.0] |' in text and (out / 'study.png').is_file()

    shutil.rmtree(out / 'page')
    (out / 'key.json').unlink()
    succeeds(capsys, *command, '--absolute')
    assert len(made) == 5 + 4


def test_a_list_of_pairs_and_no_model(tmp_path, capsys):
    rows = ['source,driving']
    for number in range(3):
        for role in 'sd':
            write_square(tmp_path / 'clips' / f'{role}{number}.mp4', 50)
        rows.append(f'clips/s{number}.mp4,clips/d{number}.mp4')
        for method in 'AB':
            write_square(tmp_path / method / f's{number}--d{number}.mp4', 120)
    (tmp_path / 'pairs.csv').write_text('\n'.join(rows))
    succeeds(capsys, '--mode', 'study', '--generated', f'A={tmp_path / "A"}', f'B={tmp_path / "B"}', '--list',
             tmp_path / 'pairs.csv', '--pairs', 2, '--checks', 0, '--out', tmp_path / 'study')
    assert [pair['name'] for pair in read_key(tmp_path / 'study')['pairs']] == ['s0--d0', 's1--d1']


def test_mistakes_are_one_line_and_come_before_the_work(checkpoints, tmp_path, capsys):
    (tmp_path / 'empty').mkdir()
    models, empty = ('--device', 'cpu', '--checkpoints', *checkpoints.values()), tmp_path / 'empty'
    for arguments, message in [
            (models[:-1], 'at least 2 methods'),
            (('--generated', f'x={empty}', f'y={empty}'), 'without --checkpoints, give --list'),
            ((*models, '--generated', empty), 'expected NAME=FOLDER'),
            ((*models, '--generated', f'ours={empty}'), 'ours is twice'),
            ((*models, '--generated', f'x={empty}'), 'has no video for 2 of 2 pairs'),
            ((*models, '--checks', 3), 'attention checks: must be from 0 to 2'),
            ((*models, '--pairs', 0), '--pairs 0'), (('--collect', tmp_path), 'key.json: no such file')]:
        assert message in refused(capsys, '--mode', 'study', *arguments, '--out', tmp_path / 'study')
    assert not (tmp_path / 'study').exists()
