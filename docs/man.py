"""Write docs/edgesan.1, the man page, from the parsers of the command line: python docs/man.py."""

import argparse
from collections.abc import Iterable
from pathlib import Path

from edgesan import __version__
from edgesan.cli import parser, verb_parsers

LOG = ("log_level", "log_format")
PAGE = Path(__file__).with_name("edgesan.1")
FILES = {
    "~/.config/edgesan/edgesan.toml": "the configuration of a user, or the same below $XDG_CONFIG_HOME",
    "/etc/edgesan/edgesan.toml": "the configuration of the system, where the user has none",
    "~/.local/state/edgesan/scene.png": "the still of the scene, or the same below $XDG_STATE_HOME",
}


def escaped(text: str) -> str:
    """Escape what roff(7) would take for its own: backslashes, hyphens, and dots at the start of a line."""
    lines = text.replace("\\", "\\e").replace("-", "\\-").splitlines()
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in lines)


def options(actions: Iterable[argparse.Action]) -> list[str]:
    """Return arguments and options, each with its help."""
    lines = []
    for action in actions:
        if action.help in (None, argparse.SUPPRESS) or isinstance(action, argparse._HelpAction):
            continue
        if action.option_strings:
            value = f" {action.metavar or action.dest.upper()}" if action.nargs != 0 else ""
            name = ", ".join(f"\\fB{escaped(each)}\\fR{escaped(value)}" for each in action.option_strings)
        else:
            name = f"\\fI{escaped(str(action.metavar or action.dest))}\\fR"
        lines += [".TP", name, escaped((action.help or "").replace("%%", "%"))]
    return lines


def page() -> str:
    """Return the man page as roff."""
    main_parser = parser()
    examples, _, rest = str(main_parser.epilog).partition("\n\n")
    lines = [
        '.\\" Written by docs/man.py.',
        f'.TH EDGESAN 1 "" "edgesan {__version__}" "User Commands"',
        ".SH NAME",
        "edgesan \\- a camera that sanitizes every face before anything leaves it",
        ".SH SYNOPSIS",
        ".B edgesan\n.I VERB\n[options]",
        ".SH DESCRIPTION",
        escaped(str(main_parser.description)),
        ".SH VERBS",
    ]
    verbs = verb_parsers(main_parser)
    for name, verb in verbs.items():
        own = [action for action in verb._actions if action.dest not in LOG]
        lines += [f".SS edgesan {name}", escaped(str(verb.description)), *options(own)]
    lines += [".SH LOG", "Every verb has these options."]
    lines += options(action for action in verbs["run"]._actions if action.dest in LOG)
    lines += [".SH FILES"]
    for path, what in FILES.items():
        lines += [".TP", f"\\fI{escaped(path)}\\fR", escaped(what)]
    lines += [".SH NOTES", ".nf", escaped(rest.rstrip()), ".fi", ".SH EXAMPLES", ".nf"]
    lines += [escaped(examples.partition("\n")[2]), ".fi"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
