"""Audit the shipped int8 model: `python -m export.audit MODEL --data DIR --networks DIR`.

What the *device* produces is judged: the int8 file through `edgesan`'s own reader, noise and composition, after JPEG,
beside what others do to faces. Two protocols:

* closed set: the people of lfw, glint and pins that have a `closed_set_split`. The attackers know these people: they
  train on other pictures of them;
* open set: people of `identity_split = test`, whom neither the sanitizer nor the attackers have seen.

Every cell of the table (one mechanism, one attacker, one seed) is a small file in `--cells`: an audit that was
stopped goes on where it was, and the same command started several times shares the cells out among its processes.
The project keeps its own, `docs/audit/`: figures and no pictures. A changed model measures anew only what changed.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from edgesan.model.load import prepare
from export.audit import html as pages
from export.audit import mechanisms, plots
from export.audit.claims import write_claims
from export.audit.clip import on_the_clip
from export.audit.measure import Plan
from export.audit.protocol import audit
from export.audit.tables import table
from export.errors import ExportError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export.audit", description=__doc__)
    parser.add_argument("model", type=Path, help="an edgesan .onnx file")
    parser.add_argument(
        "--data", type=Path, help="folder of sets (.tar and .csv); with --quick, the bundled clip will do"
    )
    parser.add_argument("--networks", type=Path, help="folder of the providers' ONNX networks")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("runs/audit"),
        help="pictures, embeddings and weights on the way: an audit that was stopped goes on from them; never to be published",
    )
    parser.add_argument(
        "--cells",
        type=Path,
        help="figures that are measured already, and the new ones: docs/audit holds the project's own (default: WORK)",
    )
    parser.add_argument("--so-far", action="store_true", help="measure nothing: report what is there already")
    parser.add_argument("--alpha", type=float, help="the dial (default: the model's)")
    parser.add_argument(
        "--quick", action="store_true", help="fewer pictures, epochs, seeds and baselines: a look, no claim"
    )
    parser.add_argument(
        "--brief", action="store_true",
        help="without the baselines, and without the attackers who know z, average draws or frames, recover first, or look around the face",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=Plan.seeds, help="of each fresh attacker (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=Plan.epochs, help="for the fresh attackers (default %(default)s)")
    parser.add_argument(
        "--float",
        type=Path,
        metavar="RUN",
        help="float32 beside int8: the folder that export.train wrote, or the model file itself, for its own weights",
    )
    parser.add_argument(
        "--rival", type=Path, metavar="RUN", help="a training of export/recipes/unet.toml, in the same table"
    )
    parser.add_argument(
        "--beside", type=Path, nargs="+", default=[], metavar="MODEL", help="other model files, in the same table"
    )
    parser.add_argument("--hidden", metavar="STATEMENT", help="for another attribute than gender: age>=45, hair=dark")
    parser.add_argument(
        "--kept", metavar="STATEMENT", default="gender=M", help="with --hidden: what stays useful (default %(default)s)"
    )
    parser.add_argument(
        "--sets", nargs="+", default=["aaf", "utk"], help="with --hidden: where both are known (default: aaf utk)"
    )
    parser.add_argument("--json", type=Path, help="write the report there")
    parser.add_argument(
        "--curve", action="store_true", help="also along the dial, at alpha " + ", ".join(f"{c:g}" for c in CURVE)
    )
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help="write each figure there")
    parser.add_argument("--html", type=Path, help="write the report there, with its pictures, as one page")
    parser.add_argument("--write", action="store_true", help="write the claims into the model's metadata")
    a = parser.parse_args(arguments)
    try:
        if a.quick and a.write:
            raise ExportError("a quick look makes no claims: leave out --quick or --write")
        if a.quick and not (a.data and a.data.is_dir() and a.networks and a.networks.is_dir()):
            print(on_the_clip(a.model, a.alpha))
            return 0
        if not a.data or not a.networks:
            raise ExportError("--data and --networks are needed, except for --quick")
        if a.hidden:
            from export.audit import attributes  # which is built on this module

            plan = replace(QUICK, open_limit=1500) if a.quick else Plan(epochs=a.epochs)
            both = attributes.statement(a.hidden), attributes.statement(a.kept)
            found = attributes.audit_columns(a.model, a.data, a.networks, a.work, plan, *both, tuple(a.sets), a.alpha)
            print(attributes.table(found))
            if a.json:
                a.json.write_text(json.dumps(found, indent=2) + "\n")
            return 0
        plan = QUICK if a.quick else Plan(seeds=a.seeds, epochs=a.epochs, brief=a.brief)
        others = [] if a.brief else [mechanisms.blur(4), mechanisms.pixelate(8)] if a.quick else None
        curve = CURVE if a.curve else ()
        report = audit(
            a.model,
            a.data,
            a.networks,
            a.work,
            plan,
            a.alpha,
            a.float,
            others,
            curve,
            a.rival,
            a.beside,
            a.cells,
            a.so_far,
        )
        print(table(report))
        if a.html or a.figures:
            shown = prepare(a.model, a.model.read_bytes(), threads=2)
            if a.html:
                pages.write_page(report, shown, table(report), a.html)
            if a.figures:
                plots.write_figures(report, shown, a.figures)
        if a.json:
            a.json.write_text(json.dumps(report, indent=2) + "\n")
        if a.write:
            write_claims(a.model, report)
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


CURVE = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
QUICK = Plan(seeds=1, epochs=2, draws=1, mean_draws=4, limit=1500, open_limit=600, track=20, again=60)

if __name__ == "__main__":
    sys.exit(main())
