"""Many trainings on Ray: `python -m export.training.sweep SWEEP --data DIR --networks DIR`.

It needs `pip install -e '.[ray]'`. SWEEP is a TOML file: the recipe to vary (`recipe`), what to vary (`[grid]`: recipe
keys and their lists of values; a `method` is a name under `[methods]`, with the keys that it sets), and what a trial
may take (`cpus`, `gpus`). Each point of the grid is an ordinary training, in a folder of its own, and goes on where it
was. Ray places them on this machine or, with `--address`, on a cluster that sees the same folders.
"""

import argparse
import itertools
import json
import os
import sys
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from export import data
from export import recipe as recipes
from export.errors import ExportError, RecipeError
from export.recipe import Recipe
from export.training.loop import Options, train

Line = dict[str, Any]  # the last line of a training's log, and the recipe's name


@dataclass(frozen=True)
class Folders:
    """What all trials share; absolute paths, as each runs in a process of its own."""

    data: Path
    networks: Path
    out: Path
    start: Path | None


def points(table: dict[str, Any], base: Recipe) -> list[Recipe]:
    """Return a recipe for each point of the grid, named by its values.

    Args:
        table: the sweep's TOML.
        base: the recipe to vary.

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
        recipes.check_keys("the sweep", point)
        changes: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in point.items()
        }
        made.append(replace(base, **changes, name=name, digest=f"{base.digest} {sorted(changes.items())}"))
    return made


def trial(r: Recipe, folders: Folders) -> Line:
    """Train once; return the last line of the log."""
    options = Options(folders.networks, folders.out / r.name, start=folders.start, cache=folders.out)
    train(r, data.load(folders.data, r.sets), options)
    lines = (options.out / "log.jsonl").read_text().splitlines()
    return {"name": r.name} | dict(json.loads(lines[-1]))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m export.training.sweep", description=__doc__)
    parser.add_argument("sweep", type=Path, help="a TOML file; see export/recipes/sweeps")
    parser.add_argument("--data", type=Path, required=True, help="as for export.train")
    parser.add_argument("--networks", type=Path, required=True, help="as for export.train")
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
        grid = points(table, recipes.read(a.sweep.parent / table["recipe"]))
    except (ExportError, OSError, tomllib.TOMLDecodeError, KeyError) as error:
        print(f"error: {a.sweep} is no sweep: {error}", file=sys.stderr)
        return 1
    ray.init(address=a.address, include_dashboard=False, log_to_driver=False)
    remote = ray.remote(num_cpus=table.get("cpus", 1), num_gpus=table.get("gpus", 0), max_retries=1)(trial)
    folders = Folders(a.data.resolve(), a.networks.resolve(), a.out.resolve(), a.start and a.start.resolve())
    waiting = {remote.remote(r, folders): r.name for r in grid}
    results: list[Line] = []
    failed = 0
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
    (a.out / "sweep.json").write_text(json.dumps(sorted(results, key=lambda line: str(line["name"])), indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
