"""Load the compiled kernels of native/, for the instruction set of this machine.

The convolution (winograd.py) and the resize (data/images/resize.py) share one library, built at
installation (hatch_build.py). Without it, jax.numpy and Pillow do the work. The environment
variable `VGGJAX_KERNELS` forces one of the choices: `numpy` (no compiled code), `baseline`, `avx2`,
`avx512` or `avx512_bf16`, which also multiplies bfloat16 maps in bfloat16; by default the best one
of the machine is used. This file imports no jax.
"""

import ctypes
import functools
import itertools
import os
from pathlib import Path

from vggjax.errors import ConfigError

LIBRARY = Path(__file__).parent / "native" / "kernels.so"

INTERFACE = 2
"""Of the calls into the library, in native/dispatch.cc too: another number where their arguments
change, so that an editable install with new Python code never calls an older library."""


def load_library() -> ctypes.CDLL | None:
    """Return the library, set to `VGGJAX_KERNELS`; None for `numpy`, or if it was not built.

    Raises:
        ConfigError: `VGGJAX_KERNELS` names no kernels of this machine.
    """
    return _select(os.environ.get("VGGJAX_KERNELS", ""))


def kernel_choices() -> tuple[str, ...]:
    """Return what `VGGJAX_KERNELS` may be on this machine, from the slowest to the fastest."""
    library = _open()
    if library is None:
        return ("numpy",)
    names = itertools.takewhile(bool, map(library.vggjax_kernels_name, itertools.count()))
    return ("numpy", *(name.decode() for name in names))


def kernels_in_use() -> str:
    """Return the choice in effect, `numpy` if nothing compiled is used."""
    library = load_library()
    return "numpy" if library is None else library.vggjax_kernels_in_use().decode()


# One entry: the selection holds for the process, so a change of the variable must get here.
@functools.lru_cache(maxsize=1)
def _select(name: str) -> ctypes.CDLL | None:
    choices, library = kernel_choices(), _open()
    if name and name not in choices:
        raise ConfigError(
            f"VGGJAX_KERNELS must name kernels that this machine has; got {name!r}. Choices: "
            f"{', '.join(choices)}."
        )
    index = choices.index(name or choices[-1]) - 1
    if library is None or index < 0:
        return None
    library.vggjax_use_kernels(index)
    return library


@functools.cache
def _open() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(LIBRARY))
        if library.vggjax_interface() != INTERFACE:
            return None
        name, use = library.vggjax_kernels_name, library.vggjax_use_kernels
        in_use = library.vggjax_kernels_in_use
    except (OSError, AttributeError):  # not built, or for another machine or version
        return None
    name.argtypes, name.restype = [ctypes.c_int64], ctypes.c_char_p
    use.argtypes, use.restype = [ctypes.c_int64], None
    in_use.argtypes, in_use.restype = [], ctypes.c_char_p
    return library
