"""Fetch files from a model hub by their address, `hf://user/name`.

`hf://user/name@revision/file` is the whole form; without a file it is model.safetensors. The hub's
own client keeps the files in its cache, uses its own login, and is an extra. HF_ENDPOINT is another
server with the same interface.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vggjax.errors import ConfigError, WeightsError, printable

PREFIX = "hf://"
WEIGHT_FILE = "model.safetensors"


class Address(NamedTuple):
    """What `hf://user/name@revision/file` names."""

    repo: str
    revision: str | None = None
    file: str | None = None


def is_hub_address(text: object) -> bool:
    """Return whether a text is the address of a repository, or meant as one."""
    return isinstance(text, str) and text.lower().startswith(PREFIX)


def parse_address(text: str) -> Address:
    """Return what an address names; raise ConfigError if it has another form."""
    name = r"\w[\w.-]*"
    match = re.fullmatch(rf"({name}/{name})(?:@([\w.-]+))?(?:/(.+))?", text[len(PREFIX) :])
    if match is None or ".." in text:
        raise ConfigError(
            f"An address of the hub is {PREFIX}user/name, {PREFIX}user/name@revision or "
            f"{PREFIX}user/name/file; got {printable(text)}."
        )
    return Address(*match.groups())


def fetch(text: str, names: Sequence[str]) -> Path:
    """Return a local folder with these files of a repository, all of one revision.

    Raises:
        ConfigError: another form of address, or the hub's client is not installed.
        WeightsError: there is no such repository or file, or it cannot be fetched.
    """
    address, revision = parse_address(text), parse_address(text).revision
    client = hub_client()
    path = Path()
    for name in names:
        try:
            path = Path(
                client.hf_hub_download(
                    address.repo, name, revision=revision, endpoint=os.environ.get("HF_ENDPOINT")
                )
            )
        except Exception as error:  # the client has many, which differ from version to version
            raise WeightsError(_reason(error, text, name), code="E_FILE") from None
        folder = path.parents[name.count("/")]
        revision = folder.name  # snapshots/<commit>
    return folder


def local_path(weights: str | os.PathLike[str]) -> Path:
    """Return the path of a weight file, fetched first if it is an address of the hub.

    Raises:
        ConfigError, WeightsError: as `fetch`.
    """
    if not isinstance(weights, str) or not is_hub_address(weights):
        return Path(weights)
    name = parse_address(weights).file or WEIGHT_FILE
    return fetch(weights, [name]) / name


def hub_client() -> Any:
    """Return the module huggingface_hub; raise ConfigError if it is not installed."""
    try:
        import huggingface_hub
    except ImportError:
        raise ConfigError(
            "A model hub needs huggingface_hub, which is not installed: pip install "
            '"vggjax[hub]", or pip install huggingface_hub.'
        ) from None
    return huggingface_hub


def _reason(error: Exception, text: str, name: str) -> str:
    kind, where = type(error).__name__, printable(text)
    if kind == "RepositoryNotFoundError":
        return (
            f"There is no repository {where}, or it is private and this machine is not logged in: "
            "hf auth login."
        )
    if kind == "GatedRepoError":
        return f"{where} asks for consent on its page first, and for a login: hf auth login."
    if kind == "RevisionNotFoundError":
        return f"{where} has no such revision."
    if kind in ("EntryNotFoundError", "RemoteEntryNotFoundError"):
        return (
            f"{where} has no {name}. A run is pushed by vggjax push; another weight file is "
            f"named in the address, as in {PREFIX}user/name/FILE."
        )
    if kind == "LocalEntryNotFoundError":
        return f"{where} cannot be reached, and {name} is not in the cache of this machine."
    return f"{where} cannot be fetched: {kind}: {first_line(error)}"


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, printable."""
    return printable((str(error).strip().splitlines() or ["no reason given"])[0])
