"""The model card of an exported folder: Markdown with the metadata that the Hugging Face hub reads.

The hub's fields: https://huggingface.co/docs/hub/model-cards. What a model generated and its vocabulary are quoted, so
that no character of them is Markdown or HTML.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from model.checkpoints.file_format import Checkpoint

if TYPE_CHECKING:
    from model.evaluation.report.page import Section  # matplotlib

CARD = "README.md"

_PLAIN = " .,:;()=%/+-'\""  # characters that are no markup inside a paragraph or a cell
_LIMITS = """A recurrent network with a state of fixed size: what was written a few hundred characters ago is mostly
forgotten. It continues text in the manner of its corpus. It knows no facts, follows no instructions, and was not made
safe: it may repeat passages of its corpus, personal data among them, and what is offensive in it. It reads and writes
only the characters in vocab.json. The figures on memorization below say how much of a sample is copied; they prove
nothing about what other samples copy."""
_USE = """With PyTorch and safetensors alone:
```sh
python load_model.py "a prompt"
```
With Longhand, to sample, to measure and to serve it:
```sh
python -m model import FOLDER --promote
python -m model sample "a prompt"
```"""


def render(checkpoint: Checkpoint, sections: Sequence[Section], losses: Mapping[str, float]) -> dict[str, bytes]:
    """Return the files of the card by name: the text, and the pictures of its sections.

    Args:
        checkpoint: The model.
        sections: Those of the report on it, see model.evaluation.report.
        losses: Nats per character by evaluation protocol, that of the checkpoint first.
    """
    config = checkpoint.config
    files: dict[str, bytes] = {}
    kind = "list" if checkpoint.items is not None else "text"
    corpus = f"{_text(checkpoint.corpus or 'its name is not known')}, sha256 `{_text(checkpoint.corpus_sha256)}`"
    by_protocol = {f"{protocol} protocol": f"{nats:.4f} nats per character" for protocol, nats in losses.items()}
    training = {"training": f"{checkpoint.train_loss:.4f} nats per character at step {checkpoint.step:,}"}
    parts = [
        _front_matter(checkpoint, losses),
        f"# A character-level {config.cell} of {config.n_layers} x {config.n_hidden} units",
        f"Trained with Longhand on a {kind}: {corpus}, {_size(checkpoint)}.",
        f"## Use\n\n{_USE}",
        f"## Limits\n\n{_LIMITS}",
        f"## Losses\n\n{_table(by_protocol | training)}",
        f"## Settings\n\n{_table({name: json.dumps(value) for name, value in checkpoint.options.items()})}",
    ]
    for section in sections:
        parts.append(f"## {section.title}")
        if section.text:
            parts.append(_text(section.text))
        if section.rows:
            parts.append(_table(section.rows))
        if section.figure is not None:
            name = re.sub(r"\W+", "-", section.title.lower()) + ".png"
            picture = io.BytesIO()
            section.figure.savefig(picture, format="png", dpi=120, metadata={"Software": None})
            files[name] = picture.getvalue()
            parts.append(f"![{_text(section.caption)}]({name})\n\n{_text(section.caption)}")
        parts += [_quoted(text) for text, _ in section.samples]
    return {CARD: ("\n\n".join(parts) + "\n").encode(), **files}


def _front_matter(checkpoint: Checkpoint, losses: Mapping[str, float]) -> str:
    """Return the metadata in YAML; JSON strings are YAML."""
    corpus = json.dumps(checkpoint.corpus or "not known")
    names = {protocol: json.dumps(f"nats per character ({protocol})") for protocol in losses}
    metrics = [f"    - {{type: loss, value: {n:.4f}, name: {names[protocol]}}}" for protocol, n in losses.items()]
    lines = [
        "---",
        "pipeline_tag: text-generation",
        "library_name: longhand",
        f"tags: [character-level, {checkpoint.config.cell}, recurrent-neural-network]",
        "model-index:",
        f"- name: {json.dumps('longhand ' + checkpoint.fingerprint)}",
        "  results:",
        "  - task: {type: text-generation}",
        f"    dataset: {{type: text, name: {corpus}}}",
        "    metrics:",
        *metrics,
        "---",
    ]
    return "\n".join(lines)


def _size(checkpoint: Checkpoint) -> str:
    if checkpoint.items is not None:
        return f"{checkpoint.items.n_items:,} items, of which {checkpoint.items.n_train:,} were trained on"
    fraction = checkpoint.options.get("val_fraction")
    if not isinstance(fraction, float | int) or not fraction:
        return f"validated on {checkpoint.val_characters:,} characters"
    size = float(f"{(checkpoint.val_characters + 1) / fraction:.3g}")
    return f"about {size:,.0f} characters, of which the last {fraction:.0%} validated it"


def _table(rows: Mapping[str, str]) -> str:
    lines = ["| | |", "|---|---|", *(f"| {_text(name)} | {_text(value)} |" for name, value in rows.items())]
    return "\n".join(lines)


def _text(value: str) -> str:
    """Return plain text as Markdown that shows it: whatever might be markup is a character reference."""
    displayed = "".join(c if c.isprintable() else " " for c in value)
    return "".join(c if c.isalnum() or c in _PLAIN else f"&#{ord(c)};" for c in displayed)


def _quoted(text: str) -> str:
    """Return a text as a block of code, in a fence that is longer than any in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    displayed = "".join(c if c == "\n" or c.isprintable() else "\ufffd" for c in text)
    return f"{fence}text\n{displayed}\n{fence}"
