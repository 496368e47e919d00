"""The module that runs any slice of a table of layers: every network of this package.

In: float images (N, S, S, 3), preprocessed as the weights expect (see data/preprocess.py).
Out: float32 logits, or any layer's output (NHWC). Parameters are float32 at `model.<layer>.kernel`
and `.bias`; the convolutions' activations include their relu, as Keras' do, which stands behind the
batch normalization where there is one. The module opens no file and draws no random numbers but
those of its initialization: dropout takes keys from outside.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vggjax.errors import ConfigError, unknown_name
from vggjax.models.arch import Backbone
from vggjax.models.head import Head
from vggjax.models.kernels.conv import convolve
from vggjax.models.layers import BatchNorm
from vggjax.models.pooling import max_pool


def _normal(stddev: Callable[[Sequence[int]], float]) -> nnx.Initializer:
    """Makes an initializer of normal numbers that numpy draws: jax compiles one for each shape."""

    def draw(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32, **_: Any) -> jax.Array:
        if isinstance(key, jax.core.Tracer):  # under eval_shape or jit numpy cannot draw
            return stddev(shape) * jax.random.normal(key, shape, dtype)
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        return jnp.asarray(stddev(shape) * rng.standard_normal(shape, np.float32), dtype)

    return draw


# He et al. (arXiv:1502.01852): relu networks keep this variance, so VGG trains from scratch.
_he = _normal(lambda shape: math.sqrt(2 / math.prod(shape[:-1])))
# A small last layer starts the loss at ln(classes), whatever the features' scale.
_small = _normal(lambda shape: 0.01)

LUMA = (0.299, 0.587, 0.114)
"""What red, green and blue count in a gray image (ITU-R BT.601), as in Pillow's mode L."""


