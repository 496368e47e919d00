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

from vggjax.errors import ConfigError, WeightsError, shown, unknown
from vggjax.models.arch import Arch
from vggjax.models.assign import Weights, assign, shapes
from vggjax.models.convolution import convolve
from vggjax.models.head import Head
from vggjax.models.vgg import VGG
from vggjax.weights.files import read_weights
from vggjax.weights.naming import in_base
from vggjax.weights.published import find_published


def load_pretrained(
    arch: str | Arch = "vgg16",
    *,
    weights: str | os.PathLike = "imagenet",
    include_top: bool = True,
    head: Head | None = None,
    image_size: int = 224,
    base_only: bool = False,
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
        path = resolve_weights(weights, name, include_top=include_top)
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


def resolve_weights(weights: str | os.PathLike, arch: str, *, include_top: bool) -> Path:
    """Gives the path of the file that `imagenet` or a path stands for.

    Raises:
        WeightsError: no such file, or published weights that cannot be had.
    """
    if weights == "imagenet":
        return find_published(arch, include_top)
    path = Path(weights)
    if path.exists():
        return path
    if len(path.parts) == 1 and not path.suffix:
        hint = " (and there is no such file here)"
        raise WeightsError(
            unknown("weights", shown(path), ("imagenet", "none", "a file's path"), hint=hint)
        )
    raise WeightsError(
        f"There is no weight file {shown(path)}. --weights takes imagenet, none or a file's path."
    )


def load_base(model: VGG, path: str | os.PathLike) -> None:
    """Puts a file's convolutional base into the model in place and leaves the model's head alone.

    The file's top, if it has one, is not used. Works on a model made by `nnx.eval_shape`, whose
    head then stays abstract.

    Raises:
        WeightsError: unreadable, or the base is not the model's.
    """
    weights = read_weights(path)
    base = {layer: params for layer, params in weights.items() if in_base(layer)}
    top = [layer for layer in shapes(model) if not in_base(layer)]
    try:
        assign(model, base, skip=top)
    except WeightsError as error:
        raise WeightsError(f"{shown(path)}: {error}") from None


def _assign_whole(model: VGG, path: Path) -> None:
    weights = read_weights(path)
    try:
        assign(model, weights)
    except WeightsError as error:
        raise WeightsError(f"{shown(path)}: {error}{_way_out(model, weights)}") from None


def _way_out(model: VGG, weights: Weights) -> str:
    """Says how to ask for what the file may have been meant for, where its base does fit."""
    expected = shapes(model)
    given = {layer: {k: v.shape for k, v in params.items()} for layer, params in weights.items()}
    if {k: v for k, v in given.items() if in_base(k)} != {
        k: v for k, v in expected.items() if in_base(k)
    }:
        return ""
    file_top = [layer for layer in given if not in_base(layer)]
    model_top = [layer for layer in expected if not in_base(layer)]
    if not model_top:
        return f" Ask with base_only=True to leave out the file's top ({', '.join(file_top)})."
    if not file_top:
        return (
            " The file has no top. Ask with include_top=False for the base alone, or give a head= "
            "and base_only=True for a head that starts random."
        )
    return (
        " The base fits and the top does not. Ask with include_top=False, head= and base_only=True "
        "for a head that starts random."
    )
