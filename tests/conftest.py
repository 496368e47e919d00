"""What every test shares: four simulated CPU devices, strict shapes, no GPU, no window.

The environment is set before jax, Keras or matplotlib is imported anywhere.
"""

import atexit
import os
import shutil
import tempfile
import warnings

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["KERAS_BACKEND"] = "tensorflow"  # arithmetic of another library than ours
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
os.environ["MPLBACKEND"] = "Agg"
# The tests compile the same few tiny programs again and again: once a session is enough.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="vggjax-tests-")

import jax
import pytest

from vggjax.models.arch import Arch, register_arch

atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
# The convolution's partitioning over devices is a Python callback: its address is no part of a key.
jax.config.update("jax_remove_custom_partitioning_ptr_from_cache_key", True)

# VGG11's layers: "tiny" runs in milliseconds, "narrow" is just wide enough to learn the digits.
TINY = register_arch(Arch("tiny", (1, 1, 2, 2, 2), (4, 4, 8, 8, 8)))
register_arch(Arch("tiny_bn", TINY.convs, TINY.widths, batch_norm=True))
register_arch(Arch("narrow", TINY.convs, (8, 16, 24, 32, 32)))


@pytest.fixture
def tiny_arch() -> Arch:
    """Return the registered network "tiny"."""
    return TINY


@pytest.fixture(scope="session")
def keras():
    """Keras with TensorFlow's arithmetic; a plain import, so that where it lacks the tests fail."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # their own imports warn of numpy's and protobuf's plans
        import keras
        import tensorflow  # noqa: F401 - all its warnings come now
    assert keras.backend.backend() == "tensorflow"
    return keras
