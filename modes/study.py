"""Blind user study: build the participants' page, and analyse the answers that they return.

    python run.py --mode study --checkpoints ours.pt mcnet.pt --generated AniPortrait=videos --pairs 10 --out study
    python run.py --mode study --collect answers/*.json --out study

Publish study/page (study.html, from disk or any web host); keep study/key.json to yourself.
"""

from pathlib import Path

from modes.options import RENDERING, add_methods, check_methods, named, refuse, renderers
from motion.settings import Motion
from support.errors import UserError

BUILDING = ('--checkpoints', '--generated', '--pairs', '--list', '--checks')


def add_arguments(parser):
    add_methods(parser)
    parser.add_argument('--list', help='list of pairs, as for --mode evaluate; default: random pairs of the test set')
    parser.add_argument('--pairs', type=int, default=10, help='number of pairs, the first of --list; default 10')
    parser.add_argument('--checks', type=int, default=2, help='number of attention checks; default 2')
    parser.add_argument('--seed', type=int, default=0, help='seed of random pairs, orders, positions and intervals')
    parser.add_argument('--out', default='study', help='folder of the study; default study')
    parser.add_argument('--collect', nargs='+', default=[], metavar='ANSWERS',
                        help="participants' files or folders of them; writes study.json, study.md and study.png")


def run(options):
    if options.collect:
        refuse(options, BUILDING + RENDERING, 'with --collect, which analyses the answers to an existing study')
        from evaluation.study.collect import as_markdown, collect
        print(as_markdown(collect(options.out, options.collect, options.seed)))
        print(f'study.json, study.md and study.png are in {options.out}')
        return
    check(options)
    from evaluation.study.build import build, check_new
    out = Path(options.out)
    check_new(out)
    page = build(prepare(options, out / 'generated'))
    print(f'{page}: page for participants; give each their own link, study.html?participant=1, 2, ...\n'
          f'{out / "key.json"}: the method of each video; keep it to yourself, --collect needs it')


def check(options):
    if len(options.checkpoints) + len(options.generated) < 2:
        raise UserError('a study compares at least 2 methods: give --checkpoints or --generated')
    if options.pairs < 1:
        raise UserError(f'--pairs {options.pairs}: must be at least 1')
    check_methods(options)
    if not options.checkpoints and not options.list:
        raise UserError('without --checkpoints, give --list: the pairs of the generated videos')


def prepare(options, out):
    """The StudyJob, at the largest image size of the models; generates the videos of checkpoints into `out`.

    The first checkpoint's config has the test set. Videos that an interrupted build has finished are kept.
    """
    from animate_pairs import animate_alone
    from evaluation.study.build import StudyJob
    from evaluation.videos import find_videos, pair_name
    checkpoints, generated = named(options)
    folders = {name: out / name for name in checkpoints} | generated

    def make_job(cases):
        return StudyJob(Path(options.out), tuple(cases), folders, options.checks, options.seed)
    if not checkpoints:
        return make_job(pairs_of(options, None, None))
    job, size, dataset = None, 0, None
    for name, config, renderer in renderers(checkpoints, options):
        dataset, own_size = dataset or config.dataset_params, config.model_params.image_size
        cases = pairs_of(options, dataset, own_size)
        if job is None:      # find missing videos before the long part
            for other, folder in generated.items():
                find_videos(folder, [pair_name(case) for case in cases], other)
        if own_size > size:
            job, size = make_job(cases), own_size
        animate_alone(renderer, cases, folders[name], Motion.of(options),
                      made_by=repr((config.model_params, config.dataset_params)))
    return job


def pairs_of(options, dataset, size):
    """Cases at `size` px of whole clips and first frames, from --list or random pairs of a test set."""
    from evaluation.pairs import check_whole, find_pairs
    cases = find_pairs(options.list, dataset, size, options.pairs, options.seed)[:options.pairs]
    return check_whole(cases, options.list, 'a study')
