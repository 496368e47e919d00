"""What conversion and loading take beside the file: a large array is never there twice.

Measured in a process of its own, over what it has once the package is imported, on a file of
100 MB that is mostly one dense layer, as VGG16's is.
"""

import subprocess
import sys

import numpy as np
import pytest

from vggjax.models.arch import Arch
from vggjax.weights.weight_file import write_weights

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc"),
]

WIDTHS = (4, 4, 8, 8, 512)
SCRIPT = """
import os, sys
from pathlib import Path
from vggjax.models.arch import Arch
from vggjax.models.head import Head
from vggjax.weights.convert import convert_file
from vggjax.weights.load import load_pretrained

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024

src, dst, layout = sys.argv[1:]
before = peak()
if dst == "load":
    arch = Arch("wide", (1, 1, 2, 2, 2), %r)
    head = Head("flatten", (1024,), outputs=10)
    load_pretrained(arch, weights=src, include_top=False, head=head)
else:
    convert_file(src, dst, layout=layout or None)
print((peak() - before) / os.path.getsize(src))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    arch = Arch("wide", (1, 1, 2, 2, 2), WIDTHS)
    rng = np.random.default_rng(0)
    shapes = {
        layer: {"kernel": (3, 3, *io), "bias": io[1:]} for layer, io in arch.conv_channels().items()
    }
    shapes["fc1"] = {"kernel": (25_088, 1024), "bias": (1024,)}
    shapes["predictions"] = {"kernel": (1024, 10), "bias": (10,)}
    weights = {k: {n: rng.standard_normal(s, np.float32) for n, s in v.items()}
               for k, v in shapes.items()}  # fmt: skip
    write_weights(folder / "a.h5", weights)
    write_weights(folder / "a.safetensors", weights, layout="torchvision")
    return folder


@pytest.mark.parametrize(
    ("src", "dst", "layout", "most"),
    [
        ("a.h5", "b.safetensors", "", 1.5),
        ("a.safetensors", "c.h5", "", 1.5),
        ("a.safetensors", "d.safetensors", "torchvision", 1.5),
        ("a.h5", "load", "", 2.2),
    ],
)
def test_no_large_array_is_there_twice(folder, src, dst, layout, most):
    dst = dst if dst == "load" else str(folder / dst)
    command = [sys.executable, "-c", SCRIPT % (WIDTHS,), str(folder / src), dst, layout]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < most
