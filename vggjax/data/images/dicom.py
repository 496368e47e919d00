"""Decode DICOM images with pydicom, an optional dependency: `pip install 'vggjax[dicom]'`.

Gray values are rescaled (slope and intercept, or the modality table), then shown through the file's
window or VOI table, and inverted for MONOCHROME1, as a viewer shows them. A `pixel_range` replaces
the window: Hounsfield units from -1000 to 400, say. A file without a window uses all its bits.
Palettes and YBR become RGB. Of several frames the first is used.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image, ImageChops

from vggjax.data.images.depth import scale
from vggjax.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

WINDOW, INVERTED = "window of the DICOM file applied", "inverted DICOM image (MONOCHROME1)"
BITS = "DICOM scaled to 8 bits"

_DEFLATED = b"1.2.840.10008.1.2.1.99"
"""The transfer syntax that packs the whole file: its size is unknown before it is unpacked."""


class DicomImage(NamedTuple):
    """A DICOM image of 8 bits."""

    image: Image.Image
    """Of mode L or RGB."""
    extent: tuple[float, float] | None
    """Lowest and highest gray number, where neither the file nor a pixel range says what is shown;
    None elsewhere."""
    notes: tuple[str, ...]
    has_more_frames: bool


def is_dicom(data: bytes) -> bool:
    """Return whether bytes are a DICOM file, which begins with 128 bytes of anything."""
    return data[128:132] == b"DICM"


def read_dicom(data: bytes) -> "Dataset":
    """Read a DICOM file, its pixels not decoded yet.

    Raises:
        DataError: pydicom is not installed, or the file has no image that it can decode.
    """
    try:
        import pydicom
        from pydicom.pixels import get_decoder
    except ImportError:
        raise DataError("unsupported: DICOM needs pydicom: pip install 'vggjax[dicom]'") from None
    if _DEFLATED in data[:1024]:
        raise DataError("unsupported: DICOM packed as a whole (deflated); save it uncompressed")
    dataset = pydicom.dcmread(io.BytesIO(data))
    if "PixelData" not in dataset or "Rows" not in dataset or "Columns" not in dataset:
        raise DataError("unsupported: a DICOM file without an image")
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax) if syntax.is_compressed else None
    except NotImplementedError:
        raise DataError(f"unsupported: DICOM compressed as {syntax.name}") from None
    if decoder is not None and not decoder.is_available:
        raise DataError(_needs_plugin(syntax.name))
    return dataset


def _needs_plugin(compression: str) -> str:
    packages = "pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
    return f"unsupported: DICOM compressed as {compression}; for it, pip install {packages}"


def render_dicom(dataset: "Dataset", pixel_range: tuple[float, float] | None) -> DicomImage:
    """Decode the first frame and show it as its window, or `pixel_range`, says."""
    from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array

    try:
        pixels = pixel_array(dataset, index=0)
    except Exception as error:
        if "does not support" in str(error):
            raise DataError(_needs_plugin(dataset.file_meta.TransferSyntaxUID.name)) from None
        if "less than expected" in str(error):
            raise DataError("truncated") from None
        raise
    has_more_frames = int(dataset.get("NumberOfFrames") or 1) > 1
    photometric, bits = dataset.PhotometricInterpretation, int(dataset.BitsStored)
    if photometric == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
        bits = 8 * pixels.dtype.itemsize
    if pixels.ndim == 3:
        pixels = (pixels >> max(0, bits - 8)).astype(np.uint8)
        return DicomImage(Image.fromarray(pixels), None, (), has_more_frames)
    notes: tuple[str, ...] = (WINDOW,)
    extent = None
    numbers = apply_modality_lut(pixels, dataset)
    levels = None if pixel_range else _apply_window(numbers, dataset)
    if levels is not None:
        image = Image.fromarray(levels)
    else:
        lowest = -(2 ** (bits - 1)) if dataset.PixelRepresentation else 0
        ends = apply_modality_lut(np.array([lowest, lowest + 2**bits - 1]), dataset)
        scaled = scale(numbers, pixel_range or tuple(sorted(ends.tolist())), BITS)
        image, notes = scaled.image, (BITS,)
        extent = None if _has_window(dataset) else scaled.extent
    if photometric == "MONOCHROME1":
        image, notes = ImageChops.invert(image), (*notes, INVERTED)
    return DicomImage(image, extent, notes, has_more_frames)


def _has_window(dataset: "Dataset") -> bool:
    has_both = "WindowCenter" in dataset and "WindowWidth" in dataset
    return bool(dataset.get("VOILUTSequence")) or (has_both and _first(dataset.WindowWidth) > 0)


def _apply_window(numbers: np.ndarray, dataset: "Dataset") -> np.ndarray | None:
    """Apply the VOI table or the first window (PS3.3 C.11.2), to uint8; None without either."""
    if not _has_window(dataset):
        return None
    if dataset.get("VOILUTSequence"):
        from pydicom.pixels import apply_voi

        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return (apply_voi(numbers.astype(np.int64), dataset) >> max(0, bits - 8)).astype(np.uint8)
    center, width = _first(dataset.WindowCenter), _first(dataset.WindowWidth)
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    if function == "SIGMOID":
        shares = 1 / (1 + np.exp(np.clip(-4 * (numbers - center) / width, -700, 700)))
    elif function == "LINEAR":
        shares = (numbers - (center - 0.5)) / max(width - 1, 1e-6) + 0.5
    else:
        shares = (numbers - center) / width + 0.5
    return np.rint(np.clip(shares, 0, 1) * 255).astype(np.uint8)


def _first(value: Any) -> float:
    """Return a number, or the first of several alternatives."""
    return float(value[0] if isinstance(value, Sequence) else value)
