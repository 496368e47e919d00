"""Small bad safetensors files: headers that contradict the data after them."""

import json
import struct

import numpy as np

from support.hostile_archives import case
from support.hostile_layers import L, tiny_weights

K = f"{L}.kernel"


def header_and_data():
    """Return the header and the data of a good file."""
    header, data = {}, b""
    for layer, params in tiny_weights(top=True).items():
        for param, array in params.items():
            span = [len(data), len(data) + array.nbytes]
            header[f"{layer}.{param}"] = {"dtype": "F32", "shape": list(array.shape),
                                          "data_offsets": span}  # fmt: skip
            data += array.tobytes()
    return header, data


def safetensors(name, code, mention=""):
    """Register a change of the header in place; it may return (header text, data, length)."""

    def register(change):
        def make(path):
            header, data = header_and_data()
            text, data, length = (change(header, data) or (None, data, None))[:3]
            text = json.dumps(header).encode() if text is None else text
            length = len(text) if length is None else length
            path.write_bytes(struct.pack("<Q", length) + text + data)

        case(f"safetensors: {name}", ".safetensors", code, mention)(make)
        return change

    return register


for _length in (2**63, 10**7, 10**5):
    safetensors(f"header of {_length}", "E_HEADER" if _length > 2**20 else "E_TRUNCATED")(
        lambda header, data, length=_length: (None, data, length)
    )
for _name, _text in {"not JSON": b"{nope", "two values": b"{}[]", "deep": b'{"a":' + b"[" * 10**5,
                     "not UTF-8": b'{"\xff": 1}'}.items():  # fmt: skip
    safetensors(_name, "E_HEADER")(lambda header, data, text=_text: (text, data, None))


@safetensors("a duplicate name", "E_DUPLICATE", K)
def _(header, data):
    return (
        json.dumps(header)[:-1].encode() + f',"{K}":{json.dumps(header[K])}}}'.encode(),
        data,
        None,
    )


def entry(name, code, field, value):
    @safetensors(name, code, K)
    def _(header, data):
        header[K][field] = value(header[K][field]) if callable(value) else value


entry("overlapping tensors", "E_OVERLAP", "data_offsets", lambda span: [n - 144 for n in span])
entry("an end before the start", "E_HEADER", "data_offsets", lambda span: span[::-1])
entry("a shape larger than its bytes", "E_HEADER", "shape", [2**16, 2**12, 3, 3])
entry("a shape beyond 64 bits", "E_HEADER", "shape", [2**40, 2**40])
entry("a negative length", "E_HEADER", "shape", [-3, 3, 4, -4])
entry("a dimension that is not a number", "E_HEADER", "shape", [3, 3, 4, "4"])
entry("an unknown type", "E_DTYPE", "dtype", "F31")
entry("integers", "E_DTYPE", "dtype", "I32")
entry("a shape that is a table", "E_HEADER", "shape", lambda shape: {"shape": shape})


@safetensors("metadata that is not a string", "E_HEADER")
def _(header, data):
    header["__metadata__"] = {"a": 1}


@safetensors("a gap", "E_OVERLAP")
def _(header, data):
    for fields in header.values():
        fields["data_offsets"] = [n + 64 for n in fields["data_offsets"]]
    return None, bytes(64) + data, None


@safetensors("bytes after the last tensor", "E_OVERLAP")
def _(header, data):
    return None, data + bytes(8), None


@safetensors("NaN", "E_NONFINITE", K)
def _(header, data):
    start = header[K]["data_offsets"][0]
    return None, data[:start] + np.float32(np.nan).tobytes() + data[start + 4 :], None


@safetensors("a name without a layer", "E_NAME", "evil")
def _(header, data):
    header["evil"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(data), len(data) + 4]}
    return None, data + np.ones(1, "f4").tobytes(), None
