"""Pickles are looked through and never run: also where torch is not installed."""

import importlib.util
import io
import os
import pickle
import zipfile

import numpy as np
import pytest
from support.torch_models import needs_torch

from vggjax.errors import WeightsError
from vggjax.weights.weight_file import read_weights, write_weights


class Calls:
    """Would make a file, if somebody unpickled it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def archive(path, text, *extra, packed=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", packed) as file:
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
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.h5"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, protocol, zipped, name):
    text = pickle.dumps({"features.0.weight": Calls(tmp_path / "made")}, protocol=protocol)
    path = tmp_path / name
    archive(path, text) if zipped else path.write_bytes(text)
    error = refusal(path)
    assert error.code == "E_CODE" and "nothing of it was run" in str(error)
    assert not (tmp_path / "made").exists()


def test_code_behind_a_harmless_state_dict_is_found(tmp_path):
    stream = io.BytesIO()
    for item in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, Calls(tmp_path / "x")):
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
    assert refusal(archive(tmp_path / "w.pth", text, *([extra] if extra else []))).code == code


def test_a_packed_archive_is_refused(tmp_path):
    path = archive(tmp_path / "w.pth", pickle.dumps({}, 2), packed=zipfile.ZIP_DEFLATED)
    assert refusal(path).code == "E_ZIP"


def test_a_pickle_of_something_else_is_no_state_dict(tmp_path):
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"a": [1, 2.5, None, ("b", True)]}, protocol=2))
    error = refusal(tmp_path / "w.pth")
    assert error.code == "E_FORMAT" and "no state dict" in str(error)


def test_without_torch_one_line_says_what_to_do(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else find(name)
    )
    path = archive(tmp_path / "w.pth", pickle.dumps({}, 2))
    for words in ("torch is not installed", "pip install torch", "safetensors.torch.save_file"):
        assert words in str(refusal(path))
    weights = {"block1_conv1": {"kernel": np.ones((3, 3, 3, 4), np.float32)}}
    with pytest.raises(WeightsError, match=r"new\.pth is a file of PyTorch's own"):
        write_weights(tmp_path / "new.pth", weights)
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.pth"]


@needs_torch
@pytest.mark.parametrize("text", [pickle.dumps({}, 2), pickle.dumps([1], 2), pickle.dumps(None, 2)])
def test_an_archive_without_tensors_is_no_state_dict(tmp_path, text):
    path = archive(tmp_path / "w.pth", text, ("archive/byteorder", b"little"))
    assert refusal(path).code == "E_FORMAT"
