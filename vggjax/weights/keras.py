"""Reads every layout in which Keras keeps weights, with h5py alone.

Read, told apart by content:
- legacy: attributes `layer_names` and `weight_names`, data sets `/block1_conv1/block1_conv1_W_1:0`
  (the published files) or `/block1_conv1/block1_conv1/kernel:0`; whole-model `.h5` keeps the same
  tree under `/model_weights`, and a nested model's layers together under its name;
- `.weights.h5` (Keras 3): `/layers/conv2d/vars/0`, nested models inside `/layers/functional`, the
  layer's name in the attribute `name` of `vars` where there is one (naming.py where not);
- `.keras`: a zip with such a file as `model.weights.h5`.
Optimiser state and the counters of random layers are left out. No Keras model is ever rebuilt.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vggjax.errors import WeightsError, shown
from vggjax.weights.hdf5 import child, names, open_hdf5, read_array, text
from vggjax.weights.naming import TABLE_NAME, Layer, named, order

if TYPE_CHECKING:
    import h5py

    from vggjax.models.assign import Weights

PARAMS = {
    "kernel": "kernel", "W": "kernel", "bias": "bias", "b": "bias",
    "gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var",
}  # fmt: skip
"""Keras' names of parameters, old and new, and ours."""

MEMBER = "model.weights.h5"
MAX_BYTES = 2**32
"""VGG19 with its top is 575 MB as float32, 1.15 GB as float64."""

_BN = ("scale", "bias", "mean", "var")  # the order of Keras' lists, and of `vars`
_LEGACY_PARAM = re.compile(
    r"(?:.*_)?(kernel|W|bias|b|gamma|beta|moving_mean|moving_variance)(_\d+)?"
)
_NOT_WEIGHTS = {"optimizer", "optimizer_weights", "seed_generator"}
_MAX_DEPTH = 12


def read_keras_h5(path: Path, *, name: str | None = None) -> Weights:
    """Reads an HDF5 file that Keras wrote, of any layout.

    Raises:
        WeightsError: damaged, not of a known layout, or holding what weights cannot be.
    """
    with open_hdf5(path, name=name or shown(path)) as file:
        root = child(file, "model_weights") if "model_weights" in file else file
        if any(attribute in root.attrs for attribute in ("layer_names", "layer_names0")):
            layers = list(_legacy_layers(root))
        else:
            layers = list(_v3_layers(file, depth=0))
        if not layers:
            raise WeightsError(
                "no layer with weights is in it. Known are Keras' published layout, whole-model "
                ".h5, .weights.h5 and .keras, each holding a VGG's layers."
            )
        return named(layers)


def read_keras_zip(path: Path) -> Weights:
    """Reads the weights of a `.keras` archive; its configuration is never run.

    Raises:
        WeightsError: a damaged archive, one without weights, or damaged weights in it.
    """
    name = shown(path)
    try:
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
            found = [info for info in archive.infolist() if info.filename == MEMBER]
            if len(found) != 1:
                raise WeightsError(
                    f"{name} is a zip archive with {len(found) or 'no'} {MEMBER}; a .keras file "
                    f"has one."
                )
            if found[0].file_size > MAX_BYTES:
                raise WeightsError(f"{name}: {MEMBER} would unpack to more than any VGG has.")
            unpacked = Path(folder) / MEMBER
            with archive.open(found[0]) as source, open(unpacked, "wb") as target:
                shutil.copyfileobj(source, target, 2**20)
            return read_keras_h5(unpacked, name=f"{name} ({MEMBER})")
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise WeightsError(
            f"{name} is a damaged archive ({shown(error)}). Fetch or write it again."
        ) from None


