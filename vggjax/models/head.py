"""The classifier on top of the convolutional base, as a small frozen spec with a text form.

`flatten-256-0.5-5` means: flatten the feature map, one hidden layer of 256 units, dropout 0.5 after
it, 5 outputs. `avg2` averages 2x2 windows before flattening, `gap` averages the whole map. `convs2`
and `convs3` are the mean and the maximum over the map of every convolution in the last two or three
blocks, each of unit length: what a linear head needs, since textures are in the middle layers. One
output is a sigmoid unit for two classes, more are a softmax, or a sigmoid unit each if images have
several labels; the model itself returns logits.
Keras' published top is `flatten-4096-4096-1000`. This file imports no jax (see network.py).
"""

from dataclasses import dataclass, replace

from vggjax.errors import ConfigError

POOLED_BLOCKS = {"convs2": 2, "convs3": 3}
"""Poolings of every convolution in the last blocks -> how many blocks."""

POOLINGS = {
    "flatten": ("flatten",),
    "avg2": ("avg2", "flatten"),
    "gap": ("gap",),
    **{name: (name,) for name in POOLED_BLOCKS},
}
"""The layers of each pooling, none of which has parameters."""


@dataclass(frozen=True)
class Head:
    """The layers after the last feature map; `outputs=None` means one per class of the data.

    Raises:
        ConfigError: an unknown pooling, a width or number of outputs below 1, or a dropout rate
            that is neither 0 nor in 0.001 ... 0.999.
    """

    pooling: str = "gap"
    hidden: tuple[int, ...] = ()
    dropout: float = 0.0
    outputs: int | None = None

    def __post_init__(self) -> None:
        """Validate the fields."""
        if self.pooling not in POOLINGS:
            raise ConfigError(f"A head pools by {', '.join(POOLINGS)}; got {self.pooling!r}.")
        widths = (*self.hidden, 1 if self.outputs is None else self.outputs)
        if min(widths) < 1:
            raise ConfigError(f"A head's widths and outputs must be 1 or more; got {widths}.")
        if self.dropout and not 0.001 <= self.dropout <= 0.999:
            raise ConfigError(f"A head's dropout is 0, or 0.001 to 0.999; got {self.dropout}.")

    @classmethod
    def parse(cls, text: str) -> "Head":
        """Parse POOLING[-WIDTH ...][-DROPOUT]-OUTPUTS, where OUTPUTS may be the word `classes`.

        Raises:
            ConfigError: the text does not have that form.
        """
        error = ConfigError(
            f"A head is written POOLING[-WIDTH ...][-DROPOUT]-OUTPUTS, with pooling "
            f"{', '.join(POOLINGS)}, dropout with its decimal point, and outputs a number or "
            f"'classes', as in flatten-256-0.5-classes; got {text!r}."
        )
        pooling, *hidden = text.split("-")
        if pooling not in POOLINGS or not hidden:
            raise error
        outputs, dropout = hidden.pop(), 0.0
        if hidden and "." in hidden[-1]:
            try:
                dropout = float(hidden.pop())
            except ValueError:
                raise error from None
        if not all(word.isdecimal() for word in hidden) or not (
            outputs == "classes" or outputs.isdecimal()
        ):
            raise error
        num_outputs = None if outputs == "classes" else int(outputs)
        return cls(pooling, tuple(map(int, hidden)), dropout, num_outputs)

    def __str__(self) -> str:
        """Return the text form that `parse` reads."""
        words = [self.pooling, *map(str, self.hidden)]
        words += [str(self.dropout)] if self.dropout else []
        return "-".join([*words, "classes" if self.outputs is None else str(self.outputs)])

    def for_classes(self, num_classes: int, *, multilabel: bool = False) -> "Head":
        """Return the head with its outputs set for a dataset of `num_classes`.

        Raises:
            ConfigError: the spec has another number of outputs; 1, a sigmoid unit, fits 2 classes
                of which each image has one.
        """
        if self.outputs is None:
            return replace(self, outputs=num_classes)
        single = self.outputs == 1 and num_classes == 2 and not multilabel
        if self.outputs == num_classes or single:
            return self
        fitting = str(replace(self, outputs=None))
        raise ConfigError(
            f"The head {str(self)!r} has {self.outputs} outputs, but the dataset has {num_classes} "
            f"classes. Write {fitting!r} to take their number from the dataset."
        )

    def layers(self) -> tuple[str, ...]:
        """Return the layer names in order: the pooling's, `fc1`, `fc2` ..., `predictions`."""
        hidden = (f"fc{i}" for i in range(1, len(self.hidden) + 1))
        return (*POOLINGS[self.pooling], *hidden, "predictions")

    @property
    def is_linear(self) -> bool:
        """Whether one dense layer, without dropout, gives the logits of a softmax."""
        return not (self.hidden or self.dropout or self.outputs == 1)

    @property
    def pooled_blocks(self) -> int:
        """How many of the last blocks are pooled; 0 if the head has the last map alone."""
        return POOLED_BLOCKS.get(self.pooling, 0)

    def aliases(self) -> dict[str, str]:
        """Map Caffe's and torchvision's names to the layers, for a head of the published form."""
        if len(self.hidden) != 2:
            return {}
        caffe = {"fc6": "fc1", "relu6": "fc1", "fc7": "fc2", "relu7": "fc2", "fc8": "predictions"}
        return caffe | {
            "classifier.1": "fc1",
            "classifier.4": "fc2",
            "classifier.6": "predictions",
        }

    def dropout_rates(self) -> dict[str, float]:
        """Map each hidden layer, or without any the pooling, to the rate of dropout after it."""
        hidden = [name for name in self.layers() if name.startswith("fc")]
        names = hidden or POOLINGS[self.pooling][-1:]
        return dict.fromkeys(names, self.dropout) if self.dropout else {}

    def num_features(self, size: int, channels: int) -> int:
        """Return the input width of the first dense layer on a (size, size, channels) map.

        Of `convs2` and `convs3`, `channels` are those of all their convolutions.
        """
        if self.pooling in POOLED_BLOCKS:
            return 2 * channels
        side = {"flatten": size, "avg2": size // 2, "gap": 1}[self.pooling]
        return side * side * channels


PUBLISHED_TOP = Head("flatten", (4096, 4096), outputs=1000)
"""Keras' `include_top=True`. Keras' models omit the dropout of 0.5 that the paper trained with."""
