"""Preprocessing, resizing, class names and published addresses against Keras' own functions."""

import inspect
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggjax.data.images.preprocess import INTERPOLATIONS, Preprocessing, load_image, preprocess
from vggjax.data.images.preprocess import resize_image as resize
from vggjax.evaluation import imagenet
from vggjax.evaluation.imagenet import decode_predictions
from vggjax.weights.digests import PUBLISHED

INDEX = Path(imagenet.__file__).with_name("imagenet_class_index.json")


@pytest.fixture(params=["wide.png", "tall.jpg", "small.png", "gray.png"])
def image(request, tmp_path):
    shape = {"wide": (90, 161, 3), "tall": (301, 133, 3), "small": (17, 9, 3), "gray": (50, 60)}
    stem = request.param.split(".")[0]
    rng = np.random.default_rng(len(stem))
    coarse = rng.integers(0, 256, (6, 7, *shape[stem][2:]), np.uint8)
    smooth = Image.fromarray(coarse).resize(shape[stem][1::-1], Image.Resampling.BICUBIC)
    smooth.save(tmp_path / request.param)
    return tmp_path / request.param


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_squashed_image_is_what_keras_load_img_gives(keras, image, interpolation):
    theirs = keras.utils.load_img(image, target_size=(64, 64), interpolation=interpolation)
    spec = Preprocessing(image_size=64, resize="squash", interpolation=interpolation)
    np.testing.assert_array_equal(resize(load_image(image), spec), np.asarray(theirs))


@pytest.mark.parametrize("arch", ["vgg16", "vgg19"])
def test_caffe_is_the_published_networks_preprocess_input(keras, arch):
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    theirs = getattr(keras.applications, arch).preprocess_input(images.astype(np.float32))
    np.testing.assert_array_equal(preprocess(images), theirs)


def test_torch_is_keras_torch_mode(keras):
    from keras.src.applications.imagenet_utils import preprocess_input

    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    theirs = preprocess_input(images.astype(np.float32), mode="torch")
    np.testing.assert_allclose(preprocess(images, mode="torch"), theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("top", [1, 5, 1000])
def test_decode_predictions_is_keras(keras, top, tmp_path, monkeypatch):
    from keras.src.applications import imagenet_utils

    shutil.copy(INDEX, tmp_path / "index.json")
    monkeypatch.setattr(imagenet_utils, "CLASS_INDEX", None)
    monkeypatch.setattr(
        imagenet_utils.file_utils, "get_file", lambda *a, **k: str(tmp_path / "index.json")
    )
    rng = np.random.default_rng(1)
    probs = rng.dirichlet(np.ones(1000), 4).astype(np.float32)
    probs[3] = 1e-3  # all equal: the order of ties is Keras' too
    theirs = keras.applications.vgg16.decode_predictions(probs, top=top)
    assert decode_predictions(probs, top=top) == [[tuple(row) for row in rows] for rows in theirs]


def test_the_table_of_published_files_says_what_keras_says(keras):
    from keras.src.applications import vgg16, vgg19

    for entry in PUBLISHED:
        module = {"vgg16": vgg16, "vgg19": vgg19}[entry.arch]
        theirs = module.WEIGHTS_PATH if entry.include_top else module.WEIGHTS_PATH_NO_TOP
        assert (entry.url, entry.md5 in inspect.getsource(module)) == (theirs, True)
