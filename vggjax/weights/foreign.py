"""Name the formats of other programs that are not read, each with a line that makes one that is.

The line is for where the other program is installed; what it writes, this package reads.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from vggjax.errors import WeightsError, join_names, printable

_PART = r"\.(index|meta|data-\d{5}-of-\d{5})$"
"""The endings of a checkpoint's files."""

_WEIGHTS = (".onnx", ".pth", ".pt", ".ckpt", ".safetensors", ".npz", ".pb", ".weights.h5", ".keras")


@dataclass(frozen=True)
class Format:
    """A format that is not read."""

    name: str
    line: str
    """What writes a readable file; PATH is the file, or the prefix of a checkpoint."""
    matches: Callable[[str, bytes], object]
    """Called with the file's name and its first 512 bytes."""


CHECKPOINT = Format(
    "a checkpoint of TensorFlow",
    "import numpy, tensorflow as tf; c = tf.train.load_checkpoint(PATH); numpy.savez("
    "'weights.npz', **{k: c.get_tensor(k) for k in c.get_variable_to_shape_map()})",
    lambda name, start: (
        re.search(_PART, name)
        or start.startswith(b"model_checkpoint_path:")
        or (name.endswith(".ckpt") and start.startswith(b"\0\0"))  # from before 2016
    ),
)
SAVED_MODEL = Format(
    "a SavedModel of TensorFlow",
    "import numpy, tensorflow as tf; numpy.savez('weights.npz', **{v.name: v.numpy() for v in "
    "tf.saved_model.load(PATH).variables})",
    lambda name, start: name in ("saved_model.pb", "keras_metadata.pb"),
)
SHARDS = Format(
    "the index of a safetensors file in several parts",
    "import glob, os; from safetensors.numpy import load_file, save_file; save_file({k: a for f in "
    "glob.glob(os.path.join(os.path.dirname(PATH), '*.safetensors')) for k, a in "
    "load_file(f).items()}, 'whole.safetensors')",
    lambda name, start: b'"weight_map"' in start and b".safetensors" in start,
)
FORMATS = (
    CHECKPOINT,
    SAVED_MODEL,
    SHARDS,
    Format(
        "an archive",
        "python -m tarfile -e PATH, and give the weight file in it",
        lambda name, start: start.startswith(b"\x1f\x8b") or start[257:262] == b"ustar",
    ),
    Format(
        "the index of a Keras file in several parts",
        "in Python, model.load_weights(PATH); model.save_weights('whole.weights.h5')",
        lambda name, start: b'"weight_map"' in start and b".h5" in start,
    ),
    Format(
        "the index of a torch file in several parts",
        "import glob, os, torch; torch.save({k: t for f in glob.glob(os.path.join(os.path.dirname("
        "PATH), '*.bin')) for k, t in torch.load(f).items()}, 'whole.pth')",
        lambda name, start: b'"weight_map"' in start,
    ),
    Format(
        "a frozen graph of TensorFlow",
        "import numpy, tensorflow as tf; g = tf.compat.v1.GraphDef.FromString(open(PATH, "
        "'rb').read()); numpy.savez('weights.npz', **{n.name: tf.make_ndarray("
        "n.attr['value'].tensor) for n in g.node if n.op == 'Const'})",
        lambda name, start: name.endswith(".pb"),
    ),
    Format(
        "a MATLAB file of version 7.3",
        "in MATLAB, s = load(PATH); save('old.mat', '-struct', 's', '-v7')",
        lambda name, start: start.startswith(b"MATLAB 7.3"),
    ),
    Format(
        "a MATLAB file",
        "import numpy, scipy.io; layers = scipy.io.loadmat(PATH, squeeze_me=True, "
        "struct_as_record=False)['layers']; numpy.savez('weights.npz', **{l.name + '_' + p: a for "
        "l in layers if hasattr(l, 'weights') for p, a in zip('Wb', l.weights)})",
        lambda name, start: start.startswith(b"MATLAB 5.0"),
    ),
    Format(
        "a model of Caffe",
        "import caffe, numpy; net = caffe.Net('deploy.prototxt', PATH, caffe.TEST); numpy.savez("
        "'weights.npz', **{k + '_' + p: b.data for k, v in net.params.items() for p, b in "
        "zip('Wb', v)})",
        lambda name, start: name.endswith(".caffemodel") or b"\x0bConvolution" in start,
    ),
    Format(
        "a pickled dict of NumPy (.npy)",
        "import numpy; d = numpy.load(PATH, allow_pickle=True, encoding='latin1').item(); "
        "numpy.savez('weights.npz', **{k + '_' + p: a for k, v in d.items() for p, a in "
        "zip('Wb', v)})",
        lambda name, start: start.startswith(b"\x93NUMPY") and b"'|O'" in start,
    ),
    Format(
        "one array of NumPy (.npy) without a name",
        "in Python, numpy.savez('weights.npz', conv1_1_W=numpy.load(PATH), conv1_1_b=...)",
        lambda name, start: start.startswith(b"\x93NUMPY"),
    ),
    Format(
        "a msgpack file of Flax",
        "import pickle; from flax.serialization import msgpack_restore; pickle.dump("
        "msgpack_restore(open(PATH, 'rb').read()), open('weights.pkl', 'wb'))",
        lambda name, start: (
            name.endswith(".msgpack") or re.match(rb"[\x81-\x8f][\xa1-\xbf]", start)
        ),
    ),
)
"""The formats, the first that matches first."""


def refuse_foreign(path: Path, start: bytes) -> None:
    """Refuse a file, by its name and its first bytes, that another program must convert."""
    for entry in FORMATS:
        if entry.matches(path.name.lower(), start):
            raise _error(entry, path, start)


def refuse_zip(path: Path, names: Iterable[str]) -> None:
    """Refuse an archive with these members, if weight files are among them."""
    if inside := [name for name in names if name.endswith(_WEIGHTS)]:
        line = f"python -m zipfile -e PATH ., and give {join_names(map(printable, inside))}"
        raise _error(Format("an archive", line, lambda name, start: True), path)


def refuse_foreign_path(path: Path) -> None:
    """Refuse the folder of a SavedModel or of a file's parts, or the prefix of a checkpoint."""
    if path.is_dir():
        for folder in (path, path.parent):  # or its folder of variables
            if (folder / "saved_model.pb").is_file():
                raise _error(SAVED_MODEL, folder)
    if shards := sorted(path.glob("*.safetensors.index.json")) if path.is_dir() else []:
        raise _error(SHARDS, shards[0])
    if not path.exists() and Path(f"{path}.index").is_file():
        raise _error(CHECKPOINT, path)


def _error(entry: Format, path: Path, start: bytes = b"") -> WeightsError:
    shown = path
    if entry is CHECKPOINT and (path.parent.parent / "saved_model.pb").is_file():
        entry, path = SAVED_MODEL, path.parent.parent  # its variables alone have no names
    elif entry is SAVED_MODEL and not path.is_dir():
        path = path.parent
    elif entry is CHECKPOINT:
        path = Path(re.sub(_PART, "", str(path)))
        if match := re.match(rb'model_checkpoint_path: "([^"]*)"', start):
            path = path.parent / match[1].decode("utf-8", "replace")
    line = entry.line.replace("PATH", repr(printable(path)))
    way_out = "Convert it where the program that wrote it is installed:"
    if line.startswith("import"):
        line = f'python -c "{line}"'
    elif line.startswith("python"):
        way_out = "Unpack it:"
    return WeightsError(
        f"{printable(shown)} is {entry.name}, which is not read. {way_out} {line}",
        code="E_FOREIGN",
    )
