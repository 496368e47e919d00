"""Takes arrays out of HDF5 files that strangers wrote, and nothing but arrays.

Only what lies in the file itself is read: groups and data sets reached by hard links, float32 or
what casts to it, finite, of a size that a VGG can have. Everything else is one `WeightsError`.
Which data set belongs to which layer is not here (see keras.py).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vggjax.errors import WeightsError, shown

if TYPE_CHECKING:
    import h5py

MAX_ELEMENTS = 2**28
"""The largest array of any VGG is fc1 with 25,088 x 4,096 = 1.03e8 numbers."""

MAX_NAMES = 10_000
"""The whole of VGG19 with batch normalisation has 44 layers with weights."""


@contextlib.contextmanager
def open_hdf5(path: Path, *, name: str) -> Iterator[h5py.File]:
    """Opens the file for reading; what HDF5 raises inside becomes a WeightsError about `name`."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except WeightsError as error:
        raise WeightsError(f"{name}: {error}") from None
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        # h5py raises all of these for damaged files, depending on where the damage lies.
        why = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(
            f"{name} is damaged or cut short, HDF5 cannot read it ({shown(why)}). "
            f"Fetch or write it again."
        ) from None


def child(group: h5py.Group, path: str) -> h5py.Group | h5py.Dataset:
    """Gives what lies at `path` below the group, refusing links that lead elsewhere."""
    import h5py

    for part in path.split("/"):
        if part in ("", ".", ".."):
            raise WeightsError(f"the name {shown(path)!r} does not stay inside {_at(group)}.")
        if not isinstance(group, h5py.Group) or part not in group:
            # `in` is False also for a dangling link; the message below is right for both.
            raise WeightsError(f"{shown(path)!r} is listed, but is not in {_at(group)}.")
        link = group.get(part, getlink=True)
        if not isinstance(link, h5py.HardLink):
            kind = "an external" if isinstance(link, h5py.ExternalLink) else "a soft"
            raise WeightsError(
                f"{shown(part)!r} in {_at(group)} is {kind} link; weights must lie in the file."
            )
        group = group[part]
    return group


def read_array(dataset: h5py.Group | h5py.Dataset) -> np.ndarray:
    """Reads a data set as float32, checked before it is read and after."""
    import h5py

    where = _at(dataset)
    if not isinstance(dataset, h5py.Dataset):
        raise WeightsError(f"{where} is a group where an array should be.")
    if dataset.external or dataset.is_virtual:
        raise WeightsError(f"{where} keeps its numbers in another file.")
    if dataset.dtype.kind != "f" or dataset.dtype.itemsize > 8:
        raise WeightsError(
            f"{where} holds {dataset.dtype}; weights are float16, float32 or float64."
        )
    if not dataset.shape or 0 in dataset.shape:
        raise WeightsError(f"{where} is empty or a single number: shape {dataset.shape}.")
    if math.prod(dataset.shape) > MAX_ELEMENTS:
        raise WeightsError(f"{where} claims {dataset.shape}, more than any VGG layer has.")
    if dataset.id.get_storage_size() == 0:
        raise WeightsError(f"{where} was declared, but its numbers were never written.")
    return to_float32(dataset[()], where)


def to_float32(array: np.ndarray, where: str) -> np.ndarray:
    """Casts to float32 of the machine's byte order; NaN and infinity are refused."""
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, np.float32)
    # min and max carry NaN and infinity through, without isfinite's array of the same length.
    if array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):
        raise WeightsError(
            f"{where} holds NaN or infinite values; the file is damaged or its training diverged."
        )
    return array


def names(group: h5py.Group, attribute: str) -> list[str]:
    """Reads a list of names from attributes; Keras splits long ones into `name0`, `name1` ..."""
    if attribute in group.attrs:
        parts = [group.attrs[attribute]]
    else:
        parts, i = [], 0
        while f"{attribute}{i}" in group.attrs:
            parts.append(group.attrs[f"{attribute}{i}"])
            i += 1
        if not parts:
            raise WeightsError(f"{_at(group)} lacks the attribute {attribute!r}.")
    found = []
    for part in parts:
        array = np.asarray(part)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "SOU"):
            raise WeightsError(f"the attribute {attribute!r} of {_at(group)} is no list of names.")
        found += [text(name) for name in array]
        if len(found) > MAX_NAMES:
            raise WeightsError(f"the attribute {attribute!r} of {_at(group)} names far too many.")
    if len(set(found)) != len(found):
        raise WeightsError(f"the attribute {attribute!r} of {_at(group)} lists a name twice.")
    return found


def text(value: object) -> str:
    """Decodes what h5py gives for a string."""
    if not isinstance(value, bytes | str):
        raise WeightsError(f"a name in the file is no text: {shown(repr(value))}.")
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        raise WeightsError(f"a name in the file is not UTF-8: {bytes(value)!r}.") from None


def _at(node: h5py.Group | h5py.Dataset) -> str:
    return shown(node.name or "/")
