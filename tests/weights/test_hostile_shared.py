"""Bad files that others made, where their generator lies beside the repository.

It says what each file should get. Of the faults of HDF5 that are not public, none is copied here.
"""

import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vggjax.errors import WeightsError
from vggjax.models.arch import CONVS, Arch
from vggjax.weights.compatibility import check_fits
from vggjax.weights.digests import file_digests
from vggjax.weights.load import load_pretrained
from vggjax.weights.weight_file import read_weights

GENERATOR = Path(__file__).parents[3] / "shared" / "hostile" / "make_bad_weights.py"
WIDTH = 4
ARCH = Arch("vgg16", CONVS["vgg16"], tuple(WIDTH * m for m in (1, 2, 4, 8, 8)))
TARGETS = {
    "vgg16_notop": {}, "none": {}, "vgg16_top": {"top": True},
    "vgg16_top10": {"top": True, "classes": 10}, "vgg16_top64": {"top": True, "flat": 32 * WIDTH},
}  # fmt: skip
EITHER = {"ACCEPT_OR_REJECT"}
LOADED = {"ACCEPT", "ACCEPT_CAST", "ACCEPT_BY_NAME", "WARN", "REJECT_IF_PINNED"}


@pytest.fixture(scope="module")
def generator():
    if not GENERATOR.exists():
        pytest.skip(f"no generator of bad files at {GENERATOR}")
    spec = importlib.util.spec_from_file_location("make_bad_weights", GENERATOR)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shapes(generator, case):
    wanted = generator.spec("vgg16", WIDTH, **TARGETS[case["target"]])
    return {name: {"kernel": kernel, "bias": bias} for name, kernel, bias in wanted}


def read_checked(path, expected):
    return read_weights(
        path, check=lambda found: check_fits(found, expected, name=str(path), model="vgg16")
    )


def tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if not path.is_symlink()
    }


def check(generator, case, path):
    """Holds one file against what its maker wants; gives the code of its refusal, if any."""
    expected = shapes(generator, case)
    try:
        got = read_checked(path, expected)
    except WeightsError as error:
        assert "\n" not in str(error) and str(path) in str(error)
        assert case["want"] not in LOADED, error
        if case["want"] == "ACCEPT_EXPLICIT":
            assert error.code == "E_TOP"
            load_pretrained(ARCH, weights=path, include_top=False, base_only=True)
        return error.code
    assert case["want"] in LOADED | EITHER, "it should have been refused"
    if case["want"] == "REJECT_IF_PINNED":
        with pytest.raises(WeightsError) as caught:
            load_pretrained(
                ARCH, weights=path, include_top=False, expect_sha256="0123456789abcdef" * 4
            )
        assert caught.value.code == "E_DIGEST" and file_digests(path).sha256 in str(caught.value)
        return None
    rtol = 1e-3 if case["id"].endswith("f16") else 0
    for name, (kernel, bias) in generator.weights(generator.spec("vgg16", WIDTH)).items():
        np.testing.assert_allclose(got[name]["kernel"], kernel, rtol=rtol, atol=1e-6 * (rtol > 0))
        np.testing.assert_allclose(got[name]["bias"], bias, rtol=rtol, atol=1e-6 * (rtol > 0))
    return None


@pytest.mark.slow
def test_every_bad_file_gets_what_its_maker_wants(generator, tmp_path):
    wrong, seconds, codes = {}, {}, {}
    command = [sys.executable, str(GENERATOR), "--out", str(tmp_path), "--width", str(WIDTH)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for name, case in generator.CASES.items():
        path = tmp_path / name / case["fname"]
        before, start = tree(path.parent), time.monotonic()
        try:
            codes[name] = check(generator, case, path)
        except Exception as error:  # all of them are listed together
            wrong[name] = f"{case['want']}: {case['desc']}: {type(error).__name__}: {error}"
        seconds[name] = time.monotonic() - start
        if tree(path.parent) != before:
            wrong[name] = "something was written"
    slowest = max(seconds, key=seconds.get)
    print(f"{len(seconds)} files, {len(wrong)} wrong, slowest {seconds[slowest]:.1f} s")
    assert wrong == {}
    assert seconds[slowest] < 40  # HDF5 hangs on some, and is stopped after 10 s of CPU time
