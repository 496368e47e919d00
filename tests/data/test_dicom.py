"""DICOM: rescaled, windowed and inverted as a viewer does it; refused with the way out."""

import io
import sys

import numpy as np
import pytest

from vggjax.data.images import dicom
from vggjax.data.images.decode import Rendering, read_image
from vggjax.errors import DataError

pydicom = pytest.importorskip("pydicom")

STORED = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def file(pixels: np.ndarray = STORED, **tags) -> bytes:
    """Return a DICOM file of gray pixels, 12 bits of 16, or of RGB."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
        SecondaryCaptureImageStorage,
        "1.2",
    )
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    is_color, bits = pixels.ndim == 3, 8 * pixels.dtype.itemsize
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if is_color else 1
    dataset.PhotometricInterpretation = "RGB" if is_color else "MONOCHROME2"
    dataset.BitsAllocated = bits
    dataset.BitsStored = 8 if is_color else 12
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, 0
    if is_color:
        dataset.PlanarConfiguration = 0
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.tobytes()
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


HOUNSFIELD = {"RescaleSlope": 1, "RescaleIntercept": -1024}
LUNG = {"WindowCenter": [-500, 40], "WindowWidth": [1001, 400]}


def gray(data: bytes, **rendering) -> np.ndarray:
    pixels = read_image(data, Rendering(**rendering)).pixels
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0].astype(int)


def test_the_first_window_is_applied_to_the_rescaled_numbers():
    got = gray(file(**HOUNSFIELD, **LUNG))
    # PS3.3 C.11.2.1.2: ((x - (c - 0.5)) / (w - 1) + 0.5) * 255, clipped.
    shares = (STORED - 1024.0 + 500.5) / 1000 + 0.5
    np.testing.assert_array_equal(got, np.rint(np.clip(shares, 0, 1) * 255))
    image = read_image(file(**HOUNSFIELD, **LUNG))
    assert image.notes == (dicom.WINDOW, "gray made RGB") and image.extent is None


@pytest.mark.parametrize("function", ["LINEAR_EXACT", "SIGMOID"])
def test_other_window_functions_are_pydicom_s(function):
    data = file(**LUNG, **HOUNSFIELD, VOILUTFunction=function)
    dataset = pydicom.dcmread(io.BytesIO(data))
    numbers = pydicom.pixels.apply_modality_lut(dataset.pixel_array, dataset)
    windowed = pydicom.pixels.apply_windowing(numbers, dataset)  # to the range of 12 bits
    np.testing.assert_allclose(gray(data), (windowed + 1024) / 4095 * 255, atol=0.51)


def test_monochrome1_is_inverted():
    plain, inverted = file(**LUNG), file(**LUNG, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(gray(inverted), 255 - gray(plain))
    assert dicom.INVERTED in read_image(inverted).notes


def test_without_a_window_all_bits_count_and_a_range_replaces_any_window():
    np.testing.assert_array_equal(gray(file()), np.rint(STORED / 4095 * 255))
    assert read_image(file(), Rendering(pixel_range=(0, 1000))).extent == (0, 4095)
    expected = np.rint(np.clip(STORED / 1000, 0, 1) * 255)
    for data in (file(), file(**LUNG)):
        np.testing.assert_array_equal(gray(data, pixel_range=(0, 1000)), expected)


def test_color_is_kept():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8)
    image = read_image(file(pixels))
    np.testing.assert_array_equal(image.pixels, pixels)
    assert image.notes == ()


def test_a_compression_that_needs_a_plugin_is_named(monkeypatch):
    data = file()
    jpeg_ls = b"1.2.840.10008.1.2.4.80"
    plain = b"1.2.840.10008.1.2.1\0"
    at = data.index(plain)
    length = len(jpeg_ls).to_bytes(2, "little")
    data = data[: at - 2] + length + jpeg_ls + data[at + len(plain) :]
    with pytest.raises(DataError, match="^unsupported: DICOM compressed as JPEG-LS.*pip install"):
        read_image(data)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(DataError, match=r"^unsupported: DICOM needs .*'vggjax\[dicom\]'"):
        read_image(PLAIN)


PLAIN = file()


def test_a_damaged_or_empty_file_is_refused():
    with pytest.raises(DataError, match="truncated"):
        read_image(PLAIN[:-9])
    with pytest.raises(DataError, match="without an image"):
        read_image(PLAIN[: PLAIN.index(b"\x28\x00\x02\x00")])
