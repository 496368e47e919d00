"""Build models with pretrained weights: strict, and only what was asked for.

`weights` is `imagenet` (the published file, see pretrained.py), `none` (random), a path, an address
of a model hub (hub/fetch.py), or an open `WeightFile`. A file fits if its layers are exactly the
model's; `base_only=True` leaves out its top. This is the only module of weights/ that imports jax.
"""

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vggjax.errors import ConfigError, WeightsError, printable, unknown_name
from vggjax.models.arch import Arch, Shapes
from vggjax.models.head import Head
from vggjax.models.kernels.conv import convolve
from vggjax.models.network import VGG, Network
from vggjax.models.params import assign, shapes
from vggjax.weights.compatibility import check_fits
from vggjax.weights.digests import expected_sha256
from vggjax.weights.foreign import refuse_foreign_path
from vggjax.weights.hub.fetch import local_path
from vggjax.weights.names import in_base
from vggjax.weights.pretrained import find_pretrained
from vggjax.weights.weight_file import WeightFile


def load_pretrained(
    arch: str | Arch = "vgg16",
    *,
    weights: str | os.PathLike | WeightFile | None = "imagenet",
    include_top: bool = True,
    head: Head | None = None,
    image_size: int = 224,
    base_only: bool = False,
    expect_sha256: str | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
    conv: Callable[..., jax.Array] = convolve,
    rngs: nnx.Rngs | None = None,
) -> VGG:
    """Build a VGG with pretrained weights, in evaluation mode.

    Args:
        arch: a name of the table, or an `Arch`.
        weights: `imagenet`, the path of a weight file, a `WeightFile`, or None (also `none`) for
            random ones.
        include_top: True builds exactly Keras' VGG (1000 classes).
        head: the custom head, with `include_top=False`.
        image_size: side in px that the head is built for.
        base_only: load the file's convolutional base and ignore its top; a `head` is then randomly
            initialized. `weights="imagenet"` without the top implies it.
        expect_sha256: refuse a file with another checksum (64 digits).
        dtype: of the arithmetic.
        conv: the convolution, with the signature of `lax.conv_general_dilated`.
        rngs: for random initialization.

    Raises:
        WeightsError: the file cannot be found or read, or does not fit the model.
        ConfigError: a model that cannot be built.
    """
    if base_only and include_top:
        raise ConfigError(
            "base_only=True leaves out the file's top, but include_top=True needs it; pass "
            "include_top=False."
        )

    options: dict[str, Any] = {"image_size": image_size, "dtype": dtype, "conv": conv, "rngs": rngs}
    build = functools.partial(VGG, arch, include_top=include_top, head=head, **options)
    if weights is None or weights == "none":
        model = build()
    else:
        base_only = base_only or (weights == "imagenet" and not include_top)
        # Random initialization takes seconds, and is only needed for a new head.
        model = build() if base_only and head is not None else nnx.eval_shape(build)
        name = arch if isinstance(arch, str) else arch.name
        file = open_weights(weights, name, include_top=include_top, expect_sha256=expect_sha256)
        _load(model, file, base_only=base_only)
        if not file.info.preprocess_doubt:
            model.preprocess_mode = file.info.preprocess
    model.eval()
    return model


def open_weights(
    weights: str | os.PathLike | WeightFile,
    arch: str,
    *,
    include_top: bool,
    expect_sha256: str | None = None,
) -> WeightFile:
    """Open the weight file that `imagenet` or a path stands for.

    `arch` and `include_top` say which published file `imagenet` is.

    Raises:
        WeightsError: there is no such file, the published weights cannot be downloaded, or the
            file's SHA-256 is not the expected one.
    """
    if expect_sha256 is not None:
        expected_sha256(expect_sha256)  # report a typing error before downloading
    if isinstance(weights, WeightFile):
        file = weights
    elif weights == "imagenet":
        file = find_pretrained(arch, include_top)
    else:
        file = _open_path(local_path(weights))
    file.check_sha256(expect_sha256)
    return file


def _open_path(path: Path) -> WeightFile:
    refuse_foreign_path(path)
    if path.exists():
        return WeightFile(path)
    message = (
        f"There is no weight file {printable(path)}. Set `weights` to imagenet, none or a path."
    )
    if len(path.parts) == 1 and not path.suffix:
        choices = ("imagenet", "none", "a file's path")
        message = unknown_name("weights", printable(path), choices)
    raise WeightsError(message, code="E_FILE")


def load_base(model: Network, file: WeightFile) -> None:
    """Load a file's convolutional base into the model in place; the model's head stays as it is.

    The file's top, if it has one, is not used. Also works on a model made by `nnx.eval_shape`,
    whose head then stays abstract.

    Raises:
        WeightsError: the file cannot be read, or its base is not the model's.
    """
    _load(model, file, base_only=True)


def _load(model: Network, file: WeightFile, *, base_only: bool) -> None:
    expected: Shapes = shapes(model)
    top = [layer for layer in expected if base_only and not in_base(layer)]
    head = f"with the head {model.head}" if model.head and not base_only else "without a top"

    def used(layers: Mapping[str, Any]) -> dict[str, Any]:
        return {k: params for k, params in layers.items() if in_base(k) or not base_only}

    def check(received: Shapes) -> None:
        left_out = "".join(f" ({note})" for note in file.notes if "left out the top" in note)
        described, name = f"{model.arch.name} {head}", f"{printable(file.path)}{left_out}"
        check_fits(used(received), used(expected), name=name, model=described)

    assign(model, used(file.read(check=check)), skip=top)
