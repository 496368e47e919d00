"""torch's own VGG against ours: the same numbers in, the same logits out, and back bit for bit."""

import numpy as np
import pytest
from torch_models import needs_torch, pictures, run, timm_vgg, torchvision_vgg

from vggjax.models.arch import CONVS, Arch
from vggjax.models.head import Head
from vggjax.weights.convert import convert_file
from vggjax.weights.files import read_facts, read_weights
from vggjax.weights.load import load_pretrained

pytestmark = needs_torch

RELATIVE = 1e-4  # of the largest value: two libraries add in another order
CONVS_TINY, WIDTHS_TINY = (1, 1, 2, 2, 2), (4, 4, 8, 8, 8)
TINY = dict(widths=WIDTHS_TINY, side=2, hidden=6, classes=3)
MAKERS = {"torchvision": torchvision_vgg, "timm": timm_vgg}


def save(model, path):
    """As a user would: the state dict, by torch or by safetensors' own library."""
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


def tiny(style, norm):
    return MAKERS[style](CONVS_TINY, norm=norm, **TINY)


def assert_same_bits(got, want, *, passed_over="num_batches_tracked"):
    assert list(got) == list(want)
    for key in want:
        if passed_over not in key:
            np.testing.assert_array_equal(got[key].numpy(), want[key].numpy(), err_msg=key)


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("style", MAKERS)
def test_a_small_network_computes_as_in_torch(tmp_path, style, norm, ending):
    model = tiny(style, norm)
    path = save(model, tmp_path / f"w{ending}")
    arch = Arch("tiny", CONVS_TINY, WIDTHS_TINY, batch_norm=norm)
    head = Head("flatten", (6, 6), outputs=3)
    ours = load_pretrained(arch, weights=path, include_top=False, head=head, image_size=64)
    images = pictures(3, 64)
    theirs = run(model, images)
    np.testing.assert_allclose(ours(images), theirs, rtol=0, atol=RELATIVE * np.abs(theirs).max())
    assert read_facts(path).preprocess == "torch" and style in read_facts(path).kind


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("style", MAKERS)
def test_there_and_back_torch_loads_it_strictly_and_every_bit_is_the_same(
    tmp_path, style, norm, ending
):
    model = tiny(style, norm)
    save(model, tmp_path / f"a{ending}")
    middle, back = tmp_path / "b.weights.h5", tmp_path / f"c{ending}"
    convert_file(tmp_path / f"a{ending}", middle)
    convert_file(middle, back, layout=style)
    blank = tiny(style, norm)
    assert blank.load_state_dict(load_state(back), strict=True)
    assert_same_bits(blank.state_dict(), model.state_dict())
    assert read_facts(middle).preprocess == "torch"  # also as Keras' layout


def test_what_the_metadata_says_wins_over_the_layout(tmp_path):
    save(tiny("torchvision", False), tmp_path / "a.safetensors")
    convert_file(tmp_path / "a.safetensors", tmp_path / "b.h5")
    for ending in (".pth", ".safetensors", ".keras", ".weights.h5"):
        convert_file(tmp_path / "b.h5", tmp_path / f"c{ending}")
        convert_file(tmp_path / f"c{ending}", tmp_path / "d.h5")
        facts = read_facts(tmp_path / "d.h5")
        assert facts.preprocess == "torch"
        assert facts.metadata["source"] == "a.safetensors", ending