def _legacy_layers(root: h5py.Group) -> Iterator[Layer]:
    if text(root.attrs.get("backend", "tensorflow")) == "theano":
        raise WeightsError("its kernels are in Theano's order, turned by 180 degrees.")
    for group_name in names(root, "layer_names"):
        group = child(root, group_name)
        paths = [path for path in names(group, "weight_names") if "seed_generator" not in path]
        owners = {path.split("/")[-2] if "/" in path else group_name for path in paths}
        found: dict[str, dict[str, np.ndarray]] = {}
        for path in paths:
            # One owner: the group's name is the layer's, which a scope may have renamed. Several:
            # the group is a nested model, and each path ends in LAYER/PARAM.
            owner = group_name if len(owners) == 1 else path.split("/")[-2]
            last = path.split("/")[-1].partition(":")[0]
            match = _LEGACY_PARAM.fullmatch(last)
            if not match:
                raise WeightsError(
                    f"{shown(path)!r} of layer {shown(owner)!r} is no parameter of a convolution, "
                    f"a dense layer or a batch normalisation ({', '.join(PARAMS)})."
                )
            params = found.setdefault(owner, {})
            if (param := PARAMS[match[1]]) in params:
                raise WeightsError(f"the layer {shown(owner)!r} has two parameters {param!r}.")
            params[param] = read_array(child(group, path))
        for owner, params in found.items():
            yield _checked(Layer(owner, params))


def _v3_layers(group: h5py.Group, *, depth: int) -> Iterator[Layer]:
    import h5py

    if depth > _MAX_DEPTH:
        raise WeightsError(f"its groups are nested more than {_MAX_DEPTH} deep.")
    if len(group) > 10_000:
        raise WeightsError(f"{shown(group.name)} holds far too many groups: {len(group)}.")
    before = None
    for key in sorted(group, key=_natural):
        if key in _NOT_WEIGHTS:
            continue
        node = child(group, key)
        if not isinstance(node, h5py.Group):
            continue
        if key == "vars":
            if len(node):
                own = group.name.split("/")[-1]
                yield _v3_layer(text(node.attrs.get("name", own)), node)
            continue
        for layer in _v3_layers(node, depth=depth + 1):
            # Keras itself goes by these numbers and overlooks the names: both must say the same.
            if re.fullmatch(r"conv2d(_\d+)?", key) and TABLE_NAME.fullmatch(layer.name):
                if before is not None and order(layer.name) < order(before):
                    raise WeightsError(
                        f"its numbering puts {shown(before)!r} before {shown(layer.name)!r}."
                    )
                before = layer.name
            yield layer


def _v3_layer(name: str, node: h5py.Group) -> Layer:
    keys = sorted(node, key=_natural)
    if keys != [str(i) for i in range(len(keys))]:
        raise WeightsError(f"the arrays of layer {shown(name)!r} are not numbered from 0.")
    arrays = [read_array(child(node, key)) for key in keys]
    ranks = [array.ndim for array in arrays]
    if ranks == [1, 1, 1, 1]:
        params = dict(zip(_BN, arrays, strict=True))
    elif ranks[0] > 1 and ranks[1:] in ([], [1]):
        params = dict(zip(("kernel", "bias"), arrays, strict=False))
    else:
        raise WeightsError(
            f"the layer {shown(name)!r} has arrays of shapes "
            f"{', '.join(str(array.shape) for array in arrays)}: neither a convolution nor a dense "
            f"layer nor a batch normalisation."
        )
    return _checked(Layer(name, params))


def _checked(layer: Layer) -> Layer:
    """Refuses arrays that cannot belong together, whatever their names say."""
    kernel, bias = layer.params.get("kernel"), layer.params.get("bias")
    where = f"the layer {shown(layer.name)!r}"
    if kernel is not None and layer.kind == "other":
        raise WeightsError(f"{where} has a kernel of shape {kernel.shape}.")
    if kernel is not None and bias is not None and bias.shape != kernel.shape[-1:]:
        raise WeightsError(f"{where} has a kernel {kernel.shape} and a bias {bias.shape}.")
    if kernel is None and len({array.shape for array in layer.params.values()}) > 1:
        raise WeightsError(f"{where} has statistics of different lengths.")
    return layer


def _natural(key: str) -> list:
    """Sorts `conv2d_2` before `conv2d_10`, and `conv2d` before both."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", key)]
