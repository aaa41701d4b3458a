"""What a mistyped name may have meant."""

import difflib


def nearest(name, known, cutoff=0.5):
    """The one of the `known` names that is most like `name`; None where none is like it (0 <= cutoff <= 1)."""
    return next(iter(difflib.get_close_matches(str(name), list(known), 1, cutoff)), None)


def did_you_mean(name, known, cutoff=0.5):
    """'; did you mean X?' with the nearest of the `known` names, or '' where none is near."""
    close = nearest(name, known, cutoff)
    return f'; did you mean {close}?' if close else ''


def did_you_mean_or_known(name, known, cutoff=0.5):
    """The same; where none is near, '; known: ...' with all of them."""
    return did_you_mean(name, known, cutoff) or f'; known: {", ".join(known)}'
