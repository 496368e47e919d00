"""Recognize from names alone how a folder of images is arranged: splits, labels, levels, masks.

Nothing here opens a file or lists a folder. What is only likely is worded as a question.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import PurePosixPath

from vggjax.data.sources.source import SPLIT_WORDS
from vggjax.errors import join_names

UNLABELED = "unlabeled"
"""The split of images that are there to be classified, not to be trained on."""

_UNLABELED_WORDS = {
    *("pred", "predict", "prediction", "predictions", "infer", "inference"),
    *("unlabeled", "unlabelled", "submission", "submissions"),
}
_FILLERS = {
    *("set", "sets", "data", "dataset", "image", "images", "img", "imgs", "photo", "photos"),
    *("final", "seg", "split", "folder", "part", "x", "px", "full", "raw", "resized", "cropped"),
}
"""Words that may stand beside `train` or `test` in a folder's name."""

_GLUED = re.compile(rf"({'|'.join(SPLIT_WORDS)})(?:{'|'.join(_FILLERS)}|val|s)")
"""`trainset`, `testimages`, `trainval`."""

_MASK_WORDS = {
    *("mask", "masks", "annotation", "annotations", "trimap", "trimaps", "gt", "groundtruth"),
    *("segmentation", "segmentations", "labels", "matte", "mattes"),
}
_MASK_STEM = re.compile(
    r"(?P<image>.*?)[ _.-]*(?:mask|seg|segmentation|gt|trimap|matte|annotation)s?[\W_\d]*"
)
_LOSSLESS = ("png", "bmp", "tif", "tiff", "gif")
"""The formats of masks: JPEG would change their values."""

NAME_PATTERNS = (r"^(.*?[^\W\d_])[\W\d_]*$", r"^[\W\d_]*([^\W\d_].*)$")
"""File name without its extension -> label: without the digits at the end, or at the beginning."""


def find_split_folders(names: Iterable[str]) -> dict[str, str]:
    """Return folder -> train, val, test or unlabeled, for the folders named like a split.

    One word of the name is a split's (`Training`, `seg_test`, `trainset2`), and the others say
    nothing: they are fillers, or stand in the names of several such folders (`asl_train`,
    `asl_test`).
    """
    words = {name: _words(name) for name in names}
    split_of = {name: _split_of_words(words[name]) for name in words}
    used = Counter(word for name in words if split_of[name] for word in {*words[name]})
    known = _FILLERS | SPLIT_WORDS.keys()
    return {
        name: split
        for name, split in split_of.items()
        if split == UNLABELED
        or split
        and all(word in known or used[word] > 1 for word in words[name])
    }


def find_label_pattern(paths: Sequence[str]) -> tuple[str, dict[str, int]] | None:
    """Return the pattern of `NAME_PATTERNS` that finds labels in file names, and label -> count.

    At least two labels of two images each, which are those of nearly all images; otherwise None.
    """
    for pattern in NAME_PATTERNS:
        labels = Counter(first_groups(pattern, paths))
        counts = {label: n for label, n in sorted(labels.items()) if label and n > 1}
        if len(counts) > 1 and sum(counts.values()) >= 0.9 * len(paths):
            return pattern, counts
    return None


def split_named(name: str) -> str:
    """Return the split that a word of a folder's name is of, whatever its other words; or ""."""
    return _split_of_words(_words(name))


def is_unlabeled(name: str) -> bool:
    """Return whether a name is of images without labels, or of a submission."""
    return split_named(name) == UNLABELED


def first_groups(pattern: str, paths: Iterable[str]) -> list[str]:
    """Return the first group of `pattern` in each file's name without extension; "" for none."""
    matches = [re.search(pattern, PurePosixPath(path).stem) for path in paths]
    return [(match[1] or "") if match else "" for match in matches]


