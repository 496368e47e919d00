"""Every network by name: VGG, the small convnets, or a convnet spelled out.

Whatever reads a network's name from a user asks here; network.py builds what it returns.
"""

from vggjax.errors import ConfigError, unknown_name
from vggjax.models.arch import ARCHS, Backbone
from vggjax.models.convnets import CNNS, PREFIX, ConvSpec


def find_arch(name: str) -> Backbone:
    """Return the network `vgg16`, `cifar10-cnn`, or of a spec such as `cnn-gray-32-pool-32`.

    Raises:
        ConfigError: there is no such network, with the nearest name, or the spec is invalid.
    """
    if name in ARCHS:
        return ARCHS[name]
    if name in CNNS:
        return CNNS[name]
    text = name.removeprefix(PREFIX)
    first = text.split("-")[0]
    if text != name and (first in ("gray", "same") or first[:1].isdecimal()):
        return ConvSpec(text)
    hint = f" Or spell out a convnet, as in {PREFIX}32-pool-64-pool-64."
    raise ConfigError(unknown_name("model", name, (*ARCHS, *CNNS), hint=hint))
