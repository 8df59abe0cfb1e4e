"""The report on a model as one HTML page: figures, plots, samples. It has no script and loads nothing."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { text-align: left; vertical-align: top; padding: 0.25rem 1rem 0.25rem 0; border-bottom: 1px solid #ddd; }
td { overflow-wrap: anywhere; }
th { font-weight: 600; }
h1 { overflow-wrap: anywhere; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f4; padding: 0.75rem; }
mark { background: #ffe08a; }
figure { margin: 0; }
img { width: 100%; height: auto; }
"""


@dataclass(slots=True)
class Section:
    """A part of the page.

    Attributes:
        title: Its heading.
        text: A paragraph, as plain text.
        rows: A table: what each row is, and its value.
        figure: A plot.
        caption: What the plot shows.
        samples: Generated texts, each with the (start, end) of the passage that is marked; equal ones mark nothing.
    """

    title: str
    text: str = ""
    rows: Mapping[str, str] = field(default_factory=dict)
    figure: Figure | None = None
    caption: str = ""
    samples: Sequence[tuple[str, tuple[int, int]]] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing below its heading."""
        return not (self.text or self.rows or self.figure or self.samples)


def render(title: str, sections: Sequence[Section]) -> str:
    """Return the page. All text is escaped: characters of a model's vocabulary cannot become markup."""
    body = "\n".join(_section(section) for section in sections)
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<main>\n<h1>{html.escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.title)}</h2>"]
    if section.text:
        parts.append(f"<p>{html.escape(section.text)}</p>")
    if section.rows:
        rows = "\n".join(
            f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(value)}</td></tr>'
            for name, value in section.rows.items()
        )
        parts.append(f"<table>\n{rows}\n</table>")
    if section.figure is not None:
        from model.evaluation.report.plots import as_svg  # matplotlib, which made the figure

        data = base64.b64encode(as_svg(section.figure)).decode()
        caption = html.escape(section.caption)
        parts.append(
            f'<figure><img alt="{caption}" src="data:image/svg+xml;base64,{data}"><figcaption>{caption}</figcaption>'
            "</figure>"
        )
    parts += [f"<pre>{_marked(text, *marked)}</pre>" for text, marked in section.samples]
    return f"<section>\n{chr(10).join(parts)}\n</section>"


def _marked(text: str, start: int, end: int) -> str:
    before, inside, after = (html.escape(part) for part in (text[:start], text[start:end], text[end:]))
    return f"{before}<mark>{inside}</mark>{after}" if inside else before + after
