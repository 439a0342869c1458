"""The command line: `edgesan VERB`, with the verbs that `parser` adds.

Answers go to standard output, and all else to standard error.
"""

import argparse
import dataclasses
import difflib
import json
import logging
import os
import shlex
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from edgesan import __version__, log
from edgesan.config import FILE_SUFFIXES, PICTURE_SUFFIXES, VARIABLE, Config, found, kind_of, load, of_board
from edgesan.errors import CameraError, ConfigError, EdgesanError, ModelError

logger = logging.getLogger(__name__)

FILE_OPTIONS = (
    *("model", "alpha", "zone", "rotate", "detect_size", "detect_every", "hold", "refresh", "threads"),
    *("trusted_keys", "allow_unsigned", "state_dir", "allow_rollback", "require_isolation"),
)
"""The options of a run that also apply to a file. `--background` has fewer values there."""

SCENE_OPTIONS = ("camera", "scene", "size", "rotate", "fps", "zone", "detect_size", "state_dir", "require_isolation")
"""The options of a run that also apply to taking a still."""

CONFIG_HELP = (
    "a TOML file of the same options (default: edgesan/edgesan.toml in $XDG_CONFIG_HOME or ~/.config, or else"
    " /etc/edgesan/edgesan.toml)"
)

EPILOG = """\
examples:
  edgesan run --camera demo                      show the bundled clip, sanitized, at http://127.0.0.1:8080/
  edgesan run --model san.onnx --camera 0        show the first camera, with your own model
  edgesan run --camera 0 --out walk.mkv          write a file instead
  edgesan sanitize holiday.mp4 shared.mp4        sanitize a clip or a picture
  edgesan sanitize holiday/ shared/              sanitize all pictures and clips of a folder
  edgesan doctor                                 check this machine, and show how to fix what is wrong
  edgesan run --role sanitize --camera 0         the camera alone, without network; also: edgesan run --role transmit
  edgesan bench                                  measure how fast this machine is
  edgesan keys new mine                          make a key to sign your own models: edgesan sign san.onnx --key mine

Each option can also stand in a file (--config) and in the environment: EDGESAN_ALPHA=0.6. Several values are separated
by a semicolon. The command line overrides the environment, and that the file.

exit codes:
  0 clean end                  2 option or configuration    4 model                      6 isolation
  1 unexpected error           3 camera or input            5 port, file or disk         7 the model took too long
  1 is also that `edgesan doctor` found something with which a run cannot work.
"""

BENCH_EPILOG = """\
examples:
  edgesan bench                                  tables of stages, wire and idle
  edgesan bench --part stages --model san.onnx   each stage, with your own model
  edgesan bench --part long --minutes 30         find out whether this board throttles
  edgesan bench --json > machine.json            figures to compare with: python -m benchmarks.compare
"""

SCENE_EPILOG = """\
examples:
  edgesan scene take --camera 0                  leave the room; ten seconds later there is a proposal to look at
  edgesan scene accept                           all viewers see that still from then on, and silhouettes on it
  edgesan scene show                             what is in force, and what is proposed
  edgesan scene clear                            back to a flat colour
"""

KEYS_EPILOG = """\
examples:
  edgesan keys                                   list the trusted keys with their fingerprints
  edgesan keys new mine                          make mine (secret) and mine.pub, print the line for the configuration
  edgesan sign san.onnx --key mine               sign a model; then: edgesan run --model san.onnx --config edgesan.toml
"""

FLASH_EPILOG = """\
examples:
  edgesan flash                                          list the cards of this machine
  edgesan flash board.img /dev/sdX --dry-run             show what would be written
  sudo edgesan flash board.img.xz /dev/sdX --settings porch.toml
"""

COMPLETION_EPILOG = """\
examples:
  edgesan completion bash > ~/.local/share/bash-completion/completions/edgesan
  edgesan completion zsh > ~/.zfunc/_edgesan     with `fpath+=~/.zfunc` before `compinit` in ~/.zshrc
"""

Verbs: TypeAlias = "argparse._SubParsersAction[Parser]"


