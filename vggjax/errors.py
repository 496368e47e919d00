"""The errors that a user can mend, and the wording that they share.

Every room raises these for bad input: a wrong name, a damaged file, an impossible combination of
settings. The command line turns them into one line on stderr and exit code 2; anything else that
escapes is a bug and exits with 1 and its traceback.
"""

import difflib
import os
from collections.abc import Iterable


class VggjaxError(ValueError):
    """Something that the user gave cannot be used; the message says what, why and the way out."""


class ConfigError(VggjaxError):
    """A setting, or a combination of settings, that cannot be run."""


class WeightsError(VggjaxError):
    """A weight file or a set of weights that cannot be read, or that does not fit the model."""


class DataError(VggjaxError):
    """A data set or a picture that cannot be used."""


def unknown(what: str, received: object, choices: Iterable[str], *, hint: str = "") -> str:
    """Words the message for a name that is not among `choices`, with the nearest match first."""
    choices = [str(choice) for choice in choices]
    folded = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(str(received).lower(), folded, n=1, cutoff=0.45)
    meant = f" Did you mean {folded[near[0]]!r}?" if near else ""
    return f"Unknown {what} {str(received)!r}.{meant} Choices: {', '.join(choices)}.{hint}"


def shown(path: object) -> str:
    """Makes a file name safe to print, control characters and non-UTF-8 bytes escaped."""
    text = os.fspath(path) if isinstance(path, os.PathLike) else str(path)
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )
