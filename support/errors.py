"""The one exception that means: the user can fix this."""


class UserError(Exception):
    """A mistake in what the user gave: a config, a path, a file, a flag.

    The message is one line that says what is wrong, where, and what to do. `run.py` prints it
    without a traceback and exits with code 2; everything else is a bug and keeps its traceback.
    """


LONGEST = 1500         # characters of a message; names and values that others wrote may be longer


def one_line(error):
    """The message of a UserError, as one line of a terminal, whatever the names and values in it hold."""
    # From a data loading process it arrives behind that process's traceback: what follows our name is the message, of
    # other errors the last line.
    _, ours, text = str(error).rpartition(f'{UserError.__module__}.{UserError.__name__}: ')
    text = text.strip()
    if not ours and 'Traceback (most recent call last)' in text:
        text = text.splitlines()[-1]
    text = ''.join(sign if sign.isprintable() else sign.encode('unicode_escape').decode() for sign in text)
    return text if len(text) <= LONGEST else f'{text[:LONGEST - 400]} ... {text[-390:]}'
