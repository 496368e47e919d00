"""Small bad files of plain arrays: `.npz`, pickles and ONNX, and formats that are not read."""

import functools
import io
import os
import pickle
import struct
import zipfile

import numpy as np

from support.array_files import BASE, flat, nested
from support.hostile_layers import CASES, Case

ARRAYS = flat(BASE, "{caffe}_{w}")


def case(name, ending, code, mention=""):
    """Register a function that returns the file's contents."""

    def register(contents):
        def make(path):
            path.write_bytes(contents())

        CASES.append(Case(name, ending, code, mention, make))
        return contents

    return register


def npz(arrays, *, save=np.savez, **members):
    """Return an archive of arrays, and of further members' bytes."""
    stream = io.BytesIO()
    save(stream, **arrays)
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return stream.getvalue()


def npy(shape, content=b"", dtype="<f4"):
    """Return an array's header that claims a shape, followed by other content."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


# npz


@case("npz of objects", ".npz", "E_CODE", "Python objects")
def _():
    return npz(ARRAYS | {"conv1_1_W": np.array([{}], dtype=object)})


case("half of an npz", ".npz", "E_ZIP")(lambda: npz(ARRAYS)[: len(npz(ARRAYS)) // 2])
case("npz with a huge shape", ".npz", "E_TRUNCATED", "claims the shape")(
    lambda: npz({}, conv1_1_W=npy((3, 3, 3, 2**40), b"x"))
)
case("npz with a negative shape", ".npz", "E_BOMB")(
    lambda: npz({k: v for k, v in ARRAYS.items() if k != "conv1_1_b"}, conv1_1_b=npy((-2,), b""))
)
case("npz with a nested header", ".npz", "E_HEADER")(
    lambda: npz({}, conv1_1_W=npy("(" * 5000 + ")" * 5000))
)
case("npz bomb", ".npz", "E_BOMB", "would expand")(
    lambda: npz({}, conv1_1_W=npy((3, 3, 3, 2**16), bytes(27 * 2**18)))
)
case("npz of integers", ".npz", "E_DTYPE", "int32")(
    lambda: npz({k: v.astype(np.int32) for k, v in ARRAYS.items()})
)
case("npz with text for an array", ".npz", "E_HEADER")(lambda: npz(ARRAYS, more=b"text"))


@case("npz with batch normalization", ".npz", "E_UNEXPECTED", "batch normalization")
def _():
    norms = {f"bn{i}/gamma": np.ones(2, np.float32) for i in range(len(BASE))}
    return npz(ARRAYS | norms)


@case("npz with NaN", ".npz", "E_NONFINITE", "conv1_1_b")
def _():
    return npz(ARRAYS | {"conv1_1_b": np.full(2, np.nan, np.float32)})


# Pickles


class Evil:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def pickled(extra=None, protocol=4):
    return pickle.dumps(nested(flat(BASE, "{caffe}/{param}")) | {"more": extra}, protocol)


for protocol in (2, 4):
    case(f"pickle that runs a command {protocol}", ".pkl", "E_CODE", "system")(
        functools.partial(pickled, Evil(os.system, "false"), protocol)
    )
case("pickle with eval", ".pkl", "E_CODE", "eval")(lambda: pickled(Evil(eval, "1")))
case("pickle of jax", ".pkl", "E_CODE", "jax.tree.map")(
    lambda: b"\x80\x02cjax._src.array\n_reconstruct_array\n."
)
case("pickle of Flax", ".pkl", "E_CODE", "to_state_dict")(
    lambda: b"\x80\x02cflax.core.frozen_dict\nFrozenDict\n}\x85R."
)
case("half of a pickle", ".pkl", "E_FORMAT", "damaged")(lambda: pickled()[: len(pickled()) // 2])
case("pickle without arrays", ".pkl", "E_FORMAT", "without arrays")(lambda: pickle.dumps({"a": 1}))
case("pickle with a huge count", ".pkl", "E_FORMAT")(
    lambda: b"\x80\x05}\x8c\x01a\x8e" + struct.pack("<Q", 2**40) + b"\x00s."
)
case("pickle with a huge bytearray", ".pkl", "E_FORMAT")(
    lambda: b"\x80\x05}\x8c\x01a\x96" + struct.pack("<Q", 2**40) + b"\x00s."
)


@case("pickle of dicts in dicts", ".pkl", "E_BOMB")
def _():
    tree = {}
    for _ in range(18):
        tree = {"a": tree, "b": tree}
    return pickle.dumps(tree)


@case("pickle of a dict in itself", ".pkl", "E_BOMB")
def _():
    tree = {}
    tree["a"] = tree
    return pickle.dumps(tree)


@case("pickle of an array of another length", ".pkl", "E_FORMAT", "conv1_1/bias")
def _():
    content = pickled()
    bias = BASE["block1_conv1"]["bias"].tobytes()
    return content.replace(b"C\x08" + bias, b"C\x04" + bias[:4])


# ONNX


def varint(number):
    row = b""
    while number > 127:
        row, number = row + bytes([number & 127 | 128]), number >> 7
    return row + bytes([number])


def message(*fields):
    """Return (number, value) pairs as a protobuf message."""
    row = b""
    for number, value in fields:
        if isinstance(value, int):
            row += varint(number << 3) + varint(value)
        else:
            value = value.encode() if isinstance(value, str) else value
            row += varint(number << 3 | 2) + varint(len(value)) + value
    return row


def model(*graph):
    return message((1, 8), (2, "pytorch"), (7, message(*graph)))


def tensor(*more, shape=(2, 3, 3, 3), kind=1, name="w"):
    return 5, message(*((1, size) for size in shape), (2, kind), (8, name), *more)


CONV = (1, message((1, "x"), (1, "w"), (1, "b"), (2, "y"), (4, "Conv")))
KERNEL = tensor((9, bytes(216)))
BIAS = tensor((9, bytes(8)), shape=(2,), name="b")


def external(location):
    return tensor((13, message((1, "location"), (2, location))), (14, 1))


for location in ("../w.bin", "/etc/passwd", "a\\b", "..", "C:w"):
    case(f"ONNX with numbers in {location}", ".onnx", "E_EXTERNAL", "none was opened")(
        functools.partial(model, external(location), CONV)
    )
case("ONNX with numbers in an absent file", ".onnx", "E_EXTERNAL", "missing beside it")(
    lambda: model(external("w.data"), CONV)
)
case("ONNX without its bias", ".onnx", "E_DTYPE", "computed")(lambda: model(KERNEL, CONV))
case("ONNX of integers", ".onnx", "E_DTYPE", "type 3")(
    lambda: model(tensor((9, bytes(54)), kind=3), BIAS, CONV)
)
case("quantized ONNX", ".onnx", "E_DTYPE", "quantized")(
    lambda: model((1, message((1, "x"), (4, "QLinearConv"))))
)
case("ONNX without a graph", ".onnx", "E_MISSING", "no convolution")(
    lambda: message((1, 8), (2, "pytorch"))
)
case("ONNX with two arrays of a name", ".onnx", "E_DUPLICATE")(
    lambda: model(KERNEL, KERNEL, BIAS, CONV)
)
case("ONNX with a short array", ".onnx", "E_TRUNCATED", "in 100 bytes")(
    lambda: model(tensor((9, bytes(100))), BIAS, CONV)
)
case("ONNX with a huge shape", ".onnx", "E_TRUNCATED")(
    lambda: model(tensor((9, bytes(216)), shape=(2**30, 2**30, 3, 3)), BIAS, CONV)
)
case("half of an ONNX file", ".onnx", "E_TRUNCATED")(lambda: model(KERNEL, BIAS, CONV)[:100])
case("ONNX with a length beyond it", ".onnx", "E_TRUNCATED")(
    lambda: message((1, 8), (2, "pytorch")) + b"\x3a" + varint(2**40)
)
case("ONNX with a number without end", ".onnx", "E_FORMAT", "damaged")(
    lambda: message((1, 8), (2, "pytorch")) + b"\x08" + b"\xff" * 20
)
case("ONNX of a million parts", ".onnx", "E_BOMB", "more parts")(
    lambda: message((1, 8), (2, "pytorch")) + b"\x28\x01" * 2**20
)
case("ONNX with numbers between its convolutions", ".onnx", "E_ARCH", "Mul")(
    lambda: model(KERNEL, BIAS, CONV, (1, message((1, "y"), (1, "b"), (2, "z"), (4, "Mul"))), CONV)
)


# Formats of other programs; that each line works needs their libraries

for name, ending, what, content in (
    ("a checkpoint's index", ".ckpt.index", "tf.train.load_checkpoint", bytes(100)),
    ("MATLAB", ".mat", "scipy.io.loadmat", b"MATLAB 5.0 MAT-file".ljust(200)),
    ("MATLAB 7.3", ".mat", "in MATLAB", b"MATLAB 7.3 MAT-file".ljust(600)),
    ("Caffe", ".caffemodel", "caffe.Net", b"\n\x14VGG_ILSVRC_16_layers" + bytes(50)),
    ("pickled npy", ".npy", "allow_pickle=True", npy((), b"", "|O")),
    ("one npy", ".npy", "without a name", npy((2,), bytes(8))),
    ("safetensors index", ".json", "safetensors", b'{"weight_map": {"a": "m-1.safetensors"}}'),
    ("a checkpoint's graph", ".ckpt-1000.meta", "bad.ckpt-1000'", b"\n\x10" + bytes(50)),
    ("torch index", ".bin.index.json", "torch.load", b'{"weight_map": {"a": "m-1.bin"}}'),
    ("Keras index", ".weights.json", "load_weights", b'{"weight_map": {"/a": ["m_0.h5"]}}'),
    ("tar", ".tar.gz", "tarfile -e", b"\x1f\x8b\x08" + bytes(50)),
    ("frozen graph", ".pb", "GraphDef", b"\n\x10" + bytes(50)),
    ("msgpack without an ending", "", "msgpack_restore", b"\x81\xa6params\x80"),
    ("msgpack", ".msgpack", "msgpack_restore", b"\x81\xa6params\x80"),
):
    case(f"foreign: {name}", ending, "E_FOREIGN", what)(functools.partial(bytes, content))
