"""Bad files: each is refused in one line with its code, and nothing is written.

The cases are in tests/support/hostile_*.py.
"""

import io
import zipfile

import h5py
import numpy as np
import pytest
from flax import nnx
from support import hostile_archives, hostile_arrays, hostile_numbers, hostile_safetensors
from support.hostile_layers import CASES, TINY, TOP, Case, tiny_weights
from support.networks import assert_same_weights

from vggjax.cli.main import main
from vggjax.errors import CODES, WeightsError
from vggjax.models.network import VGG
from vggjax.models.params import extract
from vggjax.weights.archive import open_archive
from vggjax.weights.load import load_base, load_pretrained
from vggjax.weights.weight_file import WeightFile, read_weights, write_weights

assert (
    hostile_archives and hostile_arrays and hostile_numbers and hostile_safetensors
)  # they register their cases
pytestmark = pytest.mark.usefixtures("fast_parser")

HEADS = {"base": None, "top": TOP}


def tree(folder):
    """Return the contents of a folder, `{path: bytes}`."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if not path.is_symlink()
    }


def load(path, head):
    return load_pretrained(TINY, weights=path, include_top=False, head=HEADS[head], image_size=32)


def test_the_good_files_behind_the_cases_load(tmp_path):
    for ending in (".h5", ".weights.h5", ".keras", ".safetensors"):
        for top, head in ((False, "base"), (True, "top")):
            weights = tiny_weights(top=top)
            write_weights(tmp_path / f"w{ending}", weights)
            assert_same_weights(extract(load(tmp_path / f"w{ending}", head)), weights)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_file_is_refused_in_one_line(case: Case, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    path = folder / f"bad{case.ending}"
    case.make(path)
    before = tree(folder)
    if case.model:
        with pytest.raises(WeightsError) as caught:
            load(path, case.model)
        message, code = str(caught.value), caught.value.code
    else:
        assert main(["convert", str(path), str(tmp_path / "out.safetensors")]) == 2
        stderr = capsys.readouterr().err
        assert stderr.count("\n") == 1
        message, _, code = stderr.strip().rpartition(" [")
        code = code.rstrip("]")
        another_copy_helps = code not in (
            "E_FILE", "E_FOREIGN", "E_CODE", "E_ORDER", "E_NAME", "E_ARCH"
        )  # fmt: skip
        assert message.endswith("or save the weights again.") == another_copy_helps
    assert (code, "\n" in message) == (case.code, False), message
    assert str(path) in message and case.mention in message
    assert tree(folder) == before and list(tmp_path.iterdir()) == [folder]


def test_every_code_for_reading_has_a_case():
    elsewhere = {"E_WEIGHTS", "E_DIGEST", "E_TIMEOUT", "E_WRITE"}
    assert {case.code for case in CASES} == set(CODES) - elsewhere


def test_a_refused_file_leaves_the_model_unchanged(tmp_path):
    model = VGG(TINY, rngs=nnx.Rngs(0))
    before = extract(model)
    for case in CASES:
        if case.name in ("NaN", "another shape than the model's", "half of .h5", "bias absent"):
            case.make(tmp_path / f"bad{case.ending}")
            with pytest.raises(WeightsError):
                load_base(model, WeightFile(tmp_path / f"bad{case.ending}"))
    assert_same_weights(extract(model), before)


def test_the_notes_list_what_was_cast_and_what_was_left_out(tmp_path):
    write_weights(tmp_path / "w.h5", tiny_weights())
    with h5py.File(tmp_path / "w.h5", "r+") as file:
        kernel = file["block1_conv1/block1_conv1_W_1:0"][()]
        del file["block1_conv1/block1_conv1_W_1:0"]
        file["block1_conv1/block1_conv1_W_1:0"] = kernel.astype("<f8")
        file["stowaway"] = np.zeros(3)
    notes = []
    got = read_weights(tmp_path / "w.h5", notes=notes)
    assert np.array_equal(got["block1_conv1"]["kernel"], kernel)
    assert notes == [
        "1 array stored as float64 became float32",
        "1 unlisted in layer_names and left out: stowaway",
    ]


def test_mixed_byte_orders_are_refused_and_a_foreign_one_is_read(tmp_path):
    weights = tiny_weights()
    for name, layers in {"both": ["block3_conv1"], "one": list(weights)}.items():
        path = tmp_path / f"{name}.h5"
        write_weights(path, weights)
        with h5py.File(path, "r+") as file:
            for layer in layers:
                key = f"{layer}/{layer}_W_1:0", f"{layer}/{layer}_b_1:0"
                for name, array in zip(key, weights[layer].values(), strict=True):
                    del file[name]
                    file[name] = array.astype(">f4")
    with pytest.raises(WeightsError, match=r"block3_conv1.*another byte order") as caught:
        read_weights(tmp_path / "both.h5")
    assert caught.value.code == "E_DTYPE"
    assert_same_weights(read_weights(tmp_path / "one.h5"), weights)


def test_a_file_that_is_being_written_is_distinguished_from_a_damaged_one(tmp_path):
    write_weights(tmp_path / "w.h5", tiny_weights())
    with h5py.File(tmp_path / "w.h5", "r+"):
        with pytest.raises(WeightsError, match="another program is writing it") as caught:
            read_weights(tmp_path / "w.h5")
    assert caught.value.code == "E_FILE"


def test_an_archive_with_many_small_members_is_opened():
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for number in range(500):
            archive.writestr(f"model/data/{number}", b"")
    with open_archive(data) as archive:
        assert len(archive.namelist()) == 500