class Parser(argparse.ArgumentParser):
    """A parser, also of each verb, whose errors are one line as all others."""

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong as a ConfigError."""
        raise ConfigError(f"{message}; see `{self.prog} --help`")


def parser() -> argparse.ArgumentParser:
    """Build the whole command line. The options of `run` are those of `Config`: the TOML file has the same names."""
    main_parser = Parser(
        prog="edgesan",
        description="A camera that sanitizes every face before anything leaves it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    main_parser.set_defaults(log_level=None, log_format=None)  # `edgesan` alone has no verb with these options
    main_parser.add_argument("--version", action="version", version=f"edgesan {__version__}")
    verbs = main_parser.add_subparsers(dest="verb", metavar="VERB")
    _add_run(verbs)
    _add_sanitize(verbs)
    _add_scene(verbs)
    _add_devices(verbs)
    _add_inspect(verbs)
    _add_doctor(verbs)
    _add_bench(verbs)
    _add_keys(verbs)
    _add_sign(verbs)
    _add_install(verbs)
    _add_flash(verbs)
    _add_help(verbs)
    _add_completion(verbs)
    for verb in verbs.choices.values():
        _add_logging(verb)
    return main_parser


def verb_parsers(main_parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each verb."""
    (group,) = [a for a in main_parser._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(group.choices)


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse a command line, and suggest what a mistyped verb or option may have meant.

    Raises:
        ConfigError: a verb or an option is unknown, or a value is missing or wrong.
        SystemExit: the help was asked for.
    """
    main_parser = parser()
    verbs = verb_parsers(main_parser)
    if argv and not argv[0].startswith("-") and argv[0] not in verbs:
        raise ConfigError(f"there is no `edgesan {argv[0]}`; {_suggest(argv[0], verbs)} See `edgesan help`")
    arguments, unknown = main_parser.parse_known_args(argv)
    if unknown:
        verb = verbs.get(arguments.verb, main_parser)
        options = [name for action in verb._actions for name in action.option_strings if name.startswith("--")]
        mistyped = next((word.partition("=")[0] for word in unknown if word.startswith("-")), "")
        if not mistyped:
            raise ConfigError(f"{unknown[0]!r} is one argument too many: see `{verb.prog} --help`")
        raise ConfigError(f"`{verb.prog}` has no {mistyped}; {_suggest(mistyped, options)} See `{verb.prog} --help`")
    return arguments


def _suggest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, known := list(known), 1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}."


def say(text: str) -> None:
    """Print an answer."""
    with _until_read():
        print(text, flush=True)


@contextmanager
def _until_read() -> Iterator[None]:
    """Write to standard output. A reader who has seen enough, as `head`, ends nothing and is no error."""
    try:
        yield
    except BrokenPipeError:
        nothing = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nothing, sys.stdout.fileno())  # for what Python writes at its end
        os.close(nothing)


def _add_run(verbs: Verbs) -> None:
    run = verbs.add_parser(
        "run",
        help="capture, sanitize, transmit",
        description=(
            "Capture from a camera, sanitize, and transmit. The camera and the network are in two processes, and only"
            " numbers cross from one to the other."
        ),
    )
    add_options(run, [f.name for f in dataclasses.fields(Config)])


def _add_sanitize(verbs: Verbs) -> None:
    sanitize = verbs.add_parser(
        "sanitize",
        help="sanitize pictures and clips",
        description=(
            "Sanitize pictures and clips as a camera's stream is sanitized: faces are painted from their codes on a"
            " flat colour. Several files, or what is in folders, go into a folder; what exists there stays as it is."
        ),
    )
    sanitize.add_argument("inputs", type=Path, nargs="+", metavar="IN", help="pictures, clips, and folders of them")
    sanitize.add_argument(
        "output",
        metavar="OUT",
        help=(
            "a folder; of one input a file (.png, .jpg or .webp for a picture, .mkv, .mp4 or .mov for a clip), or a new"
            " folder that ends in a slash"
        ),
    )
    sanitize.add_argument("--audio", action="store_true", help="keep the sound of clips, RAW: a voice tells who speaks")
    sanitize.add_argument("--force", action="store_true", help="overwrite OUT")
    sanitize.add_argument(
        "--stats",
        action="store_true",
        help="also count the faces found at full resolution, and how many of them came out sanitized",
    )
    sanitize.add_argument("--json", action="store_true", help="print the report as JSON")
    sanitize.add_argument(
        "--background",
        choices=("plain", "keep"),
        metavar="HOW",
        help="what surrounds the sanitized faces: plain (a flat colour), or keep (the RAW picture) (default: plain)",
    )
    add_options(sanitize, FILE_OPTIONS)


def _add_scene(verbs: Verbs) -> None:
    scene = verbs.add_parser(
        "scene",
        help="take a still of the empty room",
        description=(
            "Take a still of the empty room, on which silhouettes and faces are shown. It is taken without network, and"
            " shown to nobody before it is accepted."
        ),
        epilog=SCENE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    scene.add_argument(
        "step", choices=("take", "accept", "clear", "show"), help="take a proposal, accept it, clear both, or show both"
    )
    scene.add_argument(
        "--seconds", type=float, default=10, metavar="S", help="with take: how long to look at the room (default: 10)"
    )
    scene.add_argument("--json", action="store_true", help="print JSON")
    add_options(scene, SCENE_OPTIONS)


def _add_devices(verbs: Verbs) -> None:
    devices = verbs.add_parser("devices", help="list the cameras", description="List the cameras of this machine.")
    devices.add_argument("--json", action="store_true", help="print JSON")


def _add_inspect(verbs: Verbs) -> None:
    inspect = verbs.add_parser(
        "inspect",
        help="verify and describe a model file",
        description=(
            "Verify a model file and describe it, also one that may not run here: then the exit code is 4, and the"
            " network is not run."
        ),
    )
    inspect.add_argument(
        "model", type=Path, nargs="?", metavar="MODEL", help="an edgesan .onnx file (default: the configuration's)"
    )
    inspect.add_argument("--claims", action="store_true", help="list every measured figure")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    add_options(inspect, ("trusted_keys", "allow_unsigned"))


def _add_doctor(verbs: Verbs) -> None:
    doctor = verbs.add_parser(
        "doctor",
        help="check this machine",
        description="Check everything that could be wrong on this machine, and show how to fix it.",
    )
    doctor.add_argument("--json", action="store_true", help="print JSON")
    add_options(doctor, [f.name for f in dataclasses.fields(Config)])


def _add_bench(verbs: Verbs) -> None:
    bench = verbs.add_parser(
        "bench",
        help="measure the speed of this machine",
        description="Measure each stage, and glass to wire on this machine (about 5 minutes).",
        epilog=BENCH_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bench.add_argument(
        "--part",
        action="append",
        choices=("stages", "wire", "idle", "long"),
        help="measure only this part; repeatable (default: all but long)",
    )
    bench.add_argument("--seconds", type=float, default=8, metavar="S", help="length of each run (default: 8)")
    bench.add_argument("--minutes", type=float, default=10, metavar="M", help="length of --part long (default: 10)")
    bench.add_argument("--json", action="store_true", help="print JSON")
    add_options(bench, ("model", "threads", "detect_every", "trusted_keys", "allow_unsigned"))


def _add_keys(verbs: Verbs) -> None:
    keys = verbs.add_parser(
        "keys",
        help="list the trusted keys, or make a key",
        description=(
            "List the public keys whose models may run here: the bundled key, and trusted_keys of the configuration."
        ),
        epilog=KEYS_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    keys.add_argument("--json", action="store_true", help="print JSON")
    add_options(keys, ("trusted_keys",))
    new = keys.add_subparsers(dest="keys_verb", metavar="[new]").add_parser(
        "new",
        help="make a key pair",
        description="Make a key pair: NAME, which signs and must stay secret, and NAME.pub, which may be public.",
    )
    new.add_argument("name", type=Path, metavar="NAME", help="file of the private key; no file is overwritten")
    new.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")


def _add_sign(verbs: Verbs) -> None:
    sign = verbs.add_parser(
        "sign",
        help="sign a model file",
        description=(
            "Sign a model: write MODEL.sig over its exact bytes. Only a valid model is signed. Sign again after each"
            " change."
        ),
    )
    sign.add_argument("model", type=Path, metavar="MODEL", help="an edgesan .onnx file")
    sign.add_argument(
        "--key", type=Path, required=True, metavar="FILE", help="the private key, as `edgesan keys new` makes it"
    )
    sign.add_argument("--json", action="store_true", help="print JSON")


def _add_install(verbs: Verbs) -> None:
    install = verbs.add_parser(
        "install",
        help="replace the model of a running board",
        description="Verify a model, switch the board to it, watch its frames, and switch back if they stop.",
    )
    install.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="an edgesan .onnx file, with its signature beside it, or a repository, https://HOST/FOLDER",
    )
    install.add_argument(
        "--root",
        type=Path,
        metavar="FILE",
        help="root.json of a repository (default: the root that was seen last, or the first, by edgesan's keys)",
    )
    install.add_argument(
        "--configure",
        metavar="NAME",
        help="also take the configuration of this name from the repository, such as porch.toml",
    )
    install.add_argument(
        "--settle",
        action="store_true",
        help="instead of MODEL, at boot: switch back from a model whose watch was ended by a power cut",
    )
    install.add_argument(
        "--config", type=Path, metavar="FILE", help="the board's configuration (default: /etc/edgesan/edgesan.toml)"
    )
    install.add_argument(
        "--models", type=Path, metavar="FOLDER", help="folder that holds `current` (default: /var/lib/edgesan/models)"
    )
    install.add_argument(
        "--watch", type=float, default=60, metavar="SECONDS", help="how long frames must come (default: 60)"
    )
    install.add_argument(
        "--restart", metavar="COMMAND", help="command that restarts the sanitize unit (default: by systemctl)"
    )


def _add_flash(verbs: Verbs) -> None:
    flash = verbs.add_parser(
        "flash",
        help="write an image onto a card",
        description="Write an image and the settings of a board onto a card, and read it back. Alone, list the cards.",
        epilog=FLASH_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flash.add_argument(
        "image",
        type=Path,
        nargs="?",
        metavar="IMAGE",
        help="an .img, .img.xz or .img.zst with a partition table; the .bmap beside it is used",
    )
    flash.add_argument("device", type=Path, nargs="?", metavar="DEVICE", help="a card; system disks are refused")
    flash.add_argument(
        "--settings", type=Path, metavar="FILE", help="host name, Wi-Fi, keys, options: see firmware_config/README.md"
    )
    flash.add_argument("--dry-run", action="store_true", help="show what would be written, and write nothing")
    flash.add_argument("--yes", action="store_true", help="do not ask")
    flash.add_argument(
        "--to-file", action="store_true", help="DEVICE is an ordinary file, to be made, or overwritten after a yes"
    )


def _add_help(verbs: Verbs) -> None:
    explain = verbs.add_parser("help", help="explain a verb", description="Explain edgesan, or one verb of it.")
    explain.add_argument("topic", nargs="?", metavar="VERB", help="the verb (default: all of them in short)")


def _add_completion(verbs: Verbs) -> None:
    completion = verbs.add_parser(
        "completion",
        help="completion for a shell",
        description="Print the script that completes verbs and options when the Tab key is pressed.",
        epilog=COMPLETION_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell")


def add_options(verb: argparse.ArgumentParser, names: list[str] | tuple[str, ...]) -> None:
    """Add `--name` for fields of Config. None means "not given", so that the value of the TOML file holds."""
    verb.add_argument("--config", type=Path, metavar="FILE", help=CONFIG_HELP)
    for f in dataclasses.fields(Config):
        if f.name not in names or f.name.startswith("log_"):  # every verb has those
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
            type=str if many else kind_of(f.name),
            action="append" if many else "store",
            metavar=f.metadata["metavar"],
            help=f.metadata["help"].replace("%", "%%") + shown,
        )


def _add_logging(verb: argparse.ArgumentParser) -> None:
    """Add the options of the log, which every verb has."""
    group = verb.add_argument_group("log")
    group.add_argument(
        "-v", "--verbose", dest="log_level", action="store_const", const="debug", help="say more on standard error"
    )
    group.add_argument(
        "-q", "--quiet", dest="log_level", action="store_const", const="warning", help="say only what is wrong"
    )
    for name, known in (("log_level", log.LEVELS), ("log_format", log.FORMATS)):
        field = Config.__dataclass_fields__[name]
        group.add_argument(
            f"--{name.replace('_', '-')}", choices=known, metavar=field.metadata["metavar"], help=field.metadata["help"]
        )


def _text(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def configuration(arguments: argparse.Namespace) -> Config:
    """Return the configuration of the arguments, and of the file that `--config` names or that is found.

    A verb without the option `out` serves nothing, and needs neither token nor certificate.

    Raises:
        ConfigError: an option is wrong, or the camera's URL.
    """
    known = {f.name for f in dataclasses.fields(Config)}
    given = {k: v for k, v in vars(arguments).items() if k in known and v is not None}
    serving = {} if "out" in arguments else {"role": "sanitize"}
    path = arguments.config or found(os.environ)
    config = load(path, {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()} | serving)
    if "camera" in arguments and config.camera_is_url:
        from edgesan.fetch.address import parts_of

        parts_of(config.camera)  # so that a wrong one is a single message, before anything starts
    log.configure(config.log_level, config.log_format)
    logger.debug("the configuration is %s", path or "the default one: no file was found")
    return config


def board_configuration(arguments: argparse.Namespace) -> Config:
    """Return the configuration; on a board, with what only root can read beside it, so that nobody need type it."""
    path = arguments.config or found(os.environ)
    for name, value in (of_board(path) if path else {}).items():
        if getattr(arguments, name, None) is None and f"{VARIABLE}{name.upper()}" not in os.environ:
            setattr(arguments, name, value)
    return configuration(arguments)


def _open_closed_streams() -> None:
    """Open the null device where a standard stream is closed: else a pipe of ours would get its number."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # standard error
        os.set_inheritable(number, True)
    os.close(number)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)  # None where it was closed


