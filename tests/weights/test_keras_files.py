"""Every layout of Keras' files, made by hand with h5py: what is read is what was written.

test_keras_parity.py shows that Keras itself reads and writes these layouts.
"""

import shutil
import zipfile

import h5py
import numpy as np
import pytest
from support.networks import assert_same_weights, random_weights
from support.torch_models import ENDINGS

from vggjax.errors import WeightsError
from vggjax.models.arch import ARCHS, CONVS, Arch
from vggjax.models.head import Head
from vggjax.weights.weight_file import read_weights, write_weights

pytestmark = pytest.mark.usefixtures("fast_parser")

TINY, TINY_BN = ARCHS["tiny"], ARCHS["tiny_bn"]


@pytest.fixture
def weights():
    return random_weights(TINY, Head("flatten", (6,), outputs=3))


def write_v3(path, weights, *, names, prefix="layers"):
    """Write Keras 3's layout; without names it is that of Keras 3.5."""
    counts = {}
    with h5py.File(path, "w") as file:
        for layer, params in weights.items():
            kind = {4: "conv2d", 2: "dense"}[params["kernel"].ndim]
            number = counts[kind] = counts.get(kind, -1) + 1
            group = file.create_group(f"{prefix}/{kind}{f'_{number}' if number else ''}/vars")
            if names:
                group.attrs["name"] = layer
            for i, array in enumerate(params.values()):
                group[str(i)] = array
        file.create_group("layers/flatten/vars")
        file["optimizer/vars/0"] = np.int64(7)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("arch", [TINY, TINY_BN], ids=lambda arch: arch.name)
def test_what_is_written_is_read_back_bit_for_bit(tmp_path, ending, arch):
    weights = random_weights(arch, Head("flatten", (6, 5), outputs=3))
    write_weights(tmp_path / f"w{ending}", weights)
    got = read_weights(tmp_path / f"w{ending}")
    assert_same_weights(got, weights)
    assert [list(params) for params in got.values()] == [list(v) for v in weights.values()]


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_same_weights_give_the_same_bytes(tmp_path, weights, ending):
    for name in "ab":
        write_weights(tmp_path / f"{name}{ending}", weights)
    assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"b{ending}").read_bytes()


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_content_decides_the_format_and_not_the_ending(tmp_path, weights, ending):
    write_weights(tmp_path / f"w{ending}", weights)
    disguised = tmp_path / "photo.jpg"
    shutil.copy(tmp_path / f"w{ending}", disguised)
    assert_same_weights(read_weights(disguised), weights)


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
    assert_same_weights(read_weights(tmp_path / "w.h5"), weights)


def test_long_name_lists_split_over_several_attributes_are_joined(tmp_path, weights):
    write_weights(tmp_path / "w.h5", weights)
    with h5py.File(tmp_path / "w.h5", "r+") as file:
        names = file.attrs["layer_names"]
        del file.attrs["layer_names"]
        file.attrs["layer_names0"], file.attrs["layer_names1"] = names[:5], names[5:]
    assert_same_weights(read_weights(tmp_path / "w.h5"), weights)


@pytest.mark.parametrize("names", [True, False])
@pytest.mark.parametrize("prefix", ["layers", "layers/functional/layers", "net/vgg/layers"])
def test_keras_3_files_are_read_with_and_without_names_nested_or_not(
    tmp_path, weights, names, prefix
):
    write_v3(tmp_path / "w.weights.h5", weights, names=names, prefix=prefix)
    assert_same_weights(read_weights(tmp_path / "w.weights.h5"), weights)


@pytest.mark.parametrize("arch", ["vgg11", "vgg13", "vgg16", "vgg19"])
def test_numbered_convolutions_get_their_names_from_their_number(tmp_path, arch):
    weights = random_weights(Arch(arch, CONVS[arch], (2, 3, 4, 5, 5)))
    write_v3(tmp_path / "w.weights.h5", weights, names=False)
    assert_same_weights(read_weights(tmp_path / "w.weights.h5"), weights)


