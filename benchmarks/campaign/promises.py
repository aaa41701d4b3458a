"""What must hold for every input, as checks that raise Failure."""

import functools

from benchmarks.campaign.runner import Failure
from support.errors import UserError, one_line


def right_or_refused(read, *places):
    """'right' if read() returns, 'refused' if it raises a UserError, whose line names one of the `places`, if any."""
    try:
        read()
    except UserError as error:
        message = one_line(error)
        if places and not any(str(place) in message for place in places):
            raise Failure(f'the message names no file: {message[:300]!r}') from None
        return 'refused'
    return 'right'


def inside(folder, *paths):
    """Failure if one of the paths is not below the folder."""
    for path in paths:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise Failure(f'{path} is not in {folder}')


def canary(case):
    """A case that gets the path of a file that only code in its input would make."""
    @functools.wraps(case)
    def watched(number, rng, folder):
        tripwire = folder / 'canary'
        try:
            return case(number, rng, folder, tripwire)
        finally:
            if tripwire.exists():
                tripwire.unlink()
                raise Failure('code in the input was run')
    return watched
