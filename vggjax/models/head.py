"""The classifier on top of the convolutional base, as a small frozen spec with a text form.

`flatten-256-0.5-5` reads: flatten the feature map, one hidden layer of 256, dropout 0.5 after it, 5
outputs. `avg2` averages 2x2 windows first, `gap` averages the whole map. One output is a sigmoid
unit for two classes, more are a softmax; the model itself gives logits. Keras' published top is
`flatten-4096-4096-1000`. No jax here: vgg.py builds the layers.
"""

from dataclasses import dataclass, replace

from vggjax.errors import ConfigError

POOLINGS = {"flatten": ("flatten",), "avg2": ("avg2", "flatten"), "gap": ("gap",)}
"""Each pooling's layers: they have no parameters and are named as they work."""


@dataclass(frozen=True)
class Head:
    """What stands on the last pooling; `outputs` None waits for the number of classes."""

    pooling: str = "gap"
    hidden: tuple[int, ...] = ()
    dropout: float = 0.0
    outputs: int | None = None

    def __post_init__(self) -> None:
        """Refuses what cannot be built."""
        text = f"pooling={self.pooling!r}, hidden={self.hidden}, outputs={self.outputs}"
        if self.pooling not in POOLINGS:
            raise ConfigError(f"A head pools by {', '.join(POOLINGS)}; got {text}.")
        if any(width < 1 for width in self.hidden) or (
            self.outputs is not None and self.outputs < 1
        ):
            raise ConfigError(f"A head's widths and outputs are whole numbers from 1; got {text}.")
        if self.dropout and not 0.001 <= self.dropout <= 0.999:
            raise ConfigError(f"A head's dropout is 0, or 0.001 to 0.999; got {self.dropout}.")

    @classmethod
    def parse(cls, text: str) -> "Head":
        """Reads POOLING[-WIDTH ...][-DROPOUT]-OUTPUTS, where OUTPUTS may be the word `classes`.

        Raises:
            ConfigError: the text does not have that form.
        """
        pooling, *middle = text.split("-")
        if pooling not in POOLINGS or not middle:
            raise ConfigError(_form(text))
        *middle, last = middle
        dropout = 0.0
        if middle and "." in middle[-1]:
            *middle, rate = middle
            try:
                dropout = float(rate)
            except ValueError:
                raise ConfigError(_form(text)) from None
        if not all(word.isdecimal() for word in middle) or not (
            last == "classes" or last.isdecimal()
        ):
            raise ConfigError(_form(text))
        outputs = None if last == "classes" else int(last)
        return cls(pooling, tuple(int(word) for word in middle), dropout, outputs)

    def __str__(self) -> str:
        """Gives the text form that `parse` reads."""
        words = [self.pooling, *map(str, self.hidden)]
        words += [str(self.dropout)] if self.dropout else []
        return "-".join([*words, "classes" if self.outputs is None else str(self.outputs)])

    def for_classes(self, num_classes: int) -> "Head":
        """Fills in the outputs for a dataset; a spec that names a number must agree with it.

        Raises:
            ConfigError: the spec's outputs do not fit; one sigmoid unit fits two classes.
        """
        if self.outputs is None:
            return replace(self, outputs=num_classes)
        if self.outputs == num_classes or (self.outputs == 1 and num_classes == 2):
            return self
        raise ConfigError(
            f"The head {str(self)!r} has {self.outputs} outputs, but the data has {num_classes} "
            f"classes. Write it as {str(replace(self, outputs=None))!r}, and the data decides."
        )

    def layers(self) -> tuple[str, ...]:
        """Names the head's layers in order: the pooling's, `fc1`, `fc2` ..., `predictions`."""
        hidden = (f"fc{i}" for i in range(1, len(self.hidden) + 1))
        return (*POOLINGS[self.pooling], *hidden, "predictions")

    def dropout_rates(self) -> dict[str, float]:
        """Maps the layers behind which units are dropped to the rate.

        These are the hidden layers, or the pooled features where there is none.
        """
        hidden = [name for name in self.layers() if name.startswith("fc")]
        names = hidden or POOLINGS[self.pooling][-1:]
        return dict.fromkeys(names, self.dropout) if self.dropout else {}

    def num_features(self, size: int, channels: int) -> int:
        """Counts what the first dense layer takes from a (size, size, channels) feature map."""
        side = {"flatten": size, "avg2": size // 2, "gap": 1}[self.pooling]
        return side * side * channels


PUBLISHED_TOP = Head("flatten", (4096, 4096), outputs=1000)
"""Keras' `include_top=True`. The paper's dropout 0.5 has no place in Keras' models either."""


def _form(text: str) -> str:
    return (
        f"A head is written POOLING[-WIDTH ...][-DROPOUT]-OUTPUTS, pooling {', '.join(POOLINGS)}, "
        f"dropout with its point, outputs a number or 'classes', as in flatten-256-0.5-classes; "
        f"got {text!r}."
    )
