"""Give an image the style of another (Gatys et al., CVPR 2016, arXiv:1508.06576).

The pixels themselves are optimized, from the content image on: their features at the content layer
stay those of the content, and their Gram matrices become those of the style. Each layer's loss is
relative to the target's own size, so that one weight serves every network and preprocessing.
"""

import functools
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from PIL import Image
from rich.console import Console
from rich.progress import track

from vggjax.atomic import check_output_file, write_output
from vggjax.data.images.decode import read_image
from vggjax.data.images.resize import resize
from vggjax.errors import ConfigError, DataError, printable
from vggjax.features.losses import (
    content_loss,
    content_relu,
    first_relus,
    gram_matrix,
    layer_features,
    style_loss,
    total_variation,
)
from vggjax.models.network import Network
from vggjax.weights.load import load_pretrained

Optimizer = Literal["lbfgs", "adam"]

ADAM_RATE = 0.02
"""Of pixels from 0 to 1."""

LINE_SEARCH_STEPS = 10

_TINY = 1e-12
"""In place of the size of a target that is 0."""


def stylize(
    model: Network,
    content: np.ndarray,
    style: np.ndarray,
    *,
    style_weight: float = 10.0,
    smoothness: float = 0.0,
    steps: int = 100,
    optimizer: Optimizer = "lbfgs",
    mode: str | None = None,
    progress: Callable[[int, Callable[[], np.ndarray]], None] | None = None,
) -> np.ndarray:
    """Return the content with the style, uint8 (H, W, 3).

    Args:
        model: a VGG with pretrained weights.
        content: uint8 RGB (H, W, 3), 32 px or more; its size is the result's.
        style: uint8 RGB of any size; larger details come from a larger image.
        style_weight: the weight of the style beside the content.
        smoothness: the weight of the total variation.
        steps: of the optimizer.
        optimizer: `lbfgs`, as in the paper, or `adam`.
        mode: the preprocessing of the weights; None is what their file states.
        progress: called after each step with its number and a function that returns the image.

    Raises:
        ConfigError: settings or images that cannot be used.
    """
    if optimizer not in ("lbfgs", "adam"):
        raise ConfigError(f"`optimizer` is lbfgs or adam; got {optimizer!r}.")
    if steps < 1 or style_weight < 0 or smoothness < 0:
        raise ConfigError(
            f"`steps` must be above 0, and `style_weight` and `smoothness` not negative; got "
            f"{steps}, {style_weight:g} and {smoothness:g}."
        )
    targets = _targets(model, content[None], style[None], mode)
    weights = (1.0, style_weight, smoothness)
    tx, step = _make_step(model, weights, optimizer, mode)
    x = jnp.asarray(content[None], jnp.float32) / 255
    opt_state = tx.init(x)
    for number in range(1, steps + 1):
        x, opt_state = step(x, opt_state, targets)
        if progress is not None:
            progress(number, functools.partial(_to_uint8, x))
    return _to_uint8(x)


def _targets(model: Network, content: np.ndarray, style: np.ndarray, mode: str | None) -> Any:
    """Return the targets of content and style, each with its layers' weights."""
    name = content_relu(model.arch)
    features = layer_features(model, content, (name,), mode=mode)
    outputs = layer_features(model, style, first_relus(model.arch), mode=mode)
    grams = {layer: gram_matrix(output) for layer, output in outputs.items()}
    weights = {
        x: 1 / (len(grams) * jnp.maximum(jnp.square(gram).sum(), _TINY))
        for x, gram in grams.items()
    }
    return (features, {name: 1 / jnp.maximum(jnp.square(features[name]).mean(), _TINY)}), (
        grams,
        weights,
    )


