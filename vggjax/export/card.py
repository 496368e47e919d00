"""Write a run's model card: Markdown with the header that model hubs read.

It states what the run recorded: data, splits, figures with their intervals, preprocessing, training
and license. The form is that of Mitchell et al., "Model Cards for Model Reporting"
(arXiv:1810.03993), without the sections that only an author can write.
"""

import json
import os
import re
from pathlib import Path

from vggjax.atomic import check_output_file, write_output
from vggjax.errors import printable
from vggjax.export.description import describe_input, license_of
from vggjax.report.facts import Facts, describe_data, describe_training, short
from vggjax.report.run_files import RunFiles, read_run
from vggjax.training.run_dir.run_result import ModelInfo, read_info

MAX_ROWS = 20
"""Classes in the table, those with the lowest F1."""


def write_card(
    run: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    license: str | None = None,
) -> Path:
    """Write the card of an evaluated run and return its path.

    Args:
        run: the run's folder.
        out: the file, .md; None is README.md in the run's folder, where a hub expects it.
        license: the license of the weights; None states what the run records.

    Raises:
        ConfigError: there is no run, it was not evaluated yet, or `out` cannot be written.
        WeightsError: there is no finished model, as in a cross-validation, or it is damaged.
    """
    path = Path(run, "README.md") if out is None else Path(out)
    path = check_output_file(path, field="out", endings=(".md",))
    info = read_info(os.fspath(run))
    text = card_text(read_run(run), info, license=license)
    write_output(path, text.encode("utf-8", "backslashreplace"))
    return path


def card_text(
    files: RunFiles, info: ModelInfo, *, license: str | None = None, address: str | None = None
) -> str:
    """Return the card as Markdown; names are escaped, and folders of this machine left out.

    `address` is that of the repository which the card is for, `hf://user/name`.
    """
    folder = f"{address}" if address else "FOLDER  # the folder of this file"
    data = describe_data(files) | {"Dataset": short(files.config.dataset)}
    training = describe_training(files)
    parts = [
        _header(files, license),
        f"# {info.arch} on {_escaped(data['Dataset'])}",
        f"An image classifier with {len(files.names)} classes, trained with vggjax.",
        "## Evaluation",
        _figures(files),
        _class_table(files),
        "## Data",
        _list_facts(data),
        "## Input",
        f"{describe_input(info, resized=False)}. The preprocessing is part of the saved model.",
        "## Training",
        _list_facts(training),
        "## License",
        _escaped(license or license_of(info)),
        "## Use",
        f"```bash\nvggjax predict PHOTO.jpg --workdir {folder}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _header(files: RunFiles, license: str | None) -> str:
    """Return the YAML header; JSON's strings are YAML's."""
    is_identifier = re.fullmatch(r"[a-z0-9.-]+", license or "")  # such as apache-2.0
    tags = ["jax", "flax", "vgg", files.info["arch"]]
    fields = {
        "library_name": "vggjax",
        "pipeline_tag": "image-classification",
        "tags": tags,
        "license": license if is_identifier else "other",
    }
    lines = [f"{name}: {json.dumps(value)}" for name, value in fields.items()]
    return "\n".join(["---", *lines, "---"])


def _figures(files: RunFiles) -> str:
    evaluation, headline = files.evaluation, files.headline
    low, high = headline.interval
    text = f"On {evaluation['num_examples']:,} {evaluation['split']} images: {headline.name} "
    text += f"**{headline.value:.1%}** (95% interval {low:.1%} to {high:.1%}), "
    text += f"macro F1 {evaluation['macro']['f1']:.1%}, loss {evaluation['loss']:.3f}."
    if evaluation["num_examples"] < 100:
        text += " So few images leave the true figure uncertain: see the interval."
    return text


def _class_table(files: RunFiles) -> str:
    rows = sorted(files.evaluation["per_class"], key=lambda row: (not row["support"], row["f1"]))
    lines = ["| class | F1 | images |", "|---|---|---|"]
    for row in rows[:MAX_ROWS]:
        f1 = f"{row['f1']:.1%}" if row["support"] else "-"
        lines.append(f"| {_escaped(row['name'])} | {f1} | {row['support']:,} |")
    if (more := len(rows) - MAX_ROWS) > 0:
        lines.append(f"\n{more:,} more classes have a higher F1.")
    return "\n".join(lines)


def _list_facts(facts: Facts) -> str:
    return "\n".join(f"- {name}: {_escaped(text)}" for name, text in facts.items())


def _escaped(text: str) -> str:
    """Return printable text whose characters mean nothing in Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", printable(text))
