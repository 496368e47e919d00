"""Arrays are read in blocks, cast and transposed without losing a number."""

import numpy as np
import pytest

from vggjax.errors import WeightsError
from vggjax.weights.layout import (
    AS_IS,
    CONV,
    DENSE,
    TensorToWrite,
    flattened,
    read_array,
    whole_map,
)
from vggjax.weights.parsed_file import FileInfo, ParsedFile
from vggjax.weights.tensor_spans import BLOCK_BYTES, Span, to_float32

LONG = BLOCK_BYTES // 8 // 36  # two outputs of (LONG, 6, 6) fill more than one block
LAYOUTS = {
    "as is": (AS_IS, (3, 36 * LONG)),
    "conv": (CONV, (3, LONG, 6, 6)),
    "dense": (DENSE, (3, 36 * LONG)),
    "flattened": (flattened(LONG), (3, 36 * LONG)),
    "whole map": (whole_map(6), (3, LONG, 6, 6)),
}


def expected(name, stored):
    """The held array, by the definition of each layout."""
    out, channels = stored.shape[0], LONG
    if name == "as is":
        return stored
    if name == "dense":
        return stored.T
    hwio = stored.reshape(out, channels, 6, 6).transpose(2, 3, 1, 0)  # from OIHW
    return hwio if name == "conv" else hwio.reshape(-1, out)


@pytest.mark.parametrize(("name", "dtype"), [*((name, "<f4") for name in LAYOUTS), ("conv", ">f8")])
def test_blocks_of_a_large_array_are_put_together_in_both_directions(tmp_path, name, dtype):
    layout, shape = LAYOUTS[name]
    stored = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    path, offset = tmp_path / "array", 7
    path.write_bytes(bytes(offset) + stored.astype(dtype).tobytes())
    with open(path, "rb", buffering=0) as file:
        held = read_array(file, Span("array", shape, dtype, offset), layout)
    assert held.shape == layout.held_shape(shape) and held.dtype == np.float32
    np.testing.assert_array_equal(held, expected(name, stored))
    assert layout.stored_shape(held.shape) == shape
    blocks = np.concatenate(
        [block.ravel() for block in TensorToWrite("array", held, layout).blocks()]
    )
    np.testing.assert_array_equal(blocks, stored.ravel())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300, -1e300])
def test_a_value_that_is_not_finite_as_float32_is_refused_and_counted(value):
    array = np.array([[1.0, value], [value, 2.0]])
    count = "2 NaN and 0 infinite" if np.isnan(value) else "0 NaN and 2 infinite"
    with pytest.raises(WeightsError, match=f"fc1 .*{count} as float32, of 4") as caught:
        to_float32(array, "fc1")
    assert caught.value.code == "E_NONFINITE"


def test_every_cast_is_noted_once_with_its_number_of_arrays():
    dtypes = ("<f4", "<f2", ">f4", "<f2")
    layer = {str(i): (Span("a", (2,), dtype), AS_IS) for i, dtype in enumerate(dtypes)}
    assert ParsedFile(FileInfo("h5"), {"layer": layer}, left_out=["1 unlisted"]).notes == [
        "1 array stored as big-endian float32 became float32",
        "2 arrays stored as float16 became float32",
        "1 unlisted",
    ]


def test_a_span_beyond_the_end_of_the_file_is_refused(tmp_path):
    (tmp_path / "array").write_bytes(bytes(100))
    with open(tmp_path / "array", "rb", buffering=0) as file:
        with pytest.raises(WeightsError) as caught:
            read_array(file, Span("array", (26,), "<f4", 0), AS_IS)
    assert caught.value.code == "E_TRUNCATED"
