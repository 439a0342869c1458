"""A sweep on Ray: `python -m export.sweep SWEEP --data DIR --networks DIR`. It needs `pip install -e '.[ray]'`.

SWEEP is a TOML file: the recipe to vary (`recipe`), what to vary (`[grid]`: recipe keys and their lists of values; a
method is a name under `[methods]`, with the keys that it sets), and what a trial may take (`cpus`, `gpus`). Each point
of the grid is an ordinary training, in a folder of its own, that goes on where it was. Ray places them, on this machine
or, with `--address`, on a cluster that sees the same folders.
"""

import argparse
import itertools
import json
import os
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

from export import data, recipe, train
from export.errors import ExportError, RecipeError


def points(table: dict[str, Any], base: recipe.Recipe) -> list[recipe.Recipe]:
    """A recipe for each point of the grid, named by its values.

    Raises:
        RecipeError: the sweep varies a key that recipes do not have, or a method that it does not describe.
    """
    grid, methods = table.get("grid", {}), table.get("methods", {})
    made = []
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        name = "-".join([base.name, *(f"{k}-{v}" for k, v in point.items() if len(grid[k]) > 1)])
        if "method" in point:
            if point["method"] not in methods:
                raise RecipeError(f"the sweep has no method {point['method']!r}; it has {', '.join(methods)}")
            point |= methods[point.pop("method")]
        unknown = sorted(point.keys() - vars(base).keys())
        if unknown:
            raise RecipeError(f"the sweep varies {unknown[0]}, which is no key of a recipe")
        changes = {key: tuple(value) if isinstance(value, list) else value for key, value in point.items()}
        made.append(replace(base, **changes, name=name, digest=f"{base.digest} {sorted(changes.items())}"))
    return made


def trial(r: recipe.Recipe, folder: Path, networks: Path, out: Path, start: Path | None) -> dict[str, Any]:
    """One training; the last line of its log."""
    faces = data.join(data.load_set(folder, name) for name in r.sets)
    faces = faces.where(data.training_rows(faces) | data.validation_rows(faces))
    train.train(r, faces, networks, out / r.name, start=start, cache=out)
    lines = (out / r.name / "log.jsonl").read_text().splitlines()
    return {"name": r.name} | dict(json.loads(lines[-1]))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export.sweep", description=__doc__)
    parser.add_argument("sweep", type=Path, help="a TOML file; see export/recipes/sweeps")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--networks", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/sweep"))
    parser.add_argument("--from", dest="start", type=Path, metavar="MODEL_OR_RUN", help="as for export.train")
    parser.add_argument("--address", help="of a running Ray cluster (default: one of its own, on this machine)")
    a = parser.parse_args(arguments)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # before it is loaded: else it reports home
    try:
        import ray
    except ImportError:
        print("error: a sweep needs Ray: pip install -e '.[ray]'", file=sys.stderr)
        return 1
    try:
        table = tomllib.loads(a.sweep.read_text())
        recipes = points(table, recipe.read(a.sweep.parent / table["recipe"]))
    except (ExportError, OSError, tomllib.TOMLDecodeError, KeyError) as error:
        print(f"error: {a.sweep} is no sweep: {error}", file=sys.stderr)
        return 1
    ray.init(address=a.address, include_dashboard=False, log_to_driver=False)
    remote = ray.remote(num_cpus=table.get("cpus", 1), num_gpus=table.get("gpus", 0), max_retries=1)(trial)
    folders = (a.data.resolve(), a.networks.resolve(), a.out.resolve(), a.start and a.start.resolve())
    waiting = {remote.remote(r, *folders): r.name for r in recipes}
    results, failed = [], 0
    while waiting:
        (done,), _ = ray.wait(list(waiting))
        name = waiting.pop(done)
        try:
            results.append(ray.get(done))
        except ray.exceptions.RayTaskError as error:
            failed += 1
            print(f"error: {name}: {error.cause}", file=sys.stderr)
            continue
        print(json.dumps(results[-1]), flush=True)
    ray.shutdown()
    (a.out / "sweep.json").write_text(json.dumps(sorted(results, key=lambda r: r["name"]), indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
