"""What parsing a weight file of any format gives: facts about it, and where its arrays lie."""

import io
import os
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vggjax.weights.archive import open_archive
from vggjax.weights.layout import Layout, read_array
from vggjax.weights.tensor_spans import Readable, Span, open_regular

if TYPE_CHECKING:
    from vggjax.models.params import Weights

Plan = dict[str, dict[str, tuple[Span, Layout]]]
"""Layer -> parameter -> array, both in the package's order."""

PREPROCESS_MODES = ("caffe", "torch", "unit")
"""Preprocessing modes (data/images/preprocess.py)."""


@dataclass(frozen=True)
class FileInfo:
    """What a weight file states about itself besides its numbers."""

    kind: str
    """The format, for display, as in "Keras, legacy" or "torchvision safetensors"."""
    metadata: dict[str, str] = field(default_factory=dict)
    """What this package noted when it wrote the file; empty for other files."""
    determined: str | None = None
    """The preprocessing that the file's names, layers or checksum determine."""
    doubt: str = ""
    """Why the preprocessing that these weights expect is uncertain; empty if it is not."""

    @property
    def preprocess(self) -> str:
        """The preprocessing that these weights expect: caffe, torch or unit; Keras' if unknown."""
        stated = self.metadata.get("preprocess")
        return stated if stated in PREPROCESS_MODES else self.determined or "caffe"

    @property
    def states_preprocess(self) -> bool:
        """Whether the file itself determines its preprocessing, by metadata or by what it holds."""
        return self.metadata.get("preprocess") in PREPROCESS_MODES or self.determined is not None

    @property
    def preprocess_doubt(self) -> str:
        """Why the user must say which preprocessing these weights expect; empty if not."""
        noted = self.doubt or self.metadata.get("preprocess_doubt", "")
        return "" if self.states_preprocess else noted


@dataclass(frozen=True)
class ParsedFile:
    """A weight file whose arrays were located and checked, but not read yet."""

    info: FileInfo
    layers: Plan
    left_out: list[str] = field(default_factory=list)
    """A line about what the file holds besides these arrays."""
    packed_member: str | None = None
    """The compressed member of an archive from whose start the spans count."""
    numbers_beside: tuple[Path, ...] = ()
    """Other files that hold numbers; the checksum of the file does not cover them."""

    @property
    def shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Each parameter's shape, `{layer: {parameter: shape}}`."""
        return {
            layer: {
                param: layout.held_shape(span.shape) for param, (span, layout) in arrays.items()
            }
            for layer, arrays in self.layers.items()
        }

    @property
    def notes(self) -> list[str]:
        """A line for each stored type that reading casts to float32, and about what is left out."""
        spans = (span for arrays in self.layers.values() for span, _ in arrays.values())
        casts = Counter(span.type_name for span in spans if span.dtype != "<f4")
        return [
            f"{count} array{'s' * (count > 1)} stored as {kind} became float32"
            for kind, count in sorted(casts.items())
        ] + self.left_out

    def read(self, path: str | os.PathLike, *, layers: Container[str] | None = None) -> "Weights":
        """Read the weights of the file at `path` as float32, by default those of all layers."""
        with open_regular(path) as disk:
            file: Readable = disk
            if self.packed_member:
                with open_archive(disk) as archive:
                    file = io.BytesIO(archive.read(self.packed_member))
            return {
                layer: {param: read_array(file, *array) for param, array in arrays.items()}
                for layer, arrays in self.layers.items()
                if layers is None or layer in layers
            }
