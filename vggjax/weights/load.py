"""Builds models with weights from files in them: strict, and only what was asked for.

`weights` is `imagenet` (the published file, see published.py), `none` (random) or a path. A file
fits when its layers are the model's. Leaving out its top is asked for with `base_only=True`.
Here numpy meets jax; the readers know nothing of models.
"""

import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from vggjax.errors import ConfigError, WeightsError, printable, unknown_name
from vggjax.models.arch import Arch
from vggjax.models.head import Head
from vggjax.models.kernels.conv import convolve
from vggjax.models.params import assign, shapes
from vggjax.models.vgg import VGG
from vggjax.weights.compatibility import Shapes, check_fits
from vggjax.weights.digests import check_sha256, expected_sha256, file_digests
from vggjax.weights.names import in_base
from vggjax.weights.pretrained import find_pretrained
from vggjax.weights.weight_file import read_weights


def load_pretrained(
    arch: str | Arch = "vgg16",
    *,
    weights: str | os.PathLike = "imagenet",
    include_top: bool = True,
    head: Head | None = None,
    image_size: int = 224,
    base_only: bool = False,
    expect_sha256: str | None = None,
    dtype: jax.typing.DTypeLike = jnp.float32,
    conv: Callable[..., jax.Array] = convolve,
    rngs: nnx.Rngs | None = None,
) -> VGG:
    """Builds a VGG in evaluation mode with the weights of a file in it.

    Args:
        arch: a name of the table, or an `Arch`.
        weights: `imagenet`, `none` or the path of a weight file.
        include_top: True is Keras' VGG exactly (1000 classes).
        head: with `include_top=False`, the head of one's own.
        image_size: side in px that the head is built for.
        base_only: take the file's convolutional base and leave its top, if any; a `head` then
            starts random. `weights="imagenet"` with a `head` can mean nothing else, and implies it.
        expect_sha256: refuse another file than the one with this checksum, in 64 digits.
        dtype: of the arithmetic.
        conv: stands behind the signature of `lax.conv_general_dilated`.
        rngs: of whatever starts random.

    Raises:
        WeightsError: the file cannot be had or read, or does not fit the model.
        ConfigError: a model that cannot be built.
    """
    if base_only and include_top:
        raise ConfigError(
            "base_only=True leaves the file's top out, and include_top=True wants it; "
            "give include_top=False."
        )
    if include_top and head is not None:
        raise ConfigError(
            f"include_top=True is Keras' own head; got head={str(head)!r} as well. "
            "Give include_top=False."
        )
    name = arch if isinstance(arch, str) else arch.name
    if weights == "none":
        make = VGG
    else:
        path = resolve_weights(weights, name, include_top=include_top, expect_sha256=expect_sha256)
        base_only = base_only or (weights == "imagenet" and not include_top)

        def make(*args, **kwargs) -> VGG:
            if base_only and head is not None:
                model = VGG(*args, **kwargs)  # the head's random numbers are wanted
            else:
                # 138 million random numbers only to be overwritten would take seconds.
                model = nnx.eval_shape(lambda: VGG(*args, **kwargs))
            if base_only:
                load_base(model, path)
            else:
                _assign_whole(model, path)
            return model

    model = make(
        arch,
        include_top=include_top,
        head=head,
        image_size=image_size,
        dtype=dtype,
        conv=conv,
        rngs=rngs,
    )
    model.eval()
    return model


def resolve_weights(
    weights: str | os.PathLike, arch: str, *, include_top: bool, expect_sha256: str | None = None
) -> Path:
    """Gives the path of the file that `imagenet` or a path stands for.

    Raises:
        WeightsError: no such file, published weights that cannot be had, or a file with another
            SHA-256 than the one expected.
    """
    if expect_sha256 is not None:
        expected_sha256(expect_sha256)  # a slip of the pen is told before a download
    path = _find(weights, arch, include_top)
    if expect_sha256 is not None:
        check_sha256(path, file_digests(path).sha256, expect_sha256)
    return path


def _find(weights: str | os.PathLike, arch: str, include_top: bool) -> Path:
    if weights == "imagenet":
        return find_pretrained(arch, include_top)
    path = Path(weights)
    if path.exists():
        return path
    if len(path.parts) == 1 and not path.suffix:
        hint = " (and there is no such file here)"
        raise WeightsError(
            unknown_name(
                "weights", printable(path), ("imagenet", "none", "a file's path"), hint=hint
            ),
            code="E_FILE",
        )
    raise WeightsError(
        f"There is no weight file {printable(path)}. --weights takes imagenet, none or a file's path.",
        code="E_FILE",
    )


def load_base(model: VGG, path: str | os.PathLike) -> None:
    """Puts a file's convolutional base into the model in place and leaves the model's head alone.

    The file's top, if it has one, is not used. Works on a model made by `nnx.eval_shape`, whose
    head then stays abstract.

    Raises:
        WeightsError: unreadable, or the base is not the model's.
    """
    expected = shapes(model)
    wanted = {layer: params for layer, params in expected.items() if in_base(layer)}

    def check(found: Shapes) -> None:
        base = {layer: params for layer, params in found.items() if in_base(layer)}
        words = f"{model.arch.name} without a top"
        check_fits(base, wanted, name=printable(path), model=words)

    weights = read_weights(path, check=check)
    for layer in [layer for layer in weights if not in_base(layer)]:
        del weights[layer]
    assign(model, weights, skip=[layer for layer in expected if not in_base(layer)])


def _assign_whole(model: VGG, path: Path) -> None:
    expected = shapes(model)
    top = f" with the head {model.head}" if model.head else " without a top"

    def check(found: Shapes) -> None:
        check_fits(found, expected, name=printable(path), model=f"{model.arch.name}{top}")

    assign(model, read_weights(path, check=check))
