"""One self-contained HTML file: no script, no external request; readable on a phone, printable."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure

CSS = """
:root { --ink: #1d2330; --soft: #5b6475; --line: #dde1e8; --good: #0a7d4f; --ground: #fbfbfd; }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--ground); margin: 0 auto;
  max-width: 62rem; padding: 1.5rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem } h2 { font-size: 1.2rem; margin-top: 2.4rem }
p.lead { color: var(--soft); margin-top: 0 }
figure { margin: 1rem 0 } img { max-width: 100%; height: auto; display: block }
figcaption, small { color: var(--soft); font-size: .87rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100% }
th, td { text-align: right; padding: .32rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child { text-align: left }
th { color: var(--soft); font-weight: 600; font-size: .87rem; white-space: normal }
tr.ours td { font-weight: 650; background: #eef7f2 } .tiles { display: flex; flex-wrap: wrap; gap: 1rem }
.tile { flex: 1 1 11rem; border: 1px solid var(--line); border-radius: .6rem; padding: .8rem 1rem; background: #fff }
.tile b { display: block; font-size: 1.5rem } .tile b span { color: var(--good) }
pre { background: #f1f3f7; padding: .8rem; border-radius: .5rem; overflow-x: auto; font-size: .82rem }
@media print { body { background: #fff } h2 { break-after: avoid } figure, tr { break-inside: avoid } }
"""


@dataclass
class Report:
    """A report that grows section by section; `render` gives the page."""

    title: str
    lead: str
    parts: list[str] = field(default_factory=list)

    def heading(self, text: str) -> None:
        """Start a section."""
        self.parts.append(f"<h2>{html.escape(text)}</h2>")

    def tiles(self, figures: Sequence[tuple[str, str, str]]) -> None:
        """Add headline figures: (what, before, after)."""
        cells = (
            f'<div class="tile">{what}<b>{before} → <span>{after}</span></b></div>'
            for what, before, after in (map(html.escape, figure) for figure in figures)
        )
        self.parts.append(f'<div class="tiles">{"".join(cells)}</div>')

    def table(
        self, header: Sequence[str], rows: Sequence[Sequence[str]], ours: Sequence[int] = (), note: str = ""
    ) -> None:
        """Add a table; rows whose index is in `ours` stand out."""
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
        body = "".join(
            f"<tr{' class=ours' if i in ours else ''}>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>"
            for i, row in enumerate(rows)
        )
        self.parts.append(
            f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div><small>{html.escape(note)}</small>'
        )

    def figure(self, drawn: Figure, caption: str) -> None:
        """Add a figure as an embedded PNG."""
        encoded = base64.b64encode(png_bytes(drawn)).decode()
        text = html.escape(caption)
        self.parts.append(
            f'<figure><img alt="{text}" src="data:image/png;base64,{encoded}"><figcaption>{text}</figcaption></figure>'
        )

    def code(self, text: str) -> None:
        """Add preformatted text."""
        self.parts.append(f"<pre>{html.escape(text)}</pre>")

    def render(self) -> str:
        """Return the page."""
        title, lead = html.escape(self.title), html.escape(self.lead)
        return (
            '<!doctype html><html lang="en"><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{title}</title><style>{CSS}</style><h1>{title}</h1>"
            f'<p class="lead">{lead}</p>{"".join(self.parts)}</html>\n'
        )


def png_bytes(drawn: Figure) -> bytes:
    """Return a figure as PNG."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png")
    return buffer.getvalue()
