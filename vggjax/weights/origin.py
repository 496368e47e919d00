"""Where weights came from, in words that travel: a file's metadata, and a run's `model.json`.

Each is a plain table of texts. `source_...` is the first file that weights were converted from,
and stays the same however often they are converted again; `weights_...` is what a run started from.
"""

import time
from pathlib import Path

from vggjax.errors import printable
from vggjax.weights.digests import Digests, file_digests
from vggjax.weights.weight_file import Facts, read_facts


def noted_origin(path: Path, digests: Digests, facts: Facts) -> dict[str, str]:
    """Gives the metadata of a file that is made from this one: its own, and where it came from."""
    metadata = facts.metadata | {"preprocess": facts.preprocess}
    if "source_md5" in metadata:
        return metadata
    return metadata | {
        "source": printable(path.name),
        "source_md5": digests.md5,
        "source_sha256": digests.sha256,
        "source_format": facts.kind,
        "source_date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def weights_origin(path: Path) -> dict[str, str]:
    """Says what a run starts from, for its `model.json`.

    Raises:
        WeightsError: the file cannot be read.
    """
    facts, digests = read_facts(path), file_digests(path)
    found = {"weights_sha256": digests.sha256, "weights_format": facts.kind}
    if digests.known_as:
        found["weights_known_as"] = digests.known_as
    kept = ("source", "source_sha256", "source_format", "source_date")
    return found | {f"weights_{key}": facts.metadata[key] for key in kept if key in facts.metadata}
