"""torch's own VGG against this package's: the same weights give the same logits, and convert back
bit for bit.
"""

import numpy as np
import pytest
from support.networks import assert_same_weights
from support.torch_models import make_images, needs_torch, run, timm_vgg, torchvision_vgg

from vggjax.errors import WeightsError
from vggjax.models.arch import CONVS, Arch
from vggjax.models.head import Head
from vggjax.weights.convert import convert_file
from vggjax.weights.load import load_pretrained
from vggjax.weights.weight_file import WeightFile, read_weights, write_weights

pytestmark = needs_torch

RELATIVE = 1e-4  # of the largest value: the two libraries add in another order
CONVS_TINY, WIDTHS_TINY = (1, 1, 2, 2, 2), (4, 4, 8, 8, 8)
TINY = dict(widths=WIDTHS_TINY, side=2, hidden=6, classes=3)
MODELS = {"torchvision": torchvision_vgg, "timm": timm_vgg}


def save(model, path):
    """Save as a user would: the state dict, with torch or with safetensors' own library."""
    import torch
    from safetensors.torch import save_file

    state = model.state_dict()
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


def load_state(path):
    import torch
    from safetensors.torch import load_file

    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, weights_only=True)


def make_tiny(style, norm):
    return MODELS[style](CONVS_TINY, norm=norm, **TINY)


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("style", MODELS)
def test_a_small_network_computes_what_it_computes_in_torch(tmp_path, style, norm, ending):
    model = make_tiny(style, norm)
    path = save(model, tmp_path / f"w{ending}")
    arch = Arch("tiny", CONVS_TINY, WIDTHS_TINY, batch_norm=norm)
    head = Head("flatten", (6, 6), outputs=3)
    loaded = load_pretrained(arch, weights=path, include_top=False, head=head, image_size=64)
    images = make_images(3, 64)
    logits = run(model, images)
    np.testing.assert_allclose(loaded(images), logits, rtol=0, atol=RELATIVE * np.abs(logits).max())
    info = WeightFile(path).info
    assert info.preprocess == "torch" and style in info.kind


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("style", MODELS)
def test_torch_strictly_loads_a_file_converted_there_and_back_with_the_same_bits(
    tmp_path, style, norm, ending
):
    model = make_tiny(style, norm)
    save(model, tmp_path / f"a{ending}")
    keras, back = tmp_path / "b.weights.h5", tmp_path / f"c{ending}"
    convert_file(tmp_path / f"a{ending}", keras)
    convert_file(keras, back, layout=style)
    loaded = make_tiny(style, norm)
    assert loaded.load_state_dict(load_state(back), strict=True)
    state, expected = loaded.state_dict(), model.state_dict()
    assert list(state) == list(expected)
    for key in expected:
        if "num_batches_tracked" not in key:
            np.testing.assert_array_equal(state[key].numpy(), expected[key].numpy(), err_msg=key)
    assert WeightFile(keras).info.preprocess == "torch"


def test_the_metadata_decides_the_preprocessing_and_travels_through_every_format(tmp_path):
    save(make_tiny("torchvision", False), tmp_path / "a.safetensors")
    convert_file(tmp_path / "a.safetensors", tmp_path / "b.h5")
    for ending in (".pth", ".safetensors", ".keras", ".weights.h5"):
        convert_file(tmp_path / "b.h5", tmp_path / f"c{ending}")
        convert_file(tmp_path / f"c{ending}", tmp_path / "d.h5")
        info = WeightFile(tmp_path / "d.h5").info
        assert info.preprocess == "torch"
        assert info.metadata["source"] == "a.safetensors", ending


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("name", CONVS)
def test_the_modules_of_every_network_are_numbered_as_in_torchvision(tmp_path, name, norm):
    from safetensors.torch import save_file

    convs, widths = CONVS[name], (2, 3, 4, 5, 5)
    model = torchvision_vgg(convs, norm=norm, widths=widths, side=1, hidden=3, classes=2)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    weights = read_weights(tmp_path / "w.safetensors")
    table = Arch(name, convs, widths, batch_norm=norm)
    layers = [layer for layer in table.layers() if "pool" not in layer]
    assert list(weights) == [*layers, "fc1", "fc2", "predictions"]
    for layer, (width_in, width) in table.conv_channels().items():
        assert weights[layer]["kernel"].shape == (3, 3, width_in, width)
    write_weights(tmp_path / "back.safetensors", weights, layout="torchvision")
    assert model.load_state_dict(load_state(tmp_path / "back.safetensors"), strict=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "hidden", "classes"), [("vgg16", 4096, 1000), ("vgg16_bn", 64, 10)]
)
def test_the_real_widths_at_224_px_compute_what_they_compute_in_torch(
    tmp_path, arch, hidden, classes
):
    norm = arch.endswith("_bn")
    model = torchvision_vgg(CONVS["vgg16"], norm=norm, hidden=hidden, classes=classes)
    path = save(model, tmp_path / "w.safetensors")
    images = make_images(1, 224)
    expected = run(model, images)
    del model
    head = Head("flatten", (hidden, hidden), outputs=classes)
    logits = load_pretrained(arch, weights=path, include_top=False, head=head)(images)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=RELATIVE * np.abs(expected).max())


