"""Prepare a dataset from raw videos.

    python run.py --mode prepare --dataset voxceleb1 --metadata vox-metadata.csv --videos raw --out data/vox
    python run.py --mode prepare --dataset folder --videos my_videos --out data/mine
    python run.py --mode prepare ... --part 3/16          # one of sixteen jobs; torchrun divides the videos itself
    python run.py --mode prepare --status --out data/vox  # progress of all parts
"""

import shlex
from pathlib import Path

from modes.options import process_group, refuse
from support.errors import UserError


def add_arguments(parser):
    parser.add_argument('--dataset', help='voxceleb1 | celebvhq | folder (any videos of talking heads)')
    parser.add_argument('--videos', help='folder of raw videos; with --metadata, named by YouTube id')
    parser.add_argument('--metadata',
                        help="published list of the dataset's clips: vox-metadata.csv, celebvhq_info.json")
    parser.add_argument('--download', nargs='?', const='yt-dlp', metavar='COMMAND',
                        help='fetch missing videos into --videos; COMMAND is yt-dlp and its options, '
                             'such as "yt-dlp --cookies FILE --limit-rate 5M"')
    parser.add_argument('--out', help='folder of the dataset; default: data/<dataset>, or data/vox for voxceleb1')
    parser.add_argument('--size', type=int, default=256, help='side of the clips, pixels; default 256')
    parser.add_argument('--min_face', type=int, default=0, metavar='PIXELS',
                        help='leave out clips whose crop is smaller than this in the video; '
                             'with the value of --size, none is enlarged')
    parser.add_argument('--format', default='mp4', help='mp4 (a key frame every ten frames) | png | jpeg')
    parser.add_argument('--crop', choices=('square', 'legacy'), default='square',
                        help='square (default) keeps the aspect ratio; legacy squeezes as the published datasets do')
    parser.add_argument('--workers', type=int, default=1, help='number of processes, one video each; default 1')
    parser.add_argument('--part', default='1/1', metavar='NUMBER/COUNT',
                        help='prepare only this part of the videos; the last part to finish writes the manifest')
    parser.add_argument('--status', action='store_true', help='print the progress of all parts')
    parser.add_argument('--keep_shared_people', action='store_true',
                        help='keep test clips of people who are also in the training set')


def run(options):
    if options.status:
        return show_status(options)
    if not options.dataset or not options.videos:
        raise UserError('--mode prepare needs --dataset voxceleb1|celebvhq|folder and --videos, a folder of videos')
    if options.dataset == 'folder':
        refuse(options, ('--keep_shared_people',), 'with --dataset folder, where no person is in both partitions')
    from datasets.prepare.parts import Part
    from datasets.prepare.run import DatasetSettings, prepare, summary
    root = root_of(options)
    settings = DatasetSettings(
        dataset=options.dataset, root=root, videos=Path(options.videos), metadata=options.metadata, crop=options.crop,
        size=options.size, format=options.format, keep_shared_people=options.keep_shared_people,
        min_face=options.min_face,
        command=tuple(shlex.split(options.download)) if options.download is not None else None)
    with process_group('cpu'):
        records = prepare(settings, options.workers, Part.parse(options.part))
    if records is None:
        print('this part has ended; the last part to end merges all: --status prints their progress')
        return
    print(summary(records))
    print(f'records of all clips: {root}/manifest.jsonl')
    if not any(record.status == 'ok' for record in records.values()):
        raise UserError(f'{root}: no clip could be made; the reasons are in its manifest.jsonl')


def root_of(options):
    return Path(options.out or Path('data', 'vox' if options.dataset == 'voxceleb1' else options.dataset))


def show_status(options):
    refuse(options, sorted(options.given - {'--mode', '--status', '--out', '--dataset'}),
           'with --status, which only prints')
    if not options.out and not options.dataset:
        raise UserError('--status needs --out, the folder of the dataset')
    from datasets.prepare.status import status
    print(status(root_of(options)))
