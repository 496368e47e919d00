"""What `vggjax verify` finds, and that the digest of the forward pass is the model's own."""

import numpy as np
import pytest
from support.torch_models import ENDINGS

from vggjax.cli.main import main
from vggjax.errors import ConfigError, WeightsError
from vggjax.models.head import Head
from vggjax.models.network import VGG
from vggjax.models.params import assign, extract
from vggjax.weights.verify import forward, seeded_image, verify_file
from vggjax.weights.weight_file import write_weights


def make(name="tiny", head="flatten-6-6-3", size=64):
    model = VGG(name, head=Head.parse(head) if head else None, image_size=size)
    rng = np.random.default_rng(1)
    assign(model, {k: {n: a + rng.uniform(0.05, 0.2, a.shape) for n, a in v.items()}
                   for k, v in extract(model).items()})  # fmt: skip
    model.eval()
    return model


@pytest.mark.parametrize("name", ["tiny", "tiny_bn"])
@pytest.mark.parametrize("head", ["flatten-6-6-3", "avg2-6-3", "gap-1", None])
def test_the_forward_pass_of_its_own_computes_what_the_model_computes(name, head):
    model, image = make(name, head), seeded_image(64)
    want = np.asarray(model(image[None].astype(np.float32)))[0]
    got = forward(extract(model), image, head=head or "")
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_the_digest_is_of_the_numbers_whatever_the_layout(tmp_path):
    digests = set()
    weights = extract(make("tiny_bn"))
    for ending in [getattr(ending, "values", [ending])[0] for ending in ENDINGS]:
        if ending in (".pth", ".pt") and not has_torch():
            continue
        write_weights(tmp_path / f"w{ending}", weights)
        verdict = verify_file(tmp_path / f"w{ending}", model="tiny_bn")
        assert (verdict.network, verdict.image_size) == ("tiny_bn", 64)
        assert verdict.outputs.shape == (3,)
        digests.add(verdict.digest)
    assert len(digests) == 1
    weights["block4_conv2"], weights["block5_conv1"] = (
        weights["block5_conv1"],
        weights["block4_conv2"],
    )  # fmt: skip - layers of one shape, exchanged: nothing but a digest shows it
    write_weights(tmp_path / "w.h5", weights)
    assert verify_file(tmp_path / "w.h5").digest not in digests


def has_torch():
    import importlib.util

    return importlib.util.find_spec("torch") is not None


def test_what_does_not_fit_the_network_is_refused(tmp_path):
    weights = extract(make())
    path = tmp_path / "w.safetensors"
    write_weights(path, weights)
    with pytest.raises(WeightsError, match="The file holds tiny: give --model tiny") as caught:
        verify_file(path, model="vgg16")
    assert caught.value.code == "E_ARCH"
    with pytest.raises(ConfigError, match="Did you mean 'vgg1"):
        verify_file(path, model="vgg61")
    del weights["block3_conv2"]["bias"]
    write_weights(path, weights)
    with pytest.raises(WeightsError, match="missing: block3_conv2/bias") as caught:
        verify_file(path)
    assert caught.value.code == "E_MISSING"
    weights = extract(make())
    weights["fc2"]["kernel"] = np.ones((7, 6), np.float32)
    write_weights(path, weights)
    with pytest.raises(WeightsError, match="fc2 takes 7 inputs; the layer before it gives 6"):
        verify_file(path)


def test_the_command_says_all_of_it_and_exits_with_0(tmp_path, capsys):
    path = tmp_path / "w.h5"
    write_weights(path, extract(make()), metadata={"preprocess": "torch", "class_names": '["a"]'})
    assert main(["verify", str(path), "--model", "tiny"]) == 0
    said = capsys.readouterr().out
    verdict = verify_file(path)
    for words in ("Keras, legacy", verdict.digests.sha256, "none of the published files",
                  f"tiny, 11 layers with {verdict.parameters:,} numbers", "fc1 32x6, fc2 6x6",
                  "float32", "0 NaN, 0 infinite", "--preprocess torch: RGB/255, minus",
                  "--preprocess unit would give 0 to 1 where -2.1 to 2.6 is expected",
                  "seed 0, 64 px: 3 outputs", verdict.digest, '["a"]'):  # fmt: skip
        assert words in said, words


def test_a_file_with_nan_says_how_many_and_exits_with_2(tmp_path, capsys):
    weights = extract(make())
    kernel = weights["fc1"]["kernel"].copy()
    kernel[:2, 0], kernel[3, 1] = np.nan, np.inf
    weights["fc1"]["kernel"] = kernel
    write_weights(tmp_path / "w.h5", weights)
    assert main(["verify", str(tmp_path / "w.h5")]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "[E_NONFINITE]" in said.err
    assert "2 NaN and 1 infinite" in said.err and "fc1" in said.err


def test_another_file_than_expected_is_refused_before_it_is_read(tmp_path, capsys):
    (tmp_path / "w.h5").write_bytes(b"whatever this is")
    digest = verify_digest(tmp_path / "w.h5")
    command = ["verify", str(tmp_path / "w.h5"), "--expect-sha256"]
    assert main([*command, "0" * 64]) == 2
    said = capsys.readouterr().err
    assert f"has the SHA-256 {digest}; expected {'0' * 64}" in said and "[E_DIGEST]" in said
    assert main([*command, digest.upper()]) == 2  # the right one: now it is read
    assert "[E_FORMAT]" in capsys.readouterr().err
    assert main([*command, "0x12"]) == 2
    assert "must be 64 hexadecimal digits" in capsys.readouterr().err


def verify_digest(path):
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()
