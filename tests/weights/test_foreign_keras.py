"""Keras files with layers that a VGG does not have, and the pixels that their models expected."""

import json
import re
import zipfile

import h5py
import numpy as np
import pytest
from support.networks import assert_same_weights, random_weights

from vggjax.errors import WeightsError
from vggjax.models.arch import ARCHS
from vggjax.models.head import Head
from vggjax.weights.keras.pixels import find_preprocessing
from vggjax.weights.weight_file import WeightFile, read_weights, write_weights

pytestmark = pytest.mark.usefixtures("fast_parser")

TINY, TINY_BN = ARCHS["tiny"], ARCHS["tiny_bn"]
BASE = random_weights(TINY)
WEIGHTS = random_weights(TINY, Head("gap", (6,), outputs=3))
DENSE = [("dense", WEIGHTS["fc1"]), ("dense_1", WEIGHTS["predictions"])]
NORM = {"mean:0": np.ones(3, "f4"), "variance:0": np.full(3, 4, "f4"), "count:0": np.int64(0)}
ONES = np.ones(6, "f4")
BATCH_NORM = {"gamma:0": ONES, "beta:0": ONES, "moving_mean:0": ONES, "moving_variance:0": ONES}


def write_whole_model(path, *, extra=(), suffix="", top=DENSE, base=BASE, configuration=None):
    """Write a whole-model `.h5` as Keras 2 does, with the base as a nested model."""
    nested = {f"{layer}{suffix}/{param}:0": array
              for layer, params in base.items() for param, array in params.items()}  # fmt: skip
    groups = [*extra, ("vgg11", nested)]
    groups += [(name, {f"{name}/{key}": array for key, array in params.items()})
               for name, params in top]  # fmt: skip
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights")
        root.attrs["layer_names"] = [name.encode() for name, _ in groups]
        if configuration:
            file.attrs["model_config"] = json.dumps(configuration)
        for name, arrays in groups:
            group = root.create_group(name)
            group.attrs["weight_names"] = np.array([key.encode() for key in arrays], "S")
            for key, array in arrays.items():
                group[key] = array
    return path


def write_v3(path, layers):
    """Write Keras 3's `.weights.h5`, `{group: arrays}` with the base in front."""
    groups = {f"functional/layers/conv2d_{i}": list(params.values())
              for i, params in enumerate(BASE.values())}  # fmt: skip
    names = dict(zip(groups, BASE, strict=True))
    with h5py.File(path, "w") as file:
        for key, arrays in (groups | layers).items():
            node = file.create_group(f"layers/{key}/vars")
            node.attrs["name"] = names.get(key, key)
            for i, array in enumerate(arrays):
                node[str(i)] = array
    return path


def read(path):
    notes = []
    return read_weights(path, notes=notes), notes


@pytest.mark.parametrize(
    ("extra", "note"),
    [
        ([("normalization", NORM)],
         "left out normalization, which may have scaled the model's own pixels (mean 1, 1, 1, "
         "variance 4, 4, 4): set `preprocess`"),
        ([("random_flip", {"random_flip/StateVar:0": np.arange(3)})],
         "left out random_flip, the state of a random layer"),
        ([("rescaling", {})],
         "left out rescaling, which may have scaled the model's own pixels (how is not in this "
         "file): set `preprocess`"),
    ],
)  # fmt: skip
def test_a_layer_in_front_of_the_base_is_left_out_and_named(tmp_path, extra, note):
    weights, notes = read(write_whole_model(tmp_path / "w.h5", extra=extra))
    assert_same_weights(weights, WEIGHTS)
    assert notes == [note]
    if extra[0][0] == "normalization":
        configuration = model_of(layer("Normalization", mean=None))
        write_whole_model(tmp_path / "m.h5", extra=extra, configuration=configuration)
        doubt = WeightFile(tmp_path / "m.h5").info.preprocess_doubt
        assert doubt.endswith("Normalization (mean 1, 1, 1, variance 4, 4, 4)")


