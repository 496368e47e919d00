"""Scan a folder of images: `root/<class>/**`, or `root/{train,validation,test}/<class>/**`.

The scan is sorted and opens no image; an image is recognized by its extension. Classes are
numbered by their sorted names, as in Keras (as strings: "1", "10", "2"). Images in subfolders of a
class folder belong to the class. With `label_from` name, the label is a part of the file name, and
folders other than the splits say nothing.

Split folders are recognized by a word in their names (layout.py); a single folder in one, as in
`seg_train/seg_train/<class>`, is entered. A split other than train without class folders is not
labeled, and not used. Links are followed, but never into an ancestor and never twice into the same
folder. Hidden files, `__MACOSX`, files that are not images and images next to the class folders
are skipped; `Source.notes` mentions those that a user might miss.
"""

import itertools
import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath

from vggjax.data.images.formats import ENDINGS, format_of_content
from vggjax.data.sources.layout import (
    UNLABELED,
    doubt_classes,
    find_label_pattern,
    find_masks,
    find_split_folders,
    first_groups,
    is_unlabeled,
    nearest_class,
    says_nothing,
    split_named,
)
from vggjax.data.sources.listing import (
    ARCHIVES,
    by_ending,
    describe_endings,
    filled_folders,
    has_image,
    list_folder,
    list_subfolders,
    list_tree,
    sort_out,
    visible,
    way_out_of,
    way_to_read,
)
from vggjax.data.sources.options import DEFAULT_OPTIONS, DatasetOptions
from vggjax.data.sources.source import (
    ImageFile,
    Observation,
    Scan,
    make_file_source,
    nearest_path,
)
from vggjax.errors import DataError, join_names, printable

_LAYOUT = "Expected FOLDER/<class>/*.jpg, or FOLDER/{train,validation,test}/<class>/*.jpg."
_TABLES = (".csv", ".tsv", ".jsonl")
_USUAL_SPLITS = ("", "train", "validation", "val", "valid", "test")

MAX_PASSED_OVER = 0.05
"""The fraction of a folder's image files in other formats from which they are a problem."""


MAX_WRAPPERS = 5
"""How many folders with a single folder in them are entered: links may lead in a circle."""


def scan_folder(folder: str | os.PathLike[str], options: DatasetOptions = DEFAULT_OPTIONS) -> Scan:
    """Scan a folder of images, collecting its errors.

    Raises:
        DataError: there is no such folder, or it cannot be listed.
    """
    root = Path(folder).expanduser()
    if root.is_dir():
        return _Scanner(root, options).scan()
    if root.exists():
        way_out = way_out_of([root.name]) or "If it is an archive, unpack it."
        raise DataError(f"{printable(root)} is a file, not a folder. {way_out} {_LAYOUT}")
    near = nearest_path(root, Path.is_dir)
    suggestion = f" Did you mean {near!r}?" if near else ""
    raise DataError(f"There is no folder '{printable(root)}'.{suggestion} {_LAYOUT}")


