"""Errors that a user can fix, and the text helpers that messages share.

Every room raises these for bad input: a wrong name, a damaged file, an impossible combination of
settings. A message says what is wrong, the value received, the valid choices or the nearest match,
and the way out. It names a setting by its field in backticks, `num_threads`; the command line
prints that as its flag, --num-threads. The command line turns these errors into one line on stderr
and exit code 2; any other exception is a bug and exits with 1 and its traceback.
"""

import difflib
import os
import re
from collections.abc import Iterable

CODES = {
    "E_WEIGHTS": "the weights are unavailable or unusable, for a reason without a code of its own",
    "E_FILE": "the file does not exist, is not a regular file, or is not readable",
    "E_FORMAT": "not a weight file of a known format, or too damaged to read",
    "E_FOREIGN": "the file is of another program, whose format is not read",
    "E_TRUNCATED": "the file is empty or truncated",
    "E_HEADER": "a header contradicts itself or the file (safetensors, HDF5 attributes)",
    "E_ZIP": "an archive has a wrong checksum, unsafe or unexpected members, or no weights",
    "E_CODE": "the file contains code, which is never executed",
    "E_BOMB": "the declared or unpacked size exceeds any VGG, or what the file can hold",
    "E_TIMEOUT": "reading exceeded its time limit and was stopped",
    "E_LINK": "an array is behind a soft or external link, or outside its layer",
    "E_EXTERNAL": "an array is stored in another file",
    "E_ALIAS": "two arrays are the same object",
    "E_OVERLAP": "two arrays share bytes of the file, or some bytes belong to no array",
    "E_UNWRITTEN": "an array was declared and only partly written",
    "E_FILTER": "an array uses a filter other than gzip, shuffle and fletcher32",
    "E_DTYPE": "an array is not float16, float32 or float64",
    "E_SHAPE": "an array's shape or rank is not the model's, or not any layer's",
    "E_NONFINITE": "an array has NaN or infinite values, possibly only after the cast to float32",
    "E_NAME": "a name is not text, or not a valid layer or parameter name",
    "E_DUPLICATE": "a layer, a parameter or a file member occurs twice",
    "E_ORDER": "names, indices or axes are not in the layer table's order (Theano kernels)",
    "E_MISSING": "the file lacks a layer or a parameter of the model",
    "E_UNEXPECTED": "the file has a layer or a parameter that the model lacks",
    "E_TOP": "the convolutional base fits and the classifier on top does not",
    "E_ARCH": "the file holds a different network than requested",
    "E_DIGEST": "the file's checksum differs from the expected one",
    "E_WRITE": "the weights cannot be written: bad destination, file ending or disk",
}
"""Stable codes of `WeightsError` and their meaning; scripts may rely on them."""


class VggjaxError(ValueError):
    """Base class: input that cannot be used."""

    code = ""
    is_printed_elsewhere = False
    """Whether another process of the same run prints it."""


class ConfigError(VggjaxError):
    """A setting, or a combination of settings, that cannot be run."""


class WeightsError(VggjaxError):
    """A weight file, or a set of weights, that cannot be read or does not fit the model.

    `code` is one of `CODES`; the command line prints it after the message.
    """

    def __init__(self, message: str, *, code: str = "E_WEIGHTS"):
        super().__init__(message)
        self.code = code


class DataError(VggjaxError):
    """A dataset or an image that cannot be used."""


def one_line_message(error: VggjaxError) -> str:
    """Return the message on one line, followed by the error's code if it has one."""
    message = " ".join(str(error).splitlines())
    return f"{message} [{error.code}]" if error.code else message


def unknown_name(
    what: str,
    received: object,
    choices: Iterable[str],
    *,
    aliases: Iterable[str] = (),
    hint: str = "",
) -> str:
    """Return the message for a name that is not in `choices`, with the nearest match.

    Args:
        what: the kind of name, as in "layer".
        received: the name given.
        choices: the valid names, in the order to list them.
        aliases: further valid names, not listed, of which one may be the nearest match.
        hint: text appended to the message, with its leading space.
    """
    choices = [str(choice) for choice in choices]
    near = nearest_name(str(received), [*choices, *aliases])
    suggestion = f" Did you mean {near!r}?" if near else ""
    return f"Unknown {what} {str(received)!r}.{suggestion} Choices: {', '.join(choices)}.{hint}"


def nearest_name(received: str, choices: Iterable[str], *, cutoff: float = 0.45) -> str | None:
    """Return the choice that is spelled most like `received`, ignoring case; None if none is."""
    folded = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(received.lower(), folded, n=1, cutoff=cutoff)
    return folded[near[0]] if near else None


def join_names(names: Iterable[object], *, most: int = 8) -> str:
    """Return the first `most` names, printable and comma-separated, and how many are left out.

    `join_names("abcde", most=3)` is "a, b, c and 2 more". For quoted names pass `map(repr, names)`.
    """
    names = list(names)
    text = ", ".join(printable(name) for name in names[:most])
    return text + (f" and {len(names) - most:,} more" if len(names) > most else "")


def printable(name: object) -> str:
    """Return a file name or text with control characters and non-UTF-8 bytes escaped."""
    text = os.fspath(name) if isinstance(name, os.PathLike) else str(name)
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def with_flags(message: str, fields: Iterable[str]) -> str:
    """Write those of `fields` that a message names in backticks as flags of the command line."""
    known = set(fields)
    return re.sub(
        r"`(\w+)`", lambda match: flag_of(match[1]) if match[1] in known else match[0], message
    )


def flag_of(field: str) -> str:
    """Return the command-line flag of a setting: `batch_size` is `--batch-size`."""
    return "--" + field.replace("_", "-")