def test_the_mean_of_a_normalization_is_not_read_from_another_file(tmp_path):
    path = write_whole_model(tmp_path / "w.h5", extra=[("normalization", NORM)])
    with h5py.File(path, "r+") as file:
        group = file["model_weights/normalization"]
        del group["mean:0"]
        external = [(str(tmp_path / "other"), 0, 12)]
        group.create_dataset("mean:0", shape=(3,), dtype="f4", external=external)
    with pytest.raises(WeightsError) as caught:
        read_weights(path)
    assert caught.value.code == "E_EXTERNAL"


def test_the_same_layers_are_left_out_of_keras_3_s_files(tmp_path):
    layers = {
        "normalization": [*NORM.values()], "random_flip": [np.arange(2)], "rescaling": [],
        "dense": DENSE[0][1].values(), "dense_1": DENSE[1][1].values(),
    }  # fmt: skip
    weights, notes = read(write_v3(tmp_path / "w.weights.h5", layers))
    assert_same_weights(weights, WEIGHTS)
    assert [note.split(",")[0] for note in notes] == [
        "left out random_flip", "left out normalization", "left out rescaling"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "arrays"),
    [
        ("batch_normalization", BATCH_NORM),
        ("layer_normalization", {"gamma:0": ONES, "beta:0": ONES}),
        ("p_re_lu", {"alpha:0": ONES}),
    ],
)
def test_a_top_with_other_layers_is_left_out_and_named(tmp_path, name, arrays):
    top = [DENSE[0], (name, arrays), DENSE[1]]
    layers = {key: params.values() for key, params in top}
    for path in (
        write_whole_model(tmp_path / "w.h5", top=top),
        write_v3(tmp_path / "w.weights.h5", layers),
    ):
        weights, notes = read(path)
        assert_same_weights(weights, BASE)
        assert len(notes) == 1 and "left out the top (" in notes[0] and name in notes[0]


def test_a_suffix_that_all_layers_have_is_removed(tmp_path):
    weights, notes = read(write_whole_model(tmp_path / "w.h5", suffix="_1"))
    assert_same_weights(weights, WEIGHTS)
    assert notes == []
    mixed = {f"{k}_1" if "conv2" in k else k: v for k, v in BASE.items()}
    path = write_whole_model(tmp_path / "w.h5", base=mixed)
    assert "block4_conv2_1" in read_weights(path)


def test_batch_normalizations_of_a_base_with_names_are_matched_by_order(tmp_path):
    weights = random_weights(TINY_BN)
    layers = {}
    names = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}
    for layer, params in weights.items():
        is_norm = "_bn" in layer
        name = f"batch_normalization_{len(layers)}" if is_norm else layer
        layers[name] = {names[k] if is_norm else k: v for k, v in params.items()}
    path = tmp_path / "w.h5"
    assert_same_weights(read_weights(write_whole_model(path, base=layers, top=())), weights)
    # One in front of them, as the sorted groups of Keras 3 may have that of the top.
    extra = [("a_norm", BATCH_NORM)]
    got, notes = read(write_whole_model(path, extra=extra, base=layers, top=()))
    assert_same_weights(got, weights)
    assert notes == ["left out the top (a_norm): a_norm is no dense layer"]
    swapped = {k: layers[k] for k in sorted(layers, reverse=True)}
    with pytest.raises(WeightsError, match="8 batch normalizations do not follow its 8") as caught:
        read_weights(write_whole_model(path, base=swapped, top=()))
    assert caught.value.code == "E_UNEXPECTED"


