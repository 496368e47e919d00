"""The networks: a module that runs any slice of a table of layers, and VGG on top of it.

In: float images (N, S, S, 3), preprocessed as the weights expect (see data/images/preprocess.py).
Out: float32 logits, or any layer's output in NHWC. Parameters are float32 at `model.<layer>.kernel`
and `.bias`. A convolution's output includes its relu, as in Keras; with batch normalization, the
relu comes after that. The module opens no file, and draws random numbers only to initialize its
parameters: dropout takes its keys as an argument.
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vggjax.errors import ConfigError, unknown_name
from vggjax.models.arch import Backbone, get_arch
from vggjax.models.convnets import find_arch
from vggjax.models.head import POOLED_BLOCKS, Head
from vggjax.models.kernels.conv import convolve, convolve_relu
from vggjax.models.kernels.pooling import max_pool
from vggjax.models.layers import BatchNorm, pool_map

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a gray image (ITU-R BT.601), as in Pillow's mode L."""


def _normal(stddev: Callable[[Sequence[int]], float]) -> nnx.Initializer:
    """Return a normal initializer that draws with numpy; jax would compile one for each shape."""

    def draw(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32, **_: Any) -> jax.Array:
        if isinstance(key, jax.core.Tracer):  # numpy cannot draw under eval_shape or jit
            return stddev(shape) * jax.random.normal(key, shape, dtype)
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        return jnp.asarray(stddev(shape) * rng.standard_normal(shape, np.float32), dtype)

    return draw


# He et al. (arXiv:1502.01852), equation 10: keeps the variance through relus, so that a VGG of any
# depth trains from scratch.
_he_normal = _normal(lambda shape: math.sqrt(2 / math.prod(shape[:-1])))
# A small last layer starts the loss near ln(classes), whatever the scale of the features.
_small_normal = _normal(lambda shape: 0.01)


