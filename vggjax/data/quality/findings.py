"""Findings of `vggjax doctor`: the table of kinds, and the findings of one dataset.

A problem harms training or evaluation: the command exits with 2. A remark is good to know. `KINDS`
lists every kind in the order of the output.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vggjax.data.quality.duplicates import Duplicates
from vggjax.data.sources.source import Source


class Kind(NamedTuple):
    """A kind of finding."""

    level: str
    """`problem` or `remark`."""
    title: str
    meaning: str


KINDS = {
    "refused": Kind("problem", "Training refuses it", "training stops at once with this error"),
    "layout": Kind("problem", "Folder layout", "the class folders may not be the classes"),
    "masks": Kind("problem", "Masks", "images that mark regions of other images"),
    "combined_labels": Kind("problem", "Combined labels", "several labels in a cell"),
    "passed_over": Kind("problem", "Images passed over", "by formats or endings that are not read"),
    "empty_class": Kind("problem", "Empty classes", "class folders without images"),
    "missing": Kind("problem", "Missing files", "named by a CSV, or the target of a link"),
    "empty_file": Kind("problem", "Empty files", "zero bytes"),
    "truncated": Kind("problem", "Truncated images", "the end of the file is missing"),
    "corrupt": Kind("problem", "Corrupt images", "they cannot be decoded"),
    "damaged": Kind("problem", "Damaged images", "they decode, but to garbage from some row on"),
    "blank": Kind(
        "problem", "Images of one color", "drawings in the color of the `background`: give another"
    ),
    "dark": Kind("problem", "Dark images", "saved in another range than 0 to 255"),
    "not_an_image": Kind("problem", "Not images", "other content with an image's extension"),
    "unsupported": Kind("problem", "Unsupported formats", "save them as JPEG or PNG"),
    "too_large": Kind("problem", "Too large to decode", "too many pixels, bytes or scans"),
    "no_permission": Kind("problem", "No permission", "this user may not read them"),
    "not_a_file": Kind("problem", "Not files", "folders, pipes or devices"),
    "unreadable": Kind("problem", "Unreadable files", "the disk or the dataset failed"),
    "label_conflict": Kind("problem", "Label conflicts", "one image with two labels"),
    "leaked": Kind("problem", "Leaked images", "one image in two of the official splits"),
    "kin": Kind("problem", "Groups across splits", "images of one group in several splits"),
    "exact_duplicate": Kind("problem", "Exact duplicates", "the pixels of an earlier image"),
    "near_duplicate": Kind(
        "problem", "Near-duplicates", "re-encoded, resized, cropped, or a burst"
    ),
    "turned_copy": Kind(
        "problem", "Mirrored or rotated copies", "as augmentation before the split leaves them"
    ),
    "tiny": Kind("problem", "Tiny images", "a side below 32 px, unlike most images here"),
    "extreme_aspect": Kind("problem", "Extreme aspect ratios", "more than 4 to 1"),
    "imbalance": Kind("problem", "Class imbalance", "10 to 1 or more: use balanced class weights"),
    "misnamed": Kind("remark", "Misnamed files", "the content has another format than the name"),
    "loose": Kind("remark", "Without a class", "images next to the class folders, skipped"),
    "unlabeled": Kind("remark", "Unlabeled folders", "not used for training"),
    "measurements": Kind("remark", "Measurements", "numbers that may not be classes"),
    "small_pictures": Kind("remark", "Small images", "a side below 32 px, as most images here"),
    "uneven": Kind("remark", "Uneven classes", "the largest class is 3 times the smallest"),
    "shortcut": Kind(
        "remark", "Shortcuts", "what tells a class from all others without its content"
    ),
    "adapted": Kind("remark", "Converted images", "converted to 8-bit RGB when decoded"),
    "note": Kind("remark", "Notes", "what else to know"),
}


@dataclass(frozen=True)
class Entry:
    """One case of a finding: an image, images that belong together, or only a text."""

    images: tuple[int, ...] = ()
    """Indices into the source."""
    text: str = ""
    """The reason, the name or the sentence."""
    count: int = 1
    """What it adds to the finding's count."""


@dataclass(frozen=True, eq=False)
class Finding:
    """All cases of one kind."""

    kind: str
    entries: tuple[Entry, ...]

    @property
    def count(self) -> int:
        """Return the number of images, pairs, classes or sentences, depending on the kind."""
        return sum(entry.count for entry in self.entries)

    @property
    def is_problem(self) -> bool:
        """Return whether it is a problem rather than a remark."""
        return KINDS[self.kind].level == "problem"


@dataclass(frozen=True, eq=False)
class Findings:
    """The result of examining a dataset."""

    dataset: str
    """The name given by the user."""
    source: Source | None
    """None without labeled images."""
    duplicates: Duplicates | None
    items: tuple[Finding, ...]
    """In the order of `KINDS`, each kind at most once."""
    weights: np.ndarray | None = None
    """float32 (C,): the balanced class weights that training would use."""

    @property
    def problems(self) -> list[Finding]:
        """Return the findings that harm training or evaluation."""
        return [item for item in self.items if item.is_problem]

    @property
    def remarks(self) -> list[Finding]:
        """Return the findings that are good to know."""
        return [item for item in self.items if not item.is_problem]

    @property
    def exit_code(self) -> int:
        """Return 0 for a clean dataset, 2 for one with problems."""
        return 2 if self.problems else 0

    def of(self, kind: str) -> tuple[Entry, ...]:
        """Return the entries of one kind."""
        return next((item.entries for item in self.items if item.kind == kind), ())

    def classes(self) -> list[dict[str, Any]]:
        """Return each class's `name`, number of `images`, `splits` (name -> size) and `weight`."""
        if self.source is None:
            return []
        parts = self.source.splits or {"": np.arange(len(self.source))}
        names, weights = self.source.class_names, self.weights
        counts = {part: self.source.class_counts(i) for part, i in parts.items()}
        return [
            {
                "name": name,
                "images": sum(int(count[label]) for count in counts.values()),
                "splits": {part: int(count[label]) for part, count in counts.items() if part},
                "weight": None if weights is None else round(float(weights[label]), 6),
            }
            for label, name in enumerate(names)
        ]

    def to_json(self) -> dict[str, Any]:
        """Return everything for `json.dump`; file names may not be valid UTF-8."""
        num_images = 0 if self.source is None else len(self.source)
        num_unreadable = 0 if self.duplicates is None else len(self.duplicates.unreadable)
        return {
            "dataset": self.dataset,
            "exit_code": self.exit_code,
            "images": num_images,
            "readable": num_images - num_unreadable,
            "exact_duplicates": self.duplicates.exact if self.duplicates else 0,
            "near_duplicates": self.duplicates.near if self.duplicates else 0,
            "turned_copies": self.duplicates.turned if self.duplicates else 0,
            "classes": self.classes(),
            "problems": self._items_to_json(self.problems),
            "remarks": self._items_to_json(self.remarks),
        }

    def _items_to_json(self, items: Iterable[Finding]) -> list[dict[str, Any]]:
        return [
            {
                "kind": item.kind,
                "title": KINDS[item.kind].title,
                "count": item.count,
                "entries": [
                    {"text": entry.text, "images": [self._image_to_json(i) for i in entry.images]}
                    for entry in item.entries
                ],
            }
            for item in items
        ]

    def _image_to_json(self, i: int) -> dict[str, Any]:
        source = self.source
        assert source is not None
        path = source.path(i)
        return {
            "id": source.ids[i],
            "path": None if path is None else str(path),
            "label": source.label_text(i),
            "split": str(source.split_of[i]) or None,
        }
