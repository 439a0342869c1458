"""The report as one page of HTML that needs nothing else: tables, figures and people."""

import base64
import html
from pathlib import Path

import cv2

from edgesan.model.load import Model
from export.audit.plots import FIGURES, GRID_ALPHAS, figure, grid
from export.audit.report import Report
from export.audit.tables import table

STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:1100px;margin:2em auto;padding:0 1em}"
    "td,th{padding:2px 8px;border-bottom:1px solid #ddd;text-align:left}"
    "table{border-collapse:collapse;font-size:13px}img{max-width:100%}"
)


def write_page(report: Report, model: Model, path: Path) -> None:
    """Write the whole report as one file."""

    def embedded(content: bytes, kind: str) -> str:
        return f'<img src="data:image/{kind};base64,{base64.b64encode(content).decode()}">'

    people = cv2.imencode(".jpg", grid(model), [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    about = f"{html.escape(report.model.name)} v{report.model.version}, alpha {report.alpha:g}"
    parts = [
        "<!doctype html><meta charset=utf-8><title>edgesan audit</title>",
        f"<style>{STYLE}</style>",
        f"<h1>Audit of {about}</h1>",
        markdown_as_html(table(report)),
        *(embedded(figure(report, name), "png") for name in FIGURES),
        f"<h2>What it looks like: raw, then alpha {', '.join(f'{a:g}' for a in GRID_ALPHAS)}</h2>",
        embedded(people, "jpeg"),
    ]
    path.write_text("\n".join(parts))


def markdown_as_html(markdown: str) -> str:
    """Return the Markdown of `tables.table` as HTML: pipe tables and paragraphs."""
    out: list[str] = []
    for line in markdown.splitlines():
        if line.startswith("|---"):
            continue
        if line.startswith("|"):
            if not out or not out[-1].startswith(("<table", "<tr")):
                out.append("<table>")
            cells = "".join(f"<td>{html.escape(c.strip())}</td>" for c in line.strip("|").split("|"))
            out.append(f"<tr>{cells}</tr>")
        else:
            if out and out[-1].startswith("<tr"):
                out.append("</table>")
            out.append(f"<p>{html.escape(line)}</p>" if line else "")
    return "\n".join(out)
