"""`PredictOptions`: the flags of `vggjax predict`, beside the images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vggjax.data.augment.settings import check_settings, setting
from vggjax.errors import ConfigError, printable

_NOT_CSV = (".xlsx", ".xlsm", ".xls", ".ods", ".feather", ".json", ".jsonl", ".npz")
"""Endings of tables that are not text with commas."""

UNKNOWN = "unknown"
"""What an image is called whose most probable class is below the threshold."""

Tta = Literal["none", "flip"]
"""Test-time augmentation: `flip` is the mean of the probabilities of an image and its mirror."""


@dataclass(frozen=True)
class PredictOptions:
    """Which model predicts, how, and where the predictions go."""

    workdir: str | None = None
    """A finished run's folder, or hf://user/name; without it, and without weights, the newest in
    runs/."""
    weights: str | None = None
    """`imagenet` or a file with the published 1000-class top, in place of a run."""
    model: str | None = None
    """The network of the weights, such as vgg16."""
    expect_sha256: str | None = None
    """Refuse weights whose file has another checksum."""
    top: int = setting(5, above=0)
    """Number of classes to print for each image."""
    threshold: float | None = setting(None, above=0, below=1)
    """Call an image `unknown` whose most probable class has a probability below this."""
    tta: Tta = "none"
    """Test-time augmentation: `flip` takes the mean over each image and its mirror image."""
    csv: str | None = None
    """A file to write a row per image to, as it comes; a file that is there is continued. A
    .parquet is written at the end, from the rows in FILE.parquet.csv."""
    probabilities: bool = False
    """A column per class in the CSV in place of the top classes, and in the JSON."""
    json: bool = False
    """Print a JSON object per image, one a line, instead of the table."""
    sort_into: str | None = None
    """A folder to copy the images into, one folder per class."""
    explain: str | None = None
    """A folder to write each image to, beside its Grad-CAM map: what speaks for the class."""

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ConfigError: with the option, what it accepts and the value received.
        """
        check_settings(self)
        name = Path(self.csv or "").name
        if name.lower().endswith(_NOT_CSV):
            raise ConfigError(
                f"`csv` writes text, which {printable(name)!r} is not; give "
                f"{printable(Path(name).stem)}.csv, which spreadsheets open."
            )
        if self.probabilities and self.csv is None and not self.json:
            raise ConfigError("`probabilities` needs `csv` or `json`, which they are written to.")


DEFAULT_PREDICT_OPTIONS = PredictOptions()
