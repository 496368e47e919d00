"""Every layout of weight files, made by hand with h5py: what is read is what was put in.

That Keras itself writes and takes these layouts is in test_keras_parity.py.
"""

import shutil
import struct
import zipfile

import h5py
import numpy as np
import pytest
from flax import nnx
from support.torch_models import ENDINGS

from vggjax.errors import WeightsError
from vggjax.models.arch import Arch
from vggjax.models.head import Head
from vggjax.models.network import VGG
from vggjax.models.params import shapes
from vggjax.weights.names import PARAMS
from vggjax.weights.weight_file import WeightFile, read_weights, write_weights

pytestmark = pytest.mark.usefixtures("fast_parser")

TINY = Arch("tiny", (1, 1, 2, 2, 2), (4, 4, 8, 8, 8))
TINY_BN = Arch("tiny_bn", (1, 1, 2, 2, 2), (4, 4, 8, 8, 8), batch_norm=True)


def random_weights(arch=TINY, head=None, seed=0):
    rng = np.random.default_rng(seed)
    model = nnx.eval_shape(lambda: VGG(arch, head=head, image_size=32))
    return {
        layer: {n: rng.uniform(0.1, 1, sizes[n]).astype(np.float32) for n in PARAMS if n in sizes}
        for layer, sizes in shapes(model).items()
    }


@pytest.fixture
def weights():
    return random_weights(head=Head("flatten", (6,), outputs=3))


def assert_equal(got, want):
    assert {k: list(v) for k, v in got.items()} == {k: list(v) for k, v in want.items()}
    for layer, params in want.items():
        for name, array in params.items():
            assert got[layer][name].dtype == np.float32
            np.testing.assert_array_equal(got[layer][name], array, err_msg=f"{layer}/{name}")


def write_v3(path, weights, *, names, prefix="layers", dtype=np.float32):
    """Keras 3's layout; without names it is Keras 3.5's."""
    counts = {}
    with h5py.File(path, "w") as file:
        for layer, params in weights.items():
            kind = {4: "conv2d", 2: "dense"}[params["kernel"].ndim]
            number = counts[kind] = counts.get(kind, -1) + 1
            group = file.create_group(f"{prefix}/{kind}{f'_{number}' if number else ''}/vars")
            if names:
                group.attrs["name"] = layer
            for i, array in enumerate(params.values()):
                group[str(i)] = array.astype(dtype)
        file.create_group("layers/flatten/vars")
        file["optimizer/vars/0"] = np.int64(7)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("arch", [TINY, TINY_BN], ids=lambda arch: arch.name)
def test_what_is_written_is_read_back_bit_for_bit(tmp_path, ending, arch):
    weights = random_weights(arch, Head("flatten", (6, 5), outputs=3))
    write_weights(tmp_path / f"w{ending}", weights)
    assert_equal(read_weights(tmp_path / f"w{ending}"), weights)


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_same_weights_give_the_same_bytes(tmp_path, weights, ending):
    for name in "ab":
        write_weights(tmp_path / f"{name}{ending}", weights)
    assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"b{ending}").read_bytes()


@pytest.mark.parametrize("ending", ENDINGS)
def test_content_decides_and_not_the_ending(tmp_path, weights, ending):
    write_weights(tmp_path / f"w{ending}", weights)
    disguised = tmp_path / "photo.jpg"
    shutil.copy(tmp_path / f"w{ending}", disguised)
    assert_equal(read_weights(disguised), weights)


def test_the_legacy_file_has_the_published_names(tmp_path, weights):
    write_weights(tmp_path / "w.h5", weights)
    with h5py.File(tmp_path / "w.h5") as file:
        names = [name.decode() for name in file.attrs["layer_names"]]
        assert names[:4] == ["input_1", "block1_conv1", "block1_pool", "block2_conv1"]
        assert names[-4:] == ["block5_pool", "flatten", "fc1", "predictions"]
        assert set(file["block1_conv1"]) == {"block1_conv1_W_1:0", "block1_conv1_b_1:0"}
        assert len(file["block1_pool"].attrs["weight_names"]) == 0


