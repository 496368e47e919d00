"""Push a run's classifier to a model hub: the weights, model.json, and the model card.

Names of folders and images of this machine are left out of what is pushed; the weights' digest is
that of the pushed file. What is pushed is what `hf://user/name` loads.
"""

import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from vggjax.errors import ConfigError, VggjaxError, printable
from vggjax.export.card import card_text
from vggjax.report.facts import short
from vggjax.report.run_files import read_run
from vggjax.training.run_dir.run_result import ModelInfo, load_model, save_model
from vggjax.weights.hub.fetch import PREFIX, first_line, hub_client

_MESSAGE = "Upload a classifier trained with vggjax"


class Pushed(NamedTuple):
    """Where a run was pushed to."""

    url: str
    address: str
    """What loads it: `hf://user/name`."""
    is_private: bool


def push_run(
    run: str | os.PathLike[str], repo: str, *, public: bool = False, license: str | None = None
) -> Pushed:
    """Push an evaluated run as model.safetensors, model.json and README.md.

    Args:
        run: the run's folder.
        repo: user/name; it is made if there is none, and its files of these names are replaced.
        public: make a new repository public; else only its owner sees it. One that is there keeps
            its visibility.
        license: the license of the weights, for the card.

    Raises:
        ConfigError: another form of `repo`, a run that was not evaluated, or the hub's client is
            not installed.
        WeightsError: there is no finished model, or it is damaged.
        VggjaxError: the hub refuses, or cannot be reached.
    """
    repo = repo.removeprefix(PREFIX)
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo):
        raise ConfigError(f"`repo` is user/name, as in maria/flowers; got {printable(repo)}.")
    api = hub_client().HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="vggjax")
    model, info = load_model(os.fspath(run))
    address = PREFIX + repo
    card = card_text(read_run(run), info, license=license, address=address)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(folder, model, without_places(info))
        (folder / "README.md").write_text(card, "utf-8", "backslashreplace")
        url = _ask(repo, api.create_repo, repo, private=not public, exist_ok=True)
        _ask(repo, api.upload_folder, repo_id=repo, folder_path=name, commit_message=_MESSAGE)
    facts = _ask(repo, api.model_info, repo)
    return Pushed(str(url), address, bool(facts.private))


def print_pushed(pushed: Pushed) -> None:
    """Print where a run is now, who sees it, and the command that uses it."""
    who = "private: only its owner sees it" if pushed.is_private else "public"
    print(f"Pushed   {printable(pushed.url)} ({who})")
    print(f"Predict  vggjax predict PHOTO.jpg --workdir {pushed.address}")


def without_places(info: ModelInfo) -> ModelInfo:
    """Return the info without folders and images of this machine."""
    provenance = {
        name: short(value) if name in ("weights", "dataset", "start_from") else value
        for name, value in info.provenance.items()
    }
    return replace(info, provenance=provenance, left_out={})


def _ask(repo: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Return what a call of the hub's client returns; raise VggjaxError where it fails."""
    try:
        return call(*arguments, **options)
    except Exception as error:  # the client has many, which differ from version to version
        status = getattr(getattr(error, "response", None), "status_code", None)
        hint = f"{type(error).__name__}: {first_line(error)}"
        if status in (401, 403) or type(error).__name__ == "LocalTokenNotFoundError":
            hint = "log in with a token that may write there: hf auth login"
        raise VggjaxError(f"{printable(repo)} cannot be pushed: {hint}.") from None
