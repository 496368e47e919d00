"""Weights in NumPy's archives, pickles of arrays and ONNX files: the same layers, bit for bit."""

import collections
import pickle
import pickletools

import numpy as np
import pytest
from support.array_files import (
    BASE,
    NARROW,
    WEIGHTS,
    flat,
    nested,
    onnx_model,
    outputs_first,
)
from support.networks import assert_same_weights, random_weights

from vggjax.errors import WeightsError
from vggjax.models.arch import Arch
from vggjax.weights.weight_file import WeightFile, read_weights

FLAX = "params/VGG_0/{kind}_{number}/{param}"
NAMES = {
    "tutorial": "{caffe}_{w}",
    "slim": "vgg_11/{caffe}/{weights}",
    "keras": "vgg11/{layer}/{param}:0",
    "package": "{layer}.{param}",
    "flax": FLAX,
    "old keras": "{layer}_{w}_1:0",
    "trainable": "{caffe}/{caffe}_{filters}",
    "blocks": "VGG_0/{block}/{kind}_{number}/{param}",
}
onnx = pytest.mark.usefixtures("onnx_library")


@pytest.fixture
def onnx_library():
    return pytest.importorskip("onnx", reason="onnx is not installed")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "w"


def save_npz(path, arrays, *, save=np.savez):
    with open(path, "wb") as file:
        save(file, **arrays)
    return path


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_is_read_under_any_known_names(path, name, save):
    assert_same_weights(read_weights(save_npz(path, flat(WEIGHTS, name), save=save)), WEIGHTS)


def test_layers_numbered_together_are_named_by_their_order(path):
    arrays = {}
    for i, params in enumerate(WEIGHTS.values()):
        number = 2 * i + 1  # layers without weights have numbers, too
        for param, array in params.items():
            part = f"model/_operations/{number}/{'_' * (param == 'kernel')}{param}"
            arrays[f"{part}/.ATTRIBUTES/VARIABLE_VALUE"] = array
    shuffled = dict(sorted(arrays.items()))
    file = WeightFile(save_npz(path, shuffled | {"save_counter": np.array(3)}))
    assert_same_weights(file.read(), WEIGHTS)
    assert file.notes == ["left out save_counter"]


def test_numbers_of_other_orders_and_types_become_the_packages(path):
    caffe = flat(outputs_first(WEIGHTS), "{caffe}_{w}")
    assert_same_weights(read_weights(save_npz(path, caffe)), WEIGHTS)
    fortran = {k: np.asfortranarray(a) for k, a in flat(WEIGHTS, "{caffe}_{w}").items()}
    assert_same_weights(read_weights(save_npz(path, fortran)), WEIGHTS)
    whole_map = flat(WEIGHTS, "{caffe}_{w}")
    whole_map["fc6_W"] = whole_map["fc6_W"].reshape(2, 2, 4, -1)
    assert_same_weights(read_weights(save_npz(path, whole_map)), WEIGHTS)
    half = {k: a.astype(np.float16) for k, a in flat(BASE, "{caffe}_{w}").items()}
    file = WeightFile(save_npz(path, half))
    expected = {k: {n: a.astype(np.float16) for n, a in v.items()} for k, v in BASE.items()}
    for layer, params in file.read().items():
        assert all(np.array_equal(params[n], expected[layer][n]) for n in params)
    assert file.notes == ["16 arrays stored as float16 became float32"]


def test_a_foreign_top_and_other_networks_are_left_out_and_named(path):
    arrays = flat(WEIGHTS, "net/{kind}_{number}/{param}")
    arrays["net/Dense_1/kernel"] = np.ones((7, 5), np.float32)  # no chain
    arrays |= {"Lin_0/Conv_0/kernel": np.ones((1, 1, 4, 1), np.float32)}
    file = WeightFile(save_npz(path, arrays))
    assert_same_weights(file.read(), BASE)
    assert "net/Dense_0/kernel" in file.notes[0] and "Lin_0/Conv_0/kernel" in file.notes[0]


def test_arrays_in_order_without_names_are_kernels_and_biases_in_turn(path):
    arrays = list(flat(WEIGHTS).values())
    with open(path, "wb") as file:
        np.savez(file, *arrays)
    assert_same_weights(read_weights(path), WEIGHTS)
    path.write_bytes(pickle.dumps(arrays))
    assert_same_weights(read_weights(path), WEIGHTS)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", [FLAX, "{caffe}/{param}"])
def test_a_pickle_of_nested_dicts_of_arrays_is_read(path, protocol, name):
    path.write_bytes(pickle.dumps(nested(flat(WEIGHTS, name)), protocol))
    assert_same_weights(read_weights(path), WEIGHTS)


@pytest.mark.parametrize("protocol", [2, 5])
def test_pickles_of_other_dicts_orders_and_old_names_are_read(path, protocol):
    tree = nested(flat(WEIGHTS, "{caffe}/{param}"))
    pairs = {caffe: [arrays["kernel"], arrays["bias"]] for caffe, arrays in tree.items()}
    path.write_bytes(pickle.dumps(pairs, protocol))
    assert_same_weights(read_weights(path), WEIGHTS)
    views = collections.OrderedDict(
        (caffe, {"w": array.T.copy().T if array.ndim == 2 else array[::1], "b": bias})
        for caffe, (array, bias) in pairs.items()
    )
    old = pickle.dumps(views, protocol).replace(b"numpy._core", b"numpy.core")
    assert len(old) < len(pickle.dumps(views, protocol))
    if protocol == 2:  # a later protocol states the length of the name
        path.write_bytes(old)
        assert_same_weights(read_weights(path), WEIGHTS)
    moved = {
        caffe: (kernel.swapaxes(0, 1).copy().swapaxes(0, 1), bias)
        for caffe, (kernel, bias) in pairs.items()
    }
    path.write_bytes(pickle.dumps(moved, protocol))
    assert_same_weights(read_weights(path), WEIGHTS)


