"""Settings of every test: four simulated CPU devices, strict shapes, no GPU, no window.

The environment is set before jax, Keras or matplotlib is imported anywhere.
"""

import atexit
import os
import shutil
import tempfile
import warnings

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["KERAS_BACKEND"] = "tensorflow"  # computes the reference, so not with jax
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
os.environ["MPLBACKEND"] = "Agg"
# Compiling takes most of the tests' time and their programs run for milliseconds: optimize little.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
# The tests compile the same small programs again and again; all test processes share one cache.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="vggjax-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import pytest

from vggjax.models.arch import Arch, register_arch

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
# The convolution's partitioning over devices is a Python callback; its address is not in the key.
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
    """Return Keras on TensorFlow; a plain import, so that the tests fail without it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numpy and protobuf, in their imports
        import keras
        import tensorflow  # noqa: F401 - its warnings come now
    assert keras.backend.backend() == "tensorflow"
    return keras
