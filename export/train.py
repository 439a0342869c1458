"""Train a sanitizer: `python -m export.train RECIPE --data DIR --networks DIR --out runs/NAME`.

Three stages: the encoder learns to describe a face as the provider's network and a detector do (distill); the game
against the attackers is played on those descriptions (privatize); a face is drawn from what is left (decode).

--data is a folder of sets (NAME.tar of aligned 112x112 chips and NAME.csv of labels, for each set of the recipe), or a
folder of people: one sub-folder of pictures for each person, and one CSV file beside them, whose first column is the
person (the name of the sub-folder) and whose other columns are attributes. There, faces are found and aligned, and of
the people, not the pictures, 70 % are trained on.

A training saves itself every `evaluate_every` steps and goes on from there when started again. On several devices,
`torchrun --nproc-per-node N -m export.train ...` shares each batch among N processes.
"""

import argparse
import hashlib
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

from export import data
from export import recipe as recipes
from export.errors import ExportError, NetworkError
from export.providers import Contract
from export.recipe import Recipe
from export.training import distributed
from export.training.loop import Options, train


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    a = parser().parse_args(arguments)
    try:
        r, contracts = with_networks(recipes.read(a.recipe), a.utility, a.privacy)
        options = Options(a.networks, a.out or Path("runs") / r.name, a.minutes, a.start, a.cache, contracts)
        train(r, data.load(a.data, r.sets), options)
        distributed.wait()  # the first process still measures and saves: leaving earlier would cut its connections
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        distributed.leave()
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    made = argparse.ArgumentParser(
        prog="python -m export.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("recipe", type=Path, help="a TOML file; see export/recipes")
    made.add_argument(
        "--data", type=Path, required=True, metavar="FOLDER", help="a folder of sets, or a folder of people (see above)"
    )
    made.add_argument("--networks", type=Path, required=True, help="folder of the providers' ONNX networks")
    made.add_argument("--out", type=Path, help="where to write checkpoints and the log (default: runs/NAME)")
    made.add_argument("--minutes", type=float, default=float("inf"), help="stop, saved, after so long")
    made.add_argument(
        "--from",
        dest="start",
        type=Path,
        metavar="MODEL_OR_RUN",
        help="begin from a model file or another training; stages of 0 steps are taken over",
    )
    made.add_argument(
        "--cache",
        type=Path,
        metavar="FOLDER",
        help="where to keep the teachers' targets, for other trainings on the same data (default: --out)",
    )
    for role, does in (("utility", "embeds faces"), ("privacy", "classifies the private attribute")):
        made.add_argument(
            f"--{role}",
            nargs="+",
            metavar=("FILE.onnx", "KEY=VALUE"),
            help=f"a provider's frozen network that {does}, instead of the recipe's; its input contract from a "
            'providers.toml beside it, or as TOML here: mean=127.5 scale=128 order=\'"BGR"\' classes=\'["M", "F"]\'',
        )
    return made


def with_networks(
    r: Recipe, utility: list[str] | None, privacy: list[str] | None
) -> tuple[Recipe, dict[str, Contract]]:
    """Put the networks of the command line in place of the recipe's own.

    Args:
        r: the recipe.
        utility: FILE.onnx and KEY=VALUE texts of its input contract.
        privacy: the same.

    Returns:
        The recipe, and the input contracts by file.

    Raises:
        NetworkError: a KEY=VALUE is no TOML.
    """
    contracts = {given[0]: parse_contract(given[1:]) for given in (utility, privacy) if given}
    if not contracts:
        return r, {}
    digest = hashlib.sha256(repr((r.digest, utility, privacy)).encode()).hexdigest()
    teachers = (utility[0],) if utility else r.utility
    frozen = (privacy[0],) if privacy else r.frozen
    return replace(r, utility=teachers, frozen=frozen, digest=digest), contracts


def parse_contract(texts: list[str]) -> Contract:
    """Read KEY=VALUE texts as TOML.

    Raises:
        NetworkError: they are none.
    """
    try:
        return tomllib.loads("\n".join(texts))
    except tomllib.TOMLDecodeError as error:
        raise NetworkError(f"{' '.join(texts)} is no input contract: {error}; write KEY=VALUE in TOML") from error


if __name__ == "__main__":
    sys.exit(main())
