"""Small bad HDF5 weight files whose arrays are wrong or lie elsewhere."""

import zlib
from pathlib import Path

import h5py
import numpy as np

from support.hostile_layers import BIAS, GROUP, KERNEL, L, M, h5, put, reweigh, tiny_weights
from vggjax.weights.weight_file import write_weights


def other_file(file):
    """Write a second file beside the first, which must not be read."""
    path = Path(file.filename).with_name("other.h5")
    write_weights(path, tiny_weights(seed=1))
    return str(path)


# Values, types, shapes


def kernel_of(file):
    return file[L][KERNEL][()]


for kind, dtype in {"integers": "i1", "bools": "?", "complex numbers": "c8"}.items():

    @h5(kind, "E_DTYPE", L)
    def _(file, dtype=dtype):
        put(file[L], KERNEL, kernel_of(file).astype(dtype))


@h5("strings", "E_DTYPE", L)
def _(file):
    put(file[L], BIAS, np.array(["0.5"] * 4, object), dtype=h5py.string_dtype())


@h5("records", "E_DTYPE", L)
def _(file):
    put(file[L], BIAS, np.zeros(4, [("a", "f4"), ("b", "f4")]))


@h5("floats of an unknown format", "E_DTYPE", L)
def _(file):
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_ebias(100)
    space = h5py.h5s.create_simple((4,))
    del file[L][BIAS]
    h5py.h5d.create(file[L].id, BIAS.encode(), kind, space).write(
        h5py.h5s.ALL, h5py.h5s.ALL, np.ones(4, "f4")
    )


for kind, value in {"NaN": np.nan, "infinity": np.inf, "too large for float32": 1e300}.items():

    @h5(kind, "E_NONFINITE", L)
    def _(file, value=value):
        kernel = kernel_of(file).astype("f8")
        kernel[1, 2, 3, 0] = value
        put(file[L], KERNEL, kernel)


@h5("never written", "E_UNWRITTEN", L)
def _(file):
    put(file[L], KERNEL, shape=(3, 3, 4, 4), dtype="f4", chunks=(3, 3, 1, 4))


@h5("written in part", "E_UNWRITTEN", L)
def _(file):
    put(file[L], KERNEL, shape=(3, 3, 4, 4), dtype="f4", chunks=(1, 3, 4, 4))[:2] = 1


for kind, shape in {"a scalar": (), "an empty axis": (3, 3, 4, 0)}.items():

    @h5(kind, "E_SHAPE", L)
    def _(file, shape=shape):
        put(file[L], KERNEL, np.zeros(shape, "f4"))


@h5("no dataspace", "E_SHAPE", L)
def _(file):
    del file[L][BIAS]
    file[L][BIAS] = h5py.Empty("f4")


@h5("another rank", "E_SHAPE", L)
def _(file):
    put(file[L], KERNEL, kernel_of(file).reshape(9, 4, 4))


@h5("kernel and bias of different widths", "E_SHAPE", L)
def _(file):
    put(file[L], KERNEL, kernel_of(file)[..., ::2])


@h5("another shape than the model's", "E_SHAPE", L, model="base")
def _(file):
    put(file[L], KERNEL, np.ones((3, 3, 5, 4), "f4"))


# Links and external numbers


@h5("external link to a layer", "E_LINK", L)
def _(file):
    del file[L]
    file[L] = h5py.ExternalLink(other_file(file), f"/{L}")


@h5("external link to an array", "E_LINK", L)
def _(file):
    del file[L][KERNEL]
    file[L][KERNEL] = h5py.ExternalLink(other_file(file), f"/{L}/{KERNEL}")


@h5("external link inside a path", "E_LINK", L)
def _(file):
    file[L]["x"] = h5py.ExternalLink(other_file(file), f"/{L}")
    reweigh(file, [f"x/{KERNEL}", BIAS])


@h5("external link to all layers", "E_LINK", "model_weights")
def _(file):
    file["model_weights"] = h5py.ExternalLink(other_file(file), "/")


@h5("external link in Keras 3's file", "E_LINK", "conv2d_3", ending=".weights.h5")
def _(file):
    del file[GROUP]
    file[GROUP] = h5py.ExternalLink(other_file(file), f"/{L}")


@h5("soft link to another layer's array", "E_LINK", L)
def _(file):
    del file[L][KERNEL]
    file[L][KERNEL] = h5py.SoftLink(f"/{M}/{M}_W_1:0")


@h5("soft links in a circle", "E_LINK", L)
def _(file):
    del file[L][KERNEL]
    file[L][KERNEL], file[L]["x"] = h5py.SoftLink(f"/{L}/x"), h5py.SoftLink(f"/{L}/{KERNEL}")


@h5("one array for two layers", "E_ALIAS", L)
def _(file):
    del file[L][KERNEL]
    file[L][KERNEL] = file[M][f"{M}_W_1:0"]


@h5("a group inside itself", "E_ALIAS", "layers", ending=".weights.h5")
def _(file):
    file["layers/again"] = file["layers"]


@h5("virtual dataset", "E_EXTERNAL", L)
def _(file):
    layout = h5py.VirtualLayout((3, 3, 4, 4), "f4")
    layout[...] = h5py.VirtualSource(other_file(file), f"/{L}/{KERNEL}", shape=(3, 3, 4, 4))
    del file[L][KERNEL]
    file[L].create_virtual_dataset(KERNEL, layout)


@h5("numbers in an external file", "E_EXTERNAL", L)
def _(file):
    put(file[L], BIAS, shape=(4,), dtype="f4", external=[(other_file(file), 0, 16)])


# Filters and bombs


@h5("unknown filter", "E_FILTER", L)
def _(file):
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((4,))
    plist.set_filter(32768, h5py.h5z.FLAG_OPTIONAL, (1,))
    del file[L][BIAS]
    space = h5py.h5s.create_simple((4,))
    array = h5py.h5d.create(file[L].id, BIAS.encode(), h5py.h5t.IEEE_F32LE, space, dcpl=plist)
    array.write_direct_chunk((0,), np.ones(4, "f4").tobytes(), 0)


for kind, length in {"terabytes": 2**38, "gigabytes": 2**30}.items():

    @h5(f"claims {kind}", "E_BOMB", L)
    def _(file, length=length):
        put(file[L], KERNEL, shape=(length,), dtype="f4", chunks=(2**18,), compression="gzip")


@h5("gzip bomb", "E_BOMB", L)
def _(file):
    array = put(file[L], KERNEL, shape=(2**26,), dtype="f4", chunks=(2**18,), compression="gzip")
    packed = zlib.compress(bytes(2**20), 9)
    for start in range(0, 2**26, 2**18):
        array.id.write_direct_chunk((start,), packed, 0)


@h5("one chunk of gigabytes", "E_BOMB", L)
def _(file):
    options = {"chunks": (2**28,), "maxshape": (None,), "compression": "gzip"}
    put(file[L], BIAS, shape=(4,), dtype="f4", **options)


@h5("a chunk that skipped its filter", "E_FILTER", L)
def _(file):
    array = put(file[L], BIAS, shape=(4,), dtype="f4", chunks=(4,), shuffle=True)
    array.id.write_direct_chunk((0,), np.ones(4, "f4").tobytes(), 1)
