"""Long tests of what docs/reliability.md promises: pytest -m campaign [-k NAME].

CAMPAIGN_SHARE is the share of the trials to make (default 1), CAMPAIGN_SEED the seed (default 0). A trial is a function
of its name and the seed; fuzz tests take --hypothesis-seed instead.
"""

import os

SHARE, SEED = float(os.environ.get('CAMPAIGN_SHARE', 1)), os.environ.get('CAMPAIGN_SEED', '0')


def share_of(count):
    """How many of `count` trials to make: at least one."""
    return max(1, round(count * SHARE))
