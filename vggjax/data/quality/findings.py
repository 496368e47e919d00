"""What `vggjax doctor` found: the kinds of findings, and one dataset's.

A problem spoils a training or its figures: the command exits with 2. A remark is good to know. All
kinds and what each means are in one table, `KINDS`, in the order in which they are told.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from vggjax.data.quality.duplicates import Duplicates
from vggjax.data.sources.source import Source


class Kind(NamedTuple):
    """A kind of finding: `problem` or `remark`, its title, and what it means."""

    level: str
    title: str
    meaning: str


KINDS = {
    "refused": Kind("problem", "Training refuses it", "a training ends with this error at once"),
    "empty_class": Kind("problem", "Empty classes", "class folders without an image"),
    "missing": Kind("problem", "Missing files", "a list names them, or a link leads to nothing"),
    "empty_file": Kind("problem", "Empty files", "they have no bytes"),
    "truncated": Kind("problem", "Truncated images", "the end of the file is missing"),
    "corrupt": Kind("problem", "Corrupt images", "they cannot be decoded"),
    "damaged": Kind("problem", "Damaged images", "they decode, but to garbage from some row on"),
    "not_an_image": Kind("problem", "Not images", "something else with an image's ending"),
    "unsupported": Kind("problem", "Unsupported formats", "save them as JPEG or PNG"),
    "too_large": Kind("problem", "Too large to decode", "more pixels, bytes or scans than allowed"),
    "no_permission": Kind("problem", "No permission", "they may not be read"),
    "not_a_file": Kind("problem", "Not files", "folders, pipes or devices"),
    "unreadable": Kind("problem", "Unreadable files", "the disk or the dataset does not give them"),
    "label_conflict": Kind("problem", "Label conflicts", "one image under two labels"),
    "leaked": Kind("problem", "Leaked images", "one image in two of the dataset's splits"),
    "exact_duplicate": Kind("problem", "Exact duplicates", "equal pixels, beyond the first"),
    "near_duplicate": Kind(
        "problem", "Near duplicates", "saved again, resized, cropped, or of one burst"
    ),
    "tiny": Kind("problem", "Tiny images", "below 32 px a side, unlike most here"),
    "extreme_aspect": Kind("problem", "Extreme shapes", "more than 4 times as long as wide"),
    "imbalance": Kind(
        "problem",
        "Imbalance",
        "one class has 10 times as many as another: --class-weights balanced",
    ),
    "misnamed": Kind("remark", "Misnamed files", "of another format than the ending says"),
    "loose": Kind("remark", "Without a class", "images beside the class folders, passed over"),
    "small_pictures": Kind("remark", "Small images", "below 32 px a side, as most here"),
    "uneven": Kind("remark", "Uneven classes", "one class has 3 times as many as another"),
    "adapted": Kind("remark", "Adapted images", "changed to RGB of 8 bits while they are read"),
    "note": Kind("remark", "Notes", "what else to know"),
}


class Entry(NamedTuple):
    """One case: an image, several that belong together, or a name or sentence alone."""

    images: tuple[int, ...] = ()
    """Indices into the source."""
    text: str = ""
    """The reason, or what else there is to say."""


@dataclass(frozen=True, eq=False)
class Finding:
    """All that was found of one kind."""

    kind: str
    count: int
    """Images, pairs or groups, classes or sentences, as the title says."""
    entries: tuple[Entry, ...]

    @property
    def is_problem(self) -> bool:
        """Tells a problem from a remark."""
        return KINDS[self.kind].level == "problem"


@dataclass(frozen=True, eq=False)
class Findings:
    """A dataset's examination."""

    dataset: str
    """As the user called it."""
    source: Source | None
    """None where there is no labeled image."""
    duplicates: Duplicates | None
    items: tuple[Finding, ...]
    """In the order of `KINDS`, each kind once at most."""
    weights: np.ndarray | None = None
    """float32 (C,): what `--class-weights balanced` would use."""

    @property
    def problems(self) -> list[Finding]:
        """Lists what spoils a training or its figures."""
        return [item for item in self.items if item.is_problem]

    @property
    def remarks(self) -> list[Finding]:
        """Lists what is good to know."""
        return [item for item in self.items if not item.is_problem]

    @property
    def exit_code(self) -> int:
        """Gives 0 for a clean dataset, 2 for one with problems."""
        return 2 if self.problems else 0

    def of(self, kind: str) -> tuple[Entry, ...]:
        """Lists the entries of one kind."""
        return next((item.entries for item in self.items if item.kind == kind), ())

    @cached_property
    def split_of(self) -> np.ndarray:
        """Names each image's own split; "" where it has none."""
        assert self.source is not None
        names = np.full(len(self.source), "", "<U5")
        for name, indices in (self.source.splits or {}).items():
            names[indices] = name
        return names

    def counts(self) -> dict[str, np.ndarray]:
        """Counts the images of each class, split -> (C,); "" is the split of a set without."""
        if self.source is None:
            return {}
        parts = self.source.splits or {"": np.arange(len(self.source))}
        labels, classes = self.source.labels, len(self.source.class_names)
        return {name: np.bincount(labels[i], minlength=classes) for name, i in parts.items()}

    def to_json(self) -> dict[str, Any]:
        """Gives everything for `json.dump`; names as they are, which may not be valid UTF-8."""
        source, duplicates = self.source, self.duplicates
        splits = self.split_of if source is not None else ()
        counts = self.counts()

        def image(i: int) -> dict[str, Any]:
            path = source.path(i)
            return {
                "id": source.ids[i],
                "path": None if path is None else str(path),
                "label": source.class_names[source.labels[i]],
                "split": str(splits[i]) or None,
            }

        def plain(items: Iterable[Finding]) -> list[dict[str, Any]]:
            return [
                {
                    "kind": item.kind,
                    "title": KINDS[item.kind].title,
                    "count": item.count,
                    "entries": [
                        {"text": entry.text, "images": [image(i) for i in entry.images]}
                        for entry in item.entries
                    ],
                }
                for item in items
            ]

        classes = []
        for label, name in enumerate(() if source is None else source.class_names):
            own = {split: int(count[label]) for split, count in counts.items()}
            classes.append(
                {
                    "name": name,
                    "images": sum(own.values()),
                    "splits": {split: count for split, count in own.items() if split},
                    "weight": None
                    if self.weights is None
                    else round(float(self.weights[label]), 6),
                }
            )
        return {
            "dataset": self.dataset,
            "exit_code": self.exit_code,
            "images": 0 if source is None else len(source),
            "readable": 0 if source is None else len(source) - len(duplicates.unreadable),
            "exact_duplicates": duplicates.exact if duplicates else 0,
            "near_duplicates": duplicates.near if duplicates else 0,
            "classes": classes,
            "problems": plain(self.problems),
            "remarks": plain(self.remarks),
        }


class Gathered:
    """Findings while they are gathered, kind by kind."""

    def __init__(self) -> None:
        self._entries: dict[str, list[Entry]] = {}
        self._counts: Counter[str] = Counter()

    def add(self, kind: str, text: str = "", *images: int, count: int = 1) -> None:
        """Adds a case that counts for so many."""
        assert kind in KINDS, kind
        self._entries.setdefault(kind, []).append(Entry(images, text))
        self._counts[kind] += count

    def items(self) -> tuple[Finding, ...]:
        """Gives them in the order of `KINDS`."""
        return tuple(
            Finding(kind, self._counts[kind], tuple(self._entries[kind]))
            for kind in KINDS
            if kind in self._entries
        )