def main(argv: list[str] | None = None) -> int:
    """Run the command line, and return the exit code: see `edgesan.errors`."""
    _open_closed_streams()
    log.configure("info", "text")
    verbs = {
        "run": _run,
        "sanitize": _sanitize,
        "scene": _scene,
        "devices": _devices,
        "inspect": _inspect,
        "doctor": _doctor,
        "bench": _bench,
        "keys": _keys,
        "sign": _sign,
        "install": _install,
        "flash": _flash,
        "help": _help,
        "completion": _completion,
        None: _help,
    }
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        log.configure(arguments.log_level or "info", arguments.log_format or "text")
        return verbs[arguments.verb](arguments)
    except EdgesanError as error:
        logger.error("%s", error)
        return error.exit_code
    except KeyboardInterrupt:
        logger.error("interrupted")
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)  # so that the loop of a shell ends, too
        return 128 + signal.SIGINT
    except SystemExit:
        with _until_read():
            sys.stdout.flush()  # --help | head
        raise


# Each verb imports what it needs, so that a quick answer does not wait for onnxruntime.


def _run(arguments: argparse.Namespace) -> int:
    from edgesan import fetch
    from edgesan.supervisor import Supervisor
    from edgesan.watchdog import Watchdog

    def camera_configuration() -> Config:
        """Return the options of a run, also after SIGHUP."""
        config = configuration(arguments)
        if config.background == "keep":
            raise ConfigError(
                'background is "keep": a camera never sends raw surroundings; write "plain"'
                " (for a file of your own there is `edgesan sanitize --background keep IN OUT`)"
            )
        return config

    config = camera_configuration()
    if config.role == "fetch":
        return fetch.serve(config.camera, required=config.require_isolation)
    with closing(Watchdog(os.environ)) as watchdog:
        return Supervisor(config, watchdog, camera_configuration).run()