@pytest.mark.parametrize("root", ["/", "/model_weights"])
@pytest.mark.parametrize("pattern", ["{0}/kernel:0 {0}/bias:0", "{0}_W_1:0 {0}_b_1:0"])
def test_both_spellings_of_the_legacy_layout_are_read(tmp_path, weights, root, pattern):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        group = file.require_group(root)
        group.attrs["layer_names"] = [name.encode() for name in weights]
        for layer, params in weights.items():
            paths = pattern.format(layer).split()
            group.create_group(layer).attrs["weight_names"] = [path.encode() for path in paths]
            for path, array in zip(paths, params.values(), strict=True):
                group[f"{layer}/{path}"] = array
    assert_equal(read_weights(tmp_path / "w.h5"), weights)


def test_long_name_lists_split_over_several_attributes_are_joined(tmp_path, weights):
    write_weights(tmp_path / "w.h5", weights)
    with h5py.File(tmp_path / "w.h5", "r+") as file:
        names = file.attrs["layer_names"]
        del file.attrs["layer_names"]
        file.attrs["layer_names0"], file.attrs["layer_names1"] = names[:5], names[5:]
    assert_equal(read_weights(tmp_path / "w.h5"), weights)


@pytest.mark.parametrize("names", [True, False])
@pytest.mark.parametrize("prefix", ["layers", "layers/functional/layers", "net/vgg/layers"])
def test_keras_3_files_are_read_with_and_without_names_nested_or_not(
    tmp_path, weights, names, prefix
):
    write_v3(tmp_path / "w.weights.h5", weights, names=names, prefix=prefix)
    assert_equal(read_weights(tmp_path / "w.weights.h5"), weights)


@pytest.mark.parametrize("arch", ["vgg11", "vgg13", "vgg16", "vgg19"])
def test_numbered_convolutions_get_their_names_from_how_many_there_are(tmp_path, arch):
    from vggjax.models.arch import CONVS

    weights = random_weights(Arch(arch, CONVS[arch], (2, 3, 4, 5, 5)))
    write_v3(tmp_path / "w.weights.h5", weights, names=False)
    assert_equal(read_weights(tmp_path / "w.weights.h5"), weights)


def test_convolutions_of_another_network_keep_the_file_s_names(tmp_path):
    weights = random_weights(Arch("other", (2, 2, 2, 1, 1), (4, 4, 8, 8, 8)))  # 8, as VGG11
    weights["block3_conv1"]["kernel"] = np.ones((3, 3, 4, 6), np.float32)
    weights["block3_conv1"]["bias"] = np.ones(6, np.float32)
    write_v3(tmp_path / "w.weights.h5", weights, names=False)
    assert list(read_weights(tmp_path / "w.weights.h5"))[:2] == ["conv2d", "conv2d_1"]


def test_a_keras_archive_is_read_and_its_configuration_is_not(tmp_path, weights):
    write_v3(tmp_path / "model.weights.h5", weights, names=True)
    with zipfile.ZipFile(tmp_path / "w.keras", "w") as archive:
        archive.writestr("config.json", "this is no JSON and nobody minds")
        archive.write(tmp_path / "model.weights.h5", "model.weights.h5")
    assert_equal(read_weights(tmp_path / "w.keras"), weights)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_other_floats_become_float32(tmp_path, weights, dtype):
    write_v3(tmp_path / "w.weights.h5", weights, names=True, dtype=dtype)
    got = read_weights(tmp_path / "w.weights.h5")
    want = {k: {n: a.astype(dtype).astype(np.float32) for n, a in v.items()}
            for k, v in weights.items()}  # fmt: skip
    assert_equal(got, want)


def test_safetensors_keep_their_metadata(tmp_path, weights):
    write_weights(tmp_path / "w.safetensors", weights, metadata={"source": "a test"})
    assert WeightFile(tmp_path / "w.safetensors").info.metadata["source"] == "a test"


