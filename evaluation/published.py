"""Tables 1 to 4 of the paper, for orientation next to results on 50 other clips of the same dataset at the same size.

The paper does not publish its lists of clips, so its rows are not ranked with ours. published.yaml holds them.
"""

from pathlib import Path

import yaml

SIZE = (256, 256)
_STORED = yaml.safe_load(Path(__file__).with_suffix('.yaml').read_text(encoding='utf-8'))
# {table: {row: {metric id: value}}}
TABLES = {name: {row: dict(zip(table['columns'], values)) for row, values in table['rows'].items()}
          for name, table in _STORED.items()}


def published_tables(protocol, list_name, sizes):
    """Names of the TABLES that may be shown with a result.

    protocol, list_name: names
    sizes:               set of (height, width) of the scored frames
    """
    shown_for = {'protocol': protocol, 'list': list_name}
    return tuple(name for name, table in _STORED.items() if table['shown_for'] == shown_for and sizes == {SIZE})
