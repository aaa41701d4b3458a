"""Commands of run.py within the test's own process."""

import run


def refused(capsys, *arguments):
    """The one line that a user's mistake gets."""
    assert run.main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    line, = err.splitlines()
    assert line.startswith('error: ') and not out
    return line