def test_bfloat16_is_read_as_keras_stores_it(tmp_path):
    path = write_whole_model(tmp_path / "w.h5", top=())
    rounded = {}
    with h5py.File(path, "r+") as file:
        for layer, params in BASE.items():
            for param, array in params.items():
                key = f"model_weights/vgg11/{layer}/{param}:0"
                bits = array.view(np.uint32) >> 16
                rounded.setdefault(layer, {})[param] = (bits << 16).view(np.float32)
                del file[key]
                # The chunks of kernels are not full at the edges.
                chunks = tuple(min(3, n) for n in array.shape) if array.ndim == 4 else None
                file.create_dataset(key, data=bits.astype("<u2").view("V2"), chunks=chunks)
    weights, notes = read(path)
    assert_same_weights(weights, rounded)
    assert notes == ["16 arrays stored as bfloat16 became float32"]


def layer(name, nodes=None, **config):
    return {"class_name": name, "config": config, "inbound_nodes": nodes or []}


def model_of(*layers):
    nested = layer("Functional", layers=[layer("InputLayer"), layer("Conv2D", kernel_size=[3, 3])])
    return layer("Functional", layers=[layer("InputLayer"), *layers, nested, layer("Rescaling")])


FLIP, SCALE = layer("RandomFlip", mode="horizontal"), layer("Rescaling", scale=1 / 255, offset=0.0)
TORCH_NORM = layer("Normalization", mean=[0.485, 0.456, 0.406],
                   variance=[0.052441, 0.050176, 0.050625])  # fmt: skip
MEAN = [[[], -103.939, -116.779, -123.68]]


@pytest.mark.parametrize(
    ("layers", "mode", "doubt"),
    [
        ([], None, ""),
        ([FLIP], None, ""),
        ([SCALE], "unit", ""),
        ([layer("Sequential", layers=[FLIP, SCALE])], "unit", ""),
        ([layer("TrueDivide", nodes=[{"args": ["x", 255.0]}])], "unit", ""),
        ([layer("TFOpLambda", nodes=[["x", 0, 0, {"y": 255.0}]], function="math.truediv")],
         "unit", ""),
        ([SCALE, TORCH_NORM], "torch", ""),
        ([layer("GetItem"), layer("Stack"), layer("Add", nodes=MEAN)], "caffe", ""),
        ([layer("SlicingOpLambda", function="__operators__.getitem"),
          layer("TFOpLambda", nodes=MEAN, function="nn.bias_add")], "caffe", ""),
        ([layer("GetItem"), layer("Add", nodes=[1.0])], None, "may have scaled.*GetItem, Add"),
        ([layer("Rescaling", scale=1 / 127.5, offset=-1)], None, "scaled.*0.0078.* offset -1"),
        ([layer("Rescaling", scale=1 / 255, offset=-0.5)], None, "scaled.*offset -0.5"),
        ([layer("Normalization", mean=[120.0], variance=None)], None, r"scaled.*mean \[120.0\]"),
        ([SCALE, layer("MyScaler")], None, "may have scaled.*MyScaler"),
    ],
)  # fmt: skip
def test_the_layers_in_front_of_the_first_convolution_decide_the_pixels(layers, mode, doubt):
    found, why = find_preprocessing(json.dumps(model_of(*layers)).encode())
    assert found == mode
    assert re.search(doubt, why) if doubt else why == ""


@pytest.mark.parametrize(
    "text", [b"", b"not JSON", b"[" * 10**5, b"[1]", b'{"config": {"layers": 3}}', b"\xff"]
)
def test_a_configuration_that_cannot_be_read_decides_nothing(text):
    assert find_preprocessing(text) == (None, "")


def test_whole_models_pass_on_what_their_configuration_says(tmp_path):
    extra = [("rescaling", {})]
    whole = write_whole_model(tmp_path / "w.h5", extra=extra, configuration=model_of(SCALE))
    assert WeightFile(whole).info.preprocess == "unit" and WeightFile(whole).notes == []
    write_weights(tmp_path / "plain.weights.h5", BASE)
    with zipfile.ZipFile(tmp_path / "w.keras", "w") as archive:
        configuration = model_of(layer("Rescaling", scale=1 / 127.5, offset=-1))
        archive.writestr("config.json", json.dumps(configuration))
        archive.write(tmp_path / "plain.weights.h5", "model.weights.h5")
    info = WeightFile(tmp_path / "w.keras").info
    assert "scaled its own pixels" in info.preprocess_doubt and not info.states_preprocess