class _Scanner:
    """One scan of a folder; collects images, errors and what is worth a note."""

    def __init__(self, root: Path, options: DatasetOptions) -> None:
        self.root = root
        self.options = options
        self.files: list[ImageFile] = []
        self.faults: list[str] = []
        self.empty: list[str] = []
        self.loose: list[str] = []
        self.others: list[str] = []
        self.hidden: list[str] = []
        self.passed_over: list[str] = []
        self.imageless: list[str] = []
        self.split_folders: dict[str, str] = {}
        self.pattern = options.label_pattern
        self.notes: list[str] = []
        self.observations: list[Observation] = []

    def scan(self) -> Scan:
        split_folders = self._find_splits()
        if split_folders:
            self.loose += self._list_top("")[1]
        scan_part = self._scan_names if self.options.label_from == "name" else self._scan_classes
        class_names: dict[str, list[str]] = {}
        for folder, split in split_folders or [("", "")]:
            class_names[split] = scan_part(folder, split, class_names.get("train", []))
        if any(name.lower() not in _USUAL_SPLITS for name in self.split_folders.values()):
            text = ", ".join(f"{name} is {folder!r}" for name, folder in self.split_folders.items())
            self.notes.append(f"Split folders: {text}. Give one alone to split it by `split`.")
        self._compare_splits(class_names)
        if self.imageless:
            self.notes.append(f"Skipped folders without images: {join_names(self.imageless)}.")
        self._observe_files()
        filled = {file.label for file in self.files}
        if len(filled) == 1 and not self.faults:
            self._add_single_class(*filled)
        notes = (*self.notes, *(observation.note for observation in self.observations))
        return Scan(
            source=make_file_source(
                self.root.resolve().name,
                tuple(sorted({name for names in class_names.values() for name in names})),
                self.files,
                locate=lambda image_id: self.root / image_id,
                root=self.root,
                notes=notes,
            )
            if filled
            else None,
            faults=tuple(self.faults),
            empty=tuple(self.empty),
            observations=tuple(self.observations),
        )

    def _find_splits(self) -> list[tuple[str, str]]:
        """Return (folder, split) of the split folders, train first; none if all are classes."""
        names = list_subfolders(self.root)
        splits = self._with_likely_splits(find_split_folders(names), names)
        words = [split for split in splits.values() if split != UNLABELED]
        others = [name for name in names if name not in splits]
        if others and not ("train" in words and len(splits) > 1):
            return []
        self._refuse_others(others, [name for name in splits if splits[name] != UNLABELED])
        for split in dict.fromkeys(words):
            same = [name for name in splits if splits[name] == split]
            if len(same) > 1:
                self.faults.append(
                    f"{printable(self.root)} has two folders for one split, {split}: "
                    f"{_quoted(same)}. Rename one to another split, or merge them."
                )
        if splits and "train" not in words:
            self.faults.append(
                f"{printable(self.root)} has {', '.join(names)} but no train folder. {_LAYOUT} To "
                f"split one set of images by `split`, give the folder that contains the class "
                f"folders."
            )
        order = ("train", "val", "test", UNLABELED)
        return sorted(splits.items(), key=lambda item: order.index(item[1]))

    def _with_likely_splits(self, splits: dict[str, str], names: list[str]) -> dict[str, str]:
        """Return the split folders, and those that only their content shows to be such."""
        inside = {name: {*list_subfolders(self.root / name)} for name in names if split_named(name)}
        likely = {
            name: split_named(name)  # train_augmented/<class> beside val/<class>
            for name in inside
            if any(len(inside[name] & inside[x]) > 1 for x in inside if x != name)
        }
        both = likely | splits
        if "train" in both.values() and len({*both.values()}) > 1:
            flat = [name for name in inside if name not in both and not inside[name]]
            return both | dict.fromkeys(flat, UNLABELED)  # test-multiple_fruits/*.jpg
        rest = [name for name in names if name not in inside]
        if len(rest) == 1:  # shapes/<class> beside shapes-test/<class> or unlabeled/*.jpg
            classes = {*list_subfolders(self.root / rest[0])}
            kin = {name: split_named(name) for name in inside}
            if kin and all(
                split == UNLABELED or len(inside[name] & classes) > 1 for name, split in kin.items()
            ):
                if "train" not in kin.values():
                    return kin | {rest[0]: "train"}
                self.faults.append(
                    f"{rest[0]!r} has the class folders of the train folder: call it val or test, "
                    f"or give the train folder alone."
                )
                return kin | {rest[0]: "test"}
        return splits

    def _refuse_others(self, others: list[str], splits: Collection[str]) -> None:
        """Refuse folders with images next to the split folders; note a copy, and empty ones."""
        filled = [name for name in others if has_image(self.root / name)]
        self.imageless += [repr(name) for name in others if name not in filled]
        copies = [name for name in filled if {*splits} <= {*list_subfolders(self.root / name)}]
        if copies:
            self.notes.append(f"Skipped {_quoted(copies)}, with the same split folders: a copy?")
        if rest := [name for name in filled if name not in copies]:
            self.faults.append(
                f"{printable(self.root)} has other folders next to its split folders: "
                f"{_quoted(rest)}. Remove them, or give one of the folders alone."
            )

    def _compare_splits(self, class_names: dict[str, list[str]]) -> None:
        train = class_names.get("train", [])
        for split, names in class_names.items():
            extra = [name for name in names if name not in train]
            if extra and train:
                near = [(name, nearest_class(name, train)) for name in extra]
                hints = [f"{name!r} may be {other!r}" for name, other in near if other]
                hint = f" {join_names(hints, most=5)}." if hints else ""
                self.faults.append(
                    f"The {split} folder of {printable(self.root)} has classes that train lacks: "
                    f"{_quoted(extra)}. Train has {_quoted(train)}.{hint}"
                )

    def _add_single_class(self, name: str) -> None:
        inside = self.root / name  # the top folder of an unpacked archive?
        folders = filled_folders(inside)
        for _ in range(MAX_WRAPPERS):
            if len(folders) == 1:
                inside /= folders[0]
                folders = filled_folders(inside)
        if len(folders) > 1:
            suggestion = f" Did you mean {printable(inside)!r}?"
        else:
            suggestion = self._suggest_labels([file.id for file in self.files])
        rest = f" (without images: {join_names(self.imageless)})" if self.imageless else ""
        self.faults.append(
            f"{printable(self.root)} has only one class, {name!r}{rest}; training needs at least "
            f"2.{suggestion} {_LAYOUT}"
        )

    def _suggest_labels(self, images: list[str]) -> str:
        """Return where the labels of images without class folders may be: their names, a CSV."""
        suggestion = ""
        if found := find_label_pattern(images):
            text = join_names((f"{label} {n}" for label, n in found[1].items()), most=5)
            suggestion = (
                f" The file names give {len(found[1])} classes ({text}): set `label_from` to name."
            )
        folders = [self.root.parent] if find_split_folders([self.root.name]) else []
        files = [folder / name for folder in folders for name in list_folder(folder)[1]]
        tables = _label_tables([*(self.root / name for name in self.others), *files])
        if tables:
            suggestion += f" If a CSV has their labels, give it as `dataset`: {tables}."
        suggestion = suggestion or (
            " To give each image its label, write a CSV with the columns path,label, or set "
            "`label_from` to name and `label_pattern` to where the label is in the file name."
        )
        has_boxes = any(name.lower().endswith(".xml") for name in self.others)
        note = " Boxes of objects in .xml files, as Pascal VOC has them, are not read."
        return note * has_boxes + suggestion

    def _scan_classes(self, folder: str, split: str, train: list[str]) -> list[str]:
        """Collect the images of all class folders in a folder; return the classes' names."""
        below = self._enter(folder, split, train) if split else folder
        top = self.root / below
        names, images, rest = self._list_top(below)
        if split == UNLABELED or (split in ("val", "test") and images and not names):
            self._add_unlabeled(folder)
            return []
        self.split_folders[split] = below
        if names:
            self.loose += images
        else:
            content = "images but no class folders" if images else "no class folders"
            hint = self._suggest_labels(images) if images else self._describe_rest(rest)
            self.faults.append(f"{printable(top)} has {content}.{hint} {_LAYOUT}")
        others = {name: self._scan_class(below, name, split) for name in names}
        filled = {file.label for file in self.files if file.split == split}
        empty = [name for name in names if name not in filled]
        self.empty += [_join(below, name) for name in empty]
        if split in ("val", "test") and filled:  # which may lack a class that train has
            empty = [name for name in empty if name not in train]
        if empty:
            self._refuse_empty(top, {name: others[name] for name in empty}, filled)
        elif split in ("", "train"):
            self._observe_level(below, split)
        return names

    def _describe_rest(self, files: list[str]) -> str:
        """Describe the files of a folder without images, with what can be done with them."""
        if not files:
            return ""
        if any(PurePosixPath(name).name == "dataset_info.json" for name in files):
            return " It is a dataset that tfds prepared: give its tfds name, and `data_dir`."
        return f" It has {describe_endings(self.root, files)}. {way_out_of(files)}".rstrip()

    def _enter(self, folder: str, split: str, train: list[str]) -> str:
        """Return the folder with the class folders: often `folder`, or the only folder in it."""
        for _ in range(MAX_WRAPPERS):
            names, files = list_folder(self.root / folder)
            names = visible(names)
            if len(names) != 1 or names[0] in train or sort_out(files)[0]:
                break
            inner = _join(folder, names[0])
            inside = list_subfolders(self.root / inner)
            # Without folders, or with others than train has, it may be a class itself.
            is_level = len(inside) > 1 if split == "train" else {*inside} & {*train}
            if (
                not is_level
                and not says_nothing(names[0])
                and names[0] != PurePosixPath(folder).name
            ):
                break
            folder = inner
        return folder

    def _scan_class(self, below: str, class_name: str, split: str) -> list[str]:
        """Collect a class's images, sorted by path; return the paths of its other files."""
        images, others = list_tree(self.root, _join(below, class_name))
        self.files += [ImageFile(path, class_name, split, size) for path, size in images]
        self.others += others
        pictures = [
            path
            for _, paths in by_ending(others)
            if format_of_content(self.root / paths[0])
            for path in paths
        ]
        if len(pictures) > MAX_PASSED_OVER * (len(pictures) + len(images)):
            self.passed_over += pictures
        return others

    def _scan_names(self, folder: str, split: str, train: list[str]) -> list[str]:
        """Collect the images in a folder, whose names have their labels; return the labels."""
        images, others = list_tree(self.root, folder)
        self.others += others
        paths = [path for path, _ in images]
        if not self.pattern and (found := find_label_pattern(paths)):
            self.pattern = found[0]
        labels = first_groups(self.pattern, paths) if self.pattern and split != UNLABELED else []
        counts = Counter(labels)
        if not self.options.label_pattern:  # an odd file, rather than a class
            labels = [x if x in train or counts[x] > 1 and not train else "" for x in labels]
        if not any(labels):
            if split in ("", "train"):
                example = f"; the first is {PurePosixPath(paths[0]).name!r}" if paths else ""
                self.faults.append(
                    f"The file names in {printable(self.root / folder)} have no labels{example}. "
                    f"`label_pattern` takes a regular expression whose first group is the label."
                )
            elif images:
                self._add_unlabeled(folder)
            return []
        self.split_folders[split] = folder
        if split in ("", "train"):
            named = "paths" if "/" in (self.pattern or "") else "file names"
            text = join_names(
                (f"{x} {n}" for x, n in sorted(Counter(filter(None, labels)).items())), most=5
            )
            self.notes.append(f"Labels are the {named}' `label_pattern` '{self.pattern}': {text}.")
        for label, (path, size) in zip(labels, images, strict=True):
            if label:
                self.files.append(ImageFile(path, label, split, size))
            else:
                self.loose.append(path)
        return sorted({*labels} - {""})

    def _list_top(self, below: str) -> tuple[list[str], list[str], list[str]]:
        """Return the folders directly below, and the paths of the images and other files there."""
        folders, files = list_folder(self.root / below)
        self.hidden += [_join(below, name) for name in folders if name.startswith(".")]
        images, others = ([_join(below, name) for name in names] for names in sort_out(files))
        self.others += others
        return visible(folders), images, others

    def _refuse_empty(self, top: Path, others: dict[str, list[str]], filled: set[str]) -> None:
        """Refuse class folders without images; `others` are the other files in each."""
        descriptions = [
            f"{name!r}" + (f" ({describe_endings(self.root, paths)})" if paths else "")
            for name, paths in others.items()
        ]
        files = [*itertools.chain(*others.values())]
        pictures = sorted({*files}.intersection(self.passed_over))
        if len(filled) == 1:
            (name,) = filled
            is_all = says_nothing(name) or len(list_subfolders(top / name)) > 1
            if is_all or (files and not pictures):
                self.imageless += descriptions
                return  # one folder holds the images of all classes, the others lists of them
        way_out = "Fill or delete them."
        if pictures:
            way_out = way_to_read(self.root, pictures)
        elif files:
            way_out = f"Move them away if they are no classes. {way_out_of(files)}".rstrip()
        self.faults.append(
            f"{printable(top)} has class folders without images: "
            f"{join_names(descriptions, most=10)}. {way_out} Images are {' '.join(ENDINGS)}."
        )

    def _add_unlabeled(self, below: str) -> None:
        images, others = list_tree(self.root, below)
        if not images:
            return
        path = shlex.quote(printable(self.root / below))
        text = (
            f"{below!r} has {len(images):,} images without class folders, which are not used. To "
            f"classify them after training: vggjax predict {path}"
        )
        tables = [name for name in others if name.lower().endswith((*_TABLES, ".txt"))]
        if tables:
            text += f". If {_quoted(tables)} has their labels, give a CSV with path,label,split"
        self.observations.append(Observation("unlabeled", f"{text}."))

    def _observe_level(self, below: str, split: str) -> None:
        """Note folders that all classes have, and images that are masks of others."""
        start = len(_join(below, ""))
        paths = defaultdict(list)
        for file in self.files:
            if file.split == split:
                paths[file.label].append(file.id[start + len(file.label) + 1 :])
        if len(paths) < 2:
            return
        top = self.root / below
        masks = find_masks(f"{name}/{path}" for name in paths for path in paths[name])
        if found := doubt_classes(str(top), paths):
            is_likely, text = found
            if is_likely or not masks:  # folders of masks are no classes
                self.observations.append(Observation("layout" if is_likely else "note", text))
        if not masks:
            return
        counts = Counter(name.split("/")[0] for name in masks)
        texts = (f"{n:,} of {len(paths[x]):,} in {x!r}" for x, n in counts.items())
        note = (
            f"Images that are masks of others by their names: {join_names(texts, most=3)}, such as "
            f"{_join(below, masks[0])!r}."
        )
        rest = [name for name in paths if counts[name] < len(paths[name])]
        if len(rest) == 1:
            note += (
                f" Give '{printable(top / rest[0])}' alone.{self._suggest_labels(paths[rest[0]])}"
            )
        else:
            note += " Move them out of the dataset."
        self.observations.append(Observation("masks", note))

    def _observe_files(self) -> None:
        """Note the skipped files, sorted, as the disk's order is arbitrary."""
        for paths in (self.hidden, self.loose, self.others):
            paths.sort()
        archives = [name for name in self.others if name.lower().endswith(ARCHIVES)]
        for names, noun, remark in (
            (self.hidden, "hidden folder", ""),
            (self.loose, "image", self._describe_loose()),
            (archives, "archive", ", unpack first"),
        ):
            if names:
                note = (
                    f"Skipped {len(names):,} {noun}{'s' * (len(names) > 1)}{remark}: "
                    f"{join_names(map(repr, names), most=3)}."
                )
                if names is self.loose:
                    self.observations.append(Observation("loose", note, tuple(names)))
                else:
                    self.notes.append(note)
        if self.passed_over:
            text = describe_endings(self.root, self.passed_over)
            way_out = way_to_read(self.root, self.passed_over)
            note = f"Passed over images of other formats or endings: {text}. {way_out}"
            self.observations.append(Observation("passed_over", note))
        beside = _label_tables([self.root / name for name in self.others if "/" not in name])
        if beside and self.files:
            self.notes.append(f"If a CSV has the labels, give it as `dataset`: {beside}.")
        skipped = {*archives, *self.passed_over}
        if rest := [name for name in self.others if name not in skipped]:
            text = describe_endings(self.root, rest)
            self.notes.append(f"Skipped files without an image's extension: {text}.")

    def _describe_loose(self) -> str:
        if self.options.label_from == "name":
            return " whose name has no label"
        return " next to the class folders, without a label"


def _label_tables(files: Iterable[Path]) -> str:
    """List the CSVs among `files` that may have labels."""
    tables = [
        repr(printable(path))
        for path in files
        if path.name.lower().endswith(_TABLES) and not is_unlabeled(path.stem)
    ]
    return join_names(dict.fromkeys(tables), most=3)


def _join(below: str, name: str) -> str:
    return f"{below}/{name}" if below else name


def _quoted(names: Iterable[str]) -> str:
    return join_names(map(repr, names), most=10)