def _make_step(
    model: Network, weights: tuple[float, ...], optimizer: Optimizer, mode: str | None
) -> tuple[Any, Callable[..., tuple[jax.Array, Any]]]:
    """Return the optimizer, and the compiled function of a step."""
    graphdef, state = nnx.split(model)
    tx: Any = optax.adam(ADAM_RATE)
    if optimizer == "lbfgs":
        search = optax.scale_by_zoom_linesearch(LINE_SEARCH_STEPS, initial_guess_strategy="one")
        tx = optax.lbfgs(linesearch=search)

    @jax.jit
    def run(x: jax.Array, opt_state: Any, state: nnx.State, targets: Any) -> tuple:
        def loss(x: jax.Array) -> jax.Array:
            losses = _losses(nnx.merge(graphdef, state), x, targets, mode)
            return jnp.stack(losses) @ jnp.asarray(weights)

        if optimizer == "adam":
            updates, opt_state = tx.update(jax.grad(loss)(x), opt_state, x)
        else:  # the line search has computed the value and the gradient already
            value, grad = optax.value_and_grad_from_state(loss)(x, state=opt_state)
            searched = {"value": value, "grad": grad, "value_fn": loss}
            updates, opt_state = tx.update(grad, opt_state, x, **searched)
        return optax.apply_updates(x, updates), opt_state

    return tx, lambda x, opt_state, targets: run(x, opt_state, state, targets)


def _losses(
    model: Network, x: jax.Array, targets: Any, mode: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the content loss, the style loss and the total variation of one image (1, H, W, 3)."""
    (features, content), (grams, style) = targets
    return (
        content_loss(model, x, features, layers=content, value_range=(0, 1), mode=mode)[0],
        style_loss(model, x, grams, layers=style, value_range=(0, 1), mode=mode)[0],
        total_variation(x, value_range=(0, 1))[0],
    )


def _to_uint8(x: jax.Array) -> np.ndarray:
    pixels = np.asarray(x[0])
    if not np.isfinite(pixels).all():
        raise DataError("The image is not finite (NaN): try `optimizer` adam.")
    return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def stylize_command(
    content: str,
    style: str,
    out: str,
    *,
    model: str = "vgg16",
    weights: str = "imagenet",
    size: int = 384,
    style_weight: float = 10.0,
    smoothness: float = 0.0,
    steps: int = 100,
    optimizer: Optimizer = "lbfgs",
    preview_every: int = 10,
) -> int:
    """Stylize a file; the parameters are the flags of `vggjax stylize`.

    Raises:
        ConfigError, DataError, WeightsError: settings, images or weights that cannot be used.
    """
    if size < 32:
        raise ConfigError(f"`size` must be 32 or more; got {size}.")
    if preview_every < 1:
        raise ConfigError(f"`preview_every` must be above 0; got {preview_every}.")
    if weights == "none":
        raise ConfigError("`weights` must be a file or imagenet; random ones know no style.")
    inputs = [Path(content), Path(style)]
    path = check_output_file(out, field="out", endings=(".png",), inputs=inputs)
    pixels = [_read(file, size) for file in inputs]
    network = load_pretrained(model, weights=weights, include_top=False, base_only=True)
    console = Console(stderr=True)
    ticks = iter(track(range(steps), "Stylizing", console=console, disable=not console.is_terminal))

    def progress(number: int, image: Callable[[], np.ndarray]) -> None:
        next(ticks, None)
        if number % preview_every == 0 and number < steps:
            write_output(path, _png(image()))

    options: dict[str, Any] = {"style_weight": style_weight, "smoothness": smoothness}
    options |= {"steps": steps, "optimizer": optimizer}
    image = stylize(network, *pixels, progress=progress, **options)
    next(ticks, None)
    write_output(path, _png(image))
    print(f"{printable(path)}: {image.shape[1]}x{image.shape[0]} px, {steps} steps")
    return 0


def _read(path: Path, size: int) -> np.ndarray:
    """Read an image and resize its long side to `size` px."""
    try:
        image = read_image(os.fspath(path)).pixels
    except DataError as error:
        raise DataError(f"{printable(path)} cannot be used: {error}.") from None
    scale = size / max(image.shape[:2])
    height, width = (max(32, round(side * scale)) for side in image.shape[:2])
    return resize(image, (height, width), filter="bicubic")


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
