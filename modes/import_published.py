"""Import published checkpoint files as one checkpoint of this project.

    python run.py --mode import --from smac net_g.pth net_motion_estimator.pth --out model.pt
"""

from modes.options import DEFAULT_CONFIG, add_config
from support.errors import UserError, did_you_mean_or_known


def add_arguments(parser):
    add_config(parser)
    parser.add_argument('--from', dest='source', metavar='CODE',
                        help='released code that wrote the files: smac | fomm | mcnet | dagan | mrfa')
    parser.add_argument('--out', default='model.pt', help='file of the checkpoint; default model.pt')
    parser.add_argument('files', nargs='*', help='published checkpoint files')


def run(options):
    from config import schema
    from modules.published.formats import FORMATS
    from tools.import_checkpoint import import_published
    if not options.source or not options.files:
        raise UserError(f'--mode import needs --from {"|".join(FORMATS)} and the published files')
    if options.source not in FORMATS:
        raise UserError(f'--from {options.source}: no such format{did_you_mean_or_known(options.source, FORMATS)}')
    config = schema.load(options.config or DEFAULT_CONFIG, options.set)
    count = import_published(options.source, options.files, config, options.out)
    print(f'{count} tensors imported into {options.out}')
