"""The tables of networks and heads: their text forms, layer names, sizes and patterns."""

import pytest

from vggjax.errors import ConfigError
from vggjax.models.arch import ARCHS, Arch, get_arch, match_layers, register_arch
from vggjax.models.convnets import CNNS, ConvSpec, find_arch
from vggjax.models.head import Head

VGG16 = get_arch("vgg16").layers()


def test_every_network_of_the_table_has_five_poolings_and_unique_names():
    for arch in ARCHS.values():
        names = arch.layers()
        assert len(set(names)) == len(names)
        poolings = [f"block{block}_pool" for block in range(1, 6)]
        assert [name for name in names if name.endswith("pool")] == poolings
        assert arch.min_size_px == 32


def test_networks_are_found_by_name_or_spec_and_a_wrong_name_gets_the_nearest():
    assert find_arch("vgg11_bn") is ARCHS["vgg11_bn"]
    assert find_arch("cnn-conv") is CNNS["cnn-conv"]
    assert find_arch("cnn-gray-32-pool-32").text == CNNS["mnist-cnn"].text
    for wrong, nearest in [("cnn-pol-bn", "cnn-pool-bn"), ("cifar10_cnn", "cifar10-cnn"),
                           ("vgg61", "vgg1"), ("vgg_16", "vgg16")]:  # fmt: skip
        with pytest.raises(ConfigError, match=f"Did you mean '{nearest}"):
            find_arch(wrong)
    with pytest.raises(ConfigError, match="Did you mean 'vgg16'"):
        get_arch("vgg_16")


def test_a_registered_network_is_found_and_registering_it_again_changes_nothing(monkeypatch):
    monkeypatch.setattr("vggjax.models.arch.ARCHS", dict(ARCHS))
    arch = Arch("my_vgg", (1, 1, 1, 1, 1), (2, 2, 2, 2, 2))
    assert register_arch(arch) is arch
    assert get_arch("my_vgg") is arch
    assert register_arch(Arch("my_vgg", (1, 1, 1, 1, 1), (2, 2, 2, 2, 2))) is arch


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        (Arch("vgg16", (1, 1, 1, 1, 1)), "'vgg16' is taken by a different network"),
        (Arch("cnn-32", (1, 1, 1, 1, 1)), "only letters, digits and _; got 'cnn-32'"),
        (Arch("", (1, 1, 1, 1, 1)), "starts with a letter"),
        (Arch("a", (1, 1, 1, 1), (2, 2, 2, 2)), "five blocks"),
        (Arch("a", (1, 1, 1, 1, 1), (2, 2, 2, 2)), "five blocks"),
        (Arch("a", (0, 1, 1, 1, 1)), "1 to 9 convolutions"),
        (Arch("a", (10, 1, 1, 1, 1)), "1 to 9 convolutions"),
        (Arch("a", (1, 1, 1, 1, 1), (2, 2, 2, 2, 0)), "widths above 0"),
    ],
)
def test_a_network_that_the_table_cannot_hold_is_refused(arch, message):
    before = dict(ARCHS)
    with pytest.raises(ConfigError, match=message):
        register_arch(arch)
    assert before == ARCHS


def test_patterns_match_blocks_layers_and_globs_in_layer_order():
    assert match_layers(["none"], VGG16) == ()
    assert match_layers(["all"], VGG16) == VGG16
    assert match_layers(["block5_conv3", "block4"], VGG16) == (
        "block4_conv1", "block4_conv2", "block4_conv3", "block4_pool", "block5_conv3",
    )  # fmt: skip
    assert match_layers(["block?_conv1"], VGG16) == tuple(f"block{b}_conv1" for b in range(1, 6))


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["blok5"], "Did you mean 'block5'"),
        (["block5_conv4"], "Did you mean 'block5_con"),
        (["none", "block5"], "cannot combine none"),
    ],
)
def test_a_pattern_that_matches_no_layer_is_refused_with_the_nearest(patterns, message):
    with pytest.raises(ConfigError, match=message):
        match_layers(patterns, VGG16)


@pytest.mark.parametrize(
    "text", ["gap-classes", "flatten-256-0.5-1", "avg2-128-0.4-5", "flatten-4096-4096-1000"]
)
def test_a_head_s_text_form_survives_parsing(text):
    assert str(Head.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "gap", "mean-5", "flatten-1.5-2", "gap-x", "flatten-0-5", "gap-0", "gap-0.5"]
)
def test_an_invalid_head_is_refused(text):
    with pytest.raises(ConfigError, match="A head"):
        Head.parse(text)


def test_a_head_takes_its_outputs_from_the_dataset_or_must_agree_with_it():
    assert Head.parse("gap-classes").for_classes(7).outputs == 7
    assert Head.parse("gap-7").for_classes(7).outputs == 7
    assert Head.parse("gap-1").for_classes(2).outputs == 1
    for text, num_classes in (("gap-7", 6), ("gap-1", 3)):
        with pytest.raises(ConfigError, match=f"has {num_classes} classes. Write 'gap-classes'"):
            Head.parse(text).for_classes(num_classes)


def test_a_convnet_s_text_gives_its_layers_as_vgg_names_them():
    spec = ConvSpec("gray-4-bn-pool-0.25-6-0.5-5-bn-pool-7")
    assert spec.layers() == (
        "gray", "block1_conv1", "block1_bn1", "block1_pool", "block1_drop1", "block2_conv1",
        "block2_drop1", "block2_conv2", "block2_bn2", "block2_pool", "block3_conv1",
    )  # fmt: skip
    assert spec.weighted_layers() == (
        "block1_conv1", "block1_bn1", "block2_conv1", "block2_conv2", "block2_bn2", "block3_conv1",
    )  # fmt: skip
    assert list(spec.conv_channels().values()) == [(1, 4), (4, 6), (6, 5), (5, 7)]
    assert spec.dropout_rates() == {"block1_drop1": 0.25, "block2_drop1": 0.5}
    assert (spec.name, spec.padding) == ("cnn-gray-4-bn-pool-0.25-6-0.5-5-bn-pool-7", "VALID")


@pytest.mark.parametrize(
    "text",
    ["", "gray", "same", "32-", "bn-32", "pool-32", "0.5-32", "32-pool-pool", "32-bn-bn", "32-1.5",
     "32-0.2-0.2", "0", "32-pool-bn", "32-x", "-".join("123456789" + "1"), "same-gray-32"],
)  # fmt: skip
def test_an_invalid_convnet_is_refused_on_one_line(text):
    with pytest.raises(ConfigError, match="A convnet") as caught:
        ConvSpec(text)
    assert "\n" not in str(caught.value)
