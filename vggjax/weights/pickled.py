"""Unpickle untrusted files without importing anything and without running code of theirs.

A pickle names functions and classes, and calls them. Here each name is looked up in a table of this
package's own functions. The names of libraries that a checkpoint mentions beside its arrays (a
`Namespace` of settings, the classes of a whole model) stand for inert objects that keep their
state and do nothing; any other name refuses the file.
"""

import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any, ClassVar

from vggjax.errors import WeightsError, printable

MAX_PICKLE_BYTES = 2**22
"""The pickle of VGG19 with batch normalization has about 20 kB, without the numbers."""

INERT_MODULES = {
    "__main__", "_codecs", "accelerate", "apex", "argparse", "collections", "copy_reg", "copyreg",
    "datetime", "easydict", "enum", "fastai", "fastcore", "functools", "lightning",
    "lightning_fabric", "lightning_utilities", "ml_collections", "mmcv", "mmengine", "numpy",
    "omegaconf", "pathlib", "pytorch_lightning", "timm", "torch", "torchmetrics", "torchvision",
    "transformers", "types", "typing", "uuid", "yacs",
}  # fmt: skip
"""Packages whose classes and functions become inert objects; `__main__` has users' own models."""

_INERT_BUILTINS = {
    "set",
    "frozenset",
    "list",
    "dict",
    "tuple",
    "object",
    "slice",
    "range",
    "complex",
}
_DAMAGE = (
    pickle.UnpicklingError, RuntimeError, OSError, ValueError, TypeError, LookupError,
    AttributeError, EOFError, AssertionError, ArithmeticError, MemoryError, struct.error,
)  # fmt: skip
"""What unpickling raises for a damaged file, depending on where the damage is."""


class Inert:
    """Stands for an object whose class is not imported; keeps its state."""

    state: Any = None

    def __new__(cls, *_: object, **__: object) -> "Inert":
        """Accept any arguments, and ignore them."""
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        """Accept any arguments, and ignore them."""

    def __setitem__(self, key: object, value: object) -> None:
        """Ignore the item of a mapping."""

    def append(self, item: object) -> None:
        """Ignore the item of a list."""

    add = append


class PickledDict(OrderedDict):
    """Stands for an OrderedDict, whose state may say more, as a state dict's does."""

    state: Any = None

    def __init__(self, items: Iterable[tuple[Any, Any]] = ()):
        super().__init__()
        _set_items(self, items)


def _set_items(target: Any, items: Iterable[tuple[Any, Any]]) -> None:
    """Set the items with plain keys: the hash of a tuple of tuples may take forever."""
    for key, value in items:
        if key is None or isinstance(key, str | bytes | int | float):
            target[key] = value


class Unpickler(pickle._Unpickler):
    """An unpickler that knows the functions of a table, `{"module name": function}`, alone."""

    dispatch: ClassVar[dict[int, Callable]] = dict(pickle._Unpickler.dispatch)
    # The first three look into Python's own registry, the next allocates what it claims, and the
    # last is of protocol 0.
    for _opcode in (pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.BYTEARRAY8, pickle.DICT):
        del dispatch[_opcode[0]]

    def __init__(self, file: IO[bytes], functions: Mapping[str, Any]):
        super().__init__(file)
        self._functions = functions

    def find_class(self, module: str, name: str) -> Any:
        """Return the table's function, or the inert class.

        Raises:
            WeightsError: E_CODE, neither the table nor the list of inert packages has it.
        """
        if (function := self._functions.get(f"{module} {name}")) is not None:
            return function
        is_builtin = module in ("builtins", "__builtin__") and name in _INERT_BUILTINS
        if is_builtin or module.split(".")[0] in INERT_MODULES:
            return Inert
        raise WeightsError(
            f"its pickle holds code, {printable(f'{module} {name}')[:80]!r}; none of it was run. "
            f"If you trust it, load it where it was created and save its state_dict().",
            code="E_CODE",
        )

    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def _load_build(self) -> None:
        """Set an object's `state`; an object without that attribute keeps what it is."""
        state = self.stack.pop()
        if hasattr(self.stack[-1], "state"):
            self.stack[-1].state = state

    def _load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _set_items(self.stack[-1], [(key, value)])

    def _load_setitems(self) -> None:
        items = self.pop_mark()
        _set_items(self.stack[-1], zip(items[::2], items[1::2], strict=True))

    def _load_set(self) -> None:
        self.append(Inert())

    def _load_frozenset(self) -> None:
        self.pop_mark()
        self.append(Inert())

    dispatch |= {
        pickle.BUILD[0]: _load_build,
        pickle.SETITEM[0]: _load_setitem,
        pickle.SETITEMS[0]: _load_setitems,
        pickle.EMPTY_SET[0]: _load_set,
        pickle.FROZENSET[0]: _load_frozenset,
    }


def load_checked(unpickler: Unpickler) -> Any:
    """Return the next object; turn whatever a damaged pickle raises into a WeightsError."""
    try:
        return unpickler.load()
    except WeightsError:
        raise
    except _DAMAGE as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            f"it is damaged: its pickle cannot be read ({printable(reason)[:200]}).",
            code="E_FORMAT",
        ) from None
