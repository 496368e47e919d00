"""Recognize from names alone how a folder of images is arranged: splits, labels, levels, masks.

Nothing here opens a file or lists a folder. What is only likely is worded as a question.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import PurePosixPath

from vggjax.data.sources.source import SPLIT_WORDS
from vggjax.errors import join_names, nearest_name

UNLABELED = "unlabeled"
"""The split of images that are there to be classified, not to be trained on."""

_UNLABELED_WORDS = {
    *("pred", "predict", "prediction", "predictions", "infer", "inference"),
    *("unlabeled", "unlabelled", "submission", "submissions"),
}
_CONTAINERS = {
    *("data", "dataset", "datasets", "image", "images", "img", "imgs", "photo", "photos"),
    *("picture", "pictures", "folder", "folders"),
}
"""Words that name no class."""

_PARTS = {"part", "parts", "batch", "fold", "chunk", "volume", "vol", "archive", "set", "split"}
_FILLERS = (
    _CONTAINERS | _PARTS | {"sets", "final", "seg", "x", "px", "full", "raw", "resized", "cropped"}
)
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

NAME_PATTERNS = (r"^(.*?[^\W\d_])[\W\d_]*$", r"^[\W\d_]*([^\W\d_].*)$", r"^(\d+)[_-]\d+$")
"""File name without its extension -> label: without the digits at the end, or at the beginning, or
the first of two numbers."""


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
        are_splits = counts.keys() <= SPLIT_WORDS.keys()
        if len(counts) > 1 and not are_splits and sum(counts.values()) >= 0.9 * len(paths):
            return pattern, counts
    return None


def split_named(name: str) -> str:
    """Return the split that a word of a folder's name is of, whatever its other words; or ""."""
    return _split_of_words(_words(name))


def is_unlabeled(name: str) -> bool:
    """Return whether a name is of images without labels, or of a submission."""
    return split_named(name) == UNLABELED


def first_groups(pattern: str, paths: Iterable[str]) -> list[str]:
    """Return the first group of `pattern` in each file's name without extension; "" for none.

    A pattern with a slash is searched in the path below the dataset's folder, without extension.
    """
    names = (PurePosixPath(path) for path in paths)
    texts = (str(name.with_suffix("")) if "/" in pattern else name.stem for name in names)
    matches = [re.search(pattern, text) for text in texts]
    return [(match[1] or "") if match else "" for match in matches]


def nearest_class(name: str, names: Iterable[str]) -> str | None:
    """Return which of `names` is spelled like a class but for signs, zeros, or a few letters."""

    def letters(name: str) -> str:
        return re.sub(r"(?<!\d)0+(?=\d)|[\W_]", "", name).casefold()

    same = {letters(other): other for other in names}.get(letters(name))
    if same or re.search(r"\d", name):  # numbered names are all alike
        return same
    return nearest_name(name, names, cutoff=0.8)


_BY_FOLDER = "set `label_from` to name and `label_pattern` to '([^/]+)/[^/]*$'"

Doubt = tuple[bool, str]
"""Whether it is likely, and one sentence."""


def doubt_classes(top: str, paths: Mapping[str, Sequence[str]]) -> Doubt | None:
    """Return why the class folders may not be the classes; None if they look like them.

    `paths` maps two or more classes to the paths of their images below the class folders, which
    are in the folder `top`.
    """
    folders = {name: [path.split("/")[:-1] for path in inner] for name, inner in paths.items()}
    return (
        _doubt_content(top, folders)
        or _doubt_level(top, folders)
        or _doubt_names(folders)
        or _doubt_subfolders(folders)
    )


_Folders = Mapping[str, Sequence[Sequence[str]]]
"""Class -> the names of the folders between the class folder and each of its images."""


def _doubt_names(folders: _Folders) -> Doubt | None:
    """Doubt a class named like a split, and classes numbered like parts of an archive."""
    divided = [name for name, inner in folders.items() if len({x[0] for x in inner if x}) > 1]
    for name in folders:
        is_set = any(map(_GLUED.fullmatch, _words(name))) and {*divided} - {name}  # my_testset
        if not is_set and not _is_split_name(name):
            continue
        return True, (
            f"Class {name!r} is named like a split. If it is one, move the other class folders "
            f"into 'train'; if its images have no labels, move it away."
        )
    if _are_numbered(folders) and {*_words(min(folders))} & (_CONTAINERS | _PARTS):
        if all(len({*map(tuple, inner)}) == 1 for inner in folders.values()):
            return True, (
                f"The class folders {join_names(map(repr, folders), most=3)} are numbered like "
                f"parts of one. If they are, list their images in a CSV with path,label, or put "
                f"them into one folder and set `label_from` to name."
            )
    return None


