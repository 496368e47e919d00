"""Write files as torch does, without torch: numpy arrays in an object become its tensors."""

import io
import pickle
import zipfile
from collections import OrderedDict

import numpy as np

STORAGES = {"float32": "Float", "float64": "Double", "float16": "Half", "int64": "Long"}


class Name:
    """A function or class that the pickle names, called with `args` and given a `state`."""

    def __init__(self, name, *args, state=None):
        self.name, self.args, self.state = name, args, state


class _Storage:
    def __init__(self, array, bfloat16):
        self.array, self.bfloat16 = array, bfloat16


class _Pickler(pickle._Pickler):
    """Pickles arrays as torch pickles tensors on a GPU; `bfloat16` cuts their numbers short."""

    dispatch = dict(pickle._Pickler.dispatch)

    def __init__(self, file, *, bfloat16=False):
        super().__init__(file, protocol=2)
        self.arrays, self.bfloat16 = [], bfloat16

    def persistent_id(self, item):
        if not isinstance(item, _Storage):
            return None
        kind = "BFloat16" if item.bfloat16 else STORAGES[item.array.dtype.name]
        addresses = [array.ctypes.data for array in self.arrays]
        if item.array.ctypes.data not in addresses:
            addresses.append(item.array.ctypes.data)
            self.arrays.append(item.array)
        key = str(addresses.index(item.array.ctypes.data))
        return "storage", Name(f"torch {kind}Storage"), key, "cuda:0", item.array.size

    def save_array(self, array):
        memory = array if array.flags.c_contiguous else array.base
        storage = _Storage(np.ascontiguousarray(memory).reshape(-1), self.bfloat16)
        strides = tuple(step // array.itemsize for step in array.strides)
        args = (storage, 0, array.shape, strides, False, OrderedDict())
        self.save(Name("torch._utils _rebuild_tensor_v2", *args))

    def save_name(self, name):
        self.write(b"c" + name.name.replace(" ", "\n").encode() + b"\n")
        if name.args or name.state is not None:
            self.save(name.args)
            self.write(pickle.REDUCE)
        if name.state is not None:
            self.save(name.state)
            self.write(pickle.BUILD)

    dispatch[np.ndarray], dispatch[Name] = save_array, save_name


def save_torch(path, item, *, bfloat16=False):
    """Write torch's zip archive; return the path."""
    stream = io.BytesIO()
    pickler = _Pickler(stream, bfloat16=bfloat16)
    pickler.dump(item)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", stream.getvalue())
        for key, array in enumerate(pickler.arrays):
            bits = (array.view(np.uint32) >> 16).astype("<u2") if bfloat16 else array
            archive.writestr(f"archive/data/{key}", bits.tobytes())
        archive.writestr("archive/version", "3\n")
    return path


def save_before_2020(path, item):
    """Write the sequence of pickles that torch wrote before version 1.6; return the path."""
    stream = io.BytesIO()
    for header in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(header, stream, protocol=2)
    pickler = _Pickler(stream)
    pickler.dump(item)
    pickle.dump([str(key) for key in range(len(pickler.arrays))], stream, protocol=2)
    for array in pickler.arrays:
        stream.write(array.size.to_bytes(8, "little") + array.tobytes())
    path.write_bytes(stream.getvalue())
    return path
