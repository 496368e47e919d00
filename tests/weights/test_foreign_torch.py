"""The torch files that people have: checkpoints, wrappers' names, other tops, other types."""

import numpy as np
import pytest
from support.networks import assert_same_weights, random_weights
from support.torch_files import Name, save_before_2020, save_torch

from vggjax.errors import WeightsError
from vggjax.models.arch import ARCHS
from vggjax.models.head import Head
from vggjax.weights.convert import convert_file
from vggjax.weights.layout import TensorToWrite
from vggjax.weights.load import load_pretrained
from vggjax.weights.safetensors import write_tensors
from vggjax.weights.torch.torchvision import to_torch
from vggjax.weights.weight_file import WeightFile, read_weights, write_weights

TINY, TINY_BN = ARCHS["tiny"], ARCHS["tiny_bn"]
BASE = random_weights(TINY)
TOP = random_weights(TINY, Head("flatten", (6, 5), outputs=3))


def state_of(weights):
    """Return torchvision's state dict of weights, as contiguous arrays."""
    tensors = to_torch(weights, "torchvision")
    return {t.name: np.concatenate([b.ravel() for b in t.blocks()]).reshape(t.shape).copy()
            for t in tensors}  # fmt: skip


def renamed(state, pattern):
    return {pattern.format(name): array for name, array in state.items()}


def save_safetensors(path, state):
    write_tensors(path, [TensorToWrite(k, v) for k, v in state.items()], {"format": "pt"})
    return path


def read(path):
    """Return what is read, and the notes about it."""
    notes = []
    return read_weights(path, notes=notes), notes


@pytest.mark.parametrize(
    "prefix", ["backbone.", "model.vgg.", "module.", "_orig_mod.", "module.net."]
)
@pytest.mark.parametrize("save", [save_torch, save_safetensors])
def test_any_common_prefix_is_taken_off(tmp_path, save, prefix):
    path = save(tmp_path / "w", renamed(state_of(TOP), prefix + "{}"))
    assert_same_weights(read_weights(path), TOP)
    assert WeightFile(path).info.preprocess == "torch"


def test_parts_that_wrappers_insert_are_taken_out_of_the_middle(tmp_path):
    state = {k.replace("features.", "net.features.module."): v for k, v in state_of(TOP).items()}
    state = {k.replace("classifier.", "net.classifier._orig_mod."): v for k, v in state.items()}
    assert_same_weights(read_weights(save_torch(tmp_path / "w.pth", state)), TOP)


@pytest.mark.parametrize("pattern", ["features.module.{}", "{}", "encoder.{}", "model.0.{}"])
def test_the_modules_of_features_may_be_wrapped_or_alone(tmp_path, pattern):
    state = {k.removeprefix("features."): v for k, v in state_of(BASE).items()}
    path = save_torch(tmp_path / "w.pth", renamed(state, pattern))
    assert_same_weights(read_weights(path), BASE)


def test_the_slices_of_a_perceptual_loss_are_joined(tmp_path):
    numbers = [k.removeprefix("features.") for k in state_of(BASE)]
    slices = {f"net.slice{1 + int(k.split('.')[0]) // 7}.{k}": state_of(BASE)[f"features.{k}"]
              for k in numbers}  # fmt: skip
    assert len({name.split(".")[1] for name in slices}) == 3
    assert_same_weights(read_weights(save_torch(tmp_path / "w.pth", slices)), BASE)


