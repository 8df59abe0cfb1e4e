"""Generate the tables of docs/api.md and docs/settings.md from the code.

    python docs/generate.py           # rewrite the tables (make docs)
    python docs/generate.py --check   # exit with 1 if a table is not current; changes nothing

A table stands between `<!-- generated: NAME -->` and `<!-- end -->`; the text around it is written by hand. NAME is a
key of TABLES. tests/docs/test_reference.py runs the check and compares the addresses in api.md with the application's.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from prometheus_client.core import Metric  # noqa: E402

from model.config import PRESETS, ModelConfig, TrainConfig  # noqa: E402
from model.network.sampling import SamplingParams  # noqa: E402
from service.errors import ServiceError  # noqa: E402
from service.openai.schemas import CompletionRequest  # noqa: E402
from service.operations.metrics import Metrics  # noqa: E402
from service.schemas import (  # noqa: E402
    Body,
    ForkRequest,
    GenerateRequest,
    InspectRequest,
    RetrainRequest,
    ScoreRequest,
)
from service.settings import Settings  # noqa: E402

FILES = ("api.md", "settings.md")
NAMES = {"number": "number", "integer": "integer", "string": "string", "boolean": "boolean"}
BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    lines = [list(header), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def code(value: object) -> str:
    """Return a value as inline code."""
    return f"`{value}`"


def body_table(schema: type[Body]) -> str:
    """Return the fields of a request body: name, type and range, default, description."""
    properties = schema.model_json_schema()["properties"]
    required = set(schema.model_json_schema().get("required", ()))
    sampling = {p.name: f"{'integer' if p.type is int else 'number'}: {p.expected}" for p in SamplingParams.fields()}
    rows = []
    for name, field in properties.items():
        default = "required" if name in required else _default(field.get("default", [] if "items" in field else None))
        rows.append((code(name), sampling.get(name) or _type(field), default, field.get("description", "")))
    return table(("field", "type", "default", "meaning"), rows)


def _default(value: object) -> str:
    words = {None: "none", True: "`true`", False: "`false`"}
    return words[value] if value is None or isinstance(value, bool) else code(_json(value))


def _json(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _type(field: dict[str, Any]) -> str:
    """Return the type and the range of a JSON schema in words."""
    if "anyOf" in field:
        return " or ".join(_type(option) for option in field["anyOf"] if option.get("type") != "null")
    if "enum" in field:
        return ", ".join(code(_json(value)) for value in field["enum"])
    if field.get("type") == "array":
        return f"list of {_items(field['items'])}"
    if field.get("type") == "object":
        values = field.get("additionalProperties") or next(iter(field["patternProperties"].values()))
        return f"object of {_items(values)}"
    if field.get("type", "null") == "null":
        return "object" if "$ref" in field else "null"
    low, above = field.get("minimum"), field.get("exclusiveMinimum")
    high = field.get("maximum")
    limits = [
        f"from {_number(low)}" if low is not None else "",
        f"above {above:,g}" if above is not None else "",
        f"to {_number(high)}" if high is not None else "",
    ]
    return " ".join([NAMES[field["type"]], *filter(None, limits)])


def _items(field: dict[str, Any]) -> str:
    """Return the type of a list's items in the plural; a reference is to a string with limits, or an object."""
    if field.get("type") == "array":
        return f"lists of {_items(field['items'])}"
    return f"{NAMES[field.get('type', 'string')]}s"


def _number(value: float) -> str:
    if abs(value) >= 2**63 - 1:
        return "-2⁶³" if value < 0 else "2⁶³ - 1"
    return f"{int(value):,}" if float(value).is_integer() else f"{value:g}"


def errors_table() -> str:
    """Return every error that a response can carry: status, code, Retry-After, cause."""
    rows = []
    for error in sorted(_subclasses(ServiceError), key=lambda e: (e.status, e.code)):
        summary = (inspect.getdoc(error) or "").split("\n\n")[0].replace("\n", " ").removeprefix("Raised when ")
        retry = f"{error.retry_after_s} s" if error.retry_after_s is not None else ""
        rows.append((str(error.status), code(error.code), retry, summary))
    return table(("status", "code", "Retry-After", "cause"), rows)


def _subclasses(cls: type[ServiceError]) -> Iterator[type[ServiceError]]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def metrics_table() -> str:
    """Return the metrics of GET /metrics: name, type, help."""
    metrics: Iterable[Metric] = Metrics().collect()
    rows = ((code(m.name + ("_total" if m.type == "counter" else "")), m.type, m.documentation) for m in metrics)
    return table(("name", "type", "meaning"), rows)


def settings_table() -> str:
    """Return the settings of the service: environment variable, type and range, default, help."""
    rows = []
    for name, field in Settings.model_json_schema()["properties"].items():
        default = field.get("default")
        default_text = code(default) if default not in ("", [], None) else "empty"
        rows.append((code(name.upper()), _type(field), default_text, field["description"]))
    return table(("variable", "type", "default", "meaning"), rows)


def training_table(config: type[ModelConfig] | type[TrainConfig]) -> str:
    """Return the settings of a network or of its training: name, type and range, default, help."""
    rows = []
    for field in dataclasses.fields(config):
        if field.default is dataclasses.MISSING:
            continue  # vocab_size is measured, not set
        meta = field.metadata
        if "choices" in meta:
            values = ", ".join(code(choice) for choice in meta["choices"])
        else:
            low = f"{'above' if meta['exclusive_minimum'] else 'from'} {meta['minimum']:,g}"
            kind = "integer" if field.type == "int" else "number"
            values = f"{kind} {low} to {_number(meta['maximum'])}"
        rows.append((code(field.name), values, code(field.default), meta["help"]))
    return table(("setting", "values", "default", "meaning"), rows)


def presets_table() -> str:
    """Return the presets: what each sets."""
    rows = (
        (code(name), ", ".join(f"`{setting}` {value:g}" for setting, value in preset.items()))
        for name, preset in PRESETS.items()
    )
    return table(("preset", "sets"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "generate": lambda: body_table(GenerateRequest),
    "completions": lambda: body_table(CompletionRequest),
    "score": lambda: body_table(ScoreRequest),
    "inspect": lambda: body_table(InspectRequest),
    "fork": lambda: body_table(ForkRequest),
    "retrain": lambda: body_table(RetrainRequest),
    "errors": errors_table,
    "metrics": metrics_table,
    "settings": settings_table,
    "network": lambda: training_table(ModelConfig),
    "training": lambda: training_table(TrainConfig),
    "presets": presets_table,
}


def render(text: str) -> str:
    """Return a document with every generated table replaced by the current one."""
    return BLOCK.sub(lambda match: match[1] + TABLES[match[2]]() + match[4], text)


def main() -> int:
    """Rewrite the files, or check them."""
    parser = argparse.ArgumentParser(description="Generate the tables of docs/api.md and docs/settings.md.")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a table is not current")
    check = parser.parse_args().check
    outdated = []
    for path in (DOCS / name for name in FILES):
        before = path.read_text(encoding="utf-8")
        after = render(before)
        if after != before:
            outdated.append(path.name)
            if not check:
                path.write_text(after, encoding="utf-8")
    if check and outdated:
        print(f"not current: {', '.join(outdated)}; run `make docs`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