def _is_folder(out: str, inputs: list[Path]) -> bool:
    """Return whether OUT is a folder: where it is one, ends in a slash, or more than one file may go there.

    Raises:
        ConfigError: it is a file, or has the name of one.
    """
    output = Path(out)
    if len(inputs) == 1 and not inputs[0].is_dir() and not output.is_dir() and not out.endswith("/"):
        return False
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{output} is a file: for a folder, or several files, name a folder")
    names_a_file = output.suffix.lower() in (*PICTURE_SUFFIXES, *FILE_SUFFIXES)
    if names_a_file and not output.exists() and not out.endswith("/"):
        raise ConfigError(
            f"{output} has the name of a file, and several files or those of a folder go into a folder: name one, such"
            f" as {output.with_suffix('')}"
        )
    return True


def _sanitize(arguments: argparse.Namespace) -> int:
    from edgesan import isolation
    from edgesan.model import rollback

    config, inputs, output = configuration(arguments), arguments.inputs, Path(arguments.output)
    state = rollback.state_folder(config.state_dir, os.environ)
    many = _is_folder(arguments.output, inputs)
    folder = output.absolute() if many else output.absolute().parent
    for made, option in ((state, "--state-dir, for the record of model versions"), *([(folder, "OUT")] * many)):
        try:
            made.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make {made}: {error.strerror}; name a folder of your own, {option}") from error
    reads = [*config.model_folders, *(path.absolute() for path in inputs)]
    claims = isolation.sanitize(reads, [folder, state])
    from edgesan import files

    if config.require_isolation:
        isolation.require(claims)
    elif not all(claim.holds for claim in claims):
        logger.warning("%s; see `edgesan doctor`", isolation.summary(claims))
    jobs = files.plan(inputs, output)
    sanitize = files.FileSanitizer(config, force=arguments.force, stats=arguments.stats, audio=arguments.audio)
    if not many:
        report = sanitize(*jobs[0])
        say(json.dumps(report.as_dict()) if arguments.json else report.text())
        return 0
    code = 0
    for job in jobs:
        if job.target.exists() and not arguments.force:
            logger.info("%s exists, and stays as it is (--force overwrites it)", job.target)
            continue
        job.target.parent.mkdir(parents=True, exist_ok=True)
        try:
            report = sanitize(*job)
        except CameraError as error:  # the others may be whole
            logger.error("%s", error)
            code = error.exit_code
            continue
        names = {"source": str(job.source), "target": str(job.target)}
        say(json.dumps(names | report.as_dict()) if arguments.json else f"{job.target}: {report.text()}")
    return code


