"""The errors that a user can mend, and the wording that they share.

Every room raises these for bad input: a wrong name, a damaged file, an impossible combination of
settings. The command line turns them into one line on stderr and exit code 2; anything else that
escapes is a bug and exits with 1 and its traceback.
"""

import difflib
import os
from collections.abc import Iterable

CODES = {
    "E_WEIGHTS": "weights cannot be had or used, for a reason that no other code stands for",
    "E_FILE": "no such file, no regular file, or one that this user may not read",
    "E_FORMAT": "not a weight file of a known kind, or too damaged to be read",
    "E_TRUNCATED": "the file is empty or ends before its contents do",
    "E_HEADER": "a header that contradicts itself or the file (safetensors, HDF5 attributes)",
    "E_ZIP": "an archive with a wrong checksum, unsafe or surplus members, or none with weights",
    "E_CODE": "the file holds code, which is never run",
    "E_BOMB": "what is declared or unpacked is far larger than any VGG, or than the file allows",
    "E_TIMEOUT": "reading took too long and was stopped",
    "E_LINK": "an array lies behind a soft or external link, or outside its layer",
    "E_EXTERNAL": "an array keeps its numbers in another file",
    "E_ALIAS": "two arrays are one and the same object",
    "E_OVERLAP": "two arrays share bytes of the file, or bytes belong to no array",
    "E_UNWRITTEN": "an array was declared, and some of its numbers were never written",
    "E_FILTER": "an array is packed by a filter other than gzip, shuffle and fletcher32",
    "E_DTYPE": "an array is not of float16, float32 or float64",
    "E_SHAPE": "an array has another shape or rank than the model's, or than any layer's",
    "E_NONFINITE": "an array holds NaN or infinite values, perhaps only as float32",
    "E_NAME": "a name that is no text, or that no layer or parameter can have",
    "E_DUPLICATE": "a layer, a parameter or a member of the file is there twice",
    "E_ORDER": "names, numbers or axes in another order than the layer table's (Theano's kernels)",
    "E_MISSING": "a layer or a parameter of the model is not in the file",
    "E_UNEXPECTED": "the file has a layer or a parameter that the model has not",
    "E_TOP": "the convolutional base fits, and the classifier on top does not",
    "E_ARCH": "the file holds another network than the one that was asked for",
    "E_DIGEST": "the file's checksum is not the one that was asked for",
    "E_WRITE": "the weights cannot be written: the place, the ending or the disk",
}
"""The stable codes of `WeightsError`, and what each stands for; scripts may rely on them."""


class VggjaxError(ValueError):
    """Something that the user gave cannot be used; the message says what, why and the way out."""

    code = ""


class ConfigError(VggjaxError):
    """A setting, or a combination of settings, that cannot be run."""


class WeightsError(VggjaxError):
    """A weight file or a set of weights that cannot be read, or that does not fit the model.

    `code` is one of `CODES`; the command line prints it behind the message.
    """

    def __init__(self, message: str, *, code: str = "E_WEIGHTS"):
        super().__init__(message)
        self.code = code


class DataError(VggjaxError):
    """A dataset or an image that cannot be used."""


def one_line_message(error: VggjaxError) -> str:
    """Gives the message on one line, and behind it the code, where the error has one."""
    message = " ".join(str(error).splitlines())
    return f"{message} [{error.code}]" if error.code else message


def unknown_name(what: str, received: object, choices: Iterable[str], *, hint: str = "") -> str:
    """Words the message for a name that is not among `choices`, with the nearest match first."""
    choices = [str(choice) for choice in choices]
    folded = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(str(received).lower(), folded, n=1, cutoff=0.45)
    meant = f" Did you mean {folded[near[0]]!r}?" if near else ""
    return f"Unknown {what} {str(received)!r}.{meant} Choices: {', '.join(choices)}.{hint}"


def printable(path: object) -> str:
    """Makes a file name safe to print, control characters and non-UTF-8 bytes escaped."""
    text = os.fspath(path) if isinstance(path, os.PathLike) else str(path)
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )
