"""What `vggjax verify` reports, and that its forward pass is the model's own."""

import hashlib
import importlib.util

import h5py
import numpy as np
import pytest
from support.networks import assert_same_weights, random_network
from support.torch_models import ENDINGS

from vggjax.cli.main import main
from vggjax.errors import ConfigError, WeightsError
from vggjax.models.head import Head
from vggjax.models.params import extract
from vggjax.weights.verify import forward, seeded_noise, verify_file
from vggjax.weights.weight_file import read_weights, write_weights


def make_model(name="tiny", head="flatten-6-6-3"):
    return random_network(name, head=Head.parse(head) if head else None, image_size=64)


@pytest.mark.parametrize(
    ("name", "head"),
    [("tiny", "flatten-6-6-3"), ("tiny", None), ("tiny_bn", "avg2-6-3"), ("tiny_bn", "gap-1")],
)
def test_the_independent_forward_pass_computes_what_the_model_computes(name, head):
    model, image = make_model(name, head), seeded_noise(64)
    expected = np.asarray(model(image[None].astype(np.float32)))[0]
    computed = forward(extract(model), image, head=head or "")
    assert np.abs(expected).max() > 0
    tolerance = 1e-4 * np.abs(expected).max()  # about a thousand float32 additions
    np.testing.assert_allclose(computed, expected, rtol=0, atol=tolerance)


def test_the_digest_depends_on_the_numbers_and_not_on_the_format(tmp_path):
    weights, digests = extract(make_model("tiny_bn")), set()
    for ending in [getattr(ending, "values", [ending])[0] for ending in ENDINGS]:
        if ending in (".pth", ".pt") and importlib.util.find_spec("torch") is None:
            continue
        write_weights(tmp_path / f"w{ending}", weights)
        verification = verify_file(tmp_path / f"w{ending}", model="tiny_bn")
        assert (verification.network, verification.image_size) == ("tiny_bn", 64)
        assert verification.outputs.shape == (3,)
        digests.add(verification.digest)
    assert len(digests) == 1
    # Two layers of one shape, exchanged: only a digest shows it.
    first, second = "block4_conv2", "block5_conv1"
    weights[first], weights[second] = weights[second], weights[first]
    write_weights(tmp_path / "w.h5", weights)
    assert verify_file(tmp_path / "w.h5").digest not in digests


def test_a_file_that_does_not_fit_the_network_is_refused(tmp_path):
    weights, path = extract(make_model()), tmp_path / "w.safetensors"
    write_weights(path, weights)
    with pytest.raises(WeightsError, match="The file holds tiny: set `model` to tiny") as caught:
        verify_file(path, model="vgg16")
    assert caught.value.code == "E_ARCH"
    with pytest.raises(ConfigError, match="Did you mean 'vgg1"):
        verify_file(path, model="vgg61")
    without_bias = weights | {"block3_conv2": {"kernel": weights["block3_conv2"]["kernel"]}}
    write_weights(path, without_bias)
    with pytest.raises(WeightsError, match="missing: block3_conv2/bias") as caught:
        verify_file(path)
    assert caught.value.code == "E_MISSING"
    broken_chain = weights | {"fc2": weights["fc2"] | {"kernel": np.ones((7, 6), np.float32)}}
    write_weights(path, broken_chain)
    with pytest.raises(WeightsError, match="fc2 has 7 inputs; the layer before it has 6 outputs"):
        verify_file(path)


def test_the_command_prints_every_fact_and_exits_with_0(tmp_path, capsys):
    path = tmp_path / "w.h5"
    metadata = {"preprocess": "torch", "class_names": '["a"]'}
    write_weights(path, extract(make_model()), metadata=metadata)
    assert main(["verify", str(path), "--model", "tiny"]) == 0
    printed = capsys.readouterr().out
    verification = verify_file(path)
    for fact in (
        "Keras, legacy",
        hashlib.sha256(path.read_bytes()).hexdigest(),
        "none of the published files",
        f"tiny, 11 layers with {verification.num_parameters:,} parameters",
        "fc1 32x6, fc2 6x6",
        "float32",
        "0 NaN, 0 infinite",
        "torch: (RGB/255 - (0.485,",
        "-2.1 to 2.6",
        "seed 0, 64 px: 3 outputs",
        verification.digest,
        '["a"]',
    ):
        assert fact in printed, fact


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ("rename", "named the layers by their order, from layer_0 (block1_conv1) to"),
        ("add", "left out the top (conv2d_99): conv2d_99 is no dense layer"),
    ],
)
def test_verify_and_convert_accept_a_whole_base_under_other_names_or_below_other_layers(
    tmp_path, capsys, change, note
):
    weights = extract(make_model(head=None))
    path = tmp_path / "w.h5"
    write_weights(path, weights)
    with h5py.File(path, "r+") as file:
        names = list(weights)
        if change == "rename":
            for i, name in enumerate(weights):
                file.move(name, f"layer_{i}")
            names = [f"layer_{i}" for i in range(len(names))]
        else:
            arrays = {"kernel:0": np.zeros((3, 3, 4, 4), "f4"), "bias:0": np.zeros(4, "f4")}
            group = file.create_group("conv2d_99")
            for name, values in arrays.items():
                group[name] = values
            group.attrs["weight_names"] = list(arrays)
            names.append("conv2d_99")
        file.attrs["layer_names"] = names
    for command in (["verify"], ["convert", str(tmp_path / "out.safetensors")]):
        assert main([command[0], str(path), *command[1:]]) == 0
        assert note in " ".join(capsys.readouterr().out.split())
    assert_same_weights(read_weights(tmp_path / "out.safetensors"), weights)


def test_non_finite_values_are_counted_and_exit_with_2(tmp_path, capsys):
    weights = extract(make_model())
    kernel = weights["fc1"]["kernel"].copy()
    kernel[:2, 0], kernel[3, 1] = np.nan, np.inf
    weights["fc1"]["kernel"] = kernel
    write_weights(tmp_path / "w.h5", weights)
    assert main(["verify", str(tmp_path / "w.h5")]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and "[E_NONFINITE]" in printed.err
    assert "2 NaN and 1 infinite" in printed.err and "fc1" in printed.err


def test_an_unexpected_checksum_is_refused_before_parsing(tmp_path, capsys):
    path = tmp_path / "w.h5"
    path.write_bytes(b"not a weight file")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    command = ["verify", str(path), "--expect-sha256"]
    for expected, code, message in (
        ("0" * 64, "[E_DIGEST]", f"has the SHA-256 {sha256}; expected {'0' * 64}"),
        (sha256.upper(), "[E_FORMAT]", "not a weight file"),
        ("0x12", "[E_DIGEST]", "must be 64 hexadecimal digits"),
    ):
        assert main([*command, expected]) == 2
        printed = capsys.readouterr().err
        assert code in printed and message in printed