def _scene(arguments: argparse.Namespace) -> int:
    from edgesan import owner

    step = arguments.step
    config = board_configuration(arguments) if step == "take" else configuration(arguments)
    if not 1 <= arguments.seconds <= 600:
        raise ConfigError(f"--seconds is {arguments.seconds:g}: it must lie between 1 and 600")
    answer = {}
    if step == "take":
        path = owner.take(config, arguments.seconds)
        text = f"{path}: look at it; everybody who watches will see it. Then: edgesan scene accept"
    elif step == "accept":
        path = owner.accept(config)
        text = (
            f"{path} is in force. A run that goes on takes it up when it is sent SIGHUP, or started again. From then on"
            " people are silhouettes. They show who moves where, and something about the gender (docs/audit.md)."
        )
        if config.background != "scene":
            text += f' But background is "{config.background}": write "scene"'
    elif step == "clear":
        gone = owner.clear(config)
        text = "\n".join(f"{path}: removed" for path in gone) or "there was no still"
        text += "\na run that goes on shows it until it is sent SIGHUP, or started again" if gone else ""
        answer = {"removed": [str(path) for path in gone]}
    found = owner.facts(config)
    if step == "show":
        text = owner.text(found)
    say(json.dumps(found | answer, indent=2) if arguments.json else text)
    return 0