def _is_split_name(name: str) -> bool:
    """Return whether a name is rather a split's than a class's; a train is a vehicle."""
    splits = {*find_split_folders([name]).values()}
    is_word = name.lower() in ("valid", "dev")
    return bool(splits & {"test", "val", UNLABELED}) and not is_word


def _doubt_content(top: str, folders: _Folders) -> Doubt | None:
    """Doubt a class with split folders, or with folders named like the other classes."""
    for name, inner in folders.items():
        for depth in count():
            names = {path[depth] for path in inner if len(path) > depth}
            where = "/".join([*filter(None, [top]), name, *inner[0][:depth]])
            splits = find_split_folders(names)
            has_classes = any(path[depth] in splits for path in inner if len(path) > depth + 1)
            if "train" in splits.values() and len(splits) > 1 and has_classes:
                text = join_names(map(repr, sorted(splits)))
                return True, f"Class {name!r} is a dataset itself, with {text}: give {where!r}?"
            if len(names) > 1 and says_nothing(name):
                text = join_names(map(repr, sorted(names)), most=5)
                return True, f"Are {text} the classes, rather than {name!r}? Then give {where!r}."
            copied = sorted(names & folders.keys())
            if len(copied) > 1 and not _is_split_name(name):
                text = join_names(map(repr, copied), most=3)
                return True, (
                    f"Class {name!r} has folders named like other classes, {text}: is it a copy "
                    f"of the dataset? Move {where!r} away."
                )
            if len(names) != 1:
                break
    return None


def _doubt_level(top: str, folders: _Folders) -> Doubt | None:
    """Doubt classes that hold the same folders and no images of their own."""
    for depth in count():
        if any(len(path) <= depth for inner in folders.values() for path in inner):
            return None
        names = [{path[depth] for path in inner} for inner in folders.values()]
        shared, union = set.intersection(*names), set.union(*names)
        if len(shared) > 1 and len(shared) >= 0.8 * len(union):
            break
        if len(union) > 1:
            return None
    text = join_names(map(repr, sorted(shared)), most=5)
    if "train" in find_split_folders(shared).values():
        return True, (
            f"Each class folder has the folders {text}: these splits are not used. Move them to "
            f"the top, as in 'train/{min(folders)}'."
        )
    if any({*_words(name)} & (_MASK_WORDS | _CONTAINERS) for name in shared):
        return None
    tops = ["/".join([*filter(None, [top]), x, *folders[x][0][:depth]]) for x in sorted(folders)]
    is_last = all(len(path) == depth + 1 for inner in folders.values() for path in inner)
    by_folder = f", or for all images {_BY_FOLDER}" if is_last else ""
    # Of two folders, or numbered ones, each is rather a camera, a side or a day.
    is_likely = not _are_numbered(shared) and (len(shared) > 2 or _are_numbered(folders))
    is_likely |= _are_ids(folders) and len(folders) > len(shared)
    is_likely |= any(map(_is_split_name, folders))
    return is_likely, (
        f"Each class folder has the folders {text}: is the dataset one level too high? If these "
        f"are the classes, give one of {join_names(map(repr, tops), most=3)}{by_folder}. If "
        f"{join_names(map(repr, sorted(folders)), most=3)} are splits, call them train, val, test."
    )


def _doubt_subfolders(folders: _Folders) -> Doubt | None:
    """Mention folders below the class folders, which may be classes, patients or scenes."""
    paths = [(name, *path) for name, inner in folders.items() for path in inner if path]
    below = {"/".join(path) for path in paths}
    if len(below) <= len(folders):
        return None
    # `a/airfield`, `b/bakery/shop`: an index of the classes by their first letter.
    is_index = all(len(name) == 1 and inner.lower().startswith(name) for name, inner, *_ in paths)
    is_index &= all(map(all, folders.values()))
    return is_index, (
        f"Images of {len(below):,} folders below the class folders, such as {min(below)!r}, count "
        f"for these classes. If each folder is a class, {_BY_FOLDER}; if each is a patient or a "
        f"scene, set `group_pattern` to '^(.*)/'."
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


def _are_ids(names: Iterable[str]) -> bool:
    """Return whether names are numbers with gaps, as those of patients are, unlike classes."""
    numbers = [int(name) if name.isdecimal() else -1 for name in names]
    return min(numbers) >= 0 and max(numbers) - min(numbers) + 1 > 2 * len(numbers)


def says_nothing(name: str) -> bool:
    """Return whether a folder's name is no class's: `images`, `data`."""
    words = {*_words(name)}
    return bool(words) and words <= _CONTAINERS


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