@pytest.mark.parametrize(
    "top",
    [
        {"classifier.weight": (10, 8), "classifier.bias": (10,)},
        {
            "classifier.0.weight": (6, 32),
            "classifier.0.bias": (6,),
            "classifier.6.0.weight": (5, 6),
        },
        {"classifier.0.weight": (6, 31), "classifier.0.bias": (6,)},
        {"classifier.0.weight": (6, 32)},
        {"classifier.1.weight": (6,), "classifier.1.bias": (6,), "classifier.1.running_mean": (6,)},
        {"head.fc.weight": (6, 32), "head.fc.bias": (6,)},
        {"fc.weight": (6, 32), "attention.weight": (6, 6, 1, 1), "pos": (1, 6)},
    ],
)
def test_another_top_is_left_out_and_named(tmp_path, top):
    arrays = {name: np.ones(shape, np.float32) for name, shape in top.items()}
    path = save_torch(tmp_path / "w.pth", {"net": state_of(BASE) | arrays, "acc": 93.1})
    weights, notes = read(path)
    assert_same_weights(weights, BASE)
    assert len(notes) == 1 and "left out" in notes[0]
    assert list(top)[0].rpartition(".")[0] in notes[0], notes
    load_pretrained(TINY, weights=path, include_top=False)
    if "left out the top" in notes[0]:
        head = Head("flatten", (6,), outputs=3)
        with pytest.raises(WeightsError, match=r"left out the top .* no top of a VGG") as caught:
            load_pretrained(TINY, weights=path, include_top=False, head=head, image_size=64)
        assert caught.value.code == "E_TOP"


@pytest.mark.parametrize("key", ["net", "state_dict", "model_state_dict", "weights", "model"])
def test_the_state_dict_may_lie_under_any_key_beside_other_things(tmp_path, key):
    namespace = Name(
        "argparse Namespace", state={"lr": 0.1, "data": Name("pathlib PosixPath", "a")}
    )
    momentum = {"state": {0: {"momentum_buffer": np.ones((2, 2, 3, 3), np.float32)}}}
    checkpoint = {
        "epoch": 90, "arch": "vgg11", key: state_of(TOP), "mean": np.ones((1, 3, 1, 1), np.float32),
        "optimizer": momentum, "args": namespace, "acc": Name("numpy.core.multiarray scalar", 1),
        "callbacks": {"A": {"best": 1}}, "lr_schedulers": [], "rng": np.ones(3),
    }  # fmt: skip
    for save in (save_torch, save_before_2020):
        weights, notes = read(save(tmp_path / f"{save.__name__}.ckpt", checkpoint))
        assert_same_weights(weights, TOP)
        assert notes == []


def test_a_copy_of_the_network_is_left_out_and_two_networks_are_refused(tmp_path):
    state, other = state_of(BASE), {k: v + 1 for k, v in state_of(BASE).items()}
    path = tmp_path / "w.pth"
    for item in (
        {"model_ema": other, "model": state},
        renamed(other, "ema_model.module.{}") | renamed(state, "model.{}"),
    ):
        weights, notes = read(save_torch(path, item))
        assert_same_weights(weights, BASE)
        assert len(notes) == 1 and "ema" in notes[0]
    for item in (
        {"left": state, "right": other},
        renamed(state, "left.{}") | renamed(other, "right.{}"),
    ):
        with pytest.raises(WeightsError, match="several networks, left.*, right") as caught:
            read_weights(save_torch(path, item))
        assert caught.value.code == "E_NAME"


def test_one_module_under_two_names_is_one_network_and_one_array_in_two_layers_is_refused(tmp_path):
    state, path = state_of(BASE), tmp_path / "w.pth"
    twice = {f"{prefix}{name}": array for prefix in ("vgg.", "") for name, array in state.items()}
    assert_same_weights(read_weights(save_torch(path, twice)), BASE)
    state["features.6.bias"] = state["features.8.bias"]
    with pytest.raises(WeightsError, match="shares bytes") as caught:
        read_weights(save_torch(path, state))
    assert caught.value.code == "E_ALIAS"


