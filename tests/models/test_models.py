"""The network: the cut law for every layer, the published sizes, taps, heads and names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vggjax.errors import ConfigError, WeightsError
from vggjax.models.arch import ARCHS, Arch, get_arch, match_layers
from vggjax.models.head import Head
from vggjax.models.network import VGG
from vggjax.models.params import assign, extract, shapes

HEAD = Head("avg2", (6, 5), 0.4, 3)
TINY = {bn: Arch("tiny", (1, 1, 2, 2, 2), (4, 4, 8, 8, 8), batch_norm=bn) for bn in (False, True)}


def filled(arch, *, make=VGG, **kwargs):
    """A model of numpy's random numbers: jax would compile its own for every shape."""
    model = nnx.eval_shape(lambda: make(arch, **kwargs))
    rng = np.random.default_rng(1)
    weights = {
        # biases and statistics too: zeros and ones would hide a missing term
        layer: {name: rng.uniform(-0.1, 0.3, shape) for name, shape in params.items()}
        for layer, params in shapes(model).items()
    }
    for params in weights.values():
        if "var" in params:
            params["var"] = params["var"] ** 2 + 0.5
    assign(model, weights)
    model.eval()
    return model


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "bn"])
def model(request):
    return filled(TINY[request.param], head=HEAD, image_size=64)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(0, 50, (2, 64, 64, 3)).astype(np.float32)


def test_the_cut_law_holds_for_every_layer(model, images):
    whole = model(images)
    assert float(jnp.abs(whole).max()) > 0
    for layer in model.layers:
        cut = model(model(images, until=layer), after=layer)
        np.testing.assert_array_equal(cut, whole, err_msg=layer)


def test_the_cut_law_holds_in_bfloat16_with_float32_logits(tiny_arch):
    model = VGG(tiny_arch, head=Head.parse("gap-4-3"), image_size=32, dtype=jnp.bfloat16)
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    whole = model(images)
    for layer in model.layers:
        cut = model(model(images, until=layer), after=layer)
        assert cut.dtype == jnp.float32
        np.testing.assert_array_equal(cut, whole, err_msg=layer)


def test_taps_are_what_until_gives(model, images):
    taps = model(images, taps=model.layers)
    assert list(taps) == list(model.layers)
    for layer in model.layers:
        np.testing.assert_array_equal(taps[layer], model(images, until=layer), err_msg=layer)


def test_a_tap_inside_a_slice_is_the_same_as_from_the_images(model, images):
    start = model(images, until="block2_pool")
    tap = model(start, after="block2_pool", taps=("block4_conv1",))["block4_conv1"]
    np.testing.assert_array_equal(tap, model(images, until="block4_conv1"))


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"until": "blok5_pool"}, "Did you mean 'block5_pool'"),
        ({"taps": ("block9_conv1",)}, "block9_conv1"),
        ({"after": "block3_pool", "until": "block1_pool"}, "Nothing to run"),
        ({"until": "block1_pool", "taps": ("block2_conv1",)}, "Nothing to run"),
    ],
)
def test_a_slice_that_is_none_is_refused(model, images, kwargs, words):
    with pytest.raises(ConfigError, match=words):
        model(images, **kwargs)


def count(arch, **kwargs):
    model = nnx.eval_shape(lambda: VGG(arch, **kwargs))
    return sum(
        int(np.prod(shape))
        for params in shapes(model).values()
        for name, shape in params.items()
        if name not in ("mean", "var")
    )


@pytest.mark.parametrize(
    ("arch", "include_top", "parameters"),
    [
        ("vgg16", True, 138_357_544),
        ("vgg16", False, 14_714_688),
        ("vgg19", True, 143_667_240),
        ("vgg19", False, 20_024_384),
        ("vgg11", True, 132_863_336),
        ("vgg13", True, 133_047_848),
        ("vgg16_bn", True, 138_365_992),
    ],
)
def test_parameter_counts_are_the_published_ones(arch, include_top, parameters):
    assert count(arch, include_top=include_top) == parameters


@pytest.mark.parametrize(
    ("head", "image_size", "parameters"),
    [
        ("avg2-128-0.4-5", 200, 590_597),
        ("flatten-131", 100, 603_779),
        ("flatten-256-0.5-1", 224, 6_423_041),
    ],
)
def test_heads_have_the_recipes_parameter_counts(head, image_size, parameters):
    whole = count("vgg16", head=Head.parse(head), image_size=image_size)
    assert whole - 14_714_688 == parameters