def test_convolutions_of_an_unknown_network_keep_the_file_s_names(tmp_path):
    weights = random_weights(Arch("other", (2, 2, 2, 1, 1), (4, 4, 8, 8, 8)))  # 8, as VGG11
    weights["block3_conv1"]["kernel"] = np.ones((3, 3, 4, 6), np.float32)
    weights["block3_conv1"]["bias"] = np.ones(6, np.float32)
    write_v3(tmp_path / "w.weights.h5", weights, names=False)
    assert list(read_weights(tmp_path / "w.weights.h5"))[:2] == ["conv2d", "conv2d_1"]


@pytest.mark.parametrize(
    "compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2]
)
def test_a_keras_archive_is_read_and_its_configuration_is_not(tmp_path, weights, compression):
    write_v3(tmp_path / "model.weights.h5", weights, names=True)
    with zipfile.ZipFile(tmp_path / "w.keras", "w", compression) as archive:
        archive.writestr("config.json", "not JSON")
        archive.write(tmp_path / "model.weights.h5", "model.weights.h5")
    assert_same_weights(read_weights(tmp_path / "w.keras"), weights)


def replace_arrays(path, weights, create):
    """Store the arrays of a legacy file again: `create(group, name, array)` creates a dataset."""
    with h5py.File(path, "r+") as file:
        for layer, params in weights.items():
            for name, array in zip(file[layer].attrs["weight_names"], params.values(), strict=True):
                del file[layer][name]
                create(file[layer], name, array)


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8"])
@pytest.mark.parametrize("chunk", [1, 3, True])
@pytest.mark.parametrize(
    "filters",
    [{}, {"compression": "gzip"}, {"shuffle": True}, {"fletcher32": True},
     {"compression": 9, "shuffle": True, "fletcher32": True}],
    ids=lambda filters: "+".join(filters) or "none",
)  # fmt: skip
def test_chunked_arrays_are_read_through_every_filter(tmp_path, weights, dtype, chunk, filters):
    def create(group, name, array):
        # 3 does not divide the widths: the chunks at the edges are not full.
        chunks = chunk if chunk is True else tuple(min(chunk, n) for n in array.shape)
        group.create_dataset(name, data=array.astype(dtype), chunks=chunks, **filters)

    weights = {k: {n: a[..., :5] for n, a in v.items()} for k, v in weights.items()}
    write_weights(tmp_path / "w.h5", weights)
    replace_arrays(tmp_path / "w.h5", weights, create)
    want = {k: {n: a.astype(dtype).astype(np.float32) for n, a in v.items()}
            for k, v in weights.items()}  # fmt: skip
    assert_same_weights(read_weights(tmp_path / "w.h5"), want)


def test_arrays_inside_a_header_are_read(tmp_path, weights):
    def create(group, name, array):
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple(array.shape)
        h5py.h5d.create(group.id, name, h5py.h5t.IEEE_F32LE, space, dcpl=plist).write(
            h5py.h5s.ALL, h5py.h5s.ALL, array
        )

    write_weights(tmp_path / "w.h5", weights)
    replace_arrays(tmp_path / "w.h5", weights, create)
    assert_same_weights(read_weights(tmp_path / "w.h5"), weights)


def test_a_wrong_checksum_of_a_chunk_is_found(tmp_path, weights):
    def create(group, name, array):
        group.create_dataset(name, data=array, chunks=array.shape, fletcher32=True)

    path = tmp_path / "w.h5"
    write_weights(path, weights)
    replace_arrays(path, weights, create)
    contents = bytearray(path.read_bytes())
    contents[contents.index(weights["fc1"]["kernel"].tobytes()) + 5] ^= 1
    path.write_bytes(contents)
    with pytest.raises(WeightsError, match=r"fc1_W_1:0 has a chunk with a wrong checksum"):
        read_weights(path)
