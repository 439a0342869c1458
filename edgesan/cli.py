"""The command line: `edgesan run | sanitize | devices | inspect | doctor | bench | keys | sign | install | flash`."""

import argparse
import dataclasses
import json
import logging
import os
import shlex
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from edgesan import __version__
from edgesan.config import Config, board_token, load
from edgesan.errors import ConfigError, EdgesanError

# Options that mean something when a file is sanitized; all of them mean something to `run`.
FILE_OPTIONS = ("model", "alpha", "background", "zone", "rotate", "detect_size", "detect_every", "hold", "refresh", "threads",
                "trusted_keys", "allow_unsigned", "state_dir", "allow_rollback", "require_isolation")  # fmt: skip

EPILOG = """\
examples:
  edgesan run --camera demo                      the bundled clip, at http://127.0.0.1:8080/
  edgesan run --model san.onnx --camera 0        the first camera, with your own sanitizer
  edgesan run --camera 0 --out walk.mkv          to a file instead
  edgesan sanitize holiday.mp4 shared.mp4        a clip or a picture
  edgesan doctor                                 what could be wrong on this machine, and the cure
  edgesan run --role sanitize --camera 0         camera without network; beside it: edgesan run --role transmit
  edgesan bench                                  how fast this machine is
  edgesan keys new mine                          a key to sign your own models with: edgesan sign san.onnx --key mine

exit codes: 0 clean end · 1 unexpected error · 2 option or configuration · 3 camera or input · 4 model · 5 port, file or disk · 6 isolation
"""

BENCH_EPILOG = """\
examples:
  edgesan bench                                  tables of stages, wire and idle
  edgesan bench --part stages --model san.onnx   each stage, with your own sanitizer
  edgesan bench --part long --minutes 30         does this board throttle?
  edgesan bench --json > machine.json            to compare machines with: python -m benchmarks.compare
"""

KEYS_EPILOG = """\
examples:
  edgesan keys                                   which keys are trusted, with their fingerprints
  edgesan keys new mine                          make mine (secret) and mine.pub, and print the line for the configuration
  edgesan sign san.onnx --key mine               then: edgesan run --model san.onnx --config edgesan.toml
"""


FLASH_EPILOG = """\
examples:
  edgesan flash                                          which cards are here
  edgesan flash board.img /dev/sdX --dry-run             what would be written
  sudo edgesan flash board.img.xz /dev/sdX --settings porch.toml
"""


