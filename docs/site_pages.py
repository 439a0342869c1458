"""Pages of the site that lie outside docs/, and links that work both in the repository and on the site.

The README, the threat model and others have their place at the root or beside the code they describe. mkdocs knows
only files below docs/, so this hook adds them as pages, and one more with every option. A link to source code has no
page: its text stays.
"""

import posixpath
import re
from dataclasses import fields
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from edgesan.config import DEMO_MODEL, Config

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "SECURITY.md": "threat-model.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "export/LOG.md": "training-log.md",
    "firmware_config/README.md": "board-files.md",
}
SOURCES = {page: source for source, page in PAGES.items()}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    files.append(File.generated(config, "options.md", content=options()))
    return files


def options() -> str:
    """Return a page with every option of `edgesan run`, made from the same fields as its --help."""
    lines = [
        "# Options",
        "",
        "Every option of `edgesan run`. The [configuration file](quickstart.md#the-configuration-file) has the same",
        "names, with `_` for `-`. `edgesan VERB --help` lists those of another verb.",
        "",
        "| option | what | default |",
        "|---|---|---|",
    ]
    for field in fields(Config):
        value = field.default
        shown = ", ".join(value) if isinstance(value, tuple) else value
        name = f"--{field.name.replace('_', '-')} {field.metadata['metavar'] or ''}".strip()
        default = "" if shown in {None, "", DEMO_MODEL} or isinstance(value, bool) else f"`{shown}`"
        lines.append(f"| `{name}` | {field.metadata['help'].replace('|', '&#124;')} | {default} |")
    return "\n".join(lines)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point each link at the page of the site that its file in the repository became."""
    source = SOURCES.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def rewrite(link: re.Match[str]) -> str:
        mark, text, target, anchor = link.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path in PAGES:
            return f"{mark}[{text}]({PAGES[path]}{anchor or ''})"
        if path.startswith("docs/"):
            return f"{mark}[{text}]({path.removeprefix('docs/')}{anchor or ''})"
        if not (ROOT / path).exists():
            return link[0]  # mkdocs will say that it is broken
        return text

    return LINK.sub(rewrite, markdown)