def test_an_encoder_is_read_beside_a_decoder_with_the_same_numbers(tmp_path):
    state = {k.removeprefix("features."): v for k, v in state_of(BASE).items()}
    decoder = {"0.weight": np.ones((8, 4, 3, 3), np.float32), "0.bias": np.ones(8, np.float32)}
    item = renamed(decoder, "decoder.{}") | renamed(state, "encoder.{}")
    weights, notes = read(save_torch(tmp_path / "w.pth", item))
    assert_same_weights(weights, BASE)
    assert notes == ["left out what is not a VGG's: decoder.0.weight, decoder.0.bias"]
    item |= renamed(state, "other.{}")
    item = {k: v + 1 if k.startswith("other") else v for k, v in item.items()}
    with pytest.raises(WeightsError, match="several networks, encoder., other."):
        read_weights(save_torch(tmp_path / "w.pth", item))


def test_a_whole_pickled_model_is_read_without_its_classes(tmp_path):
    def module(kind, parameters=(), children=()):
        state = {"_parameters": dict(parameters), "_buffers": {}, "_modules": dict(children)}
        return Name(f"torch.nn.modules.{kind}", state=state)

    convs, state = {}, state_of(BASE)
    for name in state:
        number = name.split(".")[1]
        params = {key: state[f"features.{number}.{key}"] for key in ("weight", "bias")}
        convs[number] = module("conv Conv2d", params)
    model = Name(
        "__main__ Net", state={"_modules": {"features": module("x Sequential", (), convs)}}
    )
    assert_same_weights(read_weights(save_torch(tmp_path / "model.pth", model)), BASE)


@pytest.mark.parametrize("arch", [TINY, TINY_BN], ids=lambda arch: arch.name)
def test_convolutions_of_other_names_are_known_by_their_order(tmp_path, arch):
    weights, path = random_weights(arch), tmp_path / "w.pth"
    state = {k: v for k, v in state_of(weights).items() if "tracked" not in k}
    numbers = list(dict.fromkeys(name.split(".")[1] for name in state))

    def save_as(names):
        names = dict(zip(numbers, names, strict=False))
        return save_torch(path, {f"{names[k.split('.')[1]]}.{k.split('.')[2]}": v
                                 for k, v in state.items()})  # fmt: skip

    name = "layers.{}" if arch.batch_norm else "layers.conv{}x"
    got, notes = read(save_as(name.format(i) for i in range(99)))
    assert_same_weights(got, weights)
    assert f"{name.format(0)} (block1_conv1)" in notes[0]
    assert "torch" in WeightFile(path).info.preprocess_doubt
    # The last two layers have the same shapes: the names exchange them, the file does not.
    ends = ["y", "z", "v", "x"] if arch.batch_norm else ["z", "y"]
    with pytest.raises(WeightsError, match="not a name of a known VGG"):
        read_weights(save_as("abcdefghijklmnopqr"[: len(numbers) - len(ends)] + "".join(ends)))


def test_the_top_of_a_network_with_caffe_s_names_is_read_in_torch_s_order(tmp_path):
    weights = random_weights(TINY, Head("flatten", (6, 6), outputs=3))
    tops = {"classifier.0": "fc6", "classifier.3": "fc7", "classifier.6": "fc8"}
    names = {f"features.{n}": f"conv{b}_{i}" for n, b, i in (
        (0, 1, 1), (3, 2, 1), (6, 3, 1), (8, 3, 2), (11, 4, 1), (13, 4, 2), (16, 5, 1), (18, 5, 2)
    )} | tops  # fmt: skip
    state = {f"{names[k.rpartition('.')[0]]}.{k.rpartition('.')[2]}": v
             for k, v in state_of(weights).items()}  # fmt: skip
    path = save_torch(tmp_path / "w.pth", state)
    assert_same_weights(read_weights(path), weights)
    assert WeightFile(path).info.preprocess_doubt


