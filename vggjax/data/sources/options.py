"""`DatasetOptions`: how to read a dataset that does not say so itself.

They are settings of a run, so a run folder is opened again with its own, and parameters of
`open_source`. What is left at its default is found in the data, and a note says what was found.
"""

import dataclasses
import re
from dataclasses import dataclass
from typing import Literal

from vggjax.data.augment.settings import check, check_settings, setting
from vggjax.errors import ConfigError


@dataclass(frozen=True)
class DatasetOptions:
    """Where labels and groups come from."""

    task: Literal["multiclass", "multilabel"] = "multiclass"
    """`multiclass`: one label per image; `multilabel`: any number of labels per image, from a CSV
    with several labels in a cell (--label-separator) or a column of 0 and 1 per label."""
    label_from: Literal["folder", "name"] = "folder"
    """The label of an image in a folder: its class folder, or its file name (cat.0.jpg)."""
    label_pattern: str | None = setting(None, non_empty=True)
    """With --label-from name: a regular expression for the file name without its extension, whose
    first group is the label; None is the name without the digits at its end, or at its start. With
    a slash in it, it is for the path: ([^/]+)/[^/]*$ is the folder that holds the image."""
    path_column: str | None = setting(None, non_empty=True)
    """Column of a CSV with the images; None is `path`, or the one column that names files."""
    label_column: tuple[str, ...] = setting(())
    """Column of a CSV with the labels, or several columns of 0 and 1, one per class; by default
    `label`, or the one column, or the columns, that can be it."""
    label_separator: str | None = setting(None, non_empty=True)
    """With --task multilabel: what separates the labels in a cell; None is what the cells
    have."""
    group_column: str | None = setting(None, non_empty=True)
    """Column of a CSV, such as patient_id: images with the same value stay in one split."""
    group_pattern: str | None = setting(None, non_empty=True)
    """A regular expression for the file name without its extension, such as ^(\\w+?)_: images with
    the same first group stay in one split. With a slash in it, it is for the path, such as ^(.*)/
    for images of one folder."""
    background: Literal["white", "black", "gray"] = "white"
    """The color that transparency is laid over; `black` for white drawings."""
    pixel_range: tuple[float, ...] = setting(())
    """LOW HIGH: what becomes black and white in images of more than 8 bits (16-bit, float, DICOM).
    By default the set's own range, if 16 bits leave it fewer than 200 of 256 levels."""

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ConfigError: with the option, what it accepts and the value received.
        """
        check_settings(self)
        ends = self.pixel_range
        holds = not ends or (len(ends) == 2 and ends[0] < ends[1])
        check(self, "pixel_range", holds, "two numbers, the lower one first, as in 0 4095")
        for name in ("label_pattern", "group_pattern"):
            _check_pattern(self, name)
        wanted = "left out unless `label_from` is name"
        check(self, "label_pattern", not self.label_pattern or self.label_from == "name", wanted)
        wanted = "left out unless `task` is multilabel"
        is_multilabel = self.task == "multilabel"
        check(self, "label_separator", not self.label_separator or is_multilabel, wanted)
        wanted = "left out where `group_column` is given"
        check(self, "group_pattern", not (self.group_column and self.group_pattern), wanted)

    def check_only(self, allowed: tuple[str, ...], dataset: str) -> None:
        """Raise ConfigError if an option is given that does not apply to this kind of dataset."""
        for field in dataclasses.fields(DatasetOptions):
            given = getattr(self, field.name) != field.default
            if given and field.name not in (*allowed, *_ANY_OPTIONS):
                known = " and ".join(f"`{name}`" for name in allowed) or "none of these options"
                raise ConfigError(
                    f"`{field.name}` does not apply to {dataset}, which takes {known}."
                )


def _check_pattern(options: DatasetOptions, name: str) -> None:
    pattern = getattr(options, name)
    if pattern is None:
        return
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ConfigError(
            f"`{name}` {pattern!r} is not a regular expression: {error}. Write one with one group, "
            r"as in ^(\w+?)_."
        ) from None
    wanted = r"a regular expression with a group in parentheses, as in ^(\w+?)_"
    check(options, name, groups >= 1, wanted)


_ANY_OPTIONS = ("background", "pixel_range")
"""What applies to any dataset."""

DEFAULT_OPTIONS = DatasetOptions()

CSV_OPTIONS = (
    "task",
    "path_column",
    "label_column",
    "label_separator",
    "group_column",
    "group_pattern",
)
FOLDER_OPTIONS = ("label_from", "label_pattern", "group_pattern")
"""What applies to a CSV, and to a folder; nothing else has options."""