@pytest.mark.parametrize("size", [(31, 31), (32, 16), (1, 224)])
def test_a_image_below_32_px_is_refused_with_the_way_out(tiny_arch, size):
    with pytest.raises(ConfigError, match=rf"32 px or more; got {size[0]}x{size[1]} px. Enlarge"):
        filled(tiny_arch)(np.zeros((1, *size, 3), np.float32))
    with pytest.raises(ConfigError, match="32 px or more; got image size 31"):
        VGG(tiny_arch, image_size=31)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 96)])
def test_any_size_from_32_px_runs_without_a_flattening_head(tiny_arch, size):
    model = filled(tiny_arch, head=Head("gap", outputs=2))
    assert model(np.ones((1, *size, 3), np.float32)).shape == (1, 2)


def test_a_flattening_head_names_the_size_that_it_was_built_for(tiny_arch):
    model = filled(tiny_arch, head=Head("flatten", outputs=2), image_size=64)
    with pytest.raises(ConfigError, match="built for 64 px; got 96x96 px"):
        model(np.zeros((1, 96, 96, 3), np.float32))


def test_bfloat16_computes_in_it_and_gives_float32_logits(tiny_arch, images):
    half = filled(tiny_arch, dtype=jnp.bfloat16, head=Head("gap", outputs=3))
    taps = half(images, taps=("block5_pool", "predictions"))
    assert (taps["block5_pool"].dtype, taps["predictions"].dtype) == (jnp.bfloat16, jnp.float32)
    assert {a.dtype for p in extract(half).values() for a in p.values()} == {np.dtype("float32")}


def test_the_model_jits_under_strict_promotion(tiny_arch, images):
    model = filled(tiny_arch, head=Head("gap", outputs=3))
    graph, state = nnx.split(model)
    with jax.numpy_dtype_promotion("strict"):
        jitted = jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, images)
    np.testing.assert_allclose(jitted, model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "text", ["gap-classes", "flatten-256-0.5-1", "avg2-128-0.4-5", "flatten-4096-4096-1000"]
)
def test_a_head_reads_what_it_writes(text):
    assert str(Head.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "gap", "mean-5", "flatten-1.5-2", "gap-x", "flatten-0-5", "gap-0", "gap-0.5"]
)
def test_a_head_that_cannot_be_is_refused(text):
    with pytest.raises(ConfigError):
        Head.parse(text)


def test_match_layers_resolves_blocks_layers_and_globs_in_order():
    layers = get_arch("vgg16").layers()
    assert match_layers(["none"], layers) == ()
    assert match_layers(["all"], layers) == layers
    assert match_layers(["block5_conv3", "block4"], layers) == (
        "block4_conv1", "block4_conv2", "block4_conv3", "block4_pool", "block5_conv3",
    )  # fmt: skip
    assert match_layers(["block?_conv1"], layers) == tuple(f"block{b}_conv1" for b in range(1, 6))


@pytest.mark.parametrize(("pattern", "near"), [("blok5", "block5"), ("block5_conv4", "block5_con")])
def test_match_layers_names_the_nearest(pattern, near):
    with pytest.raises(ConfigError, match=f"Did you mean '{near}"):
        match_layers([pattern], get_arch("vgg16").layers())


def test_every_network_of_the_table_has_five_pools_and_unique_names():
    for arch in ARCHS.values():
        names = arch.layers()
        assert len(set(names)) == len(names)
        assert [name for name in names if name.endswith("pool")] == [
            f"block{block}_pool" for block in range(1, 6)
        ]
    with pytest.raises(ConfigError, match="Did you mean 'vgg16'"):
        get_arch("vgg_16")


def test_assign_lists_every_problem_by_name_and_changes_nothing(tiny_arch):
    model = filled(tiny_arch, head=Head("gap", outputs=2))
    before, weights = extract(model), extract(model)
    weights = {layer: {n: a + 1 for n, a in params.items()} for layer, params in weights.items()}
    del weights["block3_conv1"]["bias"]
    weights["fc9"] = {"kernel": np.zeros((2, 2), np.float32)}
    weights["predictions"]["kernel"] = np.zeros((8, 7), np.float32)
    with pytest.raises(WeightsError) as caught:
        assign(model, weights)
    for words in ("missing: block3_conv1/bias", "unexpected: fc9/kernel",
                  "predictions/kernel is (8, 7), the model has (8, 2)"):  # fmt: skip
        assert words in str(caught.value)
    after = extract(model)
    assert all(np.array_equal(before[k][n], after[k][n]) for k in before for n in before[k])