def test_permuted_axes_are_read_as_torch_shows_them(tmp_path):
    state, path = state_of(TOP), tmp_path / "w.pth"
    last = {k: v.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2) if v.ndim == 4 else v
            for k, v in state.items()}  # fmt: skip
    last["classifier.0.weight"] = state["classifier.0.weight"].T.copy().T
    assert not last["features.6.weight"].flags.c_contiguous
    assert_same_weights(read_weights(save_torch(path, last)), TOP)


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_bfloat16_is_read_exactly(tmp_path, ending):
    state = state_of(BASE)
    cut = {k: (v.view(np.uint32) >> 16 << 16).view(np.float32) for k, v in state.items()}
    path = tmp_path / f"w{ending}"
    if ending == ".pth":
        save_torch(path, state, bfloat16=True)
    else:
        halves = {
            k: v.reshape(-1).view(np.float16)[1::2].reshape(v.shape) for k, v in state.items()
        }
        write_safetensors_as(path, "BF16", halves)
    weights, notes = read(path)
    assert_same_weights(weights, read_weights(save_torch(tmp_path / "cut.pth", cut)))
    assert notes == ["16 arrays stored as bfloat16 became float32"]


def write_safetensors_as(path, dtype, state):
    import json

    header, start = {}, 0
    for name, array in state.items():
        end = start + array.nbytes
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    numbers = b"".join(np.ascontiguousarray(array).tobytes() for array in state.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + numbers)


def test_a_dropout_first_puts_the_pixels_in_doubt_and_conversion_keeps_the_doubt(tmp_path):
    weights = random_weights(TINY, Head("flatten", (6, 6), outputs=3))
    numbers = {"classifier.0": "classifier.1", "classifier.3": "classifier.4"}
    state = {numbers.get(k[:12], k[:12]) + k[12:] if k.startswith("cl") else k: v
             for k, v in state_of(weights).items()}  # fmt: skip
    path = save_safetensors(tmp_path / "w.safetensors", state)
    convert_file(path, tmp_path / "w.h5")
    for file in (WeightFile(path), WeightFile(tmp_path / "w.h5")):
        assert_same_weights(file.read(), weights)
        assert "before 2017" in file.info.preprocess_doubt and not file.info.states_preprocess
    write_weights(
        tmp_path / "said.h5", weights, metadata=file.info.metadata | {"preprocess": "caffe"}
    )
    assert WeightFile(tmp_path / "said.h5").info.preprocess_doubt == ""


@pytest.mark.parametrize("prefix", ["vgg", "features", ""])
def test_the_base_of_a_detector_is_read_without_the_convolutions_that_follow(tmp_path, prefix):
    base = random_weights(ARCHS["narrow"])
    state = {name.removeprefix("features."): array for name, array in state_of(base).items()}
    start = max(int(name.split(".")[0]) for name in state) + 3
    for number in (start, start + 2):
        state |= {f"{number}.weight": np.zeros((6, 6, 3, 3), np.float32)}
        state |= {f"{number}.bias": np.zeros(6, np.float32)}
    state = {f"{prefix}.{name}".lstrip("."): array for name, array in state.items()}
    state |= (
        {f"extras.{i}.weight": np.zeros((6, 6, 3, 3), np.float32) for i in (0, 2)} if prefix else {}
    )
    weights, notes = read(save_torch(tmp_path / "ssd.pth", state))
    assert_same_weights(weights, base)
    assert f"features.{start}.weight" in notes[0] and ("extras.0.weight" in notes[0]) == bool(
        prefix
    )
    assert "SSD" in WeightFile(tmp_path / "ssd.pth").info.preprocess_doubt


@pytest.mark.parametrize(
    ("parts", "way_out"),
    [
        (("weight_orig", "weight_mask"), "prune.remove"),
        (("weight_g", "weight_v"), "parametrize.remove_parametrizations"),
        (
            ("parametrizations.weight.original0", "parametrizations.weight.original1"),
            "parametrize.remove_parametrizations",
        ),
    ],
)
def test_kernels_in_parts_are_refused_with_the_way_to_join_them(tmp_path, parts, way_out):
    state = state_of(BASE)
    for name in [name for name in state if name.endswith("weight")]:
        kernel = state.pop(name)
        state |= {name.removesuffix("weight") + part: kernel for part in parts}
    with pytest.raises(WeightsError, match=f"stores kernels in parts.*{way_out}"):
        read_weights(save_torch(tmp_path / "w.pth", state))