def parser() -> argparse.ArgumentParser:
    """The whole command line. Options of `run` are made from `Config`: the TOML file has the same names."""
    main_parser = argparse.ArgumentParser(
        prog="edgesan",
        description="A camera that sanitizes every face before anything leaves it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    main_parser.add_argument("--version", action="version", version=f"edgesan {__version__}")
    verbs = main_parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    run = verbs.add_parser(
        "run",
        help="capture, sanitize, transmit",
        description="Capture, sanitize, transmit, in three processes: only numbers cross from the camera's to the network's.",
    )
    add_options(run, [f.name for f in dataclasses.fields(Config)])

    sanitize = verbs.add_parser(
        "sanitize",
        help="sanitize a picture or a clip",
        description="Sanitize a picture or a clip, by the same pipeline: faces painted from codes, on a flat colour.",
    )
    sanitize.add_argument("input", type=Path, metavar="IN", help="a picture or a clip")
    sanitize.add_argument(
        "output", type=Path, metavar="OUT", help=".png, .jpg or .webp for a picture; .mkv or .mp4 for a clip"
    )
    sanitize.add_argument("--force", action="store_true", help="overwrite OUT")
    sanitize.add_argument(
        "--stats", action="store_true", help="count the faces found at full resolution, and how many came out"
    )
    sanitize.add_argument("--json", action="store_true", help="print what was done as JSON")
    add_options(sanitize, FILE_OPTIONS)

    devices = verbs.add_parser("devices", help="list the cameras", description="List the cameras of this machine.")
    devices.add_argument("--json", action="store_true", help="as JSON")

    inspect = verbs.add_parser(
        "inspect", help="show what a model file is", description="Verify a model file and show it."
    )
    inspect.add_argument(
        "model", type=Path, nargs="?", metavar="MODEL", help="an edgesan .onnx file (default: the configuration's)"
    )
    inspect.add_argument("--json", action="store_true", help="as JSON")
    add_options(inspect, ("trusted_keys", "allow_unsigned"))

    doctor = verbs.add_parser(
        "doctor",
        help="examine this machine",
        description="Each thing that could be wrong on this machine, with its cure.",
    )
    doctor.add_argument("--json", action="store_true", help="as JSON")
    add_options(doctor, [f.name for f in dataclasses.fields(Config)])

    bench = verbs.add_parser(
        "bench",
        help="time this machine",
        description="Time each stage, and glass to wire on this machine (about 5 minutes).",
        epilog=BENCH_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bench.add_argument(
        "--part",
        action="append",
        choices=("stages", "wire", "idle", "long"),
        help="only this (default: all but long)",
    )
    bench.add_argument("--seconds", type=float, default=8, metavar="S", help="of each run (default: 8)")
    bench.add_argument("--minutes", type=float, default=10, metavar="M", help="of --part long (default: 10)")
    bench.add_argument("--json", action="store_true", help="as JSON")
    add_options(bench, ("model", "threads", "detect_every", "trusted_keys", "allow_unsigned"))

    keys = verbs.add_parser(
        "keys",
        help="list the keys whose models may run, or make one",
        description="The public keys whose models may run here: the bundled one, and trusted_keys of the configuration.",
        epilog=KEYS_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    keys.add_argument("--json", action="store_true", help="as JSON")
    add_options(keys, ("trusted_keys",))
    new = keys.add_subparsers(dest="keys_verb", metavar="[new]").add_parser(
        "new",
        help="make a key pair",
        description="Make a key pair: NAME, which signs and must stay secret, and NAME.pub, which everybody may have.",
    )
    new.add_argument("name", type=Path, metavar="NAME", help="the private key's file; none is overwritten")
    new.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="as JSON")

    sign = verbs.add_parser(
        "sign",
        help="sign a model file",
        description="Sign a model: MODEL.sig, over its exact bytes. Only what may run is signed; sign again after each change.",
    )
    sign.add_argument("model", type=Path, metavar="MODEL", help="an edgesan .onnx file")
    sign.add_argument(
        "--key", type=Path, required=True, metavar="FILE", help="the private key, as `edgesan keys new` makes it"
    )
    sign.add_argument("--json", action="store_true", help="as JSON")

    install = verbs.add_parser(
        "install",
        help="put another model onto a board that runs",
        description="Verify a model, switch to it, watch it, and go back by itself if the frames stop.",
    )
    install.add_argument(
        "model", type=Path, metavar="MODEL", nargs="?", help="an edgesan .onnx file, its signature beside it"
    )
    install.add_argument(
        "--settle", action="store_true",
        help="at boot, instead of MODEL: take back a model whose watch a power cut has ended",
    )  # fmt: skip
    install.add_argument(
        "--config", type=Path, metavar="FILE", help="of the board (default: /etc/edgesan/edgesan.toml)"
    )
    install.add_argument(
        "--models", type=Path, metavar="FOLDER", help="where `current` is (default: /var/lib/edgesan/models)"
    )
    install.add_argument(
        "--watch", type=float, default=60, metavar="SECONDS", help="how long frames must come (default: 60)"
    )
    install.add_argument("--restart", metavar="COMMAND", help="restarts the sanitize unit (default: by systemctl)")

    flash = verbs.add_parser(
        "flash",
        help="write an image onto a card",
        description="Write an image onto a card, read it back, and tell it what board it will be. Alone, list the cards.",
        epilog=FLASH_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flash.add_argument(
        "image",
        type=Path,
        nargs="?",
        metavar="IMAGE",
        help=".img, .img.xz, .img.zst; the .bmap beside it is used; a partition table must be in it",
    )
    flash.add_argument("device", type=Path, nargs="?", metavar="DEVICE", help="a card; system disks are refused")
    flash.add_argument(
        "--settings", type=Path, metavar="FILE", help="host name, Wi-Fi, keys, options: firmware_config/README.md"
    )
    flash.add_argument("--dry-run", action="store_true", help="say what would be written, and write nothing")
    flash.add_argument("--yes", action="store_true", help="do not ask")
    flash.add_argument(
        "--to-file", action="store_true", help="DEVICE is an ordinary file, to be made, or overwritten after a yes"
    )
    return main_parser


def add_options(verb: argparse.ArgumentParser, names: list[str] | tuple[str, ...]) -> None:
    """`--name` for the fields of Config; None means "not given", so that the TOML file's value stands."""
    verb.add_argument("--config", type=Path, metavar="FILE", help="a TOML file with the same names")
    kinds: dict[str, Any] = {"model": Path, "tls_cert": Path, "tls_key": Path, "state_dir": Path, "socket": Path, "alpha": float, "fps": float, "duration": float,
                             "hold": float, "refresh": float, "frames": int, "rotate": int, "detect_size": int, "detect_every": int, "threads": int}  # fmt: skip
    for f in dataclasses.fields(Config):
        if f.name not in names:
            continue
        if isinstance(f.default, bool):
            verb.add_argument(
                f"--{f.name.replace('_', '-')}",
                action=argparse.BooleanOptionalAction,
                default=None,
                help=f.metadata["help"],
            )
            continue
        many = isinstance(f.default, tuple)
        shown = "" if f.default in (None, (), "") or f.name == "model" else f" (default: {_text(f.default)})"
        verb.add_argument(
            f"--{f.name.replace('_', '-')}",
            dest=f.name,
            type=kinds.get(f.name, str),
            action="append" if many else "store",
            metavar=f.metadata["metavar"],
            help=f.metadata["help"].replace("%", "%%") + shown,
        )


def _text(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def configuration(arguments: argparse.Namespace) -> Config:
    """The Config that the arguments and their `--config` file make."""
    known = {f.name for f in dataclasses.fields(Config)}
    given = {k: v for k, v in vars(arguments).items() if k in known and v is not None}
    return load(arguments.config, {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})


def with_its_token(arguments: argparse.Namespace) -> Config:
    """The same on a board, where the token stands beside the file, for root alone: who only looks need not know it."""
    if arguments.config and not getattr(arguments, "token", None) and "EDGESAN_TOKEN" not in os.environ:
        arguments.token = board_token(arguments.config) or None
    return configuration(arguments)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code is that of the error tree in `edgesan.errors`."""
    logging.basicConfig(level=logging.WARNING, format="edgesan: %(message)s")
    arguments = parser().parse_args(argv)
    # Each verb imports what it needs: a quick answer must not wait for onnxruntime.
    verbs = {"run": _run, "sanitize": _sanitize, "devices": _devices, "inspect": _inspect, "doctor": _doctor,
             "bench": _bench, "keys": _keys, "sign": _sign, "install": _install, "flash": _flash}  # fmt: skip
    try:
        return verbs[arguments.verb](arguments)
    except EdgesanError as error:
        print(f"edgesan: {error}", file=sys.stderr)
        return error.exit_code


def _run(arguments: argparse.Namespace) -> int:
    from edgesan.supervisor import Supervisor
    from edgesan.watchdog import Watchdog

    config = configuration(arguments)
    if config.background == "keep":
        raise ConfigError(
            'background is "keep": a camera never sends raw surroundings; write "plain"'
            " (`edgesan sanitize --background keep IN OUT` is for a file of your own)"
        )
    with closing(Watchdog(os.environ)) as watchdog:
        return Supervisor(config, watchdog).run()


def _sanitize(arguments: argparse.Namespace) -> int:
    from edgesan import isolation
    from edgesan.model import rollback

    config = configuration(arguments)
    state = rollback.state_folder(config.state_dir, os.environ)
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = arguments.output.absolute().parent
    reads = [*config.model_folders, arguments.input.absolute()]
    claims = isolation.sanitize(reads, [folder, state])
    from edgesan import files

    if config.require_isolation:
        isolation.require(claims)
    elif not all(claim.holds for claim in claims):
        print(f"edgesan: {isolation.summary(claims)}; see `edgesan doctor`", file=sys.stderr)
    report = files.sanitize_file(
        arguments.input, arguments.output, config, force=arguments.force, stats=arguments.stats
    )
    print(json.dumps(report.as_dict()) if arguments.json else report.text())
    return 0


def _devices(arguments: argparse.Namespace) -> int:
    from edgesan.capture import devices

    found = devices.list_devices()
    print(json.dumps([dataclasses.asdict(d) for d in found], indent=2) if arguments.json else devices.table(found))
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    from edgesan.model import inspect

    config = with_its_token(arguments)
    print(inspect.as_json(config) if arguments.json else inspect.text(config))
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from edgesan.board import doctor

    findings = doctor.examine(with_its_token(arguments))
    print(doctor.to_json(findings) if arguments.json else doctor.render(findings))
    return 1 if any(finding.level == "fail" for finding in findings) else 0


def _bench(arguments: argparse.Namespace) -> int:
    from edgesan import bench

    parts = tuple(arguments.part or ("stages", "wire", "idle"))
    results = bench.run(parts, configuration(arguments), arguments.seconds, arguments.minutes)
    print(json.dumps(bench.plain(results), indent=1) if arguments.json else bench.text(results))
    return 0


def _keys(arguments: argparse.Namespace) -> int:
    from edgesan.model import signing

    if arguments.keys_verb == "new":
        key = signing.new_key(arguments.name)
        public = signing.public_path(arguments.name)
        facts = {"private": str(arguments.name), "public": str(public), "fingerprint": key.fingerprint, "key": key.line}
        print(
            json.dumps(facts, indent=2)
            if arguments.json
            else f"{arguments.name}: the private key. Keep it secret; it signs: edgesan sign MODEL --key {arguments.name}\n"
            f"{public}: the public key, {key.fingerprint}\n"
            "Devices run what it signs once this line is in their configuration (--config FILE):\n\n"
            f"trusted_keys = [{json.dumps(key.line)}]"
        )
        return 0
    trusted = [("bundled", key) for key in signing.bundled()]
    trusted += [("trusted_keys", key) for key in signing.configured(configuration(arguments).trusted_keys)]
    if arguments.json:
        rows = [{"origin": o, "fingerprint": k.fingerprint, "name": k.name, "key": k.line} for o, k in trusted]
        print(json.dumps(rows, indent=2))
    else:
        print("\n".join(f"{origin:<12}  {key}" for origin, key in trusted))
    return 0


def _sign(arguments: argparse.Namespace) -> int:
    from edgesan.model import signing
    from edgesan.model.load import prepare, read

    private = signing.private_key(arguments.key)
    content = read(arguments.model)
    facts = prepare(arguments.model, content).metadata
    path = signing.sign(arguments.model, content, private)
    print(
        json.dumps({"signature": str(path), "fingerprint": signing.public_half(private).fingerprint})
        if arguments.json
        else f"{path}: {facts.name} version {facts.version}, signed by {signing.public_half(private).fingerprint}"
    )
    return 0


def _install(arguments: argparse.Namespace) -> int:
    from edgesan.board import settings, update

    path = arguments.config or settings.CONFIG
    token = board_token(path)  # by systemd's file, as the transmit unit has it
    config = load(path, {"token": token} if token else {})
    models = arguments.models or settings.MODELS
    if arguments.settle == (arguments.model is not None):
        raise ConfigError("say which model to install: edgesan install MODEL (or --settle alone, at boot)")
    if arguments.settle:
        print(update.settle(config, models))
        return 0
    command = shlex.split(arguments.restart or update.RESTART)
    print(update.install(arguments.model, config, models, command, update.Watch(arguments.watch)))
    return 0


def _flash(arguments: argparse.Namespace) -> int:
    from edgesan.board import flash

    if arguments.image is None or arguments.device is None:
        if arguments.image is not None:
            raise ConfigError(f"name the card, too: edgesan flash {arguments.image} DEVICE; edgesan flash lists them")
        print(flash.table(flash.list_devices()))
        return 0
    options = flash.Options(dry_run=arguments.dry_run, to_file=arguments.to_file, yes=arguments.yes)
    print(flash.flash(arguments.image, arguments.device, arguments.settings, options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
