"""Audit the shipped int8 model: `python -m export.audit MODEL --data DIR --networks DIR`.

What the *device* produces is measured: the int8 file through `edgesan`'s own reader, noise and composition, after
JPEG, beside what others do to faces. Two protocols:

* strangers: people of `identity_split = test`, whom neither the sanitizer nor the attackers have seen, and matchers
  that took no part in the training. They are the headline; `python -m export.audit.strangers` measures them alone;
* closed set: the people of lfw, glint and pins that have a `closed_set_split`. The attackers know these people: they
  train on other pictures of them. It is there to compare with the authors.

Every figure (one mechanism, one attacker, one seed) is a cell: a small file. An audit that was stopped continues
from its cells, and the same command started several times shares them out among its processes. The project keeps the
cells of its own model in one file: `--known docs/audit/cells.jsonl`. What has not changed is not measured again.
`docs/audit.md` says more.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from edgesan.model.load import prepare
from export.audit import attributes, html, mechanisms, plots, strangers, tables
from export.audit.claims import write_claims
from export.audit.clip import on_the_clip
from export.audit.command import conclude, errors_as_lines
from export.audit.measure import Folders
from export.audit.protocol import CURVE, QUICK, Options, audit
from export.audit.report import Plan, StrangersPlan
from export.errors import ExportError

QUICK_OPEN = 1500  # pictures of a quick look at another attribute


@errors_as_lines
def main(arguments: list[str] | None = None) -> None:
    """Run an audit, and print its table."""
    a = parser().parse_args(arguments)
    if a.quick and a.write:
        raise ExportError("a quick look makes no claims: leave out --quick or --write")
    if a.quick and not (a.data and a.data.is_dir() and a.networks and a.networks.is_dir()):
        print(on_the_clip(a.model, a.alpha))
        return
    if not a.data or not a.networks:
        raise ExportError("--data and --networks are needed, except for --quick")
    options = options_of(a)
    if a.hidden:
        task = attributes.Task(attributes.statement(a.hidden), attributes.statement(a.kept), tuple(a.sets))
        found = attributes.audit(options, task)
        conclude(found, attributes.table(found), a.json)
        return
    report = audit(options)
    print(tables.summary(report))
    conclude(report, tables.table(report), a.json)
    shown = prepare(a.model, a.model.read_bytes(), threads=2)
    if a.html:
        html.write_page(report, shown, a.html)
    if a.figures:
        plots.write_figures(report, shown, a.figures)
    if a.write:
        write_claims(a.model, report)


def options_of(a: argparse.Namespace) -> Options:
    """Return the command line as options."""
    plan = QUICK if a.quick else Plan(seeds=a.seeds, epochs=a.epochs, brief=a.brief)
    if a.hidden:
        plan = replace(QUICK, open_limit=QUICK_OPEN) if a.quick else Plan(epochs=a.epochs)
    baselines = [mechanisms.blur(4), mechanisms.pixelate(8)] if a.quick else None
    return Options(
        model=a.model,
        folders=Folders(a.data, a.networks, a.work, a.cells, a.known),
        plan=plan,
        alpha=a.alpha,
        float32=a.float,
        baselines=[] if a.brief else baselines,
        curve=CURVE if a.curve else (),
        unet=a.rival,
        beside=a.beside,
        so_far=a.so_far,
        strangers=None if a.hidden else strangers.QUICK if a.quick else replace(StrangersPlan(), seeds=a.seeds),
        recipe=a.recipe,
    )


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    layout = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(prog="python -m export.audit", description=__doc__, formatter_class=layout)
    p.add_argument("model", type=Path, help="an edgesan .onnx file")
    p.add_argument("--data", type=Path, help="folder of sets (.tar and .csv); --quick can do without")
    p.add_argument("--networks", type=Path, help="folder of the providers' ONNX networks")
    p.add_argument("--alpha", type=float, help="the dial (default: the model's)")

    p.add_argument("--recipe", type=Path, help="what it was trained by (default: the project's recipe that it names)")

    much = p.add_argument_group("how much is measured")
    quick = (
        "fewer pictures, epochs, seeds and baselines: a look, no claim; without --data, the bundled clip's two people"
    )
    brief = (
        "no baselines, and no attackers who know z, average draws or frames, reconstruct the face first, or look "
        "around the face"
    )
    float32 = "float32 beside int8: the folder that export.train wrote, or the model file itself, for its own weights"
    much.add_argument("--quick", action="store_true", help=quick)
    much.add_argument("--brief", action="store_true", help=brief)
    much.add_argument("--seeds", type=int, default=Plan.seeds, help="of each fresh attacker (default %(default)s)")
    much.add_argument("--epochs", type=int, default=Plan.epochs, help="of the fresh attackers (default %(default)s)")
    much.add_argument("--curve", action="store_true", help=f"also at alpha {', '.join(f'{c:g}' for c in CURVE)}")

    beside = p.add_argument_group("more rows")
    beside.add_argument("--float", type=Path, metavar="RUN", help=float32)
    beside.add_argument("--rival", type=Path, metavar="RUN", help="a training of export/recipes/unet.toml")
    beside.add_argument("--beside", type=Path, nargs="+", default=[], metavar="MODEL", help="other model files")

    other = p.add_argument_group("another attribute than gender")
    other.add_argument("--hidden", metavar="STATEMENT", help="what should be hidden: age>=45, hair=dark")
    other.add_argument(
        "--kept", metavar="STATEMENT", default="gender=M", help="what stays useful (default %(default)s)"
    )
    other.add_argument("--sets", nargs="+", default=["aaf", "utk"], help="sets that know both (default: aaf utk)")

    cells = p.add_argument_group("figures that are measured already")
    work = "pictures, embeddings and weights; an audit that was stopped continues from them. Never publish this folder"
    cells.add_argument("--work", type=Path, default=Path("runs/audit"), help=f"{work} (default %(default)s)")
    cells.add_argument("--cells", type=Path, metavar="FOLDER", help="figures of this run, old and new (default: WORK)")
    cells.add_argument(
        "--known", type=Path, metavar="FILE", help="more figures: docs/audit/cells.jsonl is the project's"
    )
    cells.add_argument("--so-far", action="store_true", help="measure nothing: report what is there already")

    out = p.add_argument_group("what is written")
    out.add_argument("--json", type=Path, metavar="FILE", help="the report")
    out.add_argument("--html", type=Path, metavar="FILE", help="the report with its pictures, as one page")
    out.add_argument("--figures", type=Path, metavar="FOLDER", help="each figure")
    out.add_argument("--write", action="store_true", help="the claims, into the model's metadata")
    return p


if __name__ == "__main__":
    sys.exit(main())