def test_weights_alone_of_a_model_that_scaled_its_pixels_are_in_doubt(tmp_path):
    for path in (
        write_whole_model(tmp_path / "a.h5", extra=[("rescaling_1", {})]),
        write_v3(tmp_path / "b.weights.h5", {"rescaling_1": []}),
    ):
        info = WeightFile(path).info
        assert "rescaling_1, which may have scaled" in info.preprocess_doubt
        assert not info.states_preprocess


def test_dense_layers_that_do_not_follow_one_another_keep_their_names(tmp_path):
    heads = [(name, {"kernel:0": np.ones((6, 3), "f4"), "bias:0": np.ones(3, "f4")})
             for name in ("species", "color")]  # fmt: skip
    weights = read_weights(write_whole_model(tmp_path / "two_heads.h5", top=heads))
    assert list(weights) == [*BASE, "species", "color"]


@pytest.mark.parametrize(
    "arrays",
    [
        {"lstm_cell/kernel:0": np.ones((6, 8), "f4"),
         "lstm_cell/recurrent_kernel:0": np.ones((2, 8), "f4"),
         "lstm_cell/bias:0": np.ones(8, "f4")},
        {"query/kernel:0": np.ones((6, 2, 4), "f4"), "key/kernel:0": np.ones((6, 2, 4), "f4")},
        {"depthwise_kernel:0": np.ones((3, 3, 6, 1), "f4"),
         "pointwise_kernel:0": np.ones((1, 1, 6, 2), "f4")},
    ],
    ids=["lstm", "attention", "separable convolution"],
)  # fmt: skip
def test_layers_with_other_kernels_are_part_of_a_top_that_is_left_out(tmp_path, arrays):
    path = write_whole_model(tmp_path / "w.h5", extra=[("other", arrays)])
    weights, notes = read(path)
    assert_same_weights(weights, BASE)
    assert len(notes) == 1 and "dense, dense_1): " in notes[0] and "is no dense layer" in notes[0]
    groups = {"other": arrays.values(), "dense": DENSE[0][1].values()}
    if len(arrays) == 3:
        assert_same_weights(read_weights(write_v3(tmp_path / "w.weights.h5", groups)), BASE)


def test_convolutions_of_other_names_are_known_by_their_order(tmp_path):
    base = {k.replace("block", "conv").replace("_conv", "_"): v for k, v in BASE.items()}
    top = [("fc6", WEIGHTS["fc1"]), ("fc7", WEIGHTS["predictions"])]
    weights, notes = read(write_whole_model(tmp_path / "w.h5", base=base, top=top))
    assert_same_weights(weights, WEIGHTS)
    assert notes == [
        "named the layers by their order, from conv1_1 (block1_conv1) to conv5_2 (block5_conv2)"
    ]


def test_arrays_of_other_layouts_are_named_with_the_way_out(tmp_path):
    kernel = np.zeros((3, 3, 3, 4), np.float32)
    with h5py.File(tmp_path / "flax.h5", "w") as file:
        file["conv1_1/weight"], file["conv1_1/bias"] = kernel, kernel[0, 0, 0]
    with pytest.raises(WeightsError, match=r"groups of other names \(conv1_1\) are read from an"):
        read_weights(tmp_path / "flax.h5")
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file["layer_1/param_0"], file.attrs["nb_layers"] = kernel, 1
    with pytest.raises(WeightsError, match=r"Keras before 1.0 for Theano.*tf_kernels"):
        read_weights(tmp_path / "old.h5")