def test_a_write_that_fails_leaves_the_old_file_and_no_rest(tmp_path, weights, monkeypatch):
    path = tmp_path / "w.weights.h5"
    write_weights(path, weights)
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vggjax.weights.weight_file.os.fsync", full_disk)
    with pytest.raises(WeightsError, match="w.weights.h5 cannot be written: No space left"):
        write_weights(path, random_weights(seed=1))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.weights.h5"]


def refusal(path):
    with pytest.raises(WeightsError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"just a text", "is not a weight file"),
        (b"<!DOCTYPE html><html>404", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
        (b"\x88HDF\r\n\x1a\n" + bytes(100), "is not a weight file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "is damaged or cut short"),
        (b"PK\x03\x04" + bytes(100), "is a damaged archive"),
        (struct.pack("<Q", 9) + b"{notjson}", "safetensors header is invalid: it is not JSON"),
        (struct.pack("<Q", 2**62) + b"{", "claims a header"),
    ],
)
def test_a_file_that_holds_no_weights_is_refused_in_one_line(tmp_path, content, reason):
    path = tmp_path / "w.h5"
    path.write_bytes(content)
    assert reason in refusal(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    assert "There is no file" in refusal(tmp_path / "gone.h5")
    assert "is a folder" in refusal(tmp_path)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_a_truncated_file_of_any_kind_is_refused(tmp_path, weights, ending, share):
    whole = tmp_path / f"whole{ending}"
    write_weights(whole, weights)
    content, cut = whole.read_bytes(), tmp_path / f"cut{ending}"
    cut.write_bytes(content[: int(len(content) * share)])
    refusal(cut)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("kind", ["safetensors", "h5"])
def test_nan_and_infinity_are_refused_by_name(tmp_path, weights, value, kind):
    weights["block3_conv2"]["kernel"] = weights["block3_conv2"]["kernel"].astype(np.float64)
    weights["block3_conv2"]["kernel"][1, 1, 2, 3] = value
    path = tmp_path / f"w.{kind}"
    if kind == "h5":
        write_v3(path, weights, names=True, dtype=np.float64)
    else:
        from safetensors.numpy import save_file

        save_file({f"{k}.{n}": a for k, v in weights.items() for n, a in v.items()}, path)
    assert "NaN or infinite" in refusal(path)


@pytest.mark.parametrize("kind", ["soft", "external", "int", "group", "scalar", "unwritten"])
def test_an_array_that_is_none_is_refused_by_name(tmp_path, weights, kind):
    path = tmp_path / "w.weights.h5"
    write_v3(path, weights, names=True)
    with h5py.File(path, "r+") as file:
        group = file["layers/conv2d_3/vars"]
        bias = group["1"][()]
        del group["1"]
        if kind == "group":
            group.create_group("1")
        elif kind == "unwritten":
            group.create_dataset("1", bias.shape, "f4")
        else:
            group["1"] = {"soft": h5py.SoftLink("/layers/conv2d_4/vars/1"),
                          "external": h5py.ExternalLink("other.h5", "/a"),
                          "int": bias.astype(np.int8), "scalar": np.float32(1)}[kind]  # fmt: skip
    assert "conv2d_3/vars" in refusal(path)


def test_numbers_and_names_that_contradict_each_other_are_refused(tmp_path, weights):
    path = tmp_path / "w.weights.h5"
    write_v3(path, weights, names=True)
    with h5py.File(path, "r+") as file:
        file.move("layers/conv2d_4", "layers/x")
        file.move("layers/conv2d_5", "layers/conv2d_4")
        file.move("layers/x", "layers/conv2d_5")
    assert "numbering" in refusal(path)


@pytest.mark.parametrize("name", ["w.txt", "w", ".h5"])
def test_an_unknown_ending_is_refused_with_the_choices(tmp_path, weights, name):
    with pytest.raises(WeightsError, match=r"\.safetensors, \.weights\.h5, \.h5"):
        write_weights(tmp_path / name, weights)
    assert not list(tmp_path.iterdir())