def _devices(arguments: argparse.Namespace) -> int:
    from edgesan.capture import devices

    found = devices.list_devices()
    say(json.dumps([dataclasses.asdict(d) for d in found], indent=2) if arguments.json else devices.table(found))
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    from edgesan.model import inspect

    found = inspect.facts(configuration(arguments))
    say(inspect.as_json(found) if arguments.json else inspect.text(found, every_claim=arguments.claims))
    return 0 if found["runs_here"] else ModelError.exit_code


def _doctor(arguments: argparse.Namespace) -> int:
    from edgesan.board import doctor

    findings = doctor.examine(board_configuration(arguments))
    say(doctor.to_json(findings) if arguments.json else doctor.render(findings))
    return 1 if any(finding.level == "fail" for finding in findings) else 0


def _bench(arguments: argparse.Namespace) -> int:
    from edgesan import bench

    parts = tuple(arguments.part or ("stages", "wire", "idle"))
    results = bench.run(parts, configuration(arguments), arguments.seconds, arguments.minutes)
    say(json.dumps(bench.plain(results), indent=1) if arguments.json else bench.text(results))
    return 0


def _keys(arguments: argparse.Namespace) -> int:
    from edgesan.model import signing

    if arguments.keys_verb == "new":
        key = signing.new_key(arguments.name)
        public = signing.public_path(arguments.name)
        facts = {"private": str(arguments.name), "public": str(public), "fingerprint": key.fingerprint, "key": key.line}
        text = (
            f"{arguments.name}: the private key. Keep it secret. To sign: edgesan sign MODEL --key {arguments.name}\n"
            f"{public}: the public key, {key.fingerprint}\n"
            "Devices run what it signs once this line is in their configuration (--config FILE):\n\n"
            f"trusted_keys = [{json.dumps(key.line)}]"
        )
        say(json.dumps(facts, indent=2) if arguments.json else text)
        return 0
    trusted = [("bundled", key) for key in signing.bundled()]
    trusted += [("trusted_keys", key) for key in signing.configured(configuration(arguments).trusted_keys)]
    if arguments.json:
        rows = [{"origin": o, "fingerprint": k.fingerprint, "name": k.name, "key": k.line} for o, k in trusted]
        say(json.dumps(rows, indent=2))
    else:
        say("\n".join(f"{origin:<12}  {key}" for origin, key in trusted))
    return 0