def test_a_pickle_of_python_2_is_read(path):
    text = bytearray(pickle.dumps(nested(flat(WEIGHTS, "{caffe}/{param}")), 3))
    opcodes = {"BINBYTES": b"T", "SHORT_BINBYTES": b"U"}
    for opcode, _, position in pickletools.genops(bytes(text)):
        text[position : position + 1] = opcodes.get(opcode.name, text[position : position + 1])
    path.write_bytes(b"\x80\x02" + text[2:])
    assert_same_weights(read_weights(path), WEIGHTS)


@onnx
@pytest.mark.parametrize("style", ["torch", "keras", "gluon"])
@pytest.mark.parametrize("raw", [True, False], ids=["raw", "float_data"])
def test_an_onnx_file_is_read_by_its_graph(path, style, raw):
    path.write_bytes(onnx_model(style=style, raw=raw).SerializeToString())
    file = WeightFile(path)
    assert_same_weights(file.read(), WEIGHTS)
    assert file.notes == []
    assert file.info.determined == (None if style == "keras" else "torch")
    assert file.info.preprocess_doubt == ""


@onnx
@pytest.mark.parametrize("dtype", [np.float16, np.float64, "bfloat16"])
def test_onnx_numbers_of_other_types_are_cast_and_noted(path, dtype):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    path.write_bytes(onnx_model(BASE, dtype=kind).SerializeToString())
    file, name = WeightFile(path), np.dtype(kind).name
    for layer, params in file.read().items():
        assert all(np.array_equal(a, BASE[layer][n].astype(kind)) for n, a in params.items())
    assert file.notes == [f"16 arrays stored as {name} became float32"]


@onnx
def test_onnx_batch_normalization_is_read(path):
    weights = random_weights(Arch("narrow11_bn", NARROW.convs, NARROW.widths, batch_norm=True))
    convs = {k: v for k, v in weights.items() if "conv" in k}
    norms = {k: weights[k.replace("conv", "bn")] for k in convs}
    path.write_bytes(onnx_model(convs, norms=norms).SerializeToString())
    assert_same_weights(read_weights(path), weights)


@onnx
def test_onnx_constants_equal_biases_and_absent_ones_are_read(path):
    from onnx import helper

    zero = {k: v | {"bias": np.zeros_like(v["bias"])} for k, v in BASE.items()}
    model = onnx_model(zero)
    graph, seen = model.graph, {}
    for node in [node for node in graph.node if node.op_type == "Conv"]:
        name = node.input[2]
        array = next(t for t in graph.initializer if t.name == name)
        if array.dims[0] == 2:
            node.input.remove(name)
        elif (first := seen.setdefault(array.dims[0], name)) != name:
            at = list(graph.node).index(node)
            graph.node.insert(at, helper.make_node("Identity", [first], [name]))
        else:
            constant = helper.make_node("Constant", [], [name], value=array)
            graph.node.insert(0, constant)
        graph.initializer.remove(array)
    path.write_bytes(model.SerializeToString())
    assert_same_weights(read_weights(path), zero)


@onnx
def test_an_onnx_top_that_is_no_vggs_is_left_out_and_preprocessing_is_noticed(path):
    from onnx import helper, numpy_helper

    model = onnx_model(style="keras")
    scale = numpy_helper.from_array(np.float32([2]), "scale")
    model.graph.initializer.append(scale)
    dense = next(i for i, node in enumerate(model.graph.node) if node.op_type == "MatMul")
    model.graph.node.insert(dense, helper.make_node("Mul", ["y", "scale"], ["z"]))
    path.write_bytes(model.SerializeToString())
    file = WeightFile(path)
    assert_same_weights(file.read(), BASE)
    assert file.notes == ["left out the top, which is not a VGG's: it has Mul"]
    model.graph.node.insert(0, helper.make_node("Div", ["x", "scale"], ["z"]))
    path.write_bytes(model.SerializeToString())
    assert "Div" in WeightFile(path).info.preprocess_doubt


@onnx
def test_onnx_numbers_in_a_file_beside_it_are_read_and_no_checksum_is_claimed_for_them(
    path, onnx_library
):
    onnx_library.save_model(
        onnx_model(), path, save_as_external_data=True, location="w.data", size_threshold=0
    )
    file = WeightFile(path)
    assert_same_weights(file.read(), WEIGHTS)
    assert file.notes == ["read numbers from w.data beside it"]
    with pytest.raises(WeightsError, match=r"its numbers are in w\.data") as caught:
        file.check_sha256(file.digests.sha256)
    assert caught.value.code == "E_DIGEST"


def test_names_that_no_vgg_has_are_refused_with_the_names_that_are_known(path):
    for arrays in ({"a": np.ones(3)}, {"x/kernel": np.ones((3, 3, 3, 4)), "x/bias": np.ones(4)}):
        with pytest.raises(WeightsError, match="not a name of a known VGG.*conv1_1_W"):
            read_weights(save_npz(path, arrays))
