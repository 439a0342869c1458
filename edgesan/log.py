"""Log to standard error by the standard `logging`: lines for people, or a JSON object a line for programs."""

import json
import logging
import time
from typing import Final

LEVELS: Final = ("debug", "info", "warning", "error")
FORMATS: Final = ("text", "json")


class TextFormatter(logging.Formatter):
    """`edgesan: MESSAGE`. A warning says that it is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        mark = "WARNING: " if record.levelno == logging.WARNING else ""
        return f"edgesan: {mark}{super().format(record)}"


class JsonFormatter(logging.Formatter):
    """An object with the time (RFC 3339, UTC), level, logger, number of the process, and message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object of a record, in one line."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        return json.dumps(
            {
                "time": f"{at}.{int(record.msecs):03}Z",
                "level": record.levelname.lower(),
                "logger": record.name,
                "pid": record.process,
                "message": super().format(record),
            },
            ensure_ascii=False,
        )


def configure(level: str, form: str) -> None:
    """Log what edgesan says from this level on, and warnings of the libraries.

    Args:
        level: one of LEVELS.
        form: one of FORMATS.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    least = getattr(logging, level.upper())
    logging.basicConfig(level=max(least, logging.WARNING), handlers=[handler], force=True)
    logging.getLogger("edgesan").setLevel(least)
