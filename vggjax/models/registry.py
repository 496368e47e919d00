"""Networks by name: VGG's of arch.py, the small convnets of cnn.py, or a convnet spelled out.

Whatever takes a network's name from a person asks here. All have one interface (network.py).
"""

from typing import Any

from vggjax.errors import ConfigError, unknown_name
from vggjax.models.arch import ARCHS, Arch, Backbone
from vggjax.models.convnets import CNN, CNNS, PREFIX, ConvSpec
from vggjax.models.network import Network
from vggjax.models.vgg import VGG


def find_arch(name: str) -> Backbone:
    """Looks a network up: `vgg16`, `cifar10-cnn`, or a spec such as `cnn-gray-32-pool-32`.

    Raises:
        ConfigError: no such network, with the nearest name, or a spec that cannot be built.
    """
    if name in ARCHS:
        return ARCHS[name]
    if name in CNNS:
        return CNNS[name]
    text = name.removeprefix(PREFIX)
    first = text.split("-")[0]
    if text != name and (first in ("gray", "same") or first[:1].isdecimal()):
        return ConvSpec(text)
    hint = f" Or spell a convnet out, as in {PREFIX}32-pool-64-pool-64."
    raise ConfigError(unknown_name("model", name, (*ARCHS, *CNNS), hint=hint))


def make_model(name: str, **settings: Any) -> Network:
    """Builds the network of that name; the settings are `VGG`'s, or `CNN`'s.

    Raises:
        ConfigError: as `find_arch`, or what cannot be built.
    """
    arch = find_arch(name)
    return (VGG if isinstance(arch, Arch) else CNN)(arch, **settings)
