"""An exported classifier computes in its own runtime what `predict` computes."""

import json
from dataclasses import replace

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from jax import export as jax_export
from support.networks import random_network
from support.pixels import jit_quickly

from vggjax.data.images.preprocess import Preprocessing, preprocess, resize_image
from vggjax.data.images.resize import FILTERS
from vggjax.errors import ConfigError
from vggjax.evaluation.predict import load_run
from vggjax.export.export import FORMATS, export_run, print_export
from vggjax.export.onnx_graph import IR_VERSION, OPSET, Graph
from vggjax.export.onnx_resize import add_resize
from vggjax.models.head import Head
from vggjax.models.params import assign, extract
from vggjax.training.run_dir.run_result import ModelInfo, load_model, save_model
from vggjax.weights.weight_file import WeightFile, read_weights

SIZES = ((32, 32), (40, 48), (1, 50), (90, 7), (33, 129), (200, 64))
"""Heights and widths; 90 x 7 px are reduced in height first by Pillow 13."""

TOLERANCE = 1e-5
"""Of a probability."""

RUNS = {
    "temperature": dict(arch="tiny", head="gap-5", temperature=1.7),
    "batch norm": dict(arch="tiny_bn", head="flatten-6-0.5-5", mode="torch", resize="crop"),
    "one sigmoid": dict(arch="cnn-gray-4-pool-0.2-6", head="avg2-2-1", mode="unit", nearest=True),
    "multilabel": dict(arch="cnn-same-4-bn-pool", head="avg2-3", multilabel=True),
}


def make_run(folder, name):
    """Save a classifier of random weights whose probabilities vary."""
    options = dict(RUNS[name])
    pixels = Preprocessing(
        options.pop("mode", "caffe"),
        32,
        options.pop("resize", "squash"),
        "nearest" if options.pop("nearest", False) else "bicubic",
    )
    arch, head = options["arch"], Head.parse(options["head"])
    names = tuple("日 b<& c d e".split()[: max(head.outputs, 2)])
    task = dict(task="multilabel", thresholds=(0.3, 0.5, 0.7)) if "multilabel" in options else {}
    info = ModelInfo(arch, str(head), names, pixels, **task)
    info = replace(info, temperature=options.get("temperature"))
    model = random_network(arch, head=head, image_size=32)
    folder.mkdir()
    resized = np.stack([resize_image(image, pixels) for image in images()])
    inputs = preprocess(resized, pixels.mode)
    features = jit_quickly(lambda x: model(x, until=model.layers[-2]))(inputs)
    weights, rng = extract(model), np.random.default_rng(2)
    kernel = rng.normal(size=weights["predictions"]["kernel"].shape)
    logits = np.asarray(features, np.float64) @ kernel
    scale = 2 / logits.std(0)
    weights["predictions"] = {"kernel": kernel * scale, "bias": -logits.mean(0) * scale}
    assign(model, weights)
    save_model(folder, model, info)
    return folder


def images(*, sizes=SIZES):
    rng = np.random.default_rng(5)
    colors = rng.integers(0, 128, (len(sizes), 1, 1, 3), np.uint8)
    return [c + rng.integers(0, 128, (*s, 3), np.uint8) for c, s in zip(colors, sizes, strict=True)]


@pytest.mark.parametrize("name", RUNS)
def test_onnxruntime_gives_the_probabilities_of_predict(tmp_path, name):
    run, file = make_run(tmp_path / "run", name), tmp_path / "a.onnx"
    expected = load_run(run).predict(images())
    assert np.ptp(expected.probs, axis=0).max() > 0.1, "the images must matter"
    export_run(run, file)
    onnx.checker.check_model(file, full_check=True)
    session = onnxruntime.InferenceSession(file)
    for i, image in enumerate(images()):
        probabilities, decision = session.run(None, {"images": image[None]})
        np.testing.assert_allclose(probabilities[0], expected.probs[i], atol=TOLERANCE)
        is_multilabel = "multilabel" in RUNS[name]
        assert np.array_equal(
            decision[0], (expected.labels if is_multilabel else expected.names)[i]
        )


def test_an_onnx_file_takes_a_batch_and_describes_itself(tmp_path):
    run, file = make_run(tmp_path / "run", "temperature"), tmp_path / "a.onnx"
    export_run(run, file, license="MIT")
    session = onnxruntime.InferenceSession(file)
    batch = np.stack(images(sizes=[(50, 60)] * 3))
    together = session.run(["probabilities"], {"images": batch})[0]
    alone = [session.run(["probabilities"], {"images": image[None]})[0][0] for image in batch]
    np.testing.assert_allclose(together, alone, atol=TOLERANCE)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == list(load_run(run).class_names)
    assert metadata["license"] == "MIT" and metadata["temperature"] == "1.7"
    assert metadata["format"] == f"ONNX, opset {OPSET}"
    graph = onnx.load(file)
    assert graph.opset_import[0].version == OPSET
    outputs = {output for node in graph.graph.node for output in node.output}
    assert set(load_model(run)[0].layers) <= outputs


@pytest.mark.parametrize("name", ["temperature", "batch norm"])
def test_the_weights_of_an_onnx_file_are_read_back_bit_for_bit(tmp_path, name):
    run, file = make_run(tmp_path / "run", name), tmp_path / "a.onnx"
    export_run(run, file)
    expected = extract(load_model(run)[0])
    weights = read_weights(file)
    for layer, params in expected.items():
        for param, array in params.items():
            np.testing.assert_array_equal(weights[layer][param], array)
    stated = WeightFile(file).info
    assert (
        stated.preprocess == load_run(run).info.preprocessing.mode and not stated.preprocess_doubt
    )