def _sign(arguments: argparse.Namespace) -> int:
    from edgesan.model import signing
    from edgesan.model.load import prepare, read

    private = signing.private_key(arguments.key)
    content = read(arguments.model)
    facts = prepare(arguments.model, content).metadata
    path = signing.sign(arguments.model, content, private)
    say(
        json.dumps({"signature": str(path), "fingerprint": signing.public_half(private).fingerprint})
        if arguments.json
        else f"{path}: {facts.name} version {facts.version}, signed by {signing.public_half(private).fingerprint}"
    )
    return 0


def _install(arguments: argparse.Namespace) -> int:
    from edgesan.board import settings, update

    if arguments.settle == (arguments.model is not None):
        raise ConfigError("name the model to install: edgesan install MODEL (or give --settle alone, at boot)")
    if "://" not in (arguments.model or "") and (arguments.root or arguments.configure):
        raise ConfigError("--root and --configure are for a repository: edgesan install https://HOST/FOLDER")
    path = arguments.config or settings.CONFIG
    config = load(path, of_board(path))
    models = arguments.models or settings.MODELS
    if arguments.settle:
        say(update.settle(config, models))
        return 0
    command, watching = shlex.split(arguments.restart or update.RESTART), update.Watch(arguments.watch)
    if "://" in arguments.model:
        from edgesan.board import repository  # loads python-tuf

        say(repository.install(arguments.model, arguments.root, config, models, command, watching))
        if arguments.configure:
            both = shlex.split(arguments.restart or update.RESTART_BOTH)
            content = repository.fetch_config(arguments.model, arguments.root, arguments.configure, config, models)
            say(update.configure(content, path, both, watching))
    else:
        say(update.install(Path(arguments.model), config, models, command, watching))
    return 0


def _flash(arguments: argparse.Namespace) -> int:
    from edgesan.board import flash

    if arguments.image is None or arguments.device is None:
        if arguments.image is not None:
            flash.check_table(arguments.image)
            raise ConfigError(
                f"name the card, too: edgesan flash {arguments.image} DEVICE; `edgesan flash` lists the cards"
            )
        say(flash.table(flash.list_devices()))
        return 0
    options = flash.Options(dry_run=arguments.dry_run, to_file=arguments.to_file, yes=arguments.yes)
    say(flash.flash(arguments.image, arguments.device, arguments.settings, options))
    return 0


def _help(arguments: argparse.Namespace) -> int:
    main_parser, topic = parser(), getattr(arguments, "topic", None)
    verbs = verb_parsers(main_parser)
    if topic and topic not in verbs:
        raise ConfigError(f"there is no `edgesan {topic}`; {_suggest(topic, verbs)}")
    say((verbs[topic] if topic else main_parser).format_help().rstrip())
    return 0


def _completion(arguments: argparse.Namespace) -> int:
    import shtab

    main_parser = parser()
    for verb in verb_parsers(main_parser).values():
        for action in verb._actions:
            if action.type is Path or action.dest == "output":
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    say(shtab.complete(main_parser, arguments.shell))
    return 0


if __name__ == "__main__":
    sys.exit(main())
