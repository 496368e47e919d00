"""Small bad HDF5 weight files whose layers and names are wrong, and the list of all cases.

Each case has a name, the code that it must be refused with, and a word that the message must
contain. It changes a good file of a tiny VGG with h5py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from support.networks import random_weights
from vggjax.models.arch import Arch
from vggjax.models.head import Head
from vggjax.weights.weight_file import write_weights

TINY = Arch("tiny", (1, 1, 2, 1, 1), (2, 2, 4, 4, 4))
TOP = Head("flatten", (6,), outputs=3)
L, M = "block3_conv2", "block4_conv1"  # two layers of one shape
KERNEL, BIAS = f"{L}_W_1:0", f"{L}_b_1:0"
GROUP = "layers/conv2d_3"  # L in Keras 3's numbering


@dataclass(frozen=True)
class Case:
    """A bad file. Where only a model's shapes show it, `model` is `base` or `top`."""

    name: str
    ending: str
    code: str
    mention: str
    make: Callable[[Path], None]
    model: str = ""


def tiny_weights(*, top=False, seed=0):
    return random_weights(TINY, TOP if top else None, seed=seed)


CASES: list[Case] = []


def h5(name, code, mention="", *, ending=".h5", model=""):
    """Register a change to a good file that is open in h5py."""

    def register(change):
        def make(path):
            write_weights(path, tiny_weights())
            with h5py.File(path, "r+") as file:
                change(file)

        CASES.append(Case(name, ending, code, mention, make, model))
        return change

    return register


def put(group, name, data=None, **options):
    if name in group:
        del group[name]
    return group.create_dataset(name, data=data, **options)


def relist(file, change):
    file.attrs["layer_names"] = np.array(change(list(file.attrs["layer_names"])))


def reweigh(file, names):
    file[L].attrs["weight_names"] = np.array([name.encode() for name in names])


# Layers and parameters


@h5("layer absent", "E_MISSING", L, model="base")
def _(file):
    del file[L]
    relist(file, lambda names: [name for name in names if name != L.encode()])


@h5("layer listed and absent", "E_MISSING", L)
def _(file):
    del file[L]


@h5("bias absent", "E_MISSING", L, model="base")
def _(file):
    reweigh(file, [KERNEL])


@h5("array listed and absent", "E_MISSING", L)
def _(file):
    del file[L][KERNEL]


@h5("layer that the model lacks", "E_UNEXPECTED", "block5_conv2", model="base")
def _(file):
    file.copy("block5_conv1", "block5_conv2")
    relist(file, lambda names: [*names, b"block5_conv2"])


@h5("unknown parameter", "E_UNEXPECTED", L)
def _(file):
    put(file[L], "x", np.ones(3, "f4"))
    reweigh(file, [KERNEL, BIAS, "x"])


@h5("layers renamed", "E_MISSING", "block1_conv1", model="base")
def _(file):
    for i, name in enumerate(file.attrs["layer_names"]):
        file.move(name.decode(), f"layer_{i}")
    relist(file, lambda names: [f"layer_{i}".encode() for i in range(len(names))])


@h5("layers swapped in the numbering", "E_ORDER", L, ending=".weights.h5")
def _(file):
    file.move(GROUP, "x")
    file.move("layers/conv2d_4", GROUP)
    file.move("x", "layers/conv2d_4")


@h5("bias listed before kernel", "E_ORDER", L)
def _(file):
    reweigh(file, [BIAS, KERNEL])


@h5("layer listed twice", "E_DUPLICATE", L)
def _(file):
    relist(file, lambda names: [L.encode() if name == M.encode() else name for name in names])


@h5("parameter listed twice", "E_DUPLICATE", L)
def _(file):
    reweigh(file, [BIAS, BIAS])


@h5("no layer_names", "E_FORMAT", "no layer")
def _(file):
    del file.attrs["layer_names"]


@h5("name not UTF-8", "E_NAME", "layer_names")
def _(file):
    relist(file, lambda names: [*names, b"\xff\xfe\x80"])


@h5("name not UTF-8 in Keras 3's file", "E_NAME", GROUP, ending=".weights.h5")
def _(file):
    file[f"{GROUP}/vars"].attrs["name"] = np.bytes_(b"block\xff")


@h5("names a scalar", "E_HEADER", "layer_names")
def _(file):
    file.attrs["layer_names"] = "block1_conv1"


@h5("names numbers", "E_HEADER", "layer_names")
def _(file):
    file.attrs["layer_names"] = np.arange(9)


@h5("far too many names", "E_BOMB", "layer_names")
def _(file):
    del file.attrs["layer_names"]
    for i in range(20):
        file.attrs[f"layer_names{i}"] = np.array([b"input_1"] * 6000)


@h5("absolute name", "E_NAME", "/block3_conv2")
def _(file):
    relist(file, lambda names: [b"/" + name if name == L.encode() else name for name in names])


@h5("name with dots", "E_NAME", "../block1_conv1")
def _(file):
    relist(file, lambda names: [*names, b"../block1_conv1"])


@h5("group for an array", "E_FORMAT", L)
def _(file):
    del file[L][KERNEL]
    file[L].create_group(KERNEL)


@h5("array for a group", "E_FORMAT", L)
def _(file):
    put(file, L, np.zeros(3))


@h5("nested too deep", "E_FORMAT", "nested", ending=".weights.h5")
def _(file):
    file.create_group("/".join(["layers"] + ["g"] * 40))


@h5("Theano's backend", "E_ORDER", "Theano")
def _(file):
    file.attrs["backend"] = np.bytes_("theano")


@h5("Theano's order of axes", "E_ORDER", "block1_conv1")
def _(file):
    for name in TINY.conv_channels():
        kernel = file[name][f"{name}_W_1:0"][()]
        put(file[name], f"{name}_W_1:0", kernel.transpose(3, 2, 0, 1))
