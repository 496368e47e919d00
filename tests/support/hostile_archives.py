"""Small bad weight files: no weight files, truncated ones, archives, other models'."""

import io
import json
import os
import stat
import warnings
import zipfile

import h5py
import numpy as np

from support.hostile_layers import CASES, TINY, Case, L, tiny_weights
from support.networks import random_weights
from vggjax.models.arch import Arch
from vggjax.weights.weight_file import write_weights


def case(name, ending, code, mention="", *, model=""):
    """Register a function that makes the file."""

    def register(make):
        CASES.append(Case(name, ending, code, mention, make, model))
        return make

    return register


# Not a weight file, or not all of it


def contents(name, code, mention, content, *, ending=".h5"):
    case(name, ending, code, mention)(lambda path: path.write_bytes(content))


contents("empty", "E_TRUNCATED", "is empty", b"")
contents("text", "E_FORMAT", "is not a weight file", b"just a text, and a long one at that\n" * 20)
contents("zeros", "E_FORMAT", "is not a weight file", bytes(2**16))
contents("web page", "E_FORMAT", "a web page", b"<!DOCTYPE html><html><body>404</body></html>")
contents("LFS pointer", "E_FORMAT", "Git LFS",
         b"version https://git-lfs.github.com/spec/v1\nsize 3\n")  # fmt: skip
contents("signature of HDF5", "E_FORMAT", "is damaged", b"\x89HDF\r\n\x1a\n" + bytes(100))
contents("signature of zip", "E_ZIP", "is a damaged archive", b"PK\x03\x04" + bytes(100))
case("no file", ".h5", "E_FILE", "There is no file")(lambda path: None)
case("folder", ".h5", "E_FILE", "is a folder")(lambda path: path.mkdir())
case("pipe", ".h5", "E_FILE")(lambda path: os.mkfifo(path))
case("device", ".h5", "E_FILE")(lambda path: path.symlink_to("/dev/zero"))


@case("wrong magic", ".h5", "E_FORMAT")
def _(path):
    write_weights(path, tiny_weights())
    path.write_bytes(b"\x88" + path.read_bytes()[1:])


def cut(name, ending, share, code):
    @case(name, ending, code)
    def _(path):
        write_weights(path, tiny_weights())
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share) if share else -1])


# Truncated

for _ending, _code in {".h5": "E_TRUNCATED", ".weights.h5": "E_TRUNCATED", ".keras": "E_ZIP",
                       ".safetensors": "E_TRUNCATED"}.items():  # fmt: skip
    cut(f"half of {_ending}", _ending, 0.5, _code)
    cut(f"all but a byte of {_ending}", _ending, 0, _code)


# Another model's weights


def of_model(name, code, mention, weights, model):
    for ending in (".h5", ".weights.h5", ".safetensors"):
        case(f"{name}, {ending}", ending, code, mention, model=model)(
            lambda path: write_weights(path, weights)
        )


WIDER = {k: dict(v) for k, v in tiny_weights(top=True).items()}
WIDER["predictions"] = {"kernel": np.ones((6, 1000), "f4"), "bias": np.ones(1000, "f4")}
LONGER = Arch("longer", (1, 1, 2, 2, 1), TINY.widths)
of_model("no top where one is wanted", "E_TOP", "fc1", tiny_weights(), "top")
of_model("a top where none is wanted", "E_TOP", "fc1", tiny_weights(top=True), "base")
of_model("a thousand classes into three", "E_TOP", "predictions", WIDER, "top")
of_model("a deeper network", "E_UNEXPECTED", "block4_conv2", random_weights(LONGER), "base")


# Archives


def h5_bytes(seed=0):
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        for i, params in enumerate(tiny_weights(seed=seed).values()):
            group = file.create_group(f"layers/conv2d{f'_{i}' if i else ''}/vars")
            group["0"], group["1"] = params.values()
            group.attrs["name"] = list(tiny_weights())[i]
    return memory.getvalue()


def archive(name, code, mention="", *, config="{}", weights=True, packed=False):
    """Register a good archive with an addition."""

    def register(add):
        def make(path):
            kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
            with warnings.catch_warnings(), zipfile.ZipFile(path, "w", kind) as members:
                warnings.simplefilter("ignore")  # of a name that is there twice
                members.writestr("config.json", config)
                if weights:
                    members.writestr("model.weights.h5", h5_bytes())
                add(members, path)

        case(name, ".keras", code, mention)(make)
        return add

    return register


@archive("a wrong checksum", "E_ZIP", "CRC")
def _(members, path):
    members.fp.flush()
    start = path.read_bytes().index(tiny_weights()[L]["kernel"].tobytes())
    with open(path, "r+b") as file:
        file.seek(start + 3)
        file.write(b"\x41")


@archive("no weights", "E_ZIP", "model.weights.h5", weights=False)
def _(members, path):
    members.writestr("other.txt", "x")


@archive("text for weights", "E_FORMAT", "model.weights.h5", weights=False)
def _(members, path):
    members.writestr("model.weights.h5", "x" * 100)


@archive("half of the weights", "E_TRUNCATED", "model.weights.h5", weights=False)
def _(members, path):
    contents = h5_bytes()
    members.writestr("model.weights.h5", contents[: len(contents) // 2])


@archive("weights twice", "E_DUPLICATE", "model.weights.h5")
def _(members, path):
    members.writestr("model.weights.h5", h5_bytes(seed=1))


for _name in ("../../escape.txt", "/escape.txt", "a/../../escape.txt", "..\\escape.txt", "C:/x"):
    archive(f"a member {_name}", "E_ZIP", "leads out")(
        lambda members, path, name=_name: members.writestr(name, "x")
    )


@archive("a link", "E_ZIP", "assets/x")
def _(members, path):
    info = zipfile.ZipInfo("assets/x")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    members.writestr(info, str(path.parent))


LAMBDA = {"config": {"layers": [{"class_name": "Lambda", "config": {"function": "..."}}]}}
archive("a Lambda", "E_CODE", "Lambda", config=json.dumps(LAMBDA))(lambda members, path: None)
archive("bomb beside the weights", "E_BOMB", "config.json", config=" " * 2**26, packed=True)(
    lambda members, path: None
)


@archive("bomb for weights", "E_BOMB", "model.weights.h5", weights=False, packed=True)
def _(members, path):
    members.writestr("model.weights.h5", h5_bytes() + bytes(2**27))


@case("Lambda in a whole model", ".h5", "E_CODE", "Lambda")
def _(path):
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(LAMBDA)
        file.create_group("model_weights").attrs["layer_names"] = np.array([b"block1_conv1"])