class Network(nnx.Module):
    """The layers of `arch` and, unless None, a head.

    Args:
        arch: the layers before the head.
        head: the classifier on top, its number of outputs filled in.
        image_size: side in px that the head is built for, None the network's own; without a dense
            layer on a flattened map, images of any size from `arch.min_size_px` are taken.
        dtype: of the arithmetic, float32 or bfloat16; parameters and logits stay float32.
        conv: stands behind the signature of `lax.conv_general_dilated`.
        rngs: of the initialization.

    Raises:
        ConfigError: a head without its number of outputs, or images too small for the layers.
    """

    def __init__(
        self,
        arch: Backbone,
        *,
        head: Head | None = None,
        image_size: int | None = None,
        dtype: jax.typing.DTypeLike = jnp.float32,
        conv: Callable[..., jax.Array] = convolve,
        rngs: nnx.Rngs | None = None,
    ):
        if head is not None and head.outputs is None:
            raise ConfigError(
                f"The head {str(head)!r} lacks its number of outputs; write it in place of "
                f"'classes', as in {str(replace(head, outputs=10))!r}."
            )
        self.arch, self.head = arch, head
        self.image_size = arch.check_size(arch.image_size if image_size is None else image_size)
        self.dtype = jnp.dtype(dtype)
        rngs = nnx.Rngs(0) if rngs is None else rngs

        for name, (width_in, width) in arch.conv_channels().items():
            kwargs = dict(conv_general_dilated=conv, dtype=dtype, kernel_init=_he, rngs=rngs)
            kwargs |= dict(padding=arch.padding)
            setattr(self, name, nnx.Conv(width_in, width, (3, 3), **kwargs))
            if _norm_of(name) in arch.layers():
                setattr(self, _norm_of(name), BatchNorm(width))
        if head is not None:
            width_in = self._num_features(self.image_size)
            if width_in == 0:
                least = next(s for s in itertools.count(self.image_size) if self._num_features(s))
                raise ConfigError(
                    f"The head {str(head)!r} needs {least} px or more; got {self.image_size}."
                )
            for i, width in enumerate(head.hidden, 1):
                kwargs = dict(dtype=dtype, kernel_init=_he, rngs=rngs)
                setattr(self, f"fc{i}", nnx.Linear(width_in, width, **kwargs))
                width_in = width
            kwargs = dict(dtype=dtype, kernel_init=_small, rngs=rngs)
            self.predictions = nnx.Linear(width_in, head.outputs, **kwargs)

    def _num_features(self, image_size: int) -> int:
        return self.head.num_features(self.arch.map_size(image_size), self.arch.width)

    @property
    def layers(self) -> tuple[str, ...]:
        """All layer names in the order in which they run."""
        return self.arch.layers() + (self.head.layers() if self.head else ())

    @property
    def dropout_rates(self) -> dict[str, float]:
        """Maps the layers whose outputs are random where `dropout_keys` are given to the rate."""
        return self.arch.dropout_rates() | (self.head.dropout_rates() if self.head else {})

    def __call__(
        self,
        x: jax.Array,
        *,
        after: str | None = None,
        until: str | None = None,
        taps: Sequence[str] = (),
        dropout_keys: jax.Array | None = None,
        mask: jax.Array | None = None,
    ) -> jax.Array | dict[str, jax.Array]:
        """Runs the layers after `after` up to and including `until`; both None is the whole.

        The cut law: `m(m(x, until=L), after=L) == m(x)` for every layer L.

        Args:
            x: images (N, S, S, 3), or the output of the layer `after`.
            after: run only what comes after this layer.
            until: stop behind this layer and give its output.
            taps: give `{name: output}` of these layers instead, running no further than the last.
            dropout_keys: one PRNG key an example, (N,); None switches dropout off.
            mask: (N,) with 0 where an example is padding, kept out of batch statistics.

        Raises:
            ConfigError: an unknown layer name, one outside the slice, or images of a size that
                the network cannot take.
        """
        layers = self.layers
        for name in (after, until, *taps):
            if name is not None and name not in layers:
                raise ConfigError(unknown_name(f"layer of {self.arch.name}", name, layers))
        start = 0 if after is None else layers.index(after) + 1
        last = max(map(layers.index, taps)) if taps and until is None else len(layers) - 1
        stop = last + 1 if until is None else layers.index(until) + 1
        outside = [name for name in taps if not start <= layers.index(name) < stop]
        if outside or start > stop:
            raise ConfigError(
                f"Nothing to run: after={after!r}, until={until!r}, taps={tuple(taps)} leave no "
                f"slice of {self.arch.name}'s layers, which run {layers[0]} ... {layers[-1]}."
            )
        if start == 0:
            self._check_images(x, layers[:stop])

        x, outputs = jnp.asarray(x, self.dtype) if start < stop else x, {}
        for name in layers[start:stop]:
            x = self._run_layer(name, x, dropout_keys, mask)
            if name in taps:
                outputs[name] = x
        return outputs if taps else x

    def _run_layer(self, name, x, dropout_keys, mask) -> jax.Array:
        if name == "predictions":
            return self.predictions(x).astype(jnp.float32)
        if name == "gray":
            x = x @ jnp.asarray(LUMA, x.dtype)[:, None]  # (N, S, S, 3) -> (N, S, S, 1)
        elif "_conv" in name:
            x = getattr(self, name)(x)
            x = x if hasattr(self, _norm_of(name)) else nnx.relu(x)
        elif "_bn" in name:
            x = nnx.relu(getattr(self, name)(x, mask=mask))
        elif name.endswith("_pool"):
            x = max_pool(x)
        elif name == "avg2":
            x = nnx.avg_pool(x, (2, 2), (2, 2))
        elif name == "gap":
            x = x.mean((1, 2))
        elif name == "flatten":
            x = x.reshape(x.shape[0], -1)  # (N, H, W, C) -> (N, H*W*C), Keras' order
        elif name.startswith("fc"):
            x = nnx.relu(getattr(self, name)(x))
        rates = self.dropout_rates
        if dropout_keys is None or name not in rates:
            return x
        # Each dropout draws for itself; the first takes the keys as they are.
        if order := list(rates).index(name):
            dropout_keys = jax.vmap(jax.random.fold_in, (0, None))(dropout_keys, order)
        return _dropout(dropout_keys, x, rate=rates[name])

    def _check_images(self, x: jax.Array, names: Sequence[str]) -> None:
        shape, arch = jnp.shape(x), self.arch
        if len(shape) != 4 or shape[3] != 3:
            raise ConfigError(f"{arch.name} takes images of shape (N, S, S, 3); got {shape}.")
        if min(shape[1:3]) < arch.min_size_px:
            raise ConfigError(
                f"{arch.name} makes images smaller on the way and needs {arch.min_size_px} px or "
                f"more; got {shape[1]}x{shape[2]} px. Enlarge the images."
            )
        if (
            self.head is None
            or self.head.pooling == "gap"
            or not set(names) & {"fc1", "predictions"}
        ):
            return
        if {arch.map_size(side) for side in shape[1:3]} != {arch.map_size(self.image_size)}:
            raise ConfigError(
                f"The head {str(self.head)!r} was built for {self.image_size} px; got "
                f"{shape[1]}x{shape[2]} px. Resize the images, or build with that image_size."
            )


def _norm_of(conv: str) -> str:
    return conv.replace("_conv", "_bn")


def _dropout(keys: jax.Array, x: jax.Array, *, rate: float) -> jax.Array:
    # One key an example, so that the same example drops the same units on one device or many.
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))