def test_batch_counters_may_be_missing_and_a_wrapper_may_prefix_the_names(tmp_path):
    import torch

    model = make_tiny("torchvision", True)
    state = {f"module.{k}": v for k, v in model.state_dict().items() if "num_batches" not in k}
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    save(model, tmp_path / "plain.pth")
    assert_same_weights(read_weights(tmp_path / "w.pth"), read_weights(tmp_path / "plain.pth"))


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize("is_legacy", [False, True])
def test_other_float_types_and_the_format_before_2020_are_read(tmp_path, dtype, is_legacy):
    import torch

    model = make_tiny("torchvision", False).to(getattr(torch, dtype))
    torch.save(model.state_dict(), tmp_path / "w.pth", _use_new_zipfile_serialization=not is_legacy)
    model = model.to(torch.float32, memory_format=torch.contiguous_format)
    save(model, tmp_path / "w.safetensors")
    notes = []
    assert_same_weights(
        read_weights(tmp_path / "w.pth", notes=notes), read_weights(tmp_path / "w.safetensors")
    )
    assert notes == [f"22 arrays stored as {dtype} became float32"]


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda s: s.pop("features.6.bias"), "E_MISSING"),
        (lambda s: [s.pop(f"features.6.{n}") for n in ("weight", "bias")], "E_MISSING"),
        (lambda s: s.update({"features.7.weight": s["features.6.weight"] + 1}), "E_UNEXPECTED"),
        (lambda s: s.update({"features.0.running_mean": s["features.0.bias"] + 1}), "E_MISSING"),
        (lambda s: s.update({"features.6.weight": s["features.6.weight"].permute(2, 3, 1, 0)}),
         "E_SHAPE"),
        (lambda s: s.update({"features.6.weight": s["features.6.weight"].sum()}), "E_SHAPE"),
        (lambda s: s.update({"features.6.bias": s["features.8.bias"]}), "E_ALIAS"),
        (lambda s: s.update({"features.6.weight": s["features.6.weight"].int()}), "E_DTYPE"),
        (lambda s: s.update({"features.6.bias": s["features.6.bias"] * float("nan")}),
         "E_NONFINITE"),
        (lambda s: s.update({"features.6.bias": s["features.6.bias"][:1].expand(8)}), "E_ALIAS"),
    ],
)  # fmt: skip
def test_a_state_dict_that_is_not_a_vgg_is_refused_with_a_code(tmp_path, damage, code):
    import torch

    state = make_tiny("torchvision", False).state_dict()
    damage(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError) as caught:
        read_weights(tmp_path / "w.pth")
    assert caught.value.code == code and str(tmp_path / "w.pth") in str(caught.value)


def test_a_missing_batch_normalization_is_refused(tmp_path):
    import torch

    state = make_tiny("torchvision", True).state_dict()
    for name in [name for name in state if name.startswith("features.5.")]:
        del state[name]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"features\.8 where a VGG has features\.5") as caught:
        read_weights(tmp_path / "w.pth")
    assert caught.value.code == "E_MISSING"


def test_a_whole_model_and_a_compiled_one_are_read_as_their_state_dict(tmp_path):
    import torch

    model = make_tiny("torchvision", True)
    expected = read_weights(save(model, tmp_path / "state.pth"))
    torch.save(model, tmp_path / "model.pth")
    assert_same_weights(read_weights(tmp_path / "model.pth"), expected)
    parallel = torch.nn.DataParallel(model.to(memory_format=torch.channels_last))
    torch.save({"net": parallel.state_dict(), "acc": np.float64(0.5)}, tmp_path / "net.pth")
    assert_same_weights(read_weights(tmp_path / "net.pth"), expected)
    torch.save(model.to(torch.bfloat16).state_dict(), tmp_path / "b.pth", pickle_protocol=4)
    model = model.to(torch.float32, memory_format=torch.contiguous_format)
    save(model, tmp_path / "rounded.safetensors")
    assert_same_weights(
        read_weights(tmp_path / "b.pth"), read_weights(tmp_path / "rounded.safetensors")
    )


def test_torchvision_can_have_any_top_and_timm_only_its_own(tmp_path):
    import torch

    rng = np.random.default_rng(0)
    weights = read_weights(save(make_tiny("torchvision", False), tmp_path / "a.safetensors"))
    weights = {k: v for k, v in weights.items() if k.startswith("block")}
    weights["predictions"] = {
        "kernel": rng.normal(size=(8, 3)).astype(np.float32), "bias": np.ones(3, np.float32),
    }  # fmt: skip
    with pytest.raises(WeightsError, match="timm's VGG has the top fc1, fc2") as caught:
        write_weights(tmp_path / "w.safetensors", weights, layout="timm")
    assert caught.value.code == "E_TOP"
    write_weights(tmp_path / "w.pth", weights)
    state = torch.load(tmp_path / "w.pth", weights_only=True)
    top = [key for key in state if "classifier" in key]
    assert top == ["classifier.0.weight", "classifier.0.bias"]
    assert_same_weights(read_weights(tmp_path / "w.pth"), weights)
