"""The one exception that means: the user can fix this."""


class UserError(Exception):
    """A mistake in what the user gave: a config, a path, a file, a flag.

    The message is one line that says what is wrong, where, and what to do. `run.py` prints it
    without a traceback and exits with code 2; everything else is a bug and keeps its traceback.
    """
