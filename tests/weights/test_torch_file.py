"""Pickles are scanned and never run, whether torch is installed or not."""

import contextlib
import importlib.util
import io
import os
import pickle
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
from support.torch_files import Name, save_before_2020, save_torch

from vggjax.errors import WeightsError
from vggjax.weights.weight_file import read_weights, write_weights


class CreatesFolder:
    """Creates a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def write_archive(path, text, *extra, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", text)
        file.writestr("archive/version", "3\n")
        for name, content in extra:
            file.writestr(name, content)
    return path


def refusal(path):
    with pytest.raises(WeightsError) as caught:
        read_weights(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("is_archive", [False, True])
def test_code_in_a_pickle_is_refused_and_not_run_whatever_the_ending(
    tmp_path, protocol, is_archive
):
    state = {"features.0.weight": CreatesFolder(tmp_path / "created")}
    text = pickle.dumps(state, protocol=protocol)
    for name in ("w.pth", "w.safetensors", "w.h5"):
        path = tmp_path / name
        write_archive(path, text) if is_archive else path.write_bytes(text)
        error = refusal(path)
        assert error.code == "E_CODE" and "none of it was run" in str(error)
        assert not (tmp_path / "created").exists()


def test_code_after_a_harmless_state_dict_is_found(tmp_path):
    stream, code = io.BytesIO(), CreatesFolder(tmp_path / "created")
    for item in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, code):
        pickle.dump(item, stream, protocol=2)
    path = tmp_path / "w.pth"
    path.write_bytes(stream.getvalue())
    assert refusal(path).code == "E_CODE"


@pytest.mark.parametrize(
    ("text", "extra", "code"),
    [
        (pickle.dumps({}, 2), ("archive/code/a.py", b"x"), "E_CODE"),
        (pickle.dumps({}, 2), ("other/data.pkl", pickle.dumps({}, 2)), "E_ZIP"),
        (pickle.dumps({}, 2), ("../escape", b"x"), "E_ZIP"),
        (b"\x80\x02" + b"N" * 2**22 + b".", None, "E_ZIP"),
        (b"\x80\x02}q", None, "E_FORMAT"),
        (b"\x80\x02\xff.", None, "E_FORMAT"),
    ],
)
def test_an_archive_that_torch_would_not_write_is_refused(tmp_path, text, extra, code):
    path = write_archive(tmp_path / "w.pth", text, *([extra] if extra else []))
    assert refusal(path).code == code


def test_a_compressed_archive_and_a_pickle_of_other_objects_are_refused(tmp_path):
    compression = zipfile.ZIP_DEFLATED
    path = write_archive(tmp_path / "w.pth", pickle.dumps({}, 2), compression=compression)
    assert refusal(path).code == "E_ZIP"
    path.write_bytes(pickle.dumps({"a": [1, 2.5, None, ("b", True)]}, protocol=2))
    error = refusal(path)
    assert error.code == "E_FORMAT" and "not a state dict" in str(error)


def test_writing_without_torch_says_what_to_do(tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else find_spec(name)
    )
    weights = {"block1_conv1": {"kernel": np.ones((3, 3, 3, 4), np.float32)}}
    with pytest.raises(WeightsError, match=r"new\.pth is a file of PyTorch.*pip install torch"):
        write_weights(tmp_path / "new.pth", weights)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", [pickle.dumps({}, 2), pickle.dumps([1], 2), pickle.dumps(None, 2)])
def test_an_archive_without_tensors_is_not_a_state_dict(tmp_path, text):
    path = write_archive(tmp_path / "w.pth", text, ("archive/byteorder", b"little"))
    assert refusal(path).code == "E_FORMAT"


def test_tuples_in_tuples_as_a_key_cost_no_time(tmp_path):
    nested = b")" + b"2\x86" * 60  # each twice in the next: the hash of the last takes 2^60 steps
    for text in (
        b"\x80\x02}" + nested + b"K\x01s.",
        b"\x80\x02}(" + nested + b"K\x01u.",
        b"\x80\x04\x8f(" + nested + b"\x90.",
        b"\x80\x04(" + nested + b"\x91.",
        b"\x80\x02ccollections\nOrderedDict\n](" + nested + b"K\x01\x86e\x85R.",
    ):
        assert refusal(write_archive(tmp_path / "w.pth", text)).code == "E_FORMAT"


@pytest.mark.parametrize("seed", range(3))
def test_a_changed_pickle_is_read_or_refused_and_nothing_else(tmp_path, seed):
    rng, path = random.Random(seed), tmp_path / "w.pth"
    state = {f"features.{i}.weight": np.ones((1, 1, 3, 3), np.float32) for i in range(5)}
    checkpoint = {"net": state, "args": Name("argparse Namespace", state={"a": 1})}
    with zipfile.ZipFile(save_torch(path, checkpoint)) as archive:
        text = archive.read("archive/data.pkl")
    legacy = save_before_2020(path, checkpoint).read_bytes()
    for _ in range(100):
        for contents, write in ((text, write_archive), (legacy, Path.write_bytes)):
            changed = bytearray(contents)
            for _ in range(rng.randint(1, 3)):
                position = rng.randrange(min(len(changed), 900))
                changed[position] = rng.choice(b"()[]}{.0RbXhqstue\x81\x85\x86\xff\0")
            write(path, bytes(changed))
            with contextlib.suppress(WeightsError):
                read_weights(path)
