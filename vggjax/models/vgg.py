"""VGG: the networks of arch.py's table under their own name, with Keras' published top if asked.

How a network runs, and what goes in and comes out, stands in network.py.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from vggjax.errors import ConfigError
from vggjax.models.arch import Arch, get_arch
from vggjax.models.head import PUBLISHED_TOP, Head
from vggjax.models.kernels.conv import convolve
from vggjax.models.network import Network


class VGG(Network):
    """A VGG network: the convolutional base of `arch` and, unless None, a head.

    Args:
        arch: a name of the table (`vgg16`, `vgg11_bn` ...) or an `Arch` of one's own widths.
        include_top: True is Keras' VGG exactly (224 px, 1000 classes); leave `head` alone then.
        head: the classifier on top, its number of outputs filled in.
        image_size: side in px that the head is built for; without a dense layer on a flattened
            map (`gap`, or no head), images of any size from 32 px are taken.
        dtype: of the arithmetic, float32 or bfloat16; parameters and logits stay float32.
        conv: stands behind the signature of `lax.conv_general_dilated`.
        rngs: of the initialization.
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
        super().__init__(
            get_arch(arch) if isinstance(arch, str) else arch,
            head=PUBLISHED_TOP if include_top else head,
            image_size=image_size,
            dtype=dtype,
            conv=conv,
            rngs=rngs,
        )
