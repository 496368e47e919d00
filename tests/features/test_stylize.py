"""`vggjax stylize`, on a small network: the style comes nearer, the content stays."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.image_files import noise, smooth
from support.tiny_run import random_model, write_base

from vggjax.cli.main import main
from vggjax.errors import ConfigError
from vggjax.features import style_loss
from vggjax.features.stylize import stylize

CONTENT, STYLE = smooth(40, 48), noise(36, 36)


@pytest.fixture(scope="module")
def model():
    return random_model("tiny")


@pytest.mark.parametrize("optimizer", ["adam", pytest.param("lbfgs", marks=pytest.mark.slow)])
def test_the_style_comes_nearer_and_the_size_stays(model, optimizer):
    def distance(image):
        return float(style_loss(model, image[None], STYLE[None], mode="caffe")[0])

    options = {"style_weight": 1e4, "steps": 6, "optimizer": optimizer, "mode": "caffe"}
    image = stylize(model, CONTENT, STYLE, **options)
    assert image.shape == CONTENT.shape and image.dtype == np.uint8
    assert distance(image) < 0.95 * distance(CONTENT)


def test_previews_are_written_and_the_last_image_remains(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_base("base.safetensors")
    Image.fromarray(CONTENT).save("content.png")
    Image.fromarray(STYLE).save("style.png")
    written = []
    monkeypatch.setattr(
        "vggjax.features.stylize.write_output", lambda path, data: written.append(data)
    )
    flags = "--model tiny --weights base.safetensors --size 48 --steps 5 --optimizer adam"
    line = f"stylize content.png style.png out.png {flags} --preview-every 2"
    assert main(line.split()) == 0
    assert len(written) == len(set(written)) == 3
    assert "out.png: 48x40 px, 5 steps" in capsys.readouterr().out
    for line, says in (
        ("stylize content.png style.png out.jpg", "out must end in .png"),
        ("stylize content.png style.png style.png", "also read"),
        ("stylize content.png gone.png out.png", "gone.png cannot be used"),
        ("stylize content.png style.png out.png --size 8", "--size must be 32 or more"),
        ("stylize content.png style.png out.png --weights none", "random ones know no style"),
    ):
        assert main(line.split()) == 2
        assert says in capsys.readouterr().err.replace("`", "").replace("--out", "out")
    assert not Path("out.png").exists()


def test_settings_that_cannot_be_used_are_refused(model):
    for settings, says in (
        ({"optimizer": "sgd"}, "lbfgs or adam; got 'sgd'"),
        ({"steps": 0}, "`steps` must be above 0"),
    ):
        with pytest.raises(ConfigError, match=says):
            stylize(model, CONTENT, STYLE, **settings)