class Network(nnx.Module):
    """The layers of a backbone, followed by a head unless it is None.

    Args:
        arch: a name (`vgg16`, `cifar10-cnn`, `cnn-32-pool-64`), or the layers themselves.
        include_top: build the published head; leave `head` None then.
        head: the classifier, with its number of outputs set.
        image_size: side in px that the head is built for, by default the network's own; without a
            dense layer on a flattened map, any size from `arch.min_size_px` is accepted.
        dtype: of the arithmetic, float32 or bfloat16; parameters and logits stay float32.
        conv: a function with the signature of `lax.conv_general_dilated`.
        rngs: for the initialization.

    Raises:
        ConfigError: an unknown name, a head without its number of outputs or beside `include_top`,
            no published head for `include_top`, or images that are too small for the layers.
    """

    _find_arch = staticmethod(find_arch)

    def __init__(
        self,
        arch: str | Backbone = "vgg16",
        *,
        include_top: bool = False,
        head: Head | None = None,
        image_size: int | None = None,
        dtype: jax.typing.DTypeLike = jnp.float32,
        conv: Callable[..., jax.Array] = convolve,
        rngs: nnx.Rngs | None = None,
    ):
        self.arch = arch = self._find_arch(arch) if isinstance(arch, str) else arch
        self.head = head = _published_head(arch, head) if include_top else head
        self.image_size = arch.image_size if image_size is None else image_size
        arch.check_size(self.image_size)
        self.dtype = jnp.dtype(dtype)
        self.preprocess_mode: str | None = None
        """The preprocessing that its weights expect, None if unknown; calls do not apply it."""
        rngs = nnx.Rngs(0) if rngs is None else rngs

        conv_options: dict[str, Any] = {"padding": arch.padding, "dtype": self.dtype, "rngs": rngs}
        conv_options |= {"kernel_init": _he_normal, "conv_general_dilated": conv}
        for name, (width_in, width) in arch.conv_channels().items():
            setattr(self, name, nnx.Conv(width_in, width, (3, 3), **conv_options))
            if _norm_of(name) in arch.layers():
                setattr(self, _norm_of(name), BatchNorm(width))
        if head is not None:
            self._add_head(head, rngs)

    def _add_head(self, head: Head, rngs: nnx.Rngs) -> None:
        if head.outputs is None:
            example = str(replace(head, outputs=10))
            raise ConfigError(
                f"The head {str(head)!r} lacks its number of outputs. Give it, as in {example!r}."
            )

        def num_features(image_size: int) -> int:
            widths = self.arch.conv_channels()
            pooled = [widths[name.replace("_bn", "_conv")][1] for name in self.pooled_layers]
            channels = sum(pooled) if pooled else self.arch.width
            return head.num_features(self.arch.map_size(image_size), channels)

        width_in = num_features(self.image_size)
        if width_in == 0:
            smallest = next(size for size in itertools.count(self.image_size) if num_features(size))
            raise ConfigError(
                f"The head {head} needs images of {smallest} px or more; got {self.image_size}."
            )
        dense = functools.partial(nnx.Linear, dtype=self.dtype, rngs=rngs)
        for i, width in enumerate(head.hidden, 1):
            setattr(self, f"fc{i}", dense(width_in, width, kernel_init=_he_normal))
            width_in = width
        self.predictions = dense(width_in, head.outputs, kernel_init=_small_normal)

    @property
    def layers(self) -> tuple[str, ...]:
        """Every layer name in execution order."""
        return self.arch.layers() + (self.head.layers() if self.head else ())

    @property
    def dropout_rates(self) -> dict[str, float]:
        """Map each layer that is followed by dropout, given `dropout_keys`, to its rate."""
        return self.arch.dropout_rates() | (self.head.dropout_rates() if self.head else {})

    @property
    def pooled_layers(self) -> tuple[str, ...]:
        """The layers whose outputs the head pools beside the last map: of `convs2` and `convs3`."""
        layers = self.arch.layers()
        convs = [_norm_of(n) if _norm_of(n) in layers else n for n in self.arch.conv_channels()]
        blocks = list(dict.fromkeys(name.split("_")[0] for name in convs))
        last = blocks[-self.head.pooled_blocks :] if self.head and self.head.pooled_blocks else ()
        return tuple(name for name in convs if name.split("_")[0] in last)

    @property
    def uncut_layers(self) -> frozenset[str]:
        """The layers after which the network cannot go on: the head needs an earlier output too."""
        pooled = self.pooled_layers
        if not pooled or self.head is None:
            return frozenset()
        layers = self.layers
        first = layers.index(pooled[0].replace("_bn", "_conv"))
        return frozenset(layers[first : layers.index(self.head.pooling)])

    def __call__(
        self,
        x: jax.Array,
        *,
        after: str | None = None,
        until: str | None = None,
        taps: Sequence[str] = (),
        dropout_keys: jax.Array | None = None,
        mask: jax.Array | None = None,
    ) -> Any:
        """Run the layers after `after` up to and including `until`, by default all of them.

        The cut law: `m(m(x, until=L), after=L) == m(x)` for every layer L, but for `uncut_layers`:
        from there on, x is a dict with the outputs of the earlier layers that the head pools.

        Layers may also have torchvision's and Caffe's names, `features.15` and `relu3_3`, both of
        which are `block3_conv3`.

        Args:
            x: images (N, S, S, 3), or the output of the layer `after`.
            after: run only the layers after this one.
            until: stop at this layer and return its output.
            taps: return `{name: output}` of these layers, and run no further than the last one.
            dropout_keys: one PRNG key per example, (N,); None disables dropout.
            mask: (N,) with 0 for padding examples, which batch statistics exclude.

        Returns:
            The output as an array, float32 logits from the last layer of a head; or with `taps` a
            dict of arrays.

        Raises:
            ConfigError: a layer name is unknown or outside the slice, or the images are integers
                or of a size that the network cannot process.
        """
        layers = self.layers
        start, stop, tapped = self._slice(after, until, taps)
        if start == 0:
            self._check_images(x, layers[:stop])

        x, pooled = self._pooled_before(x, start, stop)
        x = jnp.asarray(x, self._dtype_before(start)) if start < stop else x
        outputs: dict[str, jax.Array] = {}
        names, is_pooled = layers[start:stop], False
        wanted = {*tapped.values(), *map(layers.index, self.pooled_layers)}
        for i, name in enumerate(names, start):
            # A convolution pools in the same pass, unless its own output is wanted too.
            following = "".join(layers[i + 1 : min(i + 2, stop)])
            pool = following.endswith("_pool") and i not in wanted
            x = jnp.concatenate(pooled, axis=-1) if name in POOLED_BLOCKS else x
            if not (name.endswith("_pool") and is_pooled):
                x = self._run_layer(name, x, mask, pool=pool)
            is_pooled = pool and self._ends_in_relu(name)
            if name in self.pooled_layers:
                pooled.append(pool_map(x))
            if dropout_keys is not None and name in self.dropout_rates:
                x = self._drop(name, x, dropout_keys)
            outputs |= {tap: x for tap, index in tapped.items() if index == i}
        return outputs if taps else x

    def _dtype_before(self, start: int) -> jax.typing.DTypeLike:
        """Return the dtype of the input of layer `start`.

        A convolution reads images unrounded: in bfloat16, their rounding would be the base's
        largest error, because it is the same all over a plain area.
        """
        reads_images = start == 0 and self._ends_in_relu(self.layers[0])
        return jnp.float32 if reads_images else self.dtype

    def _slice(
        self, after: str | None, until: str | None, taps: Sequence[str]
    ) -> tuple[int, int, dict[str, int]]:
        """Return the first layer to run, the one to stop before, and the index of each tap."""
        layers = self.layers
        tapped = {tap: layers.index(self._find_layer(tap)) for tap in taps}
        start = 0 if after is None else layers.index(self._find_layer(after)) + 1
        last = max(tapped.values()) if taps and until is None else len(layers) - 1
        stop = last + 1 if until is None else layers.index(self._find_layer(until)) + 1
        if start > stop or not all(start <= i < stop for i in tapped.values()):
            raise ConfigError(
                f"Nothing to run: after={after!r}, until={until!r}, taps={tuple(taps)} select no "
                f"slice of {self.arch.name}'s layers {layers[0]} ... {layers[-1]}."
            )
        return start, stop, tapped

    def _pooled_before(self, x: Any, start: int, stop: int) -> tuple[jax.Array, list[jax.Array]]:
        """Return the map to go on from at layer `start`, and what the head pools before it."""
        layers = self.layers
        given = x if isinstance(x, Mapping) else {layers[start - 1]: x}
        x = given[layers[start - 1]]
        if start == 0 or layers[start - 1] not in self.uncut_layers:
            return x, []
        needed = [name for name in self.pooled_layers if layers.index(name) < start]
        missing = [name for name in needed if name not in given]
        if not missing:
            return x, [pool_map(given[name]) for name in needed]
        if not set(POOLED_BLOCKS) & set(layers[start:stop]):
            return x, []
        raise ConfigError(
            f"The head {str(self.head)!r} pools {', '.join(missing)} too, so the network cannot go "
            f"on after {layers[start - 1]!r} alone. Cut before {needed[0]} or at "
            f"{self.head and self.head.pooling!r}, or give the outputs of "
            "all these layers, as `taps` returns them."
        )

    def _find_layer(self, name: str) -> str:
        """Return the layer of that name, or of that name in torchvision or Caffe."""
        aliases = self.arch.aliases() | (self.head.aliases() if self.head else {})
        if name in self.layers:
            return name
        if name in aliases:
            return aliases[name]
        features, _, number = name.rpartition(".")
        if number.isdecimal() and (after_relu := f"{features}.{int(number) + 1}") in aliases:
            raise ConfigError(
                f"{self.arch.name} has no output {name!r}, before a ReLU: its layers include their "
                f"ReLU. After it, {after_relu!r} is {aliases[after_relu]!r}."
            )
        what = f"layer of {self.arch.name}"
        raise ConfigError(unknown_name(what, name, self.layers, aliases=aliases))

    def to_pure(self) -> tuple[Callable[..., Any], dict[str, dict[str, jax.Array]]]:
        """Return a pure function `apply(params, x, **options)` and its `params`.

        `params` is a dict `{layer: {name: array}}`, with the running statistics of batch
        normalization, as optax, Linen, Equinox and Haiku take it. `options` are those of calling
        the model. The function holds no arrays and changes none.
        """
        graphdef, state = nnx.split(self)

        def apply(params: Any, x: jax.Array, **options: Any) -> Any:
            return nnx.merge(graphdef, params)(x, **options)

        return apply, nnx.to_pure_dict(state)

    def __repr__(self) -> str:
        """Return the network, its head, image size, dtype and number of parameters in one line."""
        params = jax.tree.leaves(nnx.state(self, nnx.Param))
        return (
            f"{type(self).__name__}({self.arch.name!r}, head={self.head and str(self.head)!r}, "
            f"image_size={self.image_size}, dtype={self.dtype}, "
            f"parameters={sum(math.prod(x.shape) for x in params):,})"
        )

    __str__ = __repr__

    def _ends_in_relu(self, name: str) -> bool:
        """Return whether a layer is a convolution without batch normalization."""
        return "_conv" in name and not hasattr(self, _norm_of(name))

    def _run_layer(
        self, name: str, x: jax.Array, mask: jax.Array | None, *, pool: bool = False
    ) -> jax.Array:
        """Run a layer, and with `pool` the pooling after a convolution that ends in its ReLU."""
        if name == "gray":
            return x @ jnp.asarray(LUMA, x.dtype)[:, None]  # (N, S, S, 3) -> (N, S, S, 1)
        if self._ends_in_relu(name):
            return convolve_relu(getattr(self, name), x, pool=pool)
        if "_conv" in name:
            return getattr(self, name)(x)
        if "_bn" in name:
            return nnx.relu(getattr(self, name)(x, mask=mask))
        if name.endswith("_pool"):
            return max_pool(x)
        if name == "avg2":
            return nnx.avg_pool(x, (2, 2), (2, 2))
        if name == "gap":
            return x.mean((1, 2))
        if name == "flatten":
            return x.reshape(x.shape[0], -1)  # (N, H, W, C) -> (N, H*W*C), Keras' order
        if name.startswith("fc"):
            return nnx.relu(getattr(self, name)(x))
        if name == "predictions":
            return self.predictions(x).astype(jnp.float32)
        return x  # block1_drop1: only dropout, which _drop does

    def _drop(self, name: str, x: jax.Array, keys: jax.Array) -> jax.Array:
        rates = self.dropout_rates
        # Each layer draws its own numbers; the first uses the keys unchanged.
        if order := list(rates).index(name):
            keys = jax.vmap(jax.random.fold_in, (0, None))(keys, order)
        keep_rate = 1 - rates[name]
        # One key per example: the same example drops the same units on one device or on many.
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, keep_rate, x.shape[1:]))(keys)
        return jnp.where(keep, x / keep_rate, jnp.zeros_like(x))

    def _check_images(self, x: jax.Array, names: Sequence[str]) -> None:
        shape, arch, head = jnp.shape(x), self.arch, self.head
        if len(shape) != 4 or shape[3] != 3:
            raise ConfigError(f"{arch.name} needs images of shape (N, S, S, 3); got {shape}.")
        dtype = getattr(x, "dtype", np.float32)  # a list has none
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ConfigError(
                f"{arch.name} needs preprocessed images, of floats; got {dtype}. Write "
                'model(vggjax.preprocess(images, mode="caffe")), or mode="torch" with weights from '
                "torchvision."
            )
        arch.check_size(*shape[1:3])
        if (
            head is None
            or head.pooling not in ("flatten", "avg2")
            or not {"fc1", "predictions"} & set(names)
        ):
            return
        if {arch.map_size(side) for side in shape[1:3]} != {arch.map_size(self.image_size)}:
            raise ConfigError(
                f"The head {str(head)!r} was built for {self.image_size} px; got "
                f"{shape[1]}x{shape[2]} px. Resize the images, or build with that image_size."
            )


class VGG(Network):
    """A `Network` of arch.py's table (`vgg16` ...); `include_top=True` is Keras' VGG exactly."""

    _find_arch = staticmethod(get_arch)


def _published_head(arch: Backbone, head: Head | None) -> Head:
    if head is not None:
        raise ConfigError(f"`include_top` and the head {str(head)!r} exclude each other; give one.")
    if arch.top is None:
        raise ConfigError(
            f"{arch.name} has no head of its own for `include_top`; give one, as in flatten-64-10."
        )
    return arch.top


def _norm_of(conv: str) -> str:
    return conv.replace("_conv", "_bn")