@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("interpolation", FILTERS)
def test_the_graph_resizes_bit_for_bit_as_pillow(resize, interpolation):
    preprocessing = Preprocessing("unit", 24, resize, interpolation)
    graph = Graph()
    resized = add_resize(graph, "images", preprocessing)
    value, kinds = onnx.helper.make_tensor_value_info, onnx.TensorProto
    model = onnx.helper.make_model(
        graph.proto(
            "resize",
            [value("images", kinds.UINT8, ["N", "H", "W", 3])],
            [value(resized, kinds.FLOAT, ["N", 3, 24, 24])],
        ),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    session = onnxruntime.InferenceSession(model.SerializeToString())
    sizes = [*SIZES, (1, 1), (24, 24), (24, 25), (23, 240), (240, 23), (301, 203)]
    for image in images(sizes=sizes):
        (pixels,) = session.run(None, {"images": image[None]})[0]
        expected = resize_image(image, preprocessing)
        np.testing.assert_array_equal(pixels.transpose(1, 2, 0), expected, str(image.shape))


def resized_batch(run):
    preprocessing = load_run(run).info.preprocessing
    return np.stack([resize_image(image, preprocessing) for image in images()])


@pytest.mark.parametrize("name", ["temperature", "one sigmoid", "multilabel"])
def test_a_stablehlo_program_gives_the_probabilities_of_predict(tmp_path, name):
    run, file = make_run(tmp_path / "run", name), tmp_path / "a.stablehlo"
    export_run(run, file)
    program = jax_export.deserialize(bytearray(file.read_bytes()))
    expected = load_run(run).predict(images()).probs
    np.testing.assert_allclose(program.call(resized_batch(run)), expected, atol=TOLERANCE)
    metadata = json.loads((tmp_path / "a.stablehlo.json").read_text("utf-8"))
    assert metadata["jax"] == jax.__version__ and "6 months" in metadata["read_by_jax"]
    assert metadata["platforms"] == "cpu, cuda, tpu" == ", ".join(program.platforms)


def test_neither_the_file_nor_the_one_beside_it_replaces_a_link_and_its_mode_is_kept(tmp_path):
    run, file = make_run(tmp_path / "run", "one sigmoid"), tmp_path / "a.stablehlo"
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "a.stablehlo.json").symlink_to(tmp_path / "mine")
    with pytest.raises(ConfigError, match="a.stablehlo.json is a link"):
        export_run(run, file)
    assert not file.exists() and (tmp_path / "mine").read_text() == "precious"
    (tmp_path / "a.stablehlo.json").unlink()
    file.write_text("old")
    file.chmod(0o600)
    export_run(run, file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated", "ignore:__array__")
def test_keras_tensorflow_and_litert_give_the_probabilities_of_predict(tmp_path, name, keras):
    import tensorflow as tf

    run = make_run(tmp_path / "run", name)
    expected, batch = load_run(run).predict(images()).probs, resized_batch(run)
    for ending in (".keras", ".tflite", ""):
        export_run(run, tmp_path / f"a{ending}")
    model = keras.models.load_model(tmp_path / "a.keras")
    assert {layer for layer in load_model(run)[0].layers if "drop" not in layer} <= {
        layer.name for layer in model.layers
    }
    saved = tf.saved_model.load(tmp_path / "a")
    interpreter = tf.lite.Interpreter(str(tmp_path / "a.tflite"))
    place = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(place, batch.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(place, batch)
    interpreter.invoke()
    result = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    for probabilities in (model(batch).numpy(), saved.serve(batch).numpy(), result):
        np.testing.assert_allclose(probabilities, expected, atol=TOLERANCE)
    for file in ("a.keras.json", "a.tflite.json", "a/assets.extra/vggjax.json"):
        assert json.loads((tmp_path / file).read_text("utf-8"))["class_names"]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_torch_gives_the_probabilities_of_predict(tmp_path, name):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    run = make_run(tmp_path / "run", name)
    export_run(run, tmp_path / "a.pt2")
    extra = {"vggjax.json": ""}
    program = torch.export.load(tmp_path / "a.pt2", extra_files=extra).module()
    expected = load_run(run).predict(images()).probs
    for count in (1, len(expected)):
        got = program(torch.from_numpy(resized_batch(run)[:count]))
        np.testing.assert_allclose(got.detach(), expected[:count], atol=TOLERANCE)
    assert json.loads(extra["vggjax.json"])["class_names"]


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", "temperature")
    with pytest.raises(ConfigError, match=r"must end in \.onnx, .*got 'a\.mlmodel'"):
        export_run(run, tmp_path / "a.mlmodel")
    with pytest.raises(ConfigError, match="needs a new folder"):
        export_run(run, tmp_path)
    monkeypatch.setitem(FORMATS, ".onnx", replace(FORMATS[".onnx"], module="no_such_package"))
    with pytest.raises(ConfigError, match=r"no_such_package.*pip install 'vggjax\[onnx\]'"):
        export_run(run, tmp_path / "a.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_a_bfloat16_run_is_exported_in_float32_and_says_so(tmp_path, capsys):
    run = make_run(tmp_path / "run", "temperature")
    model, info = load_model(run)
    save_model(run, model, replace(info, dtype="bfloat16"))
    print_export(export_run(run, tmp_path / "a.onnx"))
    printed = capsys.readouterr().out
    assert "computes in float32, and predict of this run in bfloat16" in printed
