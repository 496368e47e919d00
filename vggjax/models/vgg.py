"""VGG as a Flax NNX module that runs any slice of its layer table.

In: float images (N, S, S, 3), preprocessed as the weights expect (see data/preprocess.py).
Out: float32 logits, or any layer's output (NHWC). Parameters are float32 at `model.<layer>.kernel`
and `.bias`; the convolutions' activations include their relu, as Keras' do. The module opens no
file and draws no random numbers but those of its initialisation: dropout takes keys from outside.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vggjax.errors import ConfigError, unknown
from vggjax.models.arch import MIN_SIZE_PX, Arch, get_arch
from vggjax.models.batch_norm import BatchNorm
from vggjax.models.convolution import convolve
from vggjax.models.head import PUBLISHED_TOP, Head
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


class VGG(nnx.Module):
    """A VGG network: the convolutional base of `arch` and, unless None, a head.

    Args:
        arch: a name of the table (`vgg16`, `vgg11_bn` ...) or an `Arch` of one's own widths.
        include_top: True is Keras' VGG exactly (224 px, 1000 classes); leave `head` alone then.
        head: the classifier on top, its number of outputs filled in.
        image_size: side in px that the head is built for; without a dense layer on a flattened
            map (`gap`, or no head), pictures of any size from 32 px are taken.
        dtype: of the arithmetic, float32 or bfloat16; parameters and logits stay float32.
        conv: stands behind the signature of `lax.conv_general_dilated`.
        rngs: of the initialisation.
    """

    def __init__(
        self,
        arch: str | Arch = "vgg16",
        *,
        include_top: bool = False,
        head: Head | None = None,
        image_size: int = 224,
        dtype: jax.typing.DTypeLike = jnp.float32,
        conv: Callable[..., jax.Array] = convolve,
        rngs: nnx.Rngs | None = None,
    ):
        if include_top and head is not None:
            raise ConfigError(
                f"include_top=True is Keras' own head; got head={str(head)!r} as well."
            )
        if head is not None and head.outputs is None:
            raise ConfigError(
                f"The head {str(head)!r} lacks its number of outputs; write it in place of "
                f"'classes', as in {str(replace(head, outputs=10))!r}."
            )
        self.arch = get_arch(arch) if isinstance(arch, str) else arch
        self.head = PUBLISHED_TOP if include_top else head
        self.image_size = check_size(image_size)
        self.dtype = jnp.dtype(dtype)
        rngs = nnx.Rngs(0) if rngs is None else rngs

        for name, (width_in, width) in self.arch.conv_channels().items():
            kwargs = dict(conv_general_dilated=conv, dtype=dtype, kernel_init=_he, rngs=rngs)
            setattr(self, name, nnx.Conv(width_in, width, (3, 3), **kwargs))
            if self.arch.batch_norm:
                setattr(self, name.replace("conv", "bn"), BatchNorm(width))
        if self.head is not None:
            width_in = self.head.num_features(self.image_size // 32, self.arch.widths[-1])
            if width_in == 0:
                raise ConfigError(
                    f"The head {str(self.head)!r} needs 64 px or more; got {image_size}."
                )
            for i, width in enumerate(self.head.hidden, 1):
                kwargs = dict(dtype=dtype, kernel_init=_he, rngs=rngs)
                setattr(self, f"fc{i}", nnx.Linear(width_in, width, **kwargs))
                width_in = width
            kwargs = dict(dtype=dtype, kernel_init=_small, rngs=rngs)
            self.predictions = nnx.Linear(width_in, self.head.outputs, **kwargs)

    @property
    def layers(self) -> tuple[str, ...]:
        """All layer names in the order in which they run."""
        return self.arch.layers() + (self.head.layers() if self.head else ())

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
            ConfigError: an unknown layer name, one outside the slice, or pictures of a size that
                the network cannot take.
        """
        layers = self.layers
        for name in (after, until, *taps):
            if name is not None and name not in layers:
                raise ConfigError(unknown(f"layer of {self.arch.name}", name, layers))
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
        if "_conv" in name:
            x = getattr(self, name)(x)
            return x if self.arch.batch_norm else nnx.relu(x)
        if "_bn" in name:
            return nnx.relu(getattr(self, name)(x, mask=mask))
        if name.endswith("_pool"):
            return max_pool(x)
        if name == "avg2":
            return nnx.avg_pool(x, (2, 2), (2, 2))
        if name == "predictions":
            return self.predictions(x).astype(jnp.float32)
        if name == "gap":
            x = x.mean((1, 2))
        elif name == "flatten":
            x = x.reshape(x.shape[0], -1)  # (N, H, W, C) -> (N, H*W*C), Keras' order
        else:
            x = nnx.relu(getattr(self, name)(x))
        # Dropout follows each hidden layer, or the pooled features where there is none.
        ends_hidden = name.startswith("fc") or not self.head.hidden
        if dropout_keys is None or not self.head.dropout or not ends_hidden:
            return x
        return _dropout(dropout_keys, x, rate=self.head.dropout)

    def _check_images(self, x: jax.Array, names: Sequence[str]) -> None:
        shape = jnp.shape(x)
        if len(shape) != 4 or shape[3] != 3:
            raise ConfigError(f"VGG takes images of shape (N, S, S, 3); got {shape}.")
        if min(shape[1:3]) < MIN_SIZE_PX:
            raise ConfigError(
                f"VGG halves the picture five times and needs {MIN_SIZE_PX} px or more; "
                f"got {shape[1]}x{shape[2]} px. Enlarge the pictures."
            )
        if (
            self.head is None
            or self.head.pooling == "gap"
            or not set(names) & {"fc1", "predictions"}
        ):
            return
        side = self.image_size // 32
        if (shape[1] // 32, shape[2] // 32) != (side, side):
            raise ConfigError(
                f"The head {str(self.head)!r} was built for {self.image_size} px; got "
                f"{shape[1]}x{shape[2]} px. Resize the pictures, or build with that image_size."
            )


def check_size(image_size: int) -> int:
    """Gives the size back where VGG can take it.

    Raises:
        ConfigError: below 32 px.
    """
    if image_size < MIN_SIZE_PX:
        raise ConfigError(
            f"VGG halves the picture five times and needs {MIN_SIZE_PX} px or more; "
            f"got image size {image_size}."
        )
    return image_size


def _dropout(keys: jax.Array, x: jax.Array, *, rate: float) -> jax.Array:
    # One key an example, so that the same example drops the same units on one device or many.
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))