def describe_nested(top: str, paths: Mapping[str, Sequence[str]]) -> tuple[bool, str] | None:
    """Describe a class that is a dataset itself, or a copy of this one; as `describe_level`."""
    for name in paths:
        # A train is a vehicle, and coins are valid.
        if {*find_split_folders([name]).values()} & {"test", "val", UNLABELED}:
            if name.lower() != "valid":
                return True, (
                    f"Class {name!r} is named like a split. If it is one, move the other class "
                    f"folders into 'train'; if its images have no labels, move it away."
                )
    for name, inner in paths.items():
        parts = [path.split("/")[:-1] for path in inner]
        for depth in count():
            folders = {path[depth] for path in parts if len(path) > depth}
            where = "/".join([*filter(None, [top]), name, *parts[0][:depth]])
            splits = find_split_folders(folders)
            has_classes = any(path[depth] in splits for path in parts if len(path) > depth + 1)
            if "train" in splits.values() and len(splits) > 1 and has_classes:
                names = join_names(map(repr, sorted(splits)))
                return True, f"Class {name!r} is a dataset itself, with {names}: give {where!r}?"
            if len(copied := sorted(folders & paths.keys())) > 1:
                names = join_names(map(repr, copied), most=3)
                return True, (
                    f"Class {name!r} has folders named like other classes, {names}: is it a copy "
                    f"of the dataset? Move {where!r} away."
                )
            if len(folders) != 1:
                break
    return None


def describe_level(top: str, paths: Mapping[str, Sequence[str]]) -> tuple[bool, str] | None:
    """Describe folders that all classes have and that may be the real classes.

    `paths` maps a class to the paths of its images below its folder, which is in `top`. Returns
    whether it is likely, and a sentence; None if the classes are not all divided in the same way.
    """
    if len(paths) < 2:
        return None
    parts = {name: [path.split("/") for path in inner] for name, inner in paths.items()}
    for depth in count():
        if any(len(path) < depth + 2 for inner in parts.values() for path in inner):
            return None
        folders = [{path[depth] for path in inner} for inner in parts.values()]
        shared, union = set.intersection(*folders), set.union(*folders)
        if len(shared) > 1 and len(shared) >= 0.8 * len(union):
            break
        if len(union) > 1:
            return None
    names = join_names(map(repr, sorted(shared)), most=5)
    if "train" in find_split_folders(shared).values():
        return True, (
            f"Each class folder has the folders {names}: these splits are not used. Move them to "
            f"the top, as in 'train/{min(paths)}'."
        )
    if any({*_words(name)} & (_MASK_WORDS | _FILLERS) for name in shared):
        return None
    tops = [
        "/".join([*filter(None, [top]), name, *inner[0][:depth]]) for name, inner in parts.items()
    ]
    # Of two folders, or numbered ones, each is rather a camera, a side or a day.
    is_likely = not _are_numbered(shared) and (len(shared) > 2 or _are_numbered(parts))
    return is_likely, (
        f"Each class folder has the folders {names}: is the dataset one level too high? If these "
        f"are the classes, give one of {join_names(map(repr, sorted(tops)), most=3)}."
    )


def find_masks(paths: Iterable[str]) -> list[str]:
    """Return the images that are named as another image's mask: `x_mask.png`, `masks/x.png`."""
    candidates: list[tuple[str, str]] = []
    stems = set()
    in_masks: dict[str, bool] = {}
    for path in paths:
        folder, _, name = path.lower().rpartition("/")
        stem, _, ending = name.rpartition(".")
        if folder not in in_masks:
            in_masks[folder] = bool({*_words(path.rpartition("/")[0])} & _MASK_WORDS)
        if (match := _MASK_STEM.fullmatch(stem)) and match["image"]:
            candidates.append((path, match["image"]))
        elif in_masks[folder] and ending in _LOSSLESS:
            candidates.append((path, stem))
        else:
            stems.add(stem)
    masks = [path for path, stem in candidates if stem in stems]
    return masks if len(masks) > 1 else []


def _are_numbered(names: Iterable[str]) -> bool:
    """Return whether names differ in numbers only: `fold_1` and `fold_2`."""
    return len({re.sub(r"[\W\d_]", "", name) for name in names}) == 1


def says_nothing(name: str) -> bool:
    """Return whether a folder's name is no class's: `images`, `data`."""
    words = _words(name)
    return bool(words) and all(word in _FILLERS for word in words)


def _words(name: str) -> list[str]:
    """Split a name into lower-case words without digits: `TestSet_2` is test and set."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return [word.lower() for word in re.findall(r"[^\W\d_]+", text)]


def _split_of_words(words: list[str]) -> str:
    """Return train, val, test or unlabeled; "" for a name of no split, or of several."""
    if _UNLABELED_WORDS & {*words}:
        return UNLABELED
    for i, word in enumerate(words):
        if match := _GLUED.fullmatch(word):
            words[i] = match[1]
    splits = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
    if splits == {"train", "val"}:  # as against `test`
        return "train"
    return splits.pop() if len(splits) == 1 else ""
