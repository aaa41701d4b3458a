"""Pack the clips of a dataset into tar shards: a few large files for network disks instead of thousands of small ones.

    python run.py --mode pack --clips data/vox --out data/vox-shards
    python run.py --mode train --config config/vox-256.yaml --set dataset_params.root_dir=data/vox-shards

Training gets the same samples as from loose clips.
"""

from support.errors import UserError


def add_arguments(parser):
    parser.add_argument('--clips', metavar='FOLDER', help='dataset of video files, with train/ and test/')
    parser.add_argument('--out', help='folder of the shards, train/00000.tar and so on')
    parser.add_argument('--shard_mb', type=int, default=1000, metavar='MB',
                        help='size of a shard in megabytes; default 1000')


def run(options):
    if not options.clips or not options.out:
        raise UserError('--mode pack needs --clips, a dataset with train/ and test/, and --out')
    if options.shard_mb < 1:
        raise UserError(f'--shard_mb {options.shard_mb}: must be at least 1')
    from datasets.prepare.pack import pack
    clips, shards = pack(options.clips, options.out, options.shard_mb)
    print(f'{clips} clips in {shards} shards below {options.out}')
